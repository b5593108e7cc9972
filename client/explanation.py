"""What an offline explanation tells (`client.explain` makes it): attributions of pixels and words, in logits."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.prediction import Kind
from client.regions import find_hottest_region
from contract.notes import ImageNotes, ReportNotes, join_warnings, warn_of_view
from contract.training_data import UNDECIDED_WARNING, UNKNOWN, WAYS, warn_of_training, warn_of_way

Array = NDArray[np.float32]


@dataclass(frozen=True)
class WordAttribution:
    """One word of the report.

    Attributes:
        text: The word as written.
        start: Its first character in `Explanation.report_text`.
        end: One past its last character.
        attribution: What it adds to the logit, in logits; negative speaks against the finding.
        attention: Share of the label's attention over the text, 0 to 1, as served. The rest of the attention
            rests on [CLS] and [SEP].
    """

    text: str
    start: int
    end: int
    attribution: float
    attention: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why the model gives one finding its logit; S pixels, G patches and R display pixels per side.

    Attributes:
        kind: The inputs: "study", "image" or "text".
        key: Key of the finding.
        name: Its name for people.
        probability: Calibrated, 0 to 1.
        threshold: Probability from which the finding counts as present; None where the model states none for this way.
        logit: Of the finding, before calibration.
        baseline_logit: The same for the baseline.
        steps: Points of the integral.
        convergence_delta: |sum of all attributions - (logit - baseline_logit)|, in logits.
        baseline: What the input is compared with, in words.
        fingerprint: Of the model.
        radiograph: (R, R) uint8, or None without an image.
        pixel_attribution: (S, S) float32 in logits; positive speaks for the finding.
        patch_attention: (G, G) float32, sums to 1: the label's attention over the image, as served.
        words: The words that the model read, in reading order; empty without a report.
        report_text: The part of the report that is read; the model may not have read its end (`words`).
        image_notes: How the image was taken; None without an image.
        report_notes: How much of the report was read; None without a report.
        trained_on: The collection that the model was trained on: "phantom", "openi", another name, or "unknown".
        trained_ways: Which of "study", "image" and "text" it was trained to read.
        lateral: Probability that the image is a lateral view, by the model, 0 to 1; None without an image.
    """

    kind: Kind
    key: str
    name: str
    probability: float
    threshold: float | None
    logit: float
    baseline_logit: float
    steps: int
    convergence_delta: float
    baseline: str
    fingerprint: str
    radiograph: NDArray[np.uint8] | None = None
    pixel_attribution: Array | None = None
    patch_attention: Array | None = None
    words: tuple[WordAttribution, ...] = ()
    report_text: str | None = None
    image_notes: ImageNotes | None = None
    report_notes: ReportNotes | None = None
    trained_on: str = UNKNOWN
    trained_ways: tuple[str, ...] = WAYS
    lateral: float | None = None

    def __repr__(self) -> str:
        return (
            f"Explanation({self.kind!r}, {self.key!r}, probability={self.probability:.3f}, "
            f"warnings={len(self.warnings)}, model={self.fingerprint[:12]!r})"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the explanation is believed, the same as of the served prediction."""
        decisions = (UNDECIDED_WARNING,) if self.threshold is None else ()
        return (
            *warn_of_training(self.trained_on),
            *warn_of_way(self.kind, self.trained_ways),
            *decisions,
            *join_warnings(self.image_notes, self.report_notes),
            *warn_of_view(self.image_notes, self.lateral),
        )

    @property
    def verdict(self) -> str:
        """Where the probability lies to the threshold, in words."""
        if self.threshold is None:
            return "without a threshold"
        relation = "present" if self.probability >= self.threshold else "below its threshold"
        return f"{relation} ({self.threshold:.3f})"

    @property
    def relative_delta(self) -> float:
        """`convergence_delta` as a share of |logit - baseline_logit|."""
        return self.convergence_delta / max(abs(self.logit - self.baseline_logit), 1e-6)

    @property
    def contributions(self) -> dict[str, float]:
        """What each modality adds to the logit: the sum of its attributions."""
        sums = {}
        if self.pixel_attribution is not None:
            sums["image"] = float(self.pixel_attribution.sum(dtype=np.float64))
        if self.words:
            sums["text"] = sum(word.attribution for word in self.words)
        return sums

    @property
    def shares(self) -> dict[str, float]:
        """How much each modality matters, summing to 1: absolute attributions of patches and of words.

        Patches rather than pixels, because neighbouring pixels of opposite sign mostly cancel out.
        """
        sizes = {}
        if self.pixel_attribution is not None and self.patch_attention is not None:
            sums = _sum_patches(self.pixel_attribution, len(self.patch_attention))
            sizes["image"] = float(np.abs(sums).sum())
        if self.words:
            sizes["text"] = sum(abs(word.attribution) for word in self.words)
        total = sum(sizes.values()) or 1.0
        return {kind: size / total for kind, size in sizes.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the maps; of the pixels only the region that speaks most for the finding."""
        region = None if self.pixel_attribution is None else find_hottest_region(self.pixel_attribution)
        return {
            "kind": self.kind,
            "key": self.key,
            "name": self.name,
            "probability": self.probability,
            "threshold": self.threshold,
            "logit": self.logit,
            "baseline_logit": self.baseline_logit,
            "baseline": self.baseline,
            "steps": self.steps,
            "convergence_delta": self.convergence_delta,
            "relative_delta": self.relative_delta,
            "contributions": self.contributions,
            "shares": self.shares,
            "hottest_region": None if region is None else region.to_dict(),
            "words": [vars(word) for word in self.words],
            "fingerprint": self.fingerprint,
            "trained_on": self.trained_on,
            "lateral": None if self.lateral is None else round(self.lateral, 6),
            "image_notes": None if self.image_notes is None else self.image_notes.to_dict(),
            "report_notes": None if self.report_notes is None else self.report_notes.to_dict(),
            "warnings": list(self.warnings),
        }


def _sum_patches(values: Array, grid: int) -> Array:
    """Sum (S, S) within the cells of a grid: (G, G)."""
    side = len(values) // grid
    sums: Array = values.reshape(grid, side, grid, side).sum(axis=(1, 3))
    return sums
