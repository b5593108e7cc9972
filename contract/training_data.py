"""What a model was trained on, and what that says about its answers; it travels from the bundle to every answer.

manifest.json (data_source) -> parameter trained_on of the served predict_* models -> client -> every result
metrics.json (studies, train) -> the ways in which the model was trained to be read -> gates of the exporter, and
                                 parameter trained_ways of the served predict_* models -> client -> every result
config.json (training.data.views) -> how many images of a study it was trained to fuse -> parameter trained_views of the
                                 served predict_* models -> client -> every result
metrics.json (test) -> the labels of which the test split held too few cases -> parameter unmeasured of the served
                                 predict_* models -> client -> every finding
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from contract.labels import LABEL_KEYS

WAYS: Final = ("study", "image", "text")  # to read a study: both, the image alone, the report alone
UNKNOWN: Final = "unknown"
UNMEASURED: Final = "too few test cases to be measured"  # of a label; see `read_unmeasured`
PHANTOM: Final = "phantom"
PHANTOM_WARNING: Final = (
    "This model was trained on drawn phantoms: its answers about real radiographs mean nothing."
)
UNDECIDED_WARNING: Final = "This model has no thresholds for this way of reading: it decides nothing."
_TITLES: Final = {
    PHANTOM: "drawn phantoms",
    "openi": "Open-i",
    "nih14": "ChestX-ray14",
    "chexpert": "CheXpert",
    "mimic-cxr": "MIMIC-CXR",
    "vindr": "VinDr-CXR",
    "padchest": "PadChest",
    "kermany": "paediatric radiographs of Guangzhou",
    UNKNOWN: "unknown data",
}
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,100}")  # one short line, whoever wrote it


def read_trained_on(value: object) -> str:
    """Return the name of a collection as it was recorded: "phantom", "openi", another one's, or "unknown"."""
    named = value.strip() if isinstance(value, str) else ""
    return named if _NAME.fullmatch(named) and named.isprintable() else UNKNOWN


def read_trained_ways(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ways in which the training studies could be read: some of `WAYS`, in their order.

    Args:
        metrics: What metrics.json holds. Its counts of training studies are enough: a study without image and report
            takes no part, so one with both stands in two counts. Newer bundles count those too.

    Returns:
        All ways where nothing usable is recorded.
    """
    try:
        counts = metrics["studies"]["train"]
        image, text = int(counts["image"]), int(counts["text"])
        both = int(counts.get("study", image + text - int(counts["studies"])))
    except (KeyError, TypeError, ValueError, AttributeError):
        return WAYS
    found = tuple(way for way, count in zip(WAYS, (both, image, text), strict=True) if count > 0)
    return found or WAYS


def parse_ways(value: object) -> tuple[str, ...]:
    """Return the ways that a served model states, such as "image,text"; all where it states nothing usable."""
    named = value.split(",") if isinstance(value, str) else []
    return tuple(way for way in WAYS if way in named) or WAYS


def read_unmeasured(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of the labels that the test split held too few cases of to measure, in the order of the logits.

    Args:
        metrics: What metrics.json holds; its results per label are of those labels alone that could be measured.

    Returns:
        None of them where nothing was measured, or nothing usable is recorded.
    """
    try:
        measured = {key for result in metrics["test"].values() for key in result["labels"]}
    except (KeyError, TypeError, AttributeError):
        return ()
    return tuple(key for key in LABEL_KEYS if key not in measured) if measured else ()


def parse_unmeasured(value: object) -> tuple[str, ...]:
    """Return the labels that a served model states, such as "malignancy,air_leak"; none where it states nothing."""
    named = value.split(",") if isinstance(value, str) else []
    return tuple(key for key in LABEL_KEYS if key in named)


def warn_of_way(kind: str, ways: Sequence[str]) -> tuple[str, ...]:
    """Return the sentence that belongs to an answer to what a model was not trained to read; nothing otherwise.

    Args:
        kind: How a case was read: "study", "image" or "text".
        ways: What the model was trained for; see `read_trained_ways`.
    """
    if kind in ways:
        return ()
    for way, name in (("image", "images"), ("text", "reports")):
        if way not in ways and "study" not in ways and kind in (way, "study"):
            return (f"This model was trained without {name}: what it makes of one means nothing.",)
    if kind == "study":
        return ("This model was trained on images and reports apart, never on both of one study.",)
    return (f"This model was never trained on {'an image' if kind == 'image' else 'a report'} alone.",)


def warn_of_views(count: int, trained_views: int) -> tuple[str, ...]:
    """Return the sentence that belongs to an answer to more images at once than a model has seen in training.

    Args:
        count: How many images of one study were read together.
        trained_views: How many the model was trained to fuse at most (`contract.bundle.Bundle.trained_views`).
    """
    if count <= max(trained_views, 1):
        return ()
    seen = (
        "one image of a study at a time"
        if trained_views <= 1
        else f"at most {trained_views} images of a study"
    )
    return (
        f"This model was trained on {seen}, never on {count} together: how good such answers are was not measured.",
    )


def describe_training(trained_on: str) -> str:
    """Return in a few words what a model was trained on."""
    return f"trained on {_TITLES.get(trained_on, trained_on)}"


def warn_of_training(trained_on: str) -> tuple[str, ...]:
    """Return the sentence that belongs to every answer of a model that was trained on phantoms, nothing for others."""
    return (PHANTOM_WARNING,) if trained_on == PHANTOM else ()
