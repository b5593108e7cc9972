"""Filters as Milvus expressions.

Ids come from callers, so each string is written as a literal that can hold any character. Milvus reads a literal in
double quotes with Go's `strconv.Unquote`, Milvus Lite with its own parser. Both know these four escapes, and both take
every other character as it is.
"""

from collections.abc import Iterable
from typing import Final

from retrieval.rows import CaseFilter

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r"})


def quote(text: str) -> str:
    """Return a string as a literal of an expression."""
    return f'"{text.translate(_ESCAPES)}"'


def quote_all(texts: Iterable[str]) -> str:
    """Return strings as a list of an expression, sorted."""
    return f"[{', '.join(map(quote, sorted(texts)))}]"


def name_ids(ids: Iterable[str]) -> str:
    """Return the expression of the cases with these ids."""
    return f"id in {quote_all(ids)}"


def join(*terms: str) -> str:
    """Return the expression that is true where all of these are; "" for none."""
    return " and ".join(f"({term})" for term in terms if term)


def write_filter(wanted: CaseFilter, *others: str) -> str:
    """Return the expression of the cases that a filter allows and that other expressions are true for; "": all."""
    terms = [
        wanted.labels_any and f"array_contains_any(labels, {quote_all(wanted.labels_any)})",
        wanted.labels_all and f"array_contains_all(labels, {quote_all(wanted.labels_all)})",
        wanted.labels_none and f"not array_contains_any(labels, {quote_all(wanted.labels_none)})",
        wanted.views and f"view in {quote_all(wanted.views)}",
        wanted.kinds and f"kind in {quote_all(wanted.kinds)}",
        wanted.excluded_ids and f"id not in {quote_all(wanted.excluded_ids)}",
        wanted.excluded_study_ids and f"study_id not in {quote_all(wanted.excluded_study_ids)}",
        *others,
    ]
    return join(*(term for term in terms if term))
