"""Calibration, thresholds and bands of a bundle, fitted anew on a lab's own studies and written as a new bundle.

Where findings are rarer or more frequent, or scanners differ, a model may sort studies as well as before while its
probabilities and thresholds are wrong. The trained weights stay as they are; what follows the logits is fitted again.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from contract import bundle as files
from contract.bundle import Bundle
from contract.decisions import Decisions, ServedLabel
from contract.errors import ConfigError
from contract.labels import LABELS
from contract.report.text import ReportTokenizer
from contract.training_data import WAYS
from training.config.toml_file import read_train_config
from training.data.openi import read_collection
from training.data.studies import StudySet, read_studies
from training.evaluation.decisions import refit_decisions
from training.model.model import CxrModel, load_model
from training.save import write_bundle
from training.validate import Examined, predict_rows, read_calibration, set_calibration

Progress = Callable[[int, int], None]
_DECIDED: Final = frozenset(
    ["f1", "brier", "ece"]
)  # figures of thresholds and probabilities, not of the order


@dataclass(frozen=True)
class RefittedWay:
    """How one way to read a study was fitted anew: on how many studies, and which labels kept their old values."""

    studies: int
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Recalibrated:
    """A bundle that was calibrated anew.

    Attributes:
        bundle: Its directory.
        fingerprint: Of the new bundle.
        source: Fingerprint of the bundle that it was made from.
        ways: Way -> what was fitted.
        left_out: Studies of the table that the model was trained or tested with.
    """

    bundle: Path
    fingerprint: str
    source: str
    ways: Mapping[str, RefittedWay]
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {**asdict(self), "bundle": str(self.bundle)}


def recalibrate(
    bundle: Bundle, table: Path, out: Path, *, cache: Path | None = None, progress: Progress | None = None
) -> Recalibrated:
    """Fit calibration, thresholds and bands on the labelled studies of a table; the old bundle is left untouched.

    Each way that the model was trained for is fitted where studies can be read in it; the others keep what they had.
    A label with fewer than `training.evaluation.labels.MIN_POSITIVES` studies with or without it keeps its old values.
    Studies that the model was trained or tested with, in the same collection, are left out: the model knows the
    first, and the figures of the card need the others.

    Args:
        bundle: A verified bundle.
        table: Studies table.
        out: Bundle directory; must not exist. It appears complete or, on any error, not at all.
        cache: Image cache of the table.
        progress: Called with images read and images in all, then with studies asked and studies in all.

    Raises:
        ConfigError: No study is left that the model can read, `out` exists, the bundle does not record its training,
            or the table or the cache cannot be used.
        ArtifactError: The table, the cache or the weights are damaged, or the bundle could not be written.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already.")
    config, model = read_train_config(bundle.config), load_model(bundle)
    studies = read_studies(table, config.data.text_mode, config.model.image_size, progress, cache=cache)
    rows, left_out = _choose_rows(bundle, table, studies)
    tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictions = predict_rows(
        Examined(config, studies, tokenizer, {}), model.to(device), rows, progress=progress
    )
    decisions, ways = dict(bundle.decisions.ways), {}
    for way in (way for way in bundle.trained_ways if way in predictions):
        logits, places = predictions[way]
        decisions[way], kept = _refit_way(
            model, way, logits, (studies.targets[places], studies.known[places]), bundle.decisions.of(way)
        )
        ways[way] = RefittedWay(len(places), kept)
    if all(len(found.kept) == len(LABELS) for found in ways.values()):
        raise ConfigError(
            f"{table} has too few labelled studies to calibrate on: no label has enough with and without it."
        )
    fingerprint = _write(bundle, model, Decisions(decisions), table, out, ways)
    return Recalibrated(out, fingerprint, bundle.fingerprint, ways, left_out)


def _choose_rows(bundle: Bundle, table: Path, studies: StudySet) -> tuple[NDArray[np.int64], int]:
    """Return the labelled studies to fit on, and how many were left out because the model knows them."""
    labelled = np.flatnonzero(studies.labelled)
    known: set[str] = set()
    if read_collection(table) == bundle.manifest.get("data_source"):
        known = {study_id for part in ("train", "test") for study_id in bundle.split.get(part, ())}
    rows = np.array([row for row in labelled if studies.study_ids[row] not in known], np.int64)
    if not len(rows):
        raise ConfigError(
            f"{table} holds no labelled study but those that {bundle.path} was trained and tested with: calibrate on "
            "studies of your own."
        )
    return rows, len(labelled) - len(rows)


def _refit_way(
    model: CxrModel,
    way: str,
    logits: NDArray[np.float32],
    answers: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    old: tuple[ServedLabel, ...],
) -> tuple[tuple[ServedLabel, ...], tuple[str, ...]]:
    """Fit one way, calibration into the model; return its labels and the keys of those that keep their values."""
    targets, known = answers
    labels, kept = refit_decisions(logits, targets, old, *read_calibration(model, way), known=known)
    scale, bias = (np.array([getattr(x, name) for x in labels], np.float32) for name in ("scale", "bias"))
    set_calibration(model, way, scale, bias)
    return labels, kept


def _write(
    bundle: Bundle,
    model: CxrModel,
    decisions: Decisions,
    table: Path,
    out: Path,
    ways: Mapping[str, RefittedWay],
) -> str:
    """Write the new bundle and return its fingerprint."""
    metrics = json.loads((bundle.path / files.METRICS).read_text(encoding="utf-8"))
    details = {key: value for key, value in bundle.manifest.items() if key not in {"files", "fingerprint"}}
    details["calibration"] = {
        "from": bundle.fingerprint,
        "data_sha256": files.compute_sha256(table),
        "data_source": read_collection(table),
        "ways": {way: asdict(ways[way]) for way in WAYS if way in ways},
    }
    with files.write_directory(out) as scratch:
        (scratch / files.TOKENIZER).write_bytes(bundle.tokenizer_path.read_bytes())
        write_bundle(
            scratch,
            read_train_config(bundle.config),
            model,
            split_ids=bundle.split,
            decisions=decisions,
            metrics=_drop_decided(metrics),
            details=details,
        )
    return files.load_bundle(out).fingerprint


def _drop_decided(value: Any) -> Any:
    """Return metrics without the figures that rest on the old thresholds and calibration."""
    if not isinstance(value, dict):
        return value
    return {key: _drop_decided(inner) for key, inner in value.items() if key not in _DECIDED}
