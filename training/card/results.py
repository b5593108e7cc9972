"""The results on the model card (`training.card.card`): tables of ways, labels and the view head."""

from collections.abc import Mapping
from typing import Any, Final

from contract.labels import LABEL_NAMES
from training.config.settings import TrainConfig
from training.evaluation.view_scores import describe_score

_WAYS: Final = {
    "study": "image + report",
    "image": "image only",
    "text": "report only",
    "study_views": "two views + report",
    "views": "two views",
}
METRICS: Final = {
    "auroc": "AUROC",
    "ap": "average precision",
    "f1": "F1",
    "brier": "Brier score",
    "ece": "calibration error",
}
HUB_METRICS: Final = {"auroc": "roc_auc", "ap": "average_precision", "f1": "f1"}


def write_results(metrics: Mapping[str, Any]) -> str:
    """Return the macro means of each way on the test split."""
    names = _list_measured(metrics)
    rows = "".join(
        f"| {name_way(way)} | {result.get('studies', '-')} | "
        + " | ".join(_cell(result["macro"].get(name)) for name in names)
        + " |\n"
        for way, result in list_ways(metrics)
    )
    return (
        "## Results on the test split\n\nThe figures are macro means over the labels with enough cases, with 95 % "
        "intervals from a bootstrap over patients. For AUROC, average precision and F1 higher is better. For the Brier "
        "score and the expected calibration error lower is better.\n\n"
        f"| input | studies | {' | '.join(names.values())} |\n|{'---|' * (len(names) + 2)}\n{rows}"
    )


def write_labels(config: TrainConfig, metrics: Mapping[str, Any]) -> str:
    """Return the results of each label, for the first tested way."""
    names = [name for name in _list_measured(metrics) if name in HUB_METRICS]
    way, result = next(iter(list_ways(metrics)), ("study", {}))
    measured, trained, unlearned = (
        result.get("labels", {}),
        metrics["training_positives"],
        list_unlearned(metrics),
    )
    rows = []
    for key, name in LABEL_NAMES.items():
        values = measured.get(key, {})
        cells = " | ".join(_cell(values.get(name)) for name in names)
        count = trained.get(key, 0)
        if key in unlearned:
            count = "held out" if key in config.data.held_out else "not stated"
        rows.append(f"| {name} | {count} | {values.get('positives', '-')} | {cells} |\n")
    head = " | ".join(METRICS[name] for name in names)
    return (
        f"### By category, from {name_way(way)}\n\n"
        f"| category | training cases | test cases | {head} |\n|{'---|' * (len(names) + 3)}\n{''.join(rows)}"
    )


def write_view_head(metrics: Mapping[str, Any]) -> str:
    """Return the results of the view head."""
    score = metrics.get("view_head")
    result = (
        describe_score(score)
        if score
        else "This model has no fitted view head. It answers 0.5 to every image and never warns."
    )
    return (
        "### View head\n\n"
        f"The view head computes the probability that an image is a lateral view. On the test split: {result} The true "
        "view comes from the header or from a published list. Images with a wrong header or without a view in the "
        "header are not measured.\n"
    )


def _list_measured(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the metrics, with titles, that at least one way has; all metrics if no way has any."""
    measured = {name for _, result in list_ways(metrics) for name in result["macro"]}
    return {name: title for name, title in METRICS.items() if name in measured or not measured}


def list_ways(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the results on the test split by way, in the order of `_WAYS`. metrics.json has another order."""
    known = [way for way in _WAYS if way in metrics["test"]]
    others = [way for way in metrics["test"] if way not in _WAYS]
    return [(way, metrics["test"][way]) for way in (*known, *others)]


def name_way(way: str) -> str:
    """Return the display name of a way; the way itself if it has none."""
    return _WAYS.get(way, way)


def list_unlearned(metrics: Mapping[str, Any]) -> list[str]:
    """Return the keys of the labels that no training study states; [] for bundles of older versions."""
    return [key for key, count in metrics.get("training_known", {}).items() if not count]


def _cell(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "too few cases"
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
