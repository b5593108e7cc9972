"""What the client takes and returns; every result turns into JSON with `to_dict`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, overload

import numpy as np
from numpy.typing import NDArray

from client.images import ReadImage, warn_of_images
from client.inputs import ReportSource, StudyImages
from contract.decisions import Decision, Decisions, ServedLabel, decide
from contract.labels import LABEL_KEYS, LABEL_NAMES
from contract.notes import ImageNotes, ReportNotes, join_warnings, warn_of_view
from contract.strings import require_strings, require_text
from contract.training_data import (
    UNDECIDED_WARNING,
    UNKNOWN,
    WAYS,
    warn_of_training,
    warn_of_views,
    warn_of_way,
)

Kind = Literal["study", "image", "text"]  # which inputs a prediction was made from
MOST_SHOWN: Final = 5  # labels of a conformal set that are worth naming
_READ: Final[dict[Kind, str]] = {
    "study": "the image and the report",
    "image": "the image",
    "text": "the report",
}
_SHOWN: Final = 3  # names in a repr, which is one short line and holds nothing of a report
_SHOWN_CHARS: Final = 40


@dataclass(frozen=True)
class Finding:
    """One category: its calibrated probability (0 to 1), and the threshold and band of the served model.

    They are those of the way in which the case was read. A probability from `uncertain_low` up to, but without,
    `uncertain_high` is uncertain; both are None in a model without a band. `threshold` is None where the model states
    none for this way of reading: then nothing is decided.
    """

    key: str
    name: str
    probability: float
    threshold: float | None
    uncertain_low: float | None = None
    uncertain_high: float | None = None
    unmeasured: bool = False  # the test split of the model held too few cases of it

    def __repr__(self) -> str:
        return f"Finding({self.key!r}, {self.probability:.3f}, {self.decision!r})"

    @property
    def present(self) -> bool | None:
        """Whether the probability reaches the threshold; None without one."""
        return None if self.threshold is None else self.probability >= self.threshold

    @property
    def confidence(self) -> float | None:
        """How probable it is that `present` is right, 0 to 1; None without a threshold."""
        if self.present is None:
            return None
        return self.probability if self.present else 1 - self.probability

    @property
    def decision(self) -> Decision:
        """Like `present`, but "uncertain" inside the band, and "undecided" without a threshold.

        A model without bands is uncertain about nothing.
        """
        return decide(self.probability, self.threshold, self.uncertain_low, self.uncertain_high)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, `present`, `decision` and `confidence`."""
        derived = {"present": self.present, "decision": self.decision, "confidence": self.confidence}
        return {**asdict(self), **derived}


@dataclass(frozen=True)
class ConformalSet:
    """The labels that stay possible: together they are likely to hold nearly all that a case has.

    `stated_recall` is the share of a study's labels that such a set holds on average, at least, as fitted on the
    validation split for this way of reading. A set of more than `MOST_SHOWN` narrows nothing down.
    """

    keys: tuple[str, ...]
    stated_recall: float

    def __repr__(self) -> str:
        return f"ConformalSet({_name_first(self.keys)}, stated_recall={self.stated_recall:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {"keys": list(self.keys), "stated_recall": self.stated_recall}

    def to_sentence(self, kind: Kind) -> str:
        """Name the labels for a person; of a long set only say that what was read does not narrow them down.

        Args:
            kind: What the prediction was made from.
        """
        read, verb = _READ[kind], "do" if kind == "study" else "does"
        recall = f"at least {100 * self.stated_recall:.0f} % of a study's labels on average"
        if len(self.keys) > MOST_SHOWN:
            return (
                f"{read.capitalize()} {verb} not narrow the labels down: {len(self.keys)} of {len(LABEL_KEYS)} "
                f"would have to be named to hold {recall}."
            )
        names = ", ".join(LABEL_NAMES.get(key, key) for key in self.keys) or "none"
        return f"Possible labels from {read}: {names}. Such a list holds {recall}."


