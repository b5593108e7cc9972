"""Compare two training runs: settings, validation scores, results.

A run is read from its bundle, or from its run directory (`training.checkpoint`), which may be unfinished. Only the
bundle has test results.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from contract import bundle as files
from contract.errors import ConfigError
from training.checkpoint import CONFIG, METRICS, ORIGIN, hash_split
from training.config.toml_file import flatten_settings, read_toml

FIGURES: Final = ("auroc", "ap", "f1")
_LEARNED: Final = "model.vocabulary_size"  # requested size in a run directory, actual size in a bundle

Interval = Mapping[str, float]  # "value", "low" and "high"


@dataclass(frozen=True)
class TrainingRun:
    """One training run.

    Attributes:
        path: The bundle, or the run directory.
        kind: "bundle" or "run".
        settings: Dotted name -> value, without settings of None.
        history: One `EpochReport` as a dict per epoch, by epoch.
        test: Way -> metric -> macro mean with its interval; only in a bundle.
        seconds: Duration of the run.
        device: Device of the run, if known.
        data_sha256: SHA-256 of the studies table, if known.
        split_sha256: SHA-256 of the split, if known.
        split: Part -> study ids; only in a bundle.
    """

    path: Path
    kind: Literal["bundle", "run"]
    settings: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    test: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    seconds: float | None = None
    device: str | None = None
    data_sha256: str | None = None
    split_sha256: str | None = None
    split: Mapping[str, frozenset[str]] | None = None

    @property
    def scores(self) -> dict[int, float]:
        """Validation score of each validated epoch."""
        return {
            entry["epoch"]: entry["validation"]["score"]
            for entry in self.history
            if "score" in entry.get("validation", {})
        }

    @property
    def best(self) -> tuple[int, float] | None:
        """The epoch with the highest validation score (the later one if equal), and that score."""
        return max(self.scores.items(), key=lambda entry: (entry[1], entry[0]), default=None)


@dataclass(frozen=True)
class Difference:
    """One figure of both runs.

    Attributes:
        a: Value of the first run, with its interval; None if it was not measured.
        b: Value of the second run.
        change: b - a; None if one is missing or the runs used different studies.
    """

    a: Interval | None
    b: Interval | None
    change: float | None


@dataclass(frozen=True)
class Comparison:
    """Two runs and their differences.

    Attributes:
        a: The first run.
        b: The second.
        settings: Dotted name -> values in a and b, for settings that differ; None if a run lacks the setting.
        scores: Epoch, validation score of a and of b, for each epoch that at least one run validated.
        test: Way -> metric -> macro means on the test split.
        notes: Warnings about comparing the figures, one sentence each.
    """

    a: TrainingRun
    b: TrainingRun
    settings: Mapping[str, tuple[Any, Any]]
    scores: Sequence[tuple[int, float | None, float | None]]
    test: Mapping[str, Mapping[str, Difference]]
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but study ids, for JSON."""
        return {
            "a": _describe(self.a),
            "b": _describe(self.b),
            "settings": {name: list(values) for name, values in self.settings.items()},
            "scores": [dict(zip(("epoch", "a", "b"), row, strict=True)) for row in self.scores],
            "test": {
                way: {name: asdict(figure) for name, figure in figures.items()}
                for way, figures in self.test.items()
            },
            "notes": list(self.notes),
        }


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare two runs.

    The test figures have 95 % intervals. These do not show whether a difference is significant: two intervals can
    overlap although one run is a little better on every study. A paired test would need the predictions for each study,
    which runs do not keep.

    Args:
        a: A bundle or a run directory.
        b: Another bundle or run directory.

    Raises:
        ConfigError: A path is neither, or a file in it is damaged.
    """
    first, second = read_run(a), read_run(b)
    same = _compare_studies(first, second)
    epochs = sorted({*first.scores, *second.scores})
    names = sorted({*first.settings, *second.settings} - ({_LEARNED} if first.kind != second.kind else set()))
    settings = {name: (first.settings.get(name), second.settings.get(name)) for name in names}
    return Comparison(
        first,
        second,
        {name: values for name, values in settings.items() if values[0] != values[1]},
        [(epoch, first.scores.get(epoch), second.scores.get(epoch)) for epoch in epochs],
        {
            way: {name: _compare_figure(first, second, way, name, same["test"] is True) for name in FIGURES}
            for way in dict.fromkeys((*first.test, *second.test))
        },
        _write_notes(first, second, same),
    )


def read_run(path: Path) -> TrainingRun:
    """Read a bundle or a run directory.

    Raises:
        ConfigError: The path is neither, or a file in it is damaged.
    """
    try:
        if all((path / name).is_file() for name in (files.MANIFEST, files.CONFIG, files.METRICS)):
            return _read_bundle(path)
        if (path / CONFIG).is_file() and (path / ORIGIN).is_file():
            return _read_directory(path)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: a file is missing or has wrong content.") from error
    raise ConfigError(f"{path} is neither a bundle nor the run directory of `cxr train`.")


def _read_bundle(path: Path) -> TrainingRun:
    config, metrics, manifest = (
        _read_json(path / name) for name in (files.CONFIG, files.METRICS, files.MANIFEST)
    )
    split = _read_json(path / files.SPLIT)
    return TrainingRun(
        path,
        "bundle",
        settings=_drop_unset({**config["training"], "model": config["model"]}),
        history=_order(metrics["history"]),
        test={way: result["macro"] for way, result in metrics["test"].items()},
        seconds=manifest["seconds"],
        device=manifest["device"],
        data_sha256=manifest["data_sha256"],
        split_sha256=hash_split(split),
        split={part: frozenset(ids) for part, ids in split.items()},
    )


def _read_directory(path: Path) -> TrainingRun:
    lines: list[str] = []
    if (path / METRICS).is_file():
        lines = (path / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    history = _order([_parse(line, path / METRICS) for line in lines])
    origin = _read_json(path / ORIGIN)
    return TrainingRun(
        path,
        "run",
        settings=_drop_unset(read_toml(path / CONFIG)),
        history=history,
        seconds=history[-1]["seconds"] if history else None,
        data_sha256=origin.get("table"),
        split_sha256=origin.get("split"),
    )


def _drop_unset(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flatten_settings(config).items() if value is not None}


def _order(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort by epoch. If an epoch was repeated after a resume, keep the later one."""
    return [entry for _, entry in sorted({entry["epoch"]: entry for entry in history}.items())]


