"""Predictions of the served model, for one case and for a batch of preprocessed cases."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from client.images import ReadImage, warn_of_images
from client.served import ServedModel
from client.short_text import name_first
from contract.decisions import Decision, ServedLabel, decide
from contract.labels import LABEL_KEYS, LABEL_NAMES
from contract.notes import ImageNotes, ReportNotes, join_warnings, warn_of_view
from contract.training_data import (
    HELD_OUT,
    UNDECIDED_WARNING,
    UNKNOWN,
    UNMEASURED,
    WAYS,
    warn_of_training,
    warn_of_views,
    warn_of_way,
)

Kind = Literal["study", "image", "text"]  # the inputs of a prediction
MOST_SHOWN: Final = 5  # a conformal set with more labels is not listed
_INPUT_NAMES: Final[dict[Kind, str]] = {
    "study": "the image and the report",
    "image": "the image",
    "text": "the report",
}


@dataclass(frozen=True)
class Finding:
    """The result for one finding category.

    Threshold and band are those of the served model for this kind of input.

    Attributes:
        key: Short name, as in `contract.labels`.
        name: Display name.
        probability: Calibrated, 0 to 1.
        threshold: Probability from which the finding counts as present. None: the model has no threshold for this kind
            of input, so nothing is decided.
        uncertain_low: Lower edge of the band of uncertain probabilities; None from a model without a band.
        uncertain_high: Upper edge of the band, the first probability above it; None from a model without a band.
        unmeasured: Whether the test split of the model has too few cases of this finding.
        held_out: Whether the finding was held out of training. Its probability, 0.5, means nothing, and the decision is
            "uncertain".
        image_share: Share of the finding's attention that the images of a study have, 0 to 1; the report has the rest.
            None without an image or without a report, or from a model that an older version published.
    """

    key: str
    name: str
    probability: float
    threshold: float | None
    uncertain_low: float | None = None
    uncertain_high: float | None = None
    unmeasured: bool = False
    held_out: bool = False
    image_share: float | None = None

    def __repr__(self) -> str:
        return f"Finding({self.key!r}, {self.probability:.3f}, {self.decision!r})"

    @property
    def present(self) -> bool | None:
        """Whether the probability reaches the threshold; None without a threshold."""
        return None if self.threshold is None else self.probability >= self.threshold

    @property
    def remark(self) -> str:
        """A short text for a finding that the model did not learn, or that was not measured; else ""."""
        return HELD_OUT if self.held_out else UNMEASURED if self.unmeasured else ""

    @property
    def confidence(self) -> float | None:
        """Probability that `present` is right, 0 to 1; None without a threshold."""
        if self.present is None:
            return None
        return self.probability if self.present else 1 - self.probability

    @property
    def decision(self) -> Decision:
        """The decision: "present" or "absent"; "uncertain" inside the band; "undecided" without a threshold."""
        return decide(self.probability, self.threshold, self.uncertain_low, self.uncertain_high)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, `present`, `decision` and `confidence`."""
        derived = {"present": self.present, "decision": self.decision, "confidence": self.confidence}
        return {**asdict(self), **derived}


@dataclass(frozen=True)
class ConformalSet:
    """The labels that remain possible. Together they probably include nearly all labels of the case.

    Attributes:
        keys: The labels. More than `MOST_SHOWN` labels do not narrow the case down.
        stated_recall: The share of a study's labels that such a set includes, on average and at least. It was fitted
            on the validation split for this kind of input.
    """

    keys: tuple[str, ...]
    stated_recall: float

    def __repr__(self) -> str:
        return f"ConformalSet({name_first(self.keys)}, stated_recall={self.stated_recall:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {"keys": list(self.keys), "stated_recall": self.stated_recall}

    def to_sentence(self, kind: Kind) -> str:
        """Return a sentence that lists the labels, or says that there are too many of them.

        Args:
            kind: The inputs of the prediction.
        """
        inputs, verb = _INPUT_NAMES[kind], "do" if kind == "study" else "does"
        recall = f"at least {100 * self.stated_recall:.0f} % of a study's labels on average"
        if len(self.keys) > MOST_SHOWN:
            return (
                f"{inputs.capitalize()} {verb} not narrow the labels down: {len(self.keys)} of {len(LABEL_KEYS)} "
                f"would have to be named to hold {recall}."
            )
        names = ", ".join(LABEL_NAMES.get(key, key) for key in self.keys) or "none"
        return f"Possible labels from {inputs}: {names}. Such a list holds {recall}."


