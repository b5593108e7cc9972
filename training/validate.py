"""A model's answers to a part of the split while it is trained: scores, calibration, thresholds, final figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.labels import LABEL_KEYS, LABELS
from contract.text import ReportTokenizer
from contract.training_data import WAYS
from training.batch import choose_batch, iterate_in_order, make_batch
from training.calibrate import apply_platt, fit_platt
from training.config import TrainConfig
from training.data import StudySet
from training.evaluation.labels import LabelMetrics, evaluate_labels, fit_thresholds
from training.model import CxrModel
from training.objective import read_batch

Rows = NDArray[np.int64]
Predictions = dict[str, tuple[NDArray[np.float32], Rows]]  # way -> logits (M, K) and rows of the studies (M,)
TWO_VIEWS = {"image": "views", "study": "study_views"}  # names of the ways with both views of each study


@dataclass(frozen=True)
class Examined:
    """What is asked, and about what.

    Attributes:
        config: The run's config.
        studies: All studies.
        tokenizer: The model's.
        split: Part -> rows of `studies`.
    """

    config: TrainConfig
    studies: StudySet
    tokenizer: ReportTokenizer
    split: dict[str, Rows]

    def select_rows(self, part: str) -> Rows:
        """Return the labelled studies of a part."""
        rows = self.split[part]
        return rows[self.studies.labelled[rows]]


@torch.inference_mode()
def predict_rows(examined: Examined, model: CxrModel, rows: Rows, *, views: int = 1) -> Predictions:
    """Return the logits of studies for every way each can be read, with their first view or (2) both."""
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, list[tuple[NDArray[np.float32], Rows]]] = {}
    data = examined.config.data
    for chunk in iterate_in_order(rows, examined.config.loop.batch_size):
        draw = choose_batch(examined.studies, chunk, data, views=views)
        batch = make_batch(examined.studies, examined.tokenizer, draw, data).to(device)
        for way, (out, chosen) in read_batch(model, batch).items():
            logits = out.logits.float().cpu().numpy()
            found.setdefault(way, []).append((logits, chunk[chosen.cpu().numpy()]))
    return {
        way: (
            np.concatenate([logits for logits, _ in found[way]]),
            np.concatenate([places for _, places in found[way]]),
        )
        for way in WAYS
        if way in found
    }


def score(studies: StudySet, predictions: Predictions) -> dict[str, float]:
    """Return macro AUROC and average precision by way, and their mean as "score"; empty without labels."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores: dict[str, float] = {}
    for way, (logits, rows) in predictions.items():
        targets, known = studies.targets[rows], studies.known[rows]
        asked = [(targets[known[:, k], k], logits[known[:, k], k]) for k in range(len(LABELS))]
        usable = [(truth, values) for truth, values in asked if truth.any() and not truth.all()]
        if usable:
            scores[f"{way}/auroc"] = float(np.mean([roc_auc_score(*answers) for answers in usable]))
            scores[f"{way}/ap"] = float(np.mean([average_precision_score(*answers) for answers in usable]))
    return scores | {"score": float(np.mean(list(scores.values())))} if scores else {}


@dataclass(frozen=True)
class Calibrated:
    """Thresholds (K,), and what they were fitted on: probabilities, targets and what is known (M, K), ways (M,)."""

    thresholds: NDArray[np.float64]
    probabilities: NDArray[np.float32]
    targets: NDArray[np.bool_]
    known: NDArray[np.bool_]
    ways: NDArray[np.str_]


def predict_part(examined: Examined, model: CxrModel, part: str) -> Predictions:
    """Return the logits of a part's labelled studies by way, and by the names of `TWO_VIEWS` where two are fused."""
    rows = examined.select_rows(part)
    predictions = predict_rows(examined, model, rows)
    if examined.config.data.views > 1:
        both = predict_rows(examined, model, rows, views=2)
        predictions |= {TWO_VIEWS[way]: found for way, found in both.items() if way in TWO_VIEWS}
    return predictions


def calibrate(examined: Examined, model: CxrModel, validation: Predictions) -> Calibrated:
    """Fit the calibration of each way (into the model) and one threshold per label, on the validation split.

    What two views together say is read with the calibration of one. A label has one threshold whatever the input is,
    so it is fitted on the probabilities of all ways. A label that no training study states has the probability 0.5,
    which says nothing.
    """
    studies = examined.studies
    learned = studies.known[examined.split["train"]].any(0)
    probabilities, fitted_on, ways = [], [], []
    for way in (way for way in WAYS if way in validation):
        logits, rows = validation[way]
        scale, bias = fit_platt(logits, studies.targets[rows], studies.known[rows])
        scale[~learned] = bias[~learned] = 0
        getattr(model.fusion, f"scale_{way}").copy_(torch.from_numpy(scale))
        getattr(model.fusion, f"bias_{way}").copy_(torch.from_numpy(bias))
        probabilities.append(apply_platt(logits, scale, bias))
        fitted_on.append(rows)
        ways.append(np.full(len(rows), way))
    places = np.concatenate(fitted_on)
    answers = np.concatenate(probabilities), studies.targets[places], studies.known[places]
    thresholds = np.asarray(fit_thresholds(*answers), dtype=np.float64)
    return Calibrated(thresholds, *answers, np.concatenate(ways))


def measure(
    examined: Examined,
    model: CxrModel,
    thresholds: NDArray[np.float64],
    predictions: Mapping[str, Predictions],
) -> dict[str, Any]:
    """Return what metrics.json holds: results per part of `predictions` and way, and what they rest on."""
    studies = examined.studies
    counts = {
        part: {
            "studies": len(rows),
            **{kind: int(studies.has(kind)[rows].sum()) for kind in ("image", "text", "study")},
            "labelled": int(studies.labelled[rows].sum()),
        }
        for part, rows in examined.split.items()
    }
    rows = examined.select_rows("train")
    known = studies.known[rows]
    positives = (studies.targets[rows] & known).sum(0).tolist()
    results = {
        part: {way: result.to_dict() for way, result in _evaluate(examined, model, thresholds, found).items()}
        for part, found in predictions.items()
    }
    return {
        **results,
        "studies": counts,
        "unreadable_images": studies.unreadable,
        "training_positives": dict(zip(LABEL_KEYS, positives, strict=True)),
        "training_known": dict(zip(LABEL_KEYS, known.sum(0).tolist(), strict=True)),
    }


def _evaluate(
    examined: Examined, model: CxrModel, thresholds: NDArray[np.float64], predictions: Predictions
) -> dict[str, LabelMetrics]:
    calibrated = {title: way for way, title in TWO_VIEWS.items()}
    metrics = {}
    for title, (logits, places) in predictions.items():
        way = calibrated.get(title, title)
        scale, bias = (getattr(model.fusion, f"{name}_{way}").cpu().numpy() for name in ("scale", "bias"))
        metrics[title] = evaluate_labels(
            apply_platt(logits, scale, bias),
            examined.studies.targets[places],
            thresholds,
            groups=[examined.studies.patient_ids[row] for row in places],
            known=examined.studies.known[places],
            seed=examined.config.seed,
        )
    return metrics
