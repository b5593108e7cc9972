"""Fit calibration, thresholds and bands of a bundle on a lab's own studies, and write a new bundle.

If findings are rarer or more frequent, or scanners differ, a model may still rank studies well while its probabilities
and thresholds are wrong. The trained weights stay. Only the steps after the logits are fitted again.
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
from training.known_studies import find_known, list_known_ids
from training.model.model import CxrModel, load_model
from training.save import write_bundle
from training.validate import Examined, predict_rows, read_calibration, set_calibration

Progress = Callable[[int, int], None]
# Metrics that depend on thresholds or probabilities, not only on the ranking.
_DECIDED: Final = frozenset(["f1", "brier", "ece"])


@dataclass(frozen=True)
class RefittedWay:
    """The result for one way to read a study: the number of studies, and the labels that keep their old values."""

    studies: int
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Recalibrated:
    """A recalibrated bundle.

    Attributes:
        bundle: Its directory.
        fingerprint: Fingerprint of the new bundle.
        source: Fingerprint of the old bundle.
        ways: Way -> result of the fit.
        left_out: Number of labelled studies of patients in the model's training or test data.
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
    """Fit calibration, thresholds and bands on the labelled studies of a table. The old bundle does not change.

    Each way that the model was trained for is fitted if there are studies for it. Other ways keep their values. A label
    that fewer than `training.evaluation.labels.MIN_POSITIVES` studies have, or lack, keeps its old values.

    Patients of the model's training or test data, in the same collection, are left out: the model knows the training
    studies, and the card's figures need the test studies.

    Args:
        bundle: A verified bundle.
        table: Studies table.
        out: Bundle directory. It must not exist. On an error nothing is written.
        cache: Image cache of the table.
        progress: Called with the number of images read and their total, then with studies predicted and their total.

    Raises:
        ConfigError: The model can read no remaining study, `out` exists, the bundle does not record its training, or
            the table or the cache cannot be used.
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
        logits, rows_of_way = predictions[way]
        decisions[way], kept = _refit_way(
            model,
            way,
            logits,
            (studies.targets[rows_of_way], studies.known[rows_of_way]),
            bundle.decisions.of(way),
        )
        ways[way] = RefittedWay(len(rows_of_way), kept)
    if all(len(way.kept) == len(LABELS) for way in ways.values()):
        raise ConfigError(
            f"{table} has too few labelled studies to calibrate on. No label has enough positive and negative studies."
        )
    fingerprint = _write(bundle, model, Decisions(decisions), table, out, ways)
    return Recalibrated(out, fingerprint, bundle.fingerprint, ways, left_out)


def _choose_rows(bundle: Bundle, table: Path, studies: StudySet) -> tuple[NDArray[np.int64], int]:
    """Return the labelled studies to fit on, and the number of studies left out because the model knows them."""
    if not studies.labelled.any():
        raise ConfigError(f"{table} holds no labelled study to calibrate on.")
    known_ids = list_known_ids(bundle, table, ("train", "test"))
    known = find_known(known_ids, studies.study_ids, studies.patient_ids)
    rows = np.flatnonzero(studies.labelled & ~known)
    if not len(rows):
        raise ConfigError(
            f"{table} holds only labelled studies from the training or test data of {bundle.path}. Calibrate on "
            "your own studies."
        )
    return rows, int((studies.labelled & known).sum())


def _refit_way(
    model: CxrModel,
    way: str,
    logits: NDArray[np.float32],
    answers: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    old: tuple[ServedLabel, ...],
) -> tuple[tuple[ServedLabel, ...], tuple[str, ...]]:
    """Fit one way and set its calibration in the model; return its labels and the keys of the labels kept as before."""
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
    """Return metrics without the figures that depend on the old thresholds and calibration."""
    if not isinstance(value, dict):
        return value
    return {key: _drop_decided(inner) for key, inner in value.items() if key not in _DECIDED}