@dataclass(frozen=True)
class Prediction:
    """The prediction for one case: K labels, V images, N image tokens for each image, L text tokens.

    Attributes:
        kind: "study", "image" or "text".
        findings: The K categories, in the order of `contract.labels`.
        embedding: (D,) float32 of unit length.
        fingerprint: Fingerprint of the model that answered.
        image_attention: (K, V N) float32, image after image, the tokens of each row by row. Each row sums to 1. None
            without an image.
        text_attention: (K, L) float32. Each row sums to 1. None without a report.
        report_text: The part of the report that the model read.
        token_spans: (L, 2) int32, the first character of each token in `report_text`, and the one after its last.
        images: The V images in the order of the request; empty without an image.
        report_notes: How much of the report was read; None without a report.
        conformal_set: The labels that remain possible; None from a model without conformal sets.
        trained_on: The collection that the model was trained on: "phantom", "openi", another name, or "unknown".
        trained_ways: The kinds of input that the model was trained on: some of "study", "image" and "text".
        trained_views: The largest number of images of one study that the model was trained on.
    """

    kind: Kind
    findings: tuple[Finding, ...]
    embedding: NDArray[np.float32]
    fingerprint: str
    image_attention: NDArray[np.float32] | None = None
    text_attention: NDArray[np.float32] | None = None
    report_text: str | None = None
    token_spans: NDArray[np.int32] | None = None
    images: tuple[ReadImage, ...] = ()
    report_notes: ReportNotes | None = None
    conformal_set: ConformalSet | None = None
    trained_on: str = UNKNOWN
    trained_ways: tuple[str, ...] = WAYS
    trained_views: int = 1

    def __repr__(self) -> str:
        ranked = sorted(self.findings, key=lambda finding: -finding.probability)
        present = name_first([finding.key for finding in ranked if finding.decision == "present"])
        return (
            f"Prediction({self.kind!r}, present={present}, warnings={len(self.warnings)}, "
            f"model={self.fingerprint[:12]!r})"
        )

    @property
    def image_notes(self) -> ImageNotes | None:
        """Notes on the first image; None without an image."""
        return self.images[0].notes if self.images else None

    @property
    def lateral(self) -> float | None:
        """Probability that the first image is a lateral view; see `ReadImage.lateral`. None without an image."""
        return self.images[0].lateral if self.images else None

    @property
    def further_images(self) -> tuple[ReadImage, ...]:
        """The images after the first one."""
        return self.images[1:]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the prediction, one sentence each; empty for a usual case."""
        undecided = any(finding.threshold is None for finding in self.findings)
        return (
            *warn_of_training(self.trained_on),
            *warn_of_way(self.kind, self.trained_ways),
            *warn_of_views(len(self.images), self.trained_views),
            *((UNDECIDED_WARNING,) if undecided else ()),
            *self.input_warnings,
        )

    @property
    def input_warnings(self) -> tuple[str, ...]:
        """The warnings about the images and the report."""
        if self.further_images:
            return (*warn_of_images(self.images), *join_warnings(self.report_notes))
        return (
            *join_warnings(self.image_notes, self.report_notes),
            *warn_of_view(self.image_notes, self.lateral),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the attention and the report's text, as values for JSON."""
        return {
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "trained_on": self.trained_on,
            "findings": [finding.to_dict() for finding in self.findings],
            "conformal_set": None if self.conformal_set is None else self.conformal_set.to_dict(),
            "embedding": [round(float(value), 6) for value in self.embedding],
            "lateral": None if self.lateral is None else round(self.lateral, 6),
            "image_notes": None if self.image_notes is None else self.image_notes.to_dict(),
            "images": [image.to_dict() for image in self.images],
            "report_notes": None if self.report_notes is None else self.report_notes.to_dict(),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class BatchPrediction:
    """The predictions for B preprocessed cases: K labels, N image tokens, L text tokens.

    Attributes:
        kind: "study", "image" or "text".
        model: The model that answered.
        probabilities: (B, K) float32, calibrated, in the order of `contract.labels`.
        embedding: (B, D) float32 of unit length.
        image_attention: (B, K, N) float32. Each row sums to 1. None without images.
        text_attention: (B, K, L) float32. Each row sums to 1 and is 0 on padding. None without reports.
        lateral: (B,) float32, probability that the image is a lateral view, 0 to 1; None without images, or from a
            model that an older version published.
        image_share: (B, K) float32, share of each label's attention that the image has, 0 to 1; None without images or
            without reports, or from a model that an older version published.
    """

    kind: Kind
    model: ServedModel
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]
    image_attention: NDArray[np.float32] | None = None
    text_attention: NDArray[np.float32] | None = None
    lateral: NDArray[np.float32] | None = None
    image_share: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        return f"BatchPrediction({self.kind!r}, cases={len(self.probabilities)}, model={self.fingerprint[:12]!r})"

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that answered."""
        return self.model.fingerprint

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the predictions that follow from the model; the inputs were preprocessed by the caller."""
        return (*self.model.warnings, *warn_of_way(self.kind, self.model.trained_ways))

    @property
    def labels(self) -> tuple[ServedLabel, ...]:
        """The K categories with the model's thresholds for this kind of input."""
        return self.model.decisions.of(self.kind)
