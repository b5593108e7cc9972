"""Headings of reports: whether a line is one or begins with one, however it is decorated, and its section.

    **FINDINGS:** Clear.      ## Findings        1. FINDINGS:       FINDINGS - Clear.      FINDINGS (alone)

all mean what "FINDINGS: Clear." means. Each pattern here takes time that grows with the length of the text.
"""

import re
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from contract.report.names import STRONG_NAME, WEAK_NAME, Kind, find_kind

SENTENCE_END: Final = re.compile(r"[.:;!?)]\s*\Z")

# What Markdown, mail programs and lists put before a heading, the heading, and the rest of its line. ASCII, because
# ignoring case would otherwise take other letters, such as a dotted capital I, for an i.
_NAME: Final = rf"(?=[a-z])(?P<name>(?P<weak>{WEAK_NAME})(?![^\W_])|(?:{STRONG_NAME})(?![^\W_]))"
_SIGNS: Final = r"[ \t>#*+\-_=•·▪‣◦●■►–—`|\[(\"“\u2600-\u27bf\U0001f300-\U0001faff]*"  # noqa: RUF001
_QUALIFIER: Final = r"(?:[ \t]*\([^()\n:]{1,40}\)(?=[ \t*_`]{0,9}:))?"  # "FINDINGS (two views):"
_HEADING: Final = re.compile(
    rf"(?P<signs>{_SIGNS}(?:\(?(?:[0-9]{{1,2}}|[IVX]{{1,4}}|[A-H])[.)]{_SIGNS})?)"
    rf"{_NAME}{_QUALIFIER}(?P<closing>[*_`\])\"”]*)(?P<tail>.*)",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
# A heading within a line: behind a blank, or behind the end of a sentence without one.
_INLINE: Final = re.compile(
    rf"(?:(?<=[ \t])|(?<=[.;!?)]))(?:\(?[0-9]{{1,2}}[.)][ \t]+)?[*_\[]{{0,3}}{_NAME}{_QUALIFIER}[*_\]]{{0,3}}"
    r"(?P<behind>[ \t]?:|(?=[ ]+[A-Z0-9\-–—]))",  # noqa: RUF001
    re.IGNORECASE | re.ASCII,
)
_COLON: Final = re.compile(r"[ \t]*[:∶﹕꞉︓ː˸]-?")  # noqa: RUF001
_DASH: Final = re.compile(r"[ \t]+[-‐‑‒−]+(?=[ \t]|\Z)|[ \t]*[–—―]+")  # noqa: RUF001
# What stands for the colon behind a heading in capitals where a sentence or a number follows.
_LOOSE: Final = re.compile(
    r"[ \t]*(?:=+|\||-*>)[ \t]*|\.{2,}[ \t]*|[ \t]*\t[ \t]*|[.;]?[ ]+(?=[A-Z](?:[a-z]|[ ])|(?:AP|PA)\b|[0-9][.)])"
)
_CAPITAL: Final = re.compile(r"[ \t]+(?=[A-Z0-9])")
_NOTHING: Final = re.compile(r"[ \t*_`#=|.-]*\Z")
RULE: Final = re.compile(r"[ \t]*([-=_*#+])\1{2,}[ \t]*")
# A line that ends so goes on in the next one: "no acute / FINDINGS" is wrapped prose.
_GOES_ON: Final = re.compile(
    r"\b(?:no|the|an?|of|and|or|with|without|these|this|new|other|acute|additional|significant|abnormal|normal"
    r"|radiographic|cardiopulmonary|in|for|to|by|incidental|osseous|bony|pulmonary|cardiac|pleural|critical|prior"
    r"|previous),?\s*\Z",
    re.IGNORECASE,
)
# Who signed, and what comes with it, as a sentence.
_CLOSING: Final = re.compile(
    r"(?:(?:electronically|digitally)[ \t]+(?:signed|approved|verified)|signed[ \t]+(?:electronically[ \t]+)?by"
    r"|(?:dictated|transcribed|interpreted)[ \t]+(?:by|on)|(?:read|reported)[ \t]+by[ \t:]+dr"
    r"|I\b(?:[^.\n]|\bDr\.){0,60}\b(?:personally[ \t]+)?(?:reviewed|interpreted|examined|agree)"
    r"|(?:this|the)[ \t]+(?:report|dictation|document)[ \t]+(?:was|has[ \t]+been)[ \t]+(?:\w+[ \t]+){0,2}"
    r"(?:signed|dictated|generated|transcribed|verified|finali[sz]ed|approved)"
    r"|thank[ \t]+you[ \t]+for[ \t]+(?:referring|the[ \t]+referral|this)|end[ \t]+of[ \t]+(?:report|impression))\b",
    re.IGNORECASE | re.ASCII,
)
_CLOSING_WORD: Final = re.compile(
    r"sign|dictat|transcri|interpret|read|review|report|agree|examined|thank|end of", re.IGNORECASE
)
_NAMED: Final = re.compile(r"[ \t]*Dr\.?(?:[ \t]+[A-Z][\w.'-]*,?){1,5}[ \t]*", re.ASCII)  # alone on a line
_CLOSING_LINE: Final = re.compile(rf"[ \t*_\-]*{_CLOSING.pattern}", _CLOSING.flags)
_CLOSING_SENTENCE: Final = re.compile(rf"(?<=[ \t]){_CLOSING.pattern}", _CLOSING.flags)
# An examination as a heading: "XR CHEST:", "CHEST, TWO VIEWS:"; no time of the day follows the colon.
_EXAM_WORD: Final = (
    r"(?:chest|cxr|xr|dx|x-?rays?|radiographs?|ap|pa|portable|frontal|lateral|two|one|[12]|views?|and|of)"
)
EXAM_WORDS: Final = rf"{_EXAM_WORD}(?:[ \t,/&()-]{{1,4}}{_EXAM_WORD}){{0,7}}[ \t)]{{0,4}}"
_EXAM_NAME: Final = re.compile(
    rf"[ \t]*(?P<name>(?=[^:]{{0,40}}\b(?:chest|cxr|xr|x-?rays?|radiographs?)\b){EXAM_WORDS}):(?!\d)(?P<rest>.*)",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
_SIGN: Final = re.compile(r":|[.;!?)] *[A-Z]{4}")  # what a heading within a line cannot do without
_SMALL: Final = re.compile(r"(?:(?<![A-Za-z])[a-z0-9]+|,)[ \t]*\Z")  # the word before
_WORD: Final = re.compile(r"\w")
_MINOR: Final = ("record", "exam", "technique", "closing", "preliminary")


class Heading(NamedTuple):
    """What a line begins with.

    Attributes:
        name: Of the heading, in small letters; words of `contract.report.names` and no others.
        kind: What the text behind it holds.
        rest: The line behind the heading.
        opened: Emphasis that goes on in the text behind the heading.
        weak: Whether its name stands in sentences as often.
    """

    name: str
    kind: Kind
    rest: str
    opened: str = ""
    weak: bool = False


def match_heading(line: str, previous: str = "", *, bare: bool = False) -> Heading | None:
    """Return the heading that a line is or begins with.

    Args:
        line: One line.
        previous: The line before, "" for an empty one.
        bare: Whether a name with a capital needs no sign behind it: "Findings Clear lungs."
    """
    if (_CLOSING_WORD.search(line) and _CLOSING_LINE.match(line)) or _NAMED.fullmatch(line):
        return Heading("signature", "closing", line)
    match = _HEADING.match(line)
    if match is None or ("(" in match["signs"][-1:]) != (")" in match["closing"]):
        return None
    weak = match["weak"] is not None
    kind = find_kind(match["name"])
    if weak and match["name"].islower() and (kind == "record" or not _is_ended(previous)):
        return None
    rest, opened = (
        _cut_colon(match) if _COLON.match(match["tail"]) else (_cut_rest(match, previous, bare), "")
    )
    name = " ".join(match["name"].lower().split())
    return None if rest is None else Heading(name, kind, rest, opened, weak)


def match_exam_name(line: str) -> Heading | None:
    """Return the heading of a line that begins with the name of an examination of the chest and a colon."""
    if match := _EXAM_NAME.match(line):
        return Heading(" ".join(match["name"].lower().split()), "report", match["rest"])
    return None


def _cut_colon(match: re.Match[str]) -> tuple[str, str]:
    """Return the text behind the colon of a heading, and the emphasis that goes on in it."""
    signs, tail = match["signs"], match["tail"]
    colon = _COLON.match(tail)
    rest = tail[colon.end() :] if colon else tail
    opened = signs[len(signs.rstrip('*_`"“')) :]
    if opened and not match["closing"]:
        plain = rest.removeprefix(opened)
        return plain, opened if plain == rest else ""
    return rest, ""


def _cut_rest(match: re.Match[str], previous: str, bare: bool) -> str | None:
    """Return the text behind a heading without colon; None where its words are no heading."""
    signs, name, tail, closing = match["signs"], match["name"], match["tail"], match["closing"]
    if name.islower() and not (signs[-1:] in {"*", "_", "`", '"', "“"} or "#" in signs):
        return None
    if "|" in signs and tail.lstrip().startswith("|"):  # a row of a table
        return str(tail.lstrip()[1:].rstrip(" \t|"))
    if match["weak"] and not _is_borne_out(match, previous):
        return None
    if not signs.strip() and _GOES_ON.search(previous[-99:]):
        return None if _NOTHING.match(tail) else _cut_separator(tail)
    emphasised = bool(closing) and (name.isupper() or bool(_CAPITAL.match(tail)))
    if bare and not match["weak"] and _CAPITAL.match(tail):
        return str(tail)
    return _cut_separator(tail, emphasised=emphasised, loose=name.isupper() and not match["weak"])


def _is_borne_out(match: re.Match[str], previous: str) -> bool:
    """Whether a weak name without colon is a heading: in capitals, or behind a sentence and alone or of a section."""
    name, alone = match["name"], bool(_NOTHING.match(match["tail"]))
    if name.isupper():
        return alone or bool(_DASH.match(match["tail"]))
    return (_is_ended(previous) or previous.isupper()) and (alone or find_kind(name) not in _MINOR)


def _cut_separator(tail: str, *, emphasised: bool = False, loose: bool = False) -> str | None:
    """Return the text behind a heading and its separator; None where there is none."""
    if _NOTHING.match(tail):
        return ""
    if dash := _DASH.match(tail) or (_LOOSE.match(tail) if loose else None):
        return tail[dash.end() :]
    return tail if emphasised else None


def _is_ended(line: str) -> bool:
    """Whether what follows a line begins something new."""
    return not line.strip() or bool(SENTENCE_END.search(line[-99:])) or bool(RULE.fullmatch(line))


def split_inline(line: str, taken: Callable[[], Collection[Kind]] = tuple) -> list[str]:
    """Return a line in parts that begin with a heading, where headings stand within it.

    They stand there in capitals, behind a sentence, or behind small letters in a line that begins with a heading.

    Args:
        line: One line.
        taken: Returns the kinds that have headings elsewhere and none within a line.
    """
    starts = {0}
    if _SIGN.search(line):
        first = _HEADING.match(line)  # behind signs, as in "- FINDINGS:"
        for match in _INLINE.finditer(line, first.end("name") if first else 0):
            before = line[max(match.start() - 99, 0) : match.start()]
            if _is_inline(match, before, first) and find_kind(match["name"]) not in taken():
                starts.add(match.start())
    if _CLOSING_WORD.search(line):
        for match in _CLOSING_SENTENCE.finditer(line):
            if SENTENCE_END.search(line[max(match.start() - 99, 0) : match.start()]):
                starts.add(match.start())
    ordered = sorted(starts)
    return [line[start:end] for start, end in zip(ordered, [*ordered[1:], len(line)], strict=True)]


def _is_inline(match: re.Match[str], before: str, first: re.Match[str] | None) -> bool:
    """Whether a name within a line is a heading: what stands before it, and the heading that the line begins with."""
    name, weak = match["name"], match["weak"] is not None
    if _GOES_ON.search(before) or (weak and find_kind(name) == "record"):
        return False
    ends = bool(SENTENCE_END.search(before)) or (
        first is not None and not _WORD.search(match.string, first.end("name"), match.start())
    )
    if not match["behind"]:
        return ends and name.isupper() and not weak
    if name.islower():
        return ends and first is not None and first["name"].islower()
    return ends or (not weak and (name.isupper() or (first is not None and bool(_SMALL.search(before)))))
