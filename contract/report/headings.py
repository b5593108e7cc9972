"""Find headings of reports: whether a line is or begins with a heading, in any layout, and its section.

    **FINDINGS:** Clear.      ## Findings        1. FINDINGS:       FINDINGS - Clear.      FINDINGS (alone)

are all read like "FINDINGS: Clear.". Each pattern here takes time linear in the length of the text.
"""

import re
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from contract.report.names import STRONG_NAME, WEAK_NAME, Kind, find_kind

SENTENCE_END: Final = re.compile(r"[.:;!?)]\s*\Z")

# Marks of Markdown, mail programs and lists before a heading, the heading, and the rest of its line. ASCII, because
# IGNORECASE would otherwise match other letters, such as a dotted capital I, as an i.
_NAME: Final = rf"(?=[a-z])(?P<name>(?P<weak>{WEAK_NAME})(?![^\W_])|(?:{STRONG_NAME})(?![^\W_]))"
_SIGNS: Final = r"[ \t>#*+\-_=•·▪‣◦●■►–—`|\[(\"“\u2600-\u27bf\U0001f300-\U0001faff]*"  # noqa: RUF001
_QUALIFIER: Final = r"(?:[ \t]*\([^()\n:]{1,40}\)(?=[ \t*_`]{0,9}:))?"  # "FINDINGS (two views):"
_HEADING: Final = re.compile(
    rf"(?P<signs>{_SIGNS}(?:\(?(?:[0-9]{{1,2}}|[IVX]{{1,4}}|[A-H])[.)]{_SIGNS})?)"
    rf"{_NAME}{_QUALIFIER}(?P<closing>[*_`\])\"”]*)(?P<tail>.*)",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
# A heading within a line: after a blank, or directly after the end of a sentence.
_INLINE: Final = re.compile(
    rf"(?:(?<=[ \t])|(?<=[.;!?)]))(?:\(?[0-9]{{1,2}}[.)][ \t]+)?[*_\[]{{0,3}}{_NAME}{_QUALIFIER}[*_\]]{{0,3}}"
    r"(?P<behind>[ \t]?:|(?=[ ]+[A-Z0-9\-–—]))",  # noqa: RUF001
    re.IGNORECASE | re.ASCII,
)
_COLON: Final = re.compile(r"[ \t]*[:∶﹕꞉︓ː˸]-?")  # noqa: RUF001
_DASH: Final = re.compile(r"[ \t]+[-‐‑‒−]+(?=[ \t]|\Z)|[ \t]*[–—―]+")  # noqa: RUF001
# Signs that replace the colon after a heading in capitals, if a sentence or a number follows.
_LOOSE: Final = re.compile(
    r"[ \t]*(?:=+|\||-*>)[ \t]*|\.{2,}[ \t]*|[ \t]*\t[ \t]*|[.;]?[ ]+(?=[A-Z](?:[a-z]|[ ])|(?:AP|PA)\b|[0-9][.)])"
)
_CAPITAL: Final = re.compile(r"[ \t]+(?=[A-Z0-9])")
_NOTHING: Final = re.compile(r"[ \t*_`#=|.-]*\Z")
RULE: Final = re.compile(r"[ \t]*([-=_*#+])\1{2,}[ \t]*")
# A line with such an end continues in the next line: "no acute / FINDINGS" is wrapped prose.
_GOES_ON: Final = re.compile(
    r"\b(?:no|the|an?|of|and|or|with|without|these|this|new|other|acute|additional|significant|abnormal|normal"
    r"|radiographic|cardiopulmonary|in|for|to|by|incidental|osseous|bony|pulmonary|cardiac|pleural|critical|prior"
    r"|previous),?\s*\Z",
    re.IGNORECASE,
)
# A sentence about who signed, dictated or reviewed the report.
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
# An examination as a heading: "XR CHEST:", "CHEST, TWO VIEWS:". A time after the colon is excluded.
_EXAM_WORD: Final = (
    r"(?:chest|cxr|xr|dx|x-?rays?|radiographs?|ap|pa|portable|frontal|lateral|two|one|[12]|views?|and|of)"
)
EXAM_WORDS: Final = rf"{_EXAM_WORD}(?:[ \t,/&()-]{{1,4}}{_EXAM_WORD}){{0,7}}[ \t)]{{0,4}}"
_EXAM_NAME: Final = re.compile(
    rf"[ \t]*(?P<name>(?=[^:]{{0,40}}\b(?:chest|cxr|xr|x-?rays?|radiographs?)\b){EXAM_WORDS}):(?!\d)(?P<rest>.*)",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
_SIGN: Final = re.compile(r":|[.;!?)] *[A-Z]{4}")  # a heading within a line needs one of these signs
_SMALL: Final = re.compile(
    r"(?:(?<![A-Za-z])[a-z0-9]+|,)[ \t]*\Z"
)  # a word in small letters before the heading
_WORD: Final = re.compile(r"\w")
_MINOR: Final = ("record", "exam", "technique", "closing", "preliminary")


class Heading(NamedTuple):
    """A heading at the start of a line.

    Attributes:
        name: Name of the heading in small letters, one of `contract.report.names`.
        kind: Kind of the text after it.
        rest: The rest of the line after the heading.
        opened: Emphasis marks that continue after the heading.
        weak: Whether the name is also common in sentences.
    """

    name: str
    kind: Kind
    rest: str
    opened: str = ""
    weak: bool = False


def match_heading(line: str, previous: str = "", *, bare: bool = False) -> Heading | None:
    """Return the heading at the start of a line; None without one.

    Args:
        line: One line.
        previous: The line before, "" for an empty one.
        bare: Whether a capitalised name counts without a sign after it: "Findings Clear lungs."
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
    """Return the heading of a line that begins with the name of a chest examination and a colon."""
    if match := _EXAM_NAME.match(line):
        return Heading(" ".join(match["name"].lower().split()), "report", match["rest"])
    return None


def _cut_colon(match: re.Match[str]) -> tuple[str, str]:
    """Return the text after the colon of a heading, and the emphasis marks that continue in it."""
    signs, tail = match["signs"], match["tail"]
    colon = _COLON.match(tail)
    rest = tail[colon.end() :] if colon else tail
    opened = signs[len(signs.rstrip('*_`"“')) :]
    if opened and not match["closing"]:
        plain = rest.removeprefix(opened)
        return plain, opened if plain == rest else ""
    return rest, ""


def _cut_rest(match: re.Match[str], previous: str, bare: bool) -> str | None:
    """Return the text after a heading without colon; None if the words are not a heading."""
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
    """Whether a weak name without colon is a heading: in capitals, or after a sentence and alone or of a section."""
    name, alone = match["name"], bool(_NOTHING.match(match["tail"]))
    if name.isupper():
        return alone or bool(_DASH.match(match["tail"]))
    starts_anew = _is_ended(previous) or previous.isupper() or _is_heading_alone(previous)
    return starts_anew and (alone or find_kind(name) not in _MINOR)


def _is_heading_alone(line: str) -> bool:
    """Whether a line is a capitalised heading without text after it, such as "Impression -"."""
    match = _HEADING.match(line)
    return match is not None and not match["name"].islower() and bool(_NOTHING.match(match["tail"]))


def _cut_separator(tail: str, *, emphasised: bool = False, loose: bool = False) -> str | None:
    """Return the text after a heading and its separator; None without a separator."""
    if _NOTHING.match(tail):
        return ""
    if dash := _DASH.match(tail) or (_LOOSE.match(tail) if loose else None):
        return tail[dash.end() :]
    return tail if emphasised else None


def _is_ended(line: str) -> bool:
    """Whether a line ends its sentence, so that the next line begins a new one."""
    return not line.strip() or bool(SENTENCE_END.search(line[-99:])) or bool(RULE.fullmatch(line))


def split_inline(line: str, taken: Callable[[], Collection[Kind]] = tuple) -> list[str]:
    """Split a line before each heading within it.

    A heading within a line is in capitals after a sentence, or after small letters if the line begins with a heading.

    Args:
        line: One line.
        taken: Returns the kinds that already have a heading of their own, so that no heading of them is in a line.
    """
    starts = {0}
    if _SIGN.search(line):
        first = _HEADING.match(line)  # after signs, as in "- FINDINGS:"
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
    """Whether a name within a line is a heading, by the text before it and the heading at the start of the line."""
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
