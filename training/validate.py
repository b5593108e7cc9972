"""Evaluate a model during training on a part of the split: scores, calibration, thresholds, final figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.decisions import Decisions, ServedLabel
from contract.errors import ArtifactError
from contract.labels import LABEL_KEYS
from contract.report.text import ReportTokenizer
from contract.training_data import WAYS, read_trained_ways
from training.batch import choose_batch, iterate_in_order, make_batch
from training.config.settings import TrainConfig
from training.data.studies import StudySet
from training.evaluation.calibrate import apply_platt, fit_platt
from training.evaluation.decisions import fit_decisions
from training.evaluation.labels import LabelMetrics, evaluate_labels, find_usable
from training.model.model import CxrModel
from training.objective import read_batch

Rows = NDArray[np.int64]
Predictions = dict[str, tuple[NDArray[np.float32], Rows]]  # way -> logits (M, K) and rows of the studies (M,)
TWO_VIEWS = {"image": "views", "study": "study_views"}  # names of the ways that use both views of a study


@dataclass(frozen=True)
class Examined:
    """The data for an evaluation.

    Attributes:
        config: The run's config.
        studies: All studies.
        tokenizer: The model's tokenizer.
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
def predict_rows(
    examined: Examined,
    model: CxrModel,
    rows: Rows,
    *,
    views: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Return the logits of studies for every way to read them, with the first view or (`views` = 2) both.

    `progress` is called with the number of studies done and their total.

    Raises:
        ArtifactError: A logit is not a finite number.
    """
    model.eval()
    device = next(model.parameters()).device
    results: dict[str, list[tuple[NDArray[np.float32], Rows]]] = {}
    data = examined.config.data
    done = 0
    for chunk in iterate_in_order(rows, examined.config.loop.batch_size):
        draw = choose_batch(examined.studies, chunk, data, views=views)
        batch = make_batch(examined.studies, examined.tokenizer, draw, data).to(device)
        for way, (out, chosen) in read_batch(model, batch).items():
            logits = out.logits.float().cpu().numpy()
            if not np.isfinite(logits).all():
                raise ArtifactError(
                    "The model answers with values that are not finite numbers. If this happens in training, lower "
                    "optimizer.learning_rate. Otherwise the weights are damaged."
                )
            results.setdefault(way, []).append((logits, chunk[chosen.cpu().numpy()]))
        done += len(chunk)
        if progress is not None:
            progress(done, len(rows))
    return {
        way: (
            np.concatenate([logits for logits, _ in results[way]]),
            np.concatenate([rows_of_way for _, rows_of_way in results[way]]),
        )
        for way in WAYS
        if way in results
    }


def score(studies: StudySet, predictions: Predictions) -> dict[str, float]:
    """Return macro AUROC and average precision by way, and their mean as "score".

    As on the test split, a label counts only if `MIN_POSITIVES` studies have it and as many lack it: the AP of a single
    study varies from epoch to epoch by more than a better model gains. The result is empty if no label qualifies.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores: dict[str, float] = {}
    for way, (logits, rows) in predictions.items():
        targets, known = studies.targets[rows], studies.known[rows]
        usable = find_usable(targets, known)
        columns = [(targets[known[:, k], k], logits[known[:, k], k]) for k in usable]
        if columns:
            scores[f"{way}/auroc"] = float(np.mean([roc_auc_score(*answers) for answers in columns]))
            scores[f"{way}/ap"] = float(np.mean([average_precision_score(*answers) for answers in columns]))
    return scores | {"score": float(np.mean(list(scores.values())))} if scores else {}


def predict_part(examined: Examined, model: CxrModel, part: str) -> Predictions:
    """Return the logits of a part's labelled studies by way; with two fused views, also by the names of `TWO_VIEWS`."""
    rows = examined.select_rows(part)
    predictions = predict_rows(examined, model, rows)
    if examined.config.data.views > 1:
        both = predict_rows(examined, model, rows, views=2)
        predictions |= {TWO_VIEWS[way]: result for way, result in both.items() if way in TWO_VIEWS}
    return predictions


def calibrate(examined: Examined, model: CxrModel, validation: Predictions) -> Decisions:
    """Fit calibration, thresholds and bands of each way on the validation split; set the calibration in the model.

    Predictions from two views use the calibration and the thresholds of one view. A way that the model was not trained
    for has no decisions. A label that no training study states gets the probability 0.5, which has no meaning.
    """
    trained = read_trained_ways({"studies": count_studies(examined)})
    learned = examined.studies.known[examined.split["train"]].any(0)
    ways: dict[str, tuple[ServedLabel, ...]] = {}
    for way in (way for way in WAYS if way in validation):
        logits, rows = validation[way]
        targets, known = examined.studies.targets[rows], examined.studies.known[rows]
        scale, bias = fit_platt(logits, targets, known)
        scale[~learned] = bias[~learned] = 0
        set_calibration(model, way, scale, bias)
        if way in trained:
            ways[way] = fit_decisions(logits, targets, scale, bias, known=known, learned=learned)
    return Decisions(ways)


def set_calibration(model: CxrModel, way: str, scale: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    """Set the calibration (K,) of one way in a model."""
    for name, values in (("scale", scale), ("bias", bias)):
        getattr(model.fusion, f"{name}_{way}").copy_(torch.from_numpy(values))


def read_calibration(model: CxrModel, way: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scale and bias (K,) of one way."""
    scale, bias = (getattr(model.fusion, f"{name}_{way}").cpu().numpy() for name in ("scale", "bias"))
    return scale, bias


def measure(
    examined: Examined,
    model: CxrModel,
    decisions: Decisions,
    predictions: Mapping[str, Predictions],
) -> dict[str, Any]:
    """Return the content of metrics.json: results by part and way, and the counts of studies and labels."""
    studies = examined.studies
    rows = examined.select_rows("train")
    known = studies.known[rows]
    positives = (studies.targets[rows] & known).sum(0).tolist()
    results = {
        part: {
            way: result.to_dict()
            for way, result in _evaluate(examined, model, decisions, part_predictions).items()
        }
        for part, part_predictions in predictions.items()
    }
    return {
        **results,
        "studies": count_studies(examined),
        "unreadable_images": studies.unreadable,
        "training_positives": dict(zip(LABEL_KEYS, positives, strict=True)),
        "training_known": dict(zip(LABEL_KEYS, known.sum(0).tolist(), strict=True)),
    }


def count_studies(examined: Examined) -> dict[str, dict[str, int]]:
    """Return the number of studies in each part of the split, by the inputs that they have."""
    studies = examined.studies
    return {
        part: {
            "studies": len(rows),
            **{kind: int(studies.has(kind)[rows].sum()) for kind in ("image", "text", "study")},
            "labelled": int(studies.labelled[rows].sum()),
        }
        for part, rows in examined.split.items()
    }


def _evaluate(
    examined: Examined, model: CxrModel, decisions: Decisions, predictions: Predictions
) -> dict[str, LabelMetrics]:
    base_ways = {title: way for way, title in TWO_VIEWS.items()}
    metrics = {}
    for title, (logits, rows) in predictions.items():
        way = base_ways.get(title, title)
        metrics[title] = evaluate_labels(
            apply_platt(logits, *read_calibration(model, way)),
            examined.studies.targets[rows],
            decisions.get_thresholds(way),
            groups=[examined.studies.patient_ids[row] for row in rows],
            known=examined.studies.known[rows],
            seed=examined.config.seed,
        )
    return metrics
