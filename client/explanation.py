"""The result of an offline explanation (`client.explain`): attributions of pixels and words, in logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.explain.maps import find_hottest_box, pool_patches
from client.prediction import Finding, Kind
from contract.image.frame import Frame
from contract.notes import ImageNotes, ReportNotes, join_warnings, warn_of_view
from contract.training_data import UNDECIDED_WARNING, UNKNOWN, WAYS, warn_of_training, warn_of_way

Array = NDArray[np.float32]


@dataclass(frozen=True)
class WordAttribution:
    """One word of the report.

    Attributes:
        text: The word.
        start: Position of its first character in `Explanation.report_text`.
        end: Position after its last character.
        attribution: What the word adds to the logit, in logits. A negative value speaks against the finding.
        attention: Share of the label's attention to the text, 0 to 1, as in the served prediction. The tokens [CLS] and
            [SEP] have the rest.
        section: Section of the report: "indication", "findings", "impression", or "" if it cannot be told.
    """

    text: str
    start: int
    end: int
    attribution: float
    attention: float
    section: str = ""


def sum_attributions(pixels: Array | None, words: Sequence[WordAttribution]) -> dict[str, float]:
    """Return what "image" and "text" each add: the sum of the attributions (S, S) of pixels, and that of words."""
    sums = {}
    if pixels is not None:
        sums["image"] = float(pixels.sum(dtype=np.float64))
    if words:
        sums["text"] = sum(word.attribution for word in words)
    return sums


@dataclass(frozen=True)
class BaselineResult:
    """What Integrated Gradients found from one baseline of the image.

    Attributes:
        key: Key of the baseline, as in `client.explain.baselines`.
        logit: Logit of the finding for the baseline, before calibration.
        steps: Number of points of the integral.
        convergence_delta: |sum of the attributions - difference of the logits|, in logits.
    """

    key: str
    logit: float
    steps: int
    convergence_delta: float


@dataclass(frozen=True, eq=False)
class ImageMap:
    """The map of one method for one finding, over the square that the model reads.

    Attributes:
        method: Key of the method, as in `client.explain.METHODS`.
        title: Its display name.
        values: (H, H) float32, row by row; H is the side of the pixels that the model reads, or of its patches.
        signed: Whether a value below 0 speaks against the finding. The values of other maps are 0 or more.
        unit: Unit of the values.
        seconds: Time that the map took.
        delta: Share of the difference of the logits that the sum of the map misses; None if the method promises no sum.
        caveat: One sentence that says why the map must not be read as a reason; "" if there is no such sentence.
    """

    method: str
    title: str
    values: Array
    signed: bool
    unit: str
    seconds: float
    delta: float | None = None
    caveat: str = ""


@dataclass(frozen=True, eq=False)
class Explanation:
    r"""Why the model gives one finding its logit. Sides: S model pixels, G patches, R display pixels.

    Attributes:
        kind: The inputs: "study", "image" or "text".
        key: Key of the finding.
        name: Display name of the finding.
        probability: Calibrated probability of the finding, 0 to 1.
        threshold: Probability from which the finding counts as present; None if the model has no threshold for this
            kind of input.
        logit: Logit of the finding, before calibration.
        baseline_logit: Logit of the finding for the baseline, before calibration; the mean over several baselines.
        steps: Number of points of the integral; the largest of several baselines.
        convergence_delta: |sum of all attributions - (logit - baseline_logit)|, in logits.
        baseline: Description of the baseline, or of all whose mean this is.
        fingerprint: Fingerprint of the model.
        radiograph: (R, R) uint8; None without an image.
        pixel_attribution: (S, S) float32, in logits; None without an image. A positive value speaks for the finding.
        patch_attention: (G, G) float32, sums to 1: the label's attention to the image, as in the served prediction.
            None without an image.
        words: The words that the model read, in their order; empty without a report.
        report_text: The part of the report for the model; None without a report. If it is too long, the words at its
            end are not in `words`.
        image_notes: View, laterality and modality of the image, and warnings; None without an image.
        report_notes: How much of the report was read; None without a report.
        trained_on: The collection that the model was trained on: "phantom", "openi", another name, or "unknown".
        trained_ways: The kinds of input that the model was trained on: some of "study", "image" and "text".
        lateral: Probability that the image is a lateral view, from the model, 0 to 1; None without an image.
        image_share: Share of the finding's attention that the image has, 0 to 1; None without an image or a report.
        maps: The maps to show, one for each method. A bundle whose maps were measured and did not pass has none, unless
            the caller asked for them.
        remarks: What to know about the maps, one sentence each: whether they were checked, and how accurate they are.
        original: (rows, columns) uint8, the radiograph at full resolution, as it is displayed; None without an image.
        frame: Where the radiograph lies in the square that the model reads; None without an image.
        orientation: DICOM Patient Orientation of the image, such as `L\F`; "" if the file does not state it.
        baselines: What each baseline of the image gave; empty without an image.
        view: Number of the image among those of its study, from 1 on.
        views: Number of images of the study that the model read together.
        findings: All K findings of the case, in the order of the labels, as the model answers them.
        image_sha256: SHA-256 of the image's file, in hexadecimal digits; "" without an image.
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
    image_share: float | None = None
    maps: tuple[ImageMap, ...] = ()
    remarks: tuple[str, ...] = ()
    original: NDArray[np.uint8] | None = None
    frame: Frame | None = None
    orientation: str = ""
    baselines: tuple[BaselineResult, ...] = ()
    view: int = 1
    views: int = 1
    findings: tuple[Finding, ...] = ()
    image_sha256: str = ""

    def __repr__(self) -> str:
        return (
            f"Explanation({self.kind!r}, {self.key!r}, probability={self.probability:.3f}, "
            f"warnings={len(self.warnings)}, model={self.fingerprint[:12]!r})"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the explanation: the warnings of the served prediction."""
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
        """The probability compared with the threshold, in words."""
        if self.threshold is None:
            return "without a threshold"
        relation = "present" if self.probability >= self.threshold else "not present"
        return f"{relation} (threshold {self.threshold:.3f})"

    @property
    def relative_delta(self) -> float:
        """`convergence_delta` as a share of |logit - baseline_logit|."""
        return self.convergence_delta / max(abs(self.logit - self.baseline_logit), 1e-6)

    @property
    def contributions(self) -> dict[str, float]:
        """What "image" and "text" each add to the logit: the sum of their attributions."""
        return sum_attributions(self.pixel_attribution, self.words)

    @property
    def shares(self) -> dict[str, float]:
        """Share of "image" and "text" in the absolute attributions of patches and words; the shares sum to 1.

        The unit is the patch and not the pixel, because neighbouring pixels of opposite sign mostly cancel out.
        """
        sizes = {}
        if self.pixel_attribution is not None and self.patch_attention is not None:
            patches = pool_patches(self.pixel_attribution, len(self.patch_attention))
            sizes["image"] = float(np.abs(patches).sum())
        if self.words:
            sizes["text"] = sum(abs(word.attribution) for word in self.words)
        total = sum(sizes.values()) or 1.0
        return {kind: size / total for kind, size in sizes.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the maps, and the box around the pixels that speak most for the finding."""
        box = None if self.pixel_attribution is None else find_hottest_box(self.pixel_attribution)
        return {
            "kind": self.kind,
            "key": self.key,
            "name": self.name,
            "probability": self.probability,
            "threshold": self.threshold,
            "logit": self.logit,
            "baseline_logit": self.baseline_logit,
            "baseline": self.baseline,
            "view": self.view,
            "views": self.views,
            "baselines": [vars(one) for one in self.baselines],
            "steps": self.steps,
            "convergence_delta": self.convergence_delta,
            "relative_delta": self.relative_delta,
            "contributions": self.contributions,
            "shares": self.shares,
            "hottest_region": None if box is None else box.to_dict(),
            "maps": [
                {
                    "method": found.method,
                    "seconds": round(found.seconds, 3),
                    "delta": found.delta,
                    "caveat": found.caveat,
                }
                for found in self.maps
            ],
            "remarks": list(self.remarks),
            "words": [vars(word) for word in self.words],
            "fingerprint": self.fingerprint,
            "trained_on": self.trained_on,
            "lateral": None if self.lateral is None else round(self.lateral, 6),
            "image_share": None if self.image_share is None else round(self.image_share, 6),
            "image_notes": None if self.image_notes is None else self.image_notes.to_dict(),
            "report_notes": None if self.report_notes is None else self.report_notes.to_dict(),
            "warnings": list(self.warnings),
        }