def _read_json(path: Path) -> dict[str, Any]:
    return _parse(path.read_text(encoding="utf-8", errors="replace"), path)


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {str(error).rstrip('.')}.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is damaged: it is not a JSON object.")
    return value


def _compare_studies(a: TrainingRun, b: TrainingRun) -> dict[str, bool | None]:
    """Return whether the studies of each part, and their table, are the same; None if unknown."""
    if None in (a.data_sha256, b.data_sha256, a.split_sha256, b.split_sha256):
        return dict.fromkeys(files.PARTS)
    if a.data_sha256 != b.data_sha256:
        return dict.fromkeys(files.PARTS, False)
    if a.split_sha256 == b.split_sha256:
        return dict.fromkeys(files.PARTS, True)
    if a.split is None or b.split is None:
        return dict.fromkeys(files.PARTS)
    return {part: a.split.get(part) == b.split.get(part) for part in files.PARTS}


def _compare_figure(a: TrainingRun, b: TrainingRun, way: str, name: str, comparable: bool) -> Difference:
    first, second = (run.test.get(way, {}).get(name) for run in (a, b))
    if first is None or second is None or not comparable:
        return Difference(first, second, None)
    return Difference(first, second, round(second["value"] - first["value"], 4))


def _write_notes(a: TrainingRun, b: TrainingRun, same: Mapping[str, bool | None]) -> list[str]:
    notes = [
        f"{run.path} is a run directory. Only a bundle has test figures."
        for run in (a, b)
        if run.kind == "run"
    ]
    if None not in (a.data_sha256, b.data_sha256) and a.data_sha256 != b.data_sha256:
        return [*notes, "The studies tables differ, so no figures can be compared."]
    if None in same.values():
        reason = "differ" if a.split_sha256 and b.split_sha256 else "are not recorded"
        return [*notes, f"The splits {reason}, so the figures may come from different studies."]
    notes += [
        f"The {part} studies differ, so {figures} cannot be compared."
        for part, figures in (("validation", "validation scores"), ("test", "test figures"))
        if not same[part]
    ]
    if not same["train"]:
        notes.append("The training studies differ.")
    return notes


def _describe(run: TrainingRun) -> dict[str, Any]:
    best = run.best
    return {
        "path": str(run.path),
        "kind": run.kind,
        "seconds": run.seconds,
        "device": run.device,
        "data_sha256": run.data_sha256,
        "split_sha256": run.split_sha256,
        "best": {"epoch": best[0], "score": best[1]} if best else None,
        "settings": dict(run.settings),
        "history": [dict(entry) for entry in run.history],
        "test": {way: dict(figures) for way, figures in run.test.items()},
    }
