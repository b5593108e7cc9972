"""Headings of reports: whether a line is one or begins with one, however it is decorated, and its section.

    **FINDINGS:** Clear.      ## Findings        1. FINDINGS:       FINDINGS - Clear.      FINDINGS (alone)

all mean what "FINDINGS: Clear." means. Each pattern here takes time that grows with the length of the text.
"""

import re
from typing import Final, NamedTuple

SENTENCE_END: Final = re.compile(r"[.:;!?)]\s*\Z")
SECTIONS: Final = ("indication", "comparison", "findings", "impression")
# Words of a heading -> its section, "" for one that is not kept. Of two words in a heading, the upper one here counts.
_SECTION_OF: Final = {
    "finding": "findings",
    "impression": "impression",
    **dict.fromkeys(("conclusion", "opinion"), "impression"),
    "comparison": "comparison",
    **dict.fromkeys(("indication", "history", "reason", "clinical"), "indication"),
    **dict.fromkeys(("technique", "exam", "procedure"), ""),
}
_AND: Final = r"[ \t]*(?:/|&(?:amp;)?|\+|\band\b)[ \t]*"
_NAMES: Final = (
    r"(?:(?:clinical|patient|brief|relevant|final|preliminary|radiographic|radiological)[ \t]+)?"
    rf"(?:findings?(?:{_AND}(?:impressions?|conclusions?))?"
    rf"|indications?(?:{_AND}history)?|history(?:{_AND}indications?)?"
    rf"|(?:impressions?|conclusions?)(?:{_AND}(?:findings?|recommendations?|plan))?|opinion|comparisons?)"
    r"|reason[ \t]+for[ \t]+(?:the[ \t]+)?(?:exam(?:ination)?|study)"
    r"|clinical[ \t]+(?:data|details|information|question)"
    r"|techniques?|exam(?:ination)?|procedure"
)

# What Markdown, mail programs and lists put before a heading, the heading, and the rest of its line. ASCII, because
# ignoring case would otherwise take other letters, such as a dotted capital I, for an i.
_SIGNS: Final = r"[ \t>#*+\-_=•·▪‣◦●■►–—`|\[\"“\u2600-\u27bf\U0001f300-\U0001faff]*"  # noqa: RUF001
_QUALIFIER: Final = r"(?:[ \t]*\([^()\n:]{1,40}\)(?=[ \t*_`]{0,9}:))?"  # "FINDINGS (two views):"
_HEADING: Final = re.compile(
    rf"(?P<signs>{_SIGNS}(?:\(?(?:[0-9]{{1,2}}|[IVX]{{1,4}}|[A-H])[.)]{_SIGNS})?)"
    rf"(?P<name>{_NAMES})(?![^\W_]){_QUALIFIER}(?P<closing>[*_`\]\"”]*)(?P<tail>.*)",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
# A heading within a line, in capitals or after a sentence.
_INLINE: Final = re.compile(
    rf"(?<=[ \t])[*_]{{0,3}}(?P<name>{_NAMES}){_QUALIFIER}[*_]{{0,3}}[ \t]?:", re.IGNORECASE | re.ASCII
)
_COLON: Final = re.compile(r"[ \t]*[:∶﹕꞉︓ː˸]-?")  # noqa: RUF001
_DASH: Final = re.compile(r"[ \t]+[-‐‑‒−]+(?=[ \t]|\Z)|[ \t]*[–—―]+")  # noqa: RUF001
# What stands for the colon behind a heading in capitals where a sentence or a number follows.
_LOOSE: Final = re.compile(
    r"[ \t]*(?:=+|\||-*>)[ \t]*|\.{2,}[ \t]*|[ \t]*\t[ \t]*|[.;]?[ ]+(?=[A-Z](?:[a-z]|[ ])|[0-9][.)])"
)
_NOTHING: Final = re.compile(r"[ \t*_`#=|.-]*\Z")
RULE: Final = re.compile(r"[ \t]*([-=_*#+])\1{2,}[ \t]*")
# A line that ends so goes on in the next one: "no acute / FINDINGS" is wrapped prose.
_GOES_ON: Final = re.compile(
    r"\b(?:no|the|an?|of|and|or|with|without|these|this|new|other|acute|additional|significant|abnormal|normal"
    r"|radiographic|cardiopulmonary|in|for|to|by),?\s*\Z",
    re.IGNORECASE,
)


class Heading(NamedTuple):
    """What a line begins with: the section that follows."""

    section: str
    rest: str  # of its line
    opened: str = ""  # emphasis that goes on in the text behind the heading


def find_section(words: str) -> str:
    """Return the section that the words of a heading speak of, "" where it is none of `SECTIONS`."""
    lowered = words.lower()
    return next((section for word, section in _SECTION_OF.items() if word in lowered), "")


def match_heading(line: str, previous: str = "") -> Heading | None:
    """Return the heading that a line is or begins with; `previous` is the line before, "" for an empty one."""
    match = _HEADING.match(line)
    if match is None:
        return None
    signs, name, tail = match["signs"], match["name"], match["tail"]
    section = find_section(name)
    opened = signs[len(signs.rstrip('*_`"“')) :]
    if colon := _COLON.match(tail):
        rest = tail[colon.end() :]
        if opened and not match["closing"]:
            plain = rest.removeprefix(opened)
            return Heading(section, plain, opened if plain == rest else "")
        return Heading(section, rest)
    if name.islower() and not (opened or "#" in signs):
        return None
    if "|" in signs and tail.lstrip().startswith("|"):  # a row of a table
        return Heading(section, tail.lstrip()[1:].rstrip(" \t|"))
    if not signs.strip() and _GOES_ON.search(previous[-99:]):
        rest = None if _NOTHING.match(tail) else _cut_separator(tail, emphasised=False, loose=False)
    else:
        emphasised = bool(match["closing"]) and name.isupper()
        rest = _cut_separator(tail, emphasised=emphasised, loose=name.isupper())
    return None if rest is None else Heading(section, rest)


def _cut_separator(tail: str, *, emphasised: bool, loose: bool) -> str | None:
    """Return the text behind a heading without colon; None where the words before it are no heading."""
    if _NOTHING.match(tail):
        return ""
    if dash := _DASH.match(tail) or (_LOOSE.match(tail) if loose else None):
        return tail[dash.end() :]
    return tail if emphasised else None


def split_inline(line: str) -> list[str]:
    """Return a line in parts that begin with a heading, where headings stand within it."""
    starts = [0]
    first = _HEADING.match(line)  # behind signs, as in "- FINDINGS:"
    for match in _INLINE.finditer(line, first.end("name") if first else 0):
        before = line[max(match.start() - 99, 0) : match.start()]
        ends = SENTENCE_END.search(before) and not match["name"].islower()
        if (ends or match["name"].isupper()) and not _GOES_ON.search(before):
            starts.append(match.start())
    return [line[start:end] for start, end in zip(starts, [*starts[1:], len(line)], strict=True)]
