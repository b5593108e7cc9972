"""Short text for a `repr`: it fits on one line, and shows at most the first characters of a value."""

from collections.abc import Sequence
from typing import Final

_MAX_NAMES: Final = 3
_MAX_CHARS: Final = 40


def name_first(names: Sequence[str]) -> str:
    """Return the first names as a list, and the number of the others: "['a', 'b', 'c', +19]"."""
    first = ", ".join(repr(shorten(name)) for name in names[:_MAX_NAMES])
    more = f", +{len(names) - _MAX_NAMES}" if len(names) > _MAX_NAMES else ""
    return f"[{first}{more}]"


def shorten(text: str) -> str:
    """Return the text, cut to 40 characters."""
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 1]}…"
