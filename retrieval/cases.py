"""A case as the store keeps it, and many cases as the index reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contract.errors import ArtifactError, InputError


class UnknownCaseError(InputError):
    """No case with this id is stored."""


class DamagedRowsError(ArtifactError):
    """Rows differ from what was written. `rows` has their sequence numbers."""

    def __init__(self, message: str, rows: frozenset[int]) -> None:
        """Take the message and the sequence numbers."""
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class CaseRecord:
    """The data of a case except its embedding. It is never printed, because it is patient data.

    Attributes:
        id: Unique in a store.
        study_id: Cases of one study share it.
        labels: Keys of `contract.labels`.
        report: Text of the report; "" without one.
        image_ref: Path or URI of the image for a reader.
        view: View of the first image, of `contract.image.view.VIEWS`; "" if nobody stated it.
        kind: What the embedding was made from: "study", "image" or "text"; "" if nobody stated it.
    """

    id: str = field(repr=False)
    study_id: str = field(repr=False)
    labels: tuple[str, ...] = field(default=(), repr=False)
    report: str = field(default="", repr=False)
    image_ref: str = field(default="", repr=False)
    view: str = field(default="", repr=False)
    kind: str = field(default="", repr=False)


@dataclass(frozen=True)
class CaseVectors:
    """The data of N cases for the index.

    `embeddings` is (N, D) float32 of unit length. `labels`, `views` and `kinds` are those of `CaseRecord`, N of each;
    empty if no case has any.
    """

    sequences: Sequence[int]
    ids: Sequence[str] = field(repr=False)
    study_ids: Sequence[str] = field(repr=False)
    embeddings: NDArray[np.float32] = field(repr=False)
    labels: Sequence[Sequence[str]] = field(default=(), repr=False)
    views: Sequence[str] = field(default=(), repr=False)
    kinds: Sequence[str] = field(default=(), repr=False)
