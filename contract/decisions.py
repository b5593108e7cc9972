"""The decisions of a model: threshold, band and conformal cut of each label, for each way to read a study.

labels.json of the bundle -> parameter `decisions` of the served predict_* models -> client -> every result

An image alone, a report alone and both together give probabilities of different spread. A threshold that was fitted
on reports, which state a finding, is too high for images alone. So each way has its own thresholds.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from contract.errors import ArtifactError
from contract.labels import LABEL_KEYS, LABELS
from contract.training_data import WAYS

Decision = Literal["present", "absent", "uncertain", "undecided"]
_CALIBRATION: Final = frozenset(["scale", "bias"])


def decide(probability: float, threshold: float | None, low: float | None, high: float | None) -> Decision:
    """Return the decision for a probability.

    Returns:
        "undecided" without a threshold; "uncertain" from `low` (included) to `high` (excluded); otherwise "present"
        from the threshold on and "absent" below it.
    """
    if threshold is None:
        return "undecided"
    if low is not None and high is not None and low <= probability < high:
        return "uncertain"
    return "present" if probability >= threshold else "absent"


@dataclass(frozen=True)
class ServedLabel:
    """A category of one model, for one way to read a study.

    The calibrated probability is sigmoid(scale * logit + bias) (Platt scaling, fitted on the validation split).
    `threshold` and the fields after `bias` are None if the model does not state them; see
    `training.evaluation.selective`.

    Attributes:
        key: Short name, as in `contract.labels`.
        name: Display name.
        threshold: Probability, 0 to 1, from which the finding counts as present. None: no decision.
        scale: Factor of the logit.
        bias: Offset of the scaled logit.
        uncertain_low: Lower edge of the band of uncertain probabilities; at most the threshold.
        uncertain_high: Upper edge of the band, the first probability above it; at least the threshold.
        stated_missed: Largest expected share of the studies with the finding that is decided "absent".
        stated_false_alarms: Largest expected share of the studies without it that is decided "present".
        include: Probability from which the label belongs to the conformal set.
        stated_recall: Smallest expected share of a study's labels that its conformal set holds.
    """

    key: str
    name: str
    threshold: float | None = None
    scale: float = 1.0
    bias: float = 0.0
    uncertain_low: float | None = None
    uncertain_high: float | None = None
    stated_missed: float | None = None
    stated_false_alarms: float | None = None
    include: float | None = None
    stated_recall: float | None = None

    @property
    def is_undecidable(self) -> bool:
        """Whether every probability is uncertain, as for a label that no training study states."""
        return (self.uncertain_low, self.uncertain_high) == (0.0, 1.0)

    def decide(self, probability: float) -> Decision:
        """Return the decision for a probability of this label; see `decide`."""
        return decide(probability, self.threshold, self.uncertain_low, self.uncertain_high)

    def to_dict(self) -> dict[str, str | float]:
        """Return the fields that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def describe(self) -> dict[str, str | float]:
        """Return the fields for clients: those of `to_dict` without the calibration."""
        return {name: value for name, value in self.to_dict().items() if name not in _CALIBRATION}


UNDECIDED: Final = tuple(ServedLabel(label.key, label.name) for label in LABELS)


@dataclass(frozen=True)
class Decisions:
    """The decisions of one model, for each way to read a study.

    Attributes:
        ways: "study", "image" or "text" -> the K categories, in the order of `contract.labels`. A way is
            missing, without decisions, if the model was not trained for it or no validation study has its inputs.
    """

    ways: Mapping[str, tuple[ServedLabel, ...]]

    @classmethod
    def repeat(cls, labels: tuple[ServedLabel, ...]) -> "Decisions":
        """Return decisions that are the same for every way."""
        return cls(dict.fromkeys(WAYS, labels))

    def of(self, way: str) -> tuple[ServedLabel, ...]:
        """Return the K categories for one way. They have no thresholds if the model states none."""
        return self.ways.get(way, UNDECIDED)

    def get_thresholds(self, way: str) -> NDArray[np.float64] | None:
        """Return (K,) thresholds for one way; None if the model states none."""
        if way not in self.ways:
            return None
        return np.array([label.threshold for label in self.ways[way]], np.float64)

    def to_dict(self) -> dict[str, list[dict[str, str | float]]]:
        """Return the JSON form that a bundle holds."""
        return {way: [label.to_dict() for label in labels] for way, labels in self._list_ways()}

    def describe(self) -> dict[str, list[dict[str, str | float]]]:
        """Return the JSON form for clients, without the calibration."""
        return {way: [label.describe() for label in labels] for way, labels in self._list_ways()}

    def _list_ways(self) -> list[tuple[str, tuple[ServedLabel, ...]]]:
        return [(way, self.ways[way]) for way in WAYS if way in self.ways]


def parse_decisions(value: Any, *, source: str) -> Decisions:
    """Parse the result of `Decisions.to_dict` or `describe`. Unknown fields of a newer version are ignored.

    Args:
        value: The parsed JSON.
        source: Where the JSON came from, for messages.

    Raises:
        ArtifactError: The value has another structure, or numbers out of range.
    """
    field_names = {field.name for field in fields(ServedLabel)}
    try:
        ways = {
            way: tuple(
                ServedLabel(**{name: entry[name] for name in field_names & entry.keys()}) for entry in entries
            )
            for way, entries in value.items()
            if way in WAYS
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{source} does not hold the labels of each way to read a study.") from error
    decisions = Decisions(ways)
    check_decisions(decisions, source=source)
    return decisions


def check_decisions(decisions: Decisions, *, source: str) -> None:
    """Raise ArtifactError unless each way has the 22 categories, in their order, with usable numbers."""
    for labels in decisions.ways.values():
        if tuple(label.key for label in labels) != LABEL_KEYS:
            raise ArtifactError(f"{source} does not hold the {len(LABEL_KEYS)} categories in their order.")
        for label in labels:
            check_numbers(label, source=source)


def check_numbers(label: ServedLabel, *, source: str) -> None:
    """Raise ArtifactError unless the numbers of a label are in range; see `ServedLabel`."""
    values = {name: value for name, value in asdict(label).items() if name not in {"key", "name"}}
    stated = {name: value for name, value in values.items() if value is not None}
    if label.threshold is None or not all(
        isinstance(number, int | float) and math.isfinite(number) for number in stated.values()
    ):
        raise ArtifactError(f"{source} holds a value that is not a number for {label.key}.")
    for name in stated.keys() - _CALIBRATION:
        if not 0 <= stated[name] <= 1:
            description = name.replace("_", " ")
            raise ArtifactError(f"{source} gives {label.key} the {description} {stated[name]}, not 0 to 1.")
    for first, second in (("uncertain_low", "uncertain_high"), ("include", "stated_recall")):
        if (first in stated) != (second in stated):
            raise ArtifactError(f"{source} gives {label.key} only one of {first} and {second}.")
    low, high = (stated.get(name, label.threshold) for name in ("uncertain_low", "uncertain_high"))
    if not low <= label.threshold <= high:
        raise ArtifactError(
            f"{source} gives {label.key} the band {low} to {high}, which does not contain the threshold "
            f"{label.threshold}."
        )
