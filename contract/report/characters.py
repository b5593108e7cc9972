"""Normalise a text: line ends, spaces and letters become plain ones, and invisible characters are removed."""

import functools
import re
import unicodedata
from itertools import chain
from typing import Final

from contract.report.headings import RULE, SENTENCE_END, match_heading

# Default_Ignorable_Code_Point of Unicode (DerivedCoreProperties.txt): invisible. Soft hyphen, zero-width
# characters, byte order marks, direction marks, variation selectors, tags.
_IGNORABLE: Final = (
    range(0xAD, 0xAE),
    range(0x34F, 0x350),
    range(0x61C, 0x61D),
    range(0x115F, 0x1161),
    range(0x17B4, 0x17B6),
    range(0x180B, 0x1810),
    range(0x200B, 0x2010),
    range(0x202A, 0x202F),
    range(0x2060, 0x2070),
    range(0x3164, 0x3165),
    range(0xFE00, 0xFE10),
    range(0xFEFF, 0xFF00),
    range(0xFFA0, 0xFFA1),
    range(0xFFF0, 0xFFF9),
    range(0x1BCA0, 0x1BCA4),
    range(0x1D173, 0x1D17B),
    range(0xE0000, 0xE1000),
)
_C1: Final = range(0x80, 0xA0)  # control characters that text does not need and that a terminal may obey
_LINE_ENDS: Final = "\r\v\f\x85\u2028\u2029"
_SPACES: Final = (
    "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
)
# Variants of plain letters (NFKC): full width, ligatures of PDF files, mathematical letters.
_COMPATIBLE: Final = (
    range(0xFF01, 0xFFA0),
    range(0xFFA1, 0xFFEF),
    range(0xFB00, 0xFB07),
    range(0x1D400, 0x1D800),
)

# "heart\normal" has a wrong slash, not a line end: "ormal" is not a word.
_ENDS_OF_WORDS: Final = (
    r"(?:ormal|odul|odes?\b|ew(?:ly)?\b|ot\b|eck\b|asal|asogastric|ipples?\b|egative|ecro|eopl|onspec)"
)
# A line end or space that a system wrote as characters: a backslash and n, HL7's formatting, HTML. At most two
# backslashes are tried at each position, so that a million of them take no longer than other characters.
_WRITTEN: Final = re.compile(
    r"(?P<space>\\[HN]\\|\\{1,2}t(?![a-z])|&nbsp;|&#160;)"
    rf"|\\{{1,2}}r\\{{1,2}}n|\\{{1,2}}n(?!{_ENDS_OF_WORDS})|\\{{1,2}}r(?![a-z])"
    r"|\\\.(?:br|sp|in|ti|fi|nf|ce|sk)[+-]?[0-9]{0,4}\\"
    r"|\\X0[Dd](?:0[Aa])?\\|\\X0[Aa]\\"
)
# Line ends of HL7 and HTML, which also occur within sentences of reports (`_ends_line`).
_WEAK_LINE_END: Final = re.compile(r"~|<br\s*/?>", re.IGNORECASE)


def normalize_text(text: str) -> str:
    r"""Return a text with plain line ends, spaces and letters, without invisible characters.

    All line ends are recognised: those of every system and of Unicode, and those written as characters (\n, \.br\, ~).
    Letters of full width, ligatures and mathematical letters become plain letters. Other letters stay.
    """
    text = text.replace("\r\n", "\n").translate(_make_table())
    if "\\" in text or "&" in text:
        text = _WRITTEN.sub(lambda match: " " if match["space"] else "\n", text)
    return _mend_line_ends(text) if "~" in text or "<" in text else text


@functools.cache
def _make_table() -> dict[int, str | None]:
    """Return the `str.translate` table for characters that are not plain, with one character per line end."""
    table: dict[int, str | None] = dict.fromkeys(chain(_C1, *_IGNORABLE))
    table |= {code: unicodedata.normalize("NFKC", chr(code)) for code in chain(*_COMPATIBLE)}
    table |= dict.fromkeys(map(ord, _SPACES), " ") | dict.fromkeys(map(ord, _LINE_ENDS), "\n")
    return table


def _mend_line_ends(text: str) -> str:
    """Replace those weak line ends that really end a line."""
    marks = list(_WEAK_LINE_END.finditer(text))
    starts = [0, *(mark.end() for mark in marks)]
    ends = [*(mark.start() for mark in marks), len(text)]
    pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    parts = [pieces[0]]
    for mark, left, right in zip(marks, pieces, pieces[1:]):  # noqa: B905
        parts += ["\n" if _ends_line(mark[0], left, right) else mark[0], right]
    return "".join(parts)


def _ends_line(sign: str, left: str, right: str) -> bool:
    """Whether a tilde or <br> between two texts ends a line.

    "~5 mm", "a ~half" and "for<BR>metastatic" (as in Open-i) are within sentences and stay.
    """
    line, first = left.rpartition("\n")[2], right.partition("\n")[0]
    if (
        RULE.fullmatch(line)
        or RULE.fullmatch(first)
        or match_heading(first)
        or match_heading(" ".join(right[:99].split()))
    ):
        return True
    if not line.strip() or not first.strip() or SENTENCE_END.search(line[-99:]) or _is_bare_heading(line):
        return not right.lstrip()[:1].isdigit()
    return sign == "~" and line[-1] not in " \t([" and not right.lstrip()[:1].isdigit()


def _is_bare_heading(line: str) -> bool:
    heading = match_heading(line)
    return heading is not None and not heading.rest.strip()
