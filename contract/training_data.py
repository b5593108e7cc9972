"""The training data of a model, and the warnings that follow from it. The bundle passes both on to every answer.

manifest.json (data_source) -> parameter trained_on of the served predict_* models -> client -> every result
metrics.json (studies, train) -> the ways to read a study that the model was trained for -> gates of the exporter, and
                                 parameter trained_ways of the served predict_* models -> client -> every result
config.json (training.data.views) -> number of images of a study that the model was trained to fuse -> parameter
                                 trained_views of the served predict_* models -> client -> every result
metrics.json (test) -> the labels with too few test cases -> parameter unmeasured of the served
                                 predict_* models -> client -> every finding
config.json (training.data.held_out) -> the labels that were held out of training -> parameter held_out of the served
                                 predict_* models -> client -> every finding
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from contract.labels import LABEL_KEYS

WAYS: Final = ("study", "image", "text")  # ways to read a study: both, the image alone, the report alone
UNKNOWN: Final = "unknown"
UNMEASURED: Final = "too few test cases to be measured"  # text for a label; see `read_unmeasured`
# Text for a label; see `read_held_out`.
HELD_OUT: Final = "held out of training: this probability means nothing"
PHANTOM: Final = "phantom"
PHANTOM_WARNING: Final = (
    "This model was trained on drawn phantoms. Its answers about real radiographs mean nothing."
)
UNDECIDED_WARNING: Final = "This model has no thresholds for this kind of input, so no finding is decided."
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
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,100}")  # one short line without control characters


def read_trained_on(value: object) -> str:
    """Return the recorded name of a collection: "phantom", "openi", another name, or "unknown"."""
    named = value.strip() if isinstance(value, str) else ""
    return named if _NAME.fullmatch(named) and named.isprintable() else UNKNOWN


def read_trained_ways(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ways to read a study that occur in the training data, in the order of `WAYS`.

    Args:
        metrics: Content of metrics.json. Its counts of training studies with an image, with a report and in total show
            how many have both. Newer bundles also state that number.

    Returns:
        Some of `WAYS`; all of them if metrics.json records no usable counts.
    """
    try:
        counts = metrics["studies"]["train"]
        image, text = int(counts["image"]), int(counts["text"])
        both = int(counts.get("study", image + text - int(counts["studies"])))
    except (KeyError, TypeError, ValueError, AttributeError):
        return WAYS
    ways = tuple(way for way, count in zip(WAYS, (both, image, text), strict=True) if count > 0)
    return ways or WAYS


def parse_ways(value: object) -> tuple[str, ...]:
    """Return the ways that a served model states, such as "image,text"; all ways if it states nothing usable."""
    named = value.split(",") if isinstance(value, str) else []
    return tuple(way for way in WAYS if way in named) or WAYS


def read_unmeasured(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of the labels with too few test cases to be measured, in the order of the logits.

    Args:
        metrics: Content of metrics.json. It has results only for the labels that could be measured.

    Returns:
        The keys; none if nothing was measured or metrics.json records nothing usable.
    """
    try:
        measured = {key for result in metrics["test"].values() for key in result["labels"]}
    except (KeyError, TypeError, AttributeError):
        return ()
    return tuple(key for key in LABEL_KEYS if key not in measured) if measured else ()


def read_held_out(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of the labels that were held out of training, in the order of the logits.

    Args:
        config: Content of config.json.

    Returns:
        The keys; none if config.json records nothing usable.
    """
    try:
        named = config["training"]["data"]["held_out"]
    except (KeyError, TypeError):
        return ()
    return tuple(key for key in LABEL_KEYS if key in named) if isinstance(named, list | tuple) else ()


def parse_keys(value: object) -> tuple[str, ...]:
    """Return the labels that a served model states, such as "malignancy,air_leak"; none if it states nothing."""
    named = value.split(",") if isinstance(value, str) else []
    return tuple(key for key in LABEL_KEYS if key in named)


def warn_of_way(kind: str, ways: Sequence[str]) -> tuple[str, ...]:
    """Return a warning if the model was not trained on this kind of input, else nothing.

    Args:
        kind: How a case was read: "study", "image" or "text".
        ways: The ways that the model was trained for; see `read_trained_ways`.
    """
    if kind in ways:
        return ()
    for way, name in (("image", "images"), ("text", "reports")):
        if way not in ways and "study" not in ways and kind in (way, "study"):
            return (f"This model was trained without {name}. Its answer about one means nothing.",)
    if kind == "study":
        return ("This model was trained on images and reports separately, never on both of one study.",)
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
    """Return a short phrase for the training data of a model."""
    return f"trained on {_TITLES.get(trained_on, trained_on)}"


def warn_of_training(trained_on: str) -> tuple[str, ...]:
    """Return a warning for a model that was trained on phantoms, else nothing."""
    return (PHANTOM_WARNING,) if trained_on == PHANTOM else ()