@dataclass(frozen=True)
class Prediction:
    """The served model's answer for one case; K labels, N image tokens, L text tokens.

    Where several images of the study were read, `image_notes` and `lateral` are of the first one; `images` has all.

    Attributes:
        kind: "study", "image" or "text".
        findings: The K categories, in the order of `contract.labels`.
        embedding: (D,) float32 of unit length.
        fingerprint: Of the model that answered.
        image_attention: (K, N) float32, each row summing to 1, tokens row by row; of V images (K, V N), image after
            image. None without an image.
        text_attention: (K, L) float32, each row summing to 1; None without a report.
        lateral: Probability that the image is a lateral view, by the model, 0 to 1; 0.5 of every image from a model
            that never learned to tell views, None without an image or from a server of an older version.
        report_text: The part of the report that the model read.
        token_spans: (L, 2) int32, first and past-last character of each token in `report_text`.
        image_notes: How the image was taken; None without an image.
        report_notes: How much of the report was read; None without a report.
        conformal_set: The labels that stay possible; None from a model that states nothing about them.
        trained_on: The collection that the model was trained on: "phantom", "openi", another name, or "unknown".
        trained_ways: Which of "study", "image" and "text" it was trained to read.
        further_images: The images after the first one.
        trained_views: How many images of one study the model was trained to fuse at most.
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
    trained_on: str = UNKNOWN
    trained_ways: tuple[str, ...] = WAYS
    lateral: float | None = None
    further_images: tuple[ReadImage, ...] = ()
    trained_views: int = 1

    def __repr__(self) -> str:
        ranked = sorted(self.findings, key=lambda finding: -finding.probability)
        present = _name_first([finding.key for finding in ranked if finding.decision == "present"])
        return (
            f"Prediction({self.kind!r}, present={present}, warnings={len(self.warnings)}, "
            f"model={self.fingerprint[:12]!r})"
        )

    @property
    def images(self) -> tuple[ReadImage, ...]:
        """The images of the study in their order; empty without one."""
        if self.image_notes is None:
            return ()
        attention = self.image_attention
        if attention is not None:
            attention = np.array_split(attention, 1 + len(self.further_images), axis=1)[0]
        return (ReadImage(self.image_notes, self.lateral, attention), *self.further_images)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the answer is believed, one sentence each; empty for a usual case."""
        way = (
            *warn_of_way(self.kind, self.trained_ways),
            *warn_of_views(len(self.images), self.trained_views),
        )
        undecided = any(finding.threshold is None for finding in self.findings)
        decisions = (UNDECIDED_WARNING,) if undecided else ()
        return (*warn_of_training(self.trained_on), *way, *decisions, *self.input_warnings)

    @property
    def input_warnings(self) -> tuple[str, ...]:
        """Those of the warnings that are about the images and the report."""
        if self.further_images:
            return (*warn_of_images(self.images), *join_warnings(self.report_notes))
        return (
            *join_warnings(self.image_notes, self.report_notes),
            *warn_of_view(self.image_notes, self.lateral),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return kind, fingerprint, findings, conformal set, embedding, view, notes, images and warnings."""
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
class SimilarCase:
    """A stored case; `score` is the cosine similarity to the query, -1 to 1."""

    id: str
    study_id: str
    score: float
    labels: tuple[str, ...]
    report: str
    image_ref: str

    def __repr__(self) -> str:
        return f"SimilarCase({_shorten(self.id)!r}, {self.score:.3f}, labels={_name_first(self.labels)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {**asdict(self), "labels": list(self.labels)}


@dataclass(frozen=True)
class SearchResult(Sequence[SimilarCase]):
    """The cases most similar to a query, best first: a sequence of them, with the warnings about the query."""

    cases: tuple[SimilarCase, ...]
    warnings: tuple[str, ...] = ()
    trained_on: str = UNKNOWN

    def __repr__(self) -> str:
        best = f", best={self.cases[0]!r}" if self.cases else ""
        return f"SearchResult(cases={len(self.cases)}{best}, warnings={len(self.warnings)})"

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
        return {
            "cases": [case.to_dict() for case in self.cases],
            "trained_on": self.trained_on,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class CaseInput:
    """A case to predict or to index: images, a report, or both, each as `CxrClient.predict` takes it.

    Files are read when the case's turn comes. `image_ref` is a path or URI that the reader of a search result
    understands; it is stored as it is. Raises InputError where ids or labels are no text.
    """

    id: str
    study_id: str
    image: StudyImages | None = field(default=None, repr=False)
    report: ReportSource | None = field(default=None, repr=False)
    labels: tuple[str, ...] = ()
    image_ref: str = ""

    def __repr__(self) -> str:
        given = [name for name in ("image", "report") if getattr(self, name) is not None]
        return f"CaseInput({_shorten(self.id)!r}, given={_name_first(given)})"

    def __post_init__(self) -> None:
        """Check what becomes text of the store; a series of labels becomes a tuple."""
        for name in ("id", "study_id", "image_ref"):
            require_text(getattr(self, name), f"The {name} of a case")
        object.__setattr__(self, "labels", require_strings(self.labels, "The labels of a case"))


@dataclass(frozen=True)
class IndexResult:
    """What became of the cases.

    Attributes:
        added: How many were stored under an id that was new.
        replaced: How many were stored in place of another case of the same id.
        refused: (case id, reason) of each that could not be read, or that the model or the sidecar refused.
        warned: (case id, its warnings) of each that was stored with a warning about its image or report.
        trained_on: The collection that the model was trained on.
    """

    added: int
    replaced: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    warned: tuple[tuple[str, tuple[str, ...]], ...] = ()
    trained_on: str = UNKNOWN

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know about all cases."""
        return warn_of_training(self.trained_on)

    def __repr__(self) -> str:
        return f"IndexResult(indexed={self.indexed}, refused={len(self.refused)}, warned={len(self.warned)})"

    @property
    def indexed(self) -> int:
        """How many were stored, added and replaced."""
        return self.added + self.replaced

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `indexed`."""
        refused = [{"id": case_id, "reason": reason} for case_id, reason in self.refused]
        warned = [{"id": case_id, "warnings": list(sentences)} for case_id, sentences in self.warned]
        return {
            "indexed": self.indexed,
            "added": self.added,
            "replaced": self.replaced,
            "refused": refused,
            "warned": warned,
            "trained_on": self.trained_on,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class ServedModel:
    """What the served model says about itself.

    `grid` is the side of the square that the N image tokens form; `decisions` lack their calibration;
    `temperature` divided the similarities of the contrastive loss, None where the model does not say; `trained_on` is
    the collection that it was trained on: "phantom", "openi", another name, or "unknown"; `trained_ways` are those of
    "study", "image" and "text" that it was trained to read; token ids are below `vocabulary_size`. `profile` is the
    precision profile of its graphs, "" where an older repository does not say it; `required_backend` names the Triton
    backend that alone runs them as they were gated, "" for any; `image_reading` is the number of the code that reads
    images there (`contract.shrink`), None where an older repository does not say it. `unmeasured` are the keys of the
    labels that its test split held too few cases of. `tells_view` says whether it answers with the view of an image,
    which a repository of an older version does not; None where the model that was asked reads no image. `most_views` is
    how many images of one study it reads together, 1 in a repository of an older version; `trained_views` is how many
    it was trained to fuse at most.
    """

    fingerprint: str
    text_mode: str
    max_length: int
    image_size: int
    embedding_size: int
    grid: int
    decisions: Decisions
    temperature: float | None = None
    trained_on: str = UNKNOWN
    trained_ways: tuple[str, ...] = WAYS
    vocabulary_size: int | None = None
    profile: str = ""
    required_backend: str = ""
    image_reading: int | None = None
    unmeasured: tuple[str, ...] = ()
    tells_view: bool | None = None
    most_views: int = 1
    trained_views: int = 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before any answer is believed."""
        return warn_of_training(self.trained_on)

    def __repr__(self) -> str:
        return (
            f"ServedModel({self.fingerprint[:12]!r}, reads {self.text_mode!r} and {self.image_size} pixels, "
            f"decides from {', '.join(self.decisions.ways) or 'nothing'})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and warnings."""
        return {**asdict(self), "decisions": self.decisions.describe(), "warnings": list(self.warnings)}


@dataclass(frozen=True)
class BatchPrediction:
    """Answers for a batch of B cases that the caller preprocessed; K labels, N image tokens, L text tokens.

    Attributes:
        kind: "study", "image" or "text".
        model: That answered.
        probabilities: (B, K) float32, calibrated, in the order of `contract.labels`.
        embedding: (B, D) float32 of unit length.
        image_attention: (B, K, N) float32, each row summing to 1; None without images.
        text_attention: (B, K, L) float32, each row summing to 1, 0 on padding; None without reports.
        lateral: (B,) float32, probability that the image is a lateral view, 0 to 1; None without images or from a
            server of an older version.
    """

    kind: Kind
    model: ServedModel
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]
    image_attention: NDArray[np.float32] | None = None
    text_attention: NDArray[np.float32] | None = None
    lateral: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        return f"BatchPrediction({self.kind!r}, cases={len(self.probabilities)}, model={self.fingerprint[:12]!r})"

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that answered."""
        return self.model.fingerprint

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the answers are believed; the inputs were the caller's to look at."""
        return (*self.model.warnings, *warn_of_way(self.kind, self.model.trained_ways))

    @property
    def labels(self) -> tuple[ServedLabel, ...]:
        """The K categories as the model decides them for this way of reading."""
        return self.model.decisions.of(self.kind)


@dataclass(frozen=True)
class Health:
    """Whether the servers answer; an error is one sentence, None where all is well.

    `trained_on` is the collection that the served model was trained on, None where Triton does not answer.
    """

    triton: str | None
    retrieval: str | None
    fingerprint: str | None = None
    cases: int | None = None
    trained_on: str | None = None

    def __repr__(self) -> str:
        states = {
            name: "ready" if trouble is None else _shorten(trouble)
            for name, trouble in (("triton", self.triton), ("retrieval", self.retrieval))
        }
        said = ", ".join(f"{name}={state!r}" for name, state in states.items())
        return f"Health({said}, cases={self.cases}, model={(self.fingerprint or '')[:12]!r})"

    @property
    def ready(self) -> bool:
        """Whether both servers answer and belong to the same model."""
        return self.triton is None and self.retrieval is None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the served model was trained on says about its answers; nothing where it is not known."""
        return warn_of_training(self.trained_on or UNKNOWN)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, `ready` and `warnings`."""
        return {**asdict(self), "ready": self.ready, "warnings": list(self.warnings)}


def _name_first(names: Sequence[str]) -> str:
    """Return the first few names as a list, and how many more there are."""
    shown = ", ".join(map(repr, map(_shorten, names[:_SHOWN])))
    more = f", +{len(names) - _SHOWN}" if len(names) > _SHOWN else ""
    return f"[{shown}{more}]"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"
