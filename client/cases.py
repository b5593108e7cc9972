"""Cases that a caller sends, and stored cases that a search returns."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, overload

from client.inputs import ReportSource, StudyImages
from client.short_text import name_first, shorten
from contract.strings import require_strings, require_text
from contract.training_data import UNKNOWN, warn_of_training


@dataclass(frozen=True)
class CaseInput:
    """A case for `CxrClient.predict_many` or `CxrClient.index`: images, a report, or both.

    The client reads the files of a case immediately before it sends the case.

    Attributes:
        id: Identifier of the case; indexing replaces a stored case with the same id.
        study_id: Identifier of the study; a search can exclude studies.
        image: As in `CxrClient.predict`.
        report: As in `CxrClient.predict`.
        labels: Keys of `contract.labels`.
        image_ref: Path or URI of the image for the reader of a search result. It is stored unchanged.

    Raises:
        InputError: An id, a label or `image_ref` is not text.
    """

    id: str
    study_id: str
    image: StudyImages | None = field(default=None, repr=False)
    report: ReportSource | None = field(default=None, repr=False)
    labels: tuple[str, ...] = ()
    image_ref: str = ""

    def __repr__(self) -> str:
        given = [name for name in ("image", "report") if getattr(self, name) is not None]
        return f"CaseInput({shorten(self.id)!r}, given={name_first(given)})"

    def __post_init__(self) -> None:
        """Check the text fields, and turn the labels into a tuple."""
        for name in ("id", "study_id", "image_ref"):
            require_text(getattr(self, name), f"The {name} of a case")
        object.__setattr__(self, "labels", require_strings(self.labels, "The labels of a case"))


@dataclass(frozen=True)
class IndexResult:
    """The number of indexed cases, and the cases that were refused, failed or have warnings.

    Attributes:
        added: Number of cases with a new id.
        replaced: Number of cases that replaced a stored case with the same id.
        refused: (case id, reason) of each case that could not be read, or that the model or the sidecar refused.
        warned: (case id, warnings) of each stored case with a warning about its images or its report.
        trained_on: The collection that the model was trained on.
        failed: (case id, reason) of each case on which a server failed, if the caller kept going. It may be stored all
            the same: index it again.
    """

    added: int
    replaced: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    warned: tuple[tuple[str, tuple[str, ...]], ...] = ()
    trained_on: str = UNKNOWN
    failed: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"IndexResult(indexed={self.indexed}, refused={len(self.refused)}, warned={len(self.warned)})"

    @property
    def indexed(self) -> int:
        """Number of stored cases: `added` and `replaced`."""
        return self.added + self.replaced

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings that apply to all cases."""
        return warn_of_training(self.trained_on)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, `indexed` and `warnings`."""
        refused = [{"id": case_id, "reason": reason} for case_id, reason in self.refused]
        warned = [{"id": case_id, "warnings": list(sentences)} for case_id, sentences in self.warned]
        return {
            "indexed": self.indexed,
            "added": self.added,
            "replaced": self.replaced,
            "refused": refused,
            "failed": [{"id": case_id, "reason": reason} for case_id, reason in self.failed],
            "warned": warned,
            "trained_on": self.trained_on,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class ListedCase:
    """A stored case as `CxrClient.list_cases` yields it.

    Attributes:
        id: As in `CaseInput`.
        study_id: As in `CaseInput`.
        labels: As in `CaseInput`.
        view: As in `SimilarCase`.
        embedding_kind: As in `SimilarCase`.
        image_ref: As in `CaseInput`.
        report: Text of the report; "" without one, and if reports were not asked for.
    """

    id: str
    study_id: str
    labels: tuple[str, ...] = ()
    view: str = ""
    embedding_kind: str = ""
    image_ref: str = field(default="", repr=False)
    report: str = field(default="", repr=False)

    def __repr__(self) -> str:
        return f"ListedCase({shorten(self.id)!r}, labels={name_first(self.labels)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {**asdict(self), "labels": list(self.labels)}


@dataclass(frozen=True)
class SimilarCase:
    """A stored case that a search returned, and why.

    Attributes:
        id: As in `CaseInput`.
        study_id: As in `CaseInput`.
        score: Cosine similarity to the query, -1 to 1.
        labels: As in `CaseInput`.
        report: Text of the report; "" without one.
        image_ref: As in `CaseInput`.
        view: View of the first image by its header: "PA", "AP", "FRONTAL" (one of these), "LATERAL" or "UNKNOWN"; ""
            without an image.
        embedding_kind: What the embedding was made from: "study" (image and report), "image" or "text"; "" of a case
            that an earlier version indexed.
        shared_labels: Labels of the case that are in `SearchOptions.query_labels` too.
        excerpt: The sentence of the report with most different words in common with the query's text, case and common
            words such as "the" aside. "" without such a word, for a query without text, and after the first 100
            results.
    """

    id: str
    study_id: str
    score: float
    labels: tuple[str, ...]
    report: str
    image_ref: str
    view: str = ""
    embedding_kind: str = ""
    shared_labels: tuple[str, ...] = ()
    excerpt: str = ""

    def __repr__(self) -> str:
        return f"SimilarCase({shorten(self.id)!r}, {self.score:.3f}, labels={name_first(self.labels)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {**asdict(self), "labels": list(self.labels), "shared_labels": list(self.shared_labels)}


@dataclass(frozen=True)
class SearchResult(Sequence[SimilarCase]):
    """A sequence of the stored cases most similar to a query, best first.

    Attributes:
        cases: The cases.
        warnings: The warnings of the query's prediction.
        trained_on: The collection that the model was trained on.
        exact: Whether every case that the options allow was compared. An approximate index may miss a case; the
            similarities that it returns are exact too.
    """

    cases: tuple[SimilarCase, ...]
    warnings: tuple[str, ...] = ()
    trained_on: str = UNKNOWN
    exact: bool = True

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
            "exact": self.exact,
            "trained_on": self.trained_on,
            "warnings": list(self.warnings),
        }
