"""What a search for similar cases may return, beside how many."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from contract.errors import InputError
from contract.image.view import VIEWS
from contract.labels import LABEL_KEYS
from contract.strings import require_strings, require_text
from contract.training_data import WAYS

MAX_DIVERSE_K: Final = 100  # as contract/proto/retrieval.proto states it


@dataclass(frozen=True)
class SearchOptions:
    """Which of the stored cases a search may return, and in what order. What is empty allows every case.

    Attributes:
        labels_any: The case has at least one of these labels, keys of `contract.labels`.
        labels_all: The case has all of these labels.
        labels_none: The case has none of these labels.
        views: The view of its first image is one of "PA", "AP", "FRONTAL" (one of these), "LATERAL", "UNKNOWN".
        embedding_kinds: Its embedding was made from one of "study" (image and report), "image", "text".
        exclude_ids: Ids of cases that the search leaves out.
        min_score: Smallest cosine similarity to the query, -1 to 1. None: every similarity counts.
        diversity: 0 for the nearest cases. Up to 1: of the 4 k nearest cases (at least 50), cases that differ from each
            other, by maximal marginal relevance with lambda = 1 - diversity. `k` is then at most 100.
        query_labels: Known labels of the query. Each result names those that it shares.

    Raises:
        InputError: A name is unknown, a list is a single string, or a number is out of its range.
    """

    labels_any: tuple[str, ...] = ()
    labels_all: tuple[str, ...] = ()
    labels_none: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    embedding_kinds: tuple[str, ...] = ()
    exclude_ids: tuple[str, ...] = field(default=(), repr=False)
    min_score: float | None = None
    diversity: float = 0.0
    query_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields, and turn the lists into tuples."""
        for name in ("labels_any", "labels_all", "labels_none", "query_labels"):
            self._set(name, LABEL_KEYS)
        self._set("views", VIEWS)
        self._set("embedding_kinds", WAYS)
        ids = require_strings(self.exclude_ids, "exclude_ids")
        object.__setattr__(
            self, "exclude_ids", tuple(require_text(text, "An id in exclude_ids") for text in ids)
        )
        if self.min_score is not None:
            _require_number(self.min_score, "min_score", -1)
        _require_number(self.diversity, "diversity", 0)

    @property
    def chooses_cases(self) -> bool:
        """Whether a search with these options may return other cases, or in another order, than one without."""
        return self != SearchOptions(query_labels=self.query_labels)

    def check_k(self, k: int) -> None:
        """Raise InputError if so many different cases cannot be chosen."""
        if self.diversity and k > MAX_DIVERSE_K:
            raise InputError(f"k must be at most {MAX_DIVERSE_K} with a diversity, not {k}.")

    def require_filter(self) -> None:
        """Raise InputError unless these options only say which cases count. There is no query to compare them with."""
        if self.min_score is not None or self.diversity or self.query_labels:
            raise InputError("min_score, diversity and query_labels need a query. Leave them out.")

    def _set(self, name: str, known: Iterable[str]) -> None:
        values = require_strings(getattr(self, name), name)
        for value in values:
            if value not in known:
                raise InputError(f"{name} names {value!r}. Choose from {', '.join(known)}.")
        object.__setattr__(self, name, values)


def _require_number(value: float, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name} must be a number from {least} to 1, not of type {type(value).__name__}.")
    if not least <= value <= 1 or math.isnan(value):
        raise InputError(f"{name} must be a number from {least} to 1, not {value}.")
