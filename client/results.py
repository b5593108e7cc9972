"""What the client takes and returns; every result turns into JSON with `to_dict`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Decision, ServedLabel, decide
from contract.notes import ImageNotes, ReportNotes, join_warnings

Kind = Literal["study", "image", "text"]  # which inputs a prediction was made from


@dataclass(frozen=True)
class Finding:
    """One category: its calibrated probability (0 to 1), and the threshold and band of the served model.

    A probability from `uncertain_low` up to, but without, `uncertain_high` is uncertain; both are None in a model
    without a band.
    """

    key: str
    name: str
    probability: float
    threshold: float
    uncertain_low: float | None = None
    uncertain_high: float | None = None

    @property
    def present(self) -> bool:
        """Whether the probability reaches the threshold."""
        return self.probability >= self.threshold

    @property
    def confidence(self) -> float:
        """How probable it is that `present` is right, 0 to 1."""
        return self.probability if self.present else 1 - self.probability

    @property
    def decision(self) -> Decision:
        """Like `present`, but "uncertain" inside the band; a model without bands is uncertain about nothing."""
        return decide(self.probability, self.threshold, self.uncertain_low, self.uncertain_high)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, `present`, `decision` and `confidence`."""
        derived = {"present": self.present, "decision": self.decision, "confidence": self.confidence}
        return {**asdict(self), **derived}


@dataclass(frozen=True)
class ConformalSet:
    """The labels that cannot be left out: together they are likely to hold nearly all that a case has.

    `stated_recall` is the share of a study's labels that such a set holds on average, at least, as fitted on the
    validation split for the image, the report and both.
    """

    keys: tuple[str, ...]
    stated_recall: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {"keys": list(self.keys), "stated_recall": self.stated_recall}


@dataclass(frozen=True)
class Prediction:
    """The served model's answer for one case; K labels, N image tokens, L text tokens.

    Attributes:
        kind: "study", "image" or "text".
        findings: The K categories, in the order of `contract.labels`.
        embedding: (D,) float32 of unit length.
        fingerprint: Of the model that answered.
        image_attention: (K, N) float32, each row summing to 1, tokens row by row; None without an image.
        text_attention: (K, L) float32, each row summing to 1; None without a report.
        report_text: The part of the report that the model read.
        token_spans: (L, 2) int32, first and past-last character of each token in `report_text`.
        image_notes: How the image was taken; None without an image.
        report_notes: How much of the report was read; None without a report.
        conformal_set: The labels that cannot be left out; None from a model that states nothing about them.
    """

    kind: Kind
    findings: tuple[Finding, ...]
    embedding: NDArray[np.float32]
    fingerprint: str
    image_attention: NDArray[np.float32] | None = None
    text_attention: NDArray[np.float32] | None = None
    report_text: str | None = None
    token_spans: NDArray[np.int32] | None = None
    image_notes: ImageNotes | None = None
    report_notes: ReportNotes | None = None
    conformal_set: ConformalSet | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the answer is believed, one sentence each; empty for a usual case."""
        return join_warnings(self.image_notes, self.report_notes)

    def to_dict(self) -> dict[str, Any]:
        """Return kind, fingerprint, findings, conformal set, embedding, notes and warnings."""
        return {
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "findings": [finding.to_dict() for finding in self.findings],
            "conformal_set": None if self.conformal_set is None else self.conformal_set.to_dict(),
            "embedding": [round(float(value), 6) for value in self.embedding],
            "image_notes": None if self.image_notes is None else self.image_notes.to_dict(),
            "report_notes": None if self.report_notes is None else self.report_notes.to_dict(),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class SimilarCase:
    """A stored case; `score` is the cosine similarity to the query, -1 to 1."""

    id: str
    study_id: str
    score: float
    labels: tuple[str, ...]
    report: str
    image_ref: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {**asdict(self), "labels": list(self.labels)}


@dataclass(frozen=True)
class SearchResult(Sequence[SimilarCase]):
    """The cases most similar to a query, best first: a sequence of them, with the warnings about the query."""

    cases: tuple[SimilarCase, ...]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, index: int) -> SimilarCase: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[SimilarCase, ...]: ...

    def __getitem__(self, index: int | slice) -> SimilarCase | tuple[SimilarCase, ...]:
        return self.cases[index]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {"cases": [case.to_dict() for case in self.cases], "warnings": list(self.warnings)}


@dataclass(frozen=True)
class CaseInput:
    """A case to index: an image (DICOM, PNG or JPEG bytes), a report, or both.

    `image_ref` is a path or URI that the reader of a search result understands; it is stored as it is.
    """

    id: str
    study_id: str
    image: bytes | None = field(default=None, repr=False)
    report: str | None = field(default=None, repr=False)
    labels: tuple[str, ...] = ()
    image_ref: str = ""


@dataclass(frozen=True)
class IndexResult:
    """What became of the cases.

    Attributes:
        indexed: How many were stored.
        refused: (case id, reason) of each that the model refused.
        warned: (case id, its warnings) of each that was stored with a warning.
    """

    indexed: int
    refused: tuple[tuple[str, str], ...] = ()
    warned: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        refused = [{"id": case_id, "reason": reason} for case_id, reason in self.refused]
        warned = [{"id": case_id, "warnings": list(sentences)} for case_id, sentences in self.warned]
        return {"indexed": self.indexed, "refused": refused, "warned": warned}


@dataclass(frozen=True)
class ServedModel:
    """What the served model says about itself.

    `grid` is the side of the square that the N image tokens form; `labels` lack their calibration;
    `temperature` divided the similarities of the contrastive loss, None where the model does not say;
    token ids are below `vocabulary_size`.
    """

    fingerprint: str
    text_mode: str
    max_length: int
    image_size: int
    embedding_size: int
    grid: int
    labels: tuple[ServedLabel, ...]
    temperature: float | None = None
    vocabulary_size: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {**asdict(self), "labels": [label.describe() for label in self.labels]}


@dataclass(frozen=True)
class BatchPrediction:
    """Answers for a batch of B cases that the caller preprocessed; K labels, N image tokens, L text tokens.

    Attributes:
        kind: "study", "image" or "text".
        model: That answered, with labels and thresholds.
        probabilities: (B, K) float32, calibrated, in the order of `contract.labels`.
        embedding: (B, D) float32 of unit length.
        image_attention: (B, K, N) float32, each row summing to 1; None without images.
        text_attention: (B, K, L) float32, each row summing to 1, 0 on padding; None without reports.
    """

    kind: Kind
    model: ServedModel
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]
    image_attention: NDArray[np.float32] | None = None
    text_attention: NDArray[np.float32] | None = None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that answered."""
        return self.model.fingerprint


@dataclass(frozen=True)
class Health:
    """Whether the servers answer; an error is one sentence, None where all is well."""

    triton: str | None
    retrieval: str | None
    fingerprint: str | None = None
    cases: int | None = None

    @property
    def ready(self) -> bool:
        """Whether both servers answer and belong to the same model."""
        return self.triton is None and self.retrieval is None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `ready`."""
        return {**asdict(self), "ready": self.ready}
