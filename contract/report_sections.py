"""Text with headings -> sections, however the headings are decorated and the lines are ended.

    **FINDINGS:** Clear.      ## Findings        1. FINDINGS:       FINDINGS - Clear.      FINDINGS (alone)

all mean what "FINDINGS: Clear." means. Each pattern here takes time that grows with the length of the text.
"""

import functools
import re
import unicodedata
from itertools import chain
from typing import Final, NamedTuple

# Default_Ignorable_Code_Point of Unicode (DerivedCoreProperties.txt): shown as nothing. Soft hyphen, zero-width
# characters, byte order marks, marks of direction, variation selectors, tags.
_IGNORABLE: Final = (
    *(range(0xAD, 0xAE), range(0x34F, 0x350), range(0x61C, 0x61D), range(0x115F, 0x1161)),
    *(range(0x17B4, 0x17B6), range(0x180B, 0x1810), range(0x200B, 0x2010), range(0x202A, 0x202F)),
    *(range(0x2060, 0x2070), range(0x3164, 0x3165), range(0xFE00, 0xFE10), range(0xFEFF, 0xFF00)),
    *(range(0xFFA0, 0xFFA1), range(0xFFF0, 0xFFF9), range(0x1BCA0, 0x1BCA4), range(0x1D173, 0x1D17B)),
    range(0xE0000, 0xE1000),
)
_C1: Final = range(0x80, 0xA0)  # control characters that no text needs; a terminal may obey them
_LINE_ENDS: Final = "\r\v\f\x85\u2028\u2029"
_SPACES: Final = (
    "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
)
# Letters in another dress, which stand for plain ones (NFKC): full width, ligatures of PDF files, mathematical.
_COMPATIBLE: Final = (
    range(0xFF01, 0xFFA0),
    range(0xFFA1, 0xFFEF),
    range(0xFB00, 0xFB07),
    range(0x1D400, 0x1D800),
)

# "heart\normal" is a slash the wrong way and no line end: what follows is no word without its n.
_ENDS_OF_WORDS: Final = (
    r"(?:ormal|odul|odes?\b|ew(?:ly)?\b|ot\b|eck\b|asal|asogastric|ipples?\b|egative|ecro|eopl|onspec)"
)
# A line end or space that a system wrote as letters: a backslash and n, HL7's formatting, HTML. At most two
# backslashes are tried at each place, so that a million of them take no longer than any other signs.
_WRITTEN: Final = re.compile(
    r"(?P<space>\\[HN]\\|\\{1,2}t(?![a-z])|&nbsp;|&#160;)"
    rf"|\\{{1,2}}r\\{{1,2}}n|\\{{1,2}}n(?!{_ENDS_OF_WORDS})|\\{{1,2}}r(?![a-z])"
    r"|\\\.(?:br|sp|in|ti|fi|nf|ce|sk)[+-]?[0-9]{0,4}\\"
    r"|\\X0[Dd](?:0[Aa])?\\|\\X0[Aa]\\"
)
# HL7's sign for the next line and HTML's; both stand in sentences of reports, too (`_ends_line`).
_WEAK_LINE_END: Final = re.compile(r"~|<br\s*/?>", re.IGNORECASE)
_SENTENCE_END: Final = re.compile(r"[.:;!?)]\s*\Z")

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
# Words of a title, such as "CHEST X-RAY, 2 VIEWS".
_TITLE_WORD: Final = re.compile(
    r"\b(?:x-?rays?|radiographs?|radiography|cxr|views?|report|date|name|mrn|accession|patient)\b",
    re.IGNORECASE,
)
# What stands for the colon behind a heading in capitals where a sentence or a number follows.
_LOOSE: Final = re.compile(
    r"[ \t]*(?:=+|\||-*>)[ \t]*|\.{2,}[ \t]*|[ \t]*\t[ \t]*|[.;]?[ ]+(?=[A-Z](?:[a-z]|[ ])|[0-9][.)])"
)
_NOTHING: Final = re.compile(r"[ \t*_`#=|.-]*\Z")
_RULE: Final = re.compile(r"[ \t]*([-=_*#+])\1{2,}[ \t]*")
_QUOTE: Final = re.compile(r"[ \t]*>(?:[ \t]?>)*[ \t]?(?![ \t]*[0-9=.])")
# A line that ends so goes on in the next one: "no acute / FINDINGS" is wrapped prose.
_GOES_ON: Final = re.compile(
    r"\b(?:no|the|an?|of|and|or|with|without|these|this|new|other|acute|additional|significant|abnormal|normal"
    r"|radiographic|cardiopulmonary|in|for|to|by),?\s*\Z",
    re.IGNORECASE,
)


class _Heading(NamedTuple):
    section: str
    rest: str  # of its line
    opened: str = ""  # emphasis that goes on in the text behind the heading


def normalize_text(text: str) -> str:
    r"""Return a text with plain line ends, spaces and letters, without signs that are shown as nothing.

    Line ends are those of every system, of Unicode, and those that a system wrote as letters (\n, \.br\, ~).
    Letters of full width, ligatures and mathematical letters become plain ones; others stay.
    """
    text = text.replace("\r\n", "\n").translate(_make_table())
    if "\\" in text or "&" in text:
        text = _WRITTEN.sub(lambda match: " " if match["space"] else "\n", text)
    return _mend_line_ends(text) if "~" in text or "<" in text else text


def split_sections(text: str) -> dict[str, str]:
    """Return section -> text of a report of `normalize_text`.

    Text before the first heading counts as findings where there are no others; so does all of a text without
    headings. A title does not, where there is an impression. The bodies of equal headings are joined.
    """
    lines = _strip_quotes(_strip_quotation_marks(text).split("\n"))
    bodies = _split_bodies(lines)
    if len(bodies) <= 2:  # one heading, or none: all of them may stand on one line
        bodies = _split_bodies([part for line in lines for part in _split_inline(line)])
    parts: dict[str, list[str]] = {section: [] for section in ("", *SECTIONS)}
    for section, body in bodies[1:]:
        parts[section].append(_join(body))
    sections = {section: " ".join(filter(None, found)) for section, found in parts.items()}
    others = sections.pop("")
    if not sections["findings"]:
        below = (line for section, body in bodies[1:] if not section for line in body[1:])
        loose = [*bodies[0][1], *below]
        if not sections["impression"]:
            sections["findings"] = _join(loose) or others
        elif not all(map(_is_title, filter(str.strip, loose))):
            sections["findings"] = _join(loose)
    return sections


def _is_title(line: str) -> bool:
    """Whether a line names the examination or the patient and is no sentence."""
    return bool(_TITLE_WORD.search(line[:200])) and not _SENTENCE_END.search(line[-99:])


def _split_bodies(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Return each section and its lines in their order; the first one is what stands before the first heading."""
    bodies: list[tuple[str, list[str]]] = [("", [])]
    opened = previous = ""
    for line in lines:
        if heading := _match_heading(line, previous):
            resumed = bodies[-1][0]
            bodies.append((heading.section, [heading.rest]))
            if not heading.section and heading.rest.strip() and resumed in {"findings", "impression"}:
                bodies.append((resumed, []))  # "Exam: limited." among findings takes its own line only
            opened = heading.opened
        elif not _RULE.fullmatch(line):
            bodies[-1][1].append(line)
        if opened and bodies[-1][1] and bodies[-1][1][-1].rstrip().endswith(opened):
            bodies[-1][1][-1] = bodies[-1][1][-1].rstrip().removesuffix(opened)
            opened = ""
        previous = line if line.strip() else ""
    return bodies


def _split_inline(line: str) -> list[str]:
    """Return a line in parts that begin with a heading, where headings stand within it."""
    starts = [0]
    first = _HEADING.match(line)  # behind signs, as in "- FINDINGS:"
    for match in _INLINE.finditer(line, first.end("name") if first else 0):
        before = line[max(match.start() - 99, 0) : match.start()]
        ends = _SENTENCE_END.search(before) and not match["name"].islower()
        if (ends or match["name"].isupper()) and not _GOES_ON.search(before):
            starts.append(match.start())
    return [line[start:end] for start, end in zip(starts, [*starts[1:], len(line)], strict=True)]


def _join(lines: list[str]) -> str:
    return "\n".join(lines).strip()


@functools.cache
def _make_table() -> dict[int, str | None]:
    """Return what `str.translate` puts for each character that is not plain; all line ends are single here."""
    table: dict[int, str | None] = dict.fromkeys(chain(_C1, *_IGNORABLE))
    table |= {code: unicodedata.normalize("NFKC", chr(code)) for code in chain(*_COMPATIBLE)}
    table |= dict.fromkeys(map(ord, _SPACES), " ") | dict.fromkeys(map(ord, _LINE_ENDS), "\n")
    return table


def _mend_line_ends(text: str) -> str:
    """Replace the weak line ends that are line ends by what they stand for."""
    marks = list(_WEAK_LINE_END.finditer(text))
    starts = [0, *(mark.end() for mark in marks)]
    ends = [*(mark.start() for mark in marks), len(text)]
    pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    parts = [pieces[0]]
    for mark, left, right in zip(marks, pieces, pieces[1:]):  # noqa: B905
        parts += ["\n" if _ends_line(mark[0], left, right) else mark[0], right]
    return "".join(parts)


def _ends_line(sign: str, left: str, right: str) -> bool:
    """Whether a tilde or <br> between two pieces of text ends a line.

    "~5 mm", "a ~half" and "for<BR>metastatic" (as in Open-i) are sentences and stay.
    """
    line, first = left.rpartition("\n")[2], right.partition("\n")[0]
    if (
        _RULE.fullmatch(line)
        or _RULE.fullmatch(first)
        or _match_heading(first)
        or _match_heading(" ".join(right[:99].split()))
    ):
        return True
    if not line.strip() or not first.strip() or _SENTENCE_END.search(line[-99:]) or _is_bare_heading(line):
        return not right.lstrip()[:1].isdigit()
    return sign == "~" and line[-1] not in " \t([" and not right.lstrip()[:1].isdigit()


def find_section(words: str) -> str:
    """Return the section that the words of a heading speak of, "" where it is none of `SECTIONS`."""
    lowered = words.lower()
    return next((section for word, section in _SECTION_OF.items() if word in lowered), "")


def _is_bare_heading(line: str) -> bool:
    heading = _match_heading(line)
    return heading is not None and not heading.rest.strip()


def _match_heading(line: str, previous: str = "") -> _Heading | None:
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
            return _Heading(section, plain, opened if plain == rest else "")
        return _Heading(section, rest)
    if name.islower() and not (opened or "#" in signs):
        return None
    if "|" in signs and tail.lstrip().startswith("|"):  # a row of a table
        return _Heading(section, tail.lstrip()[1:].rstrip(" \t|"))
    if not signs.strip() and _GOES_ON.search(previous[-99:]):
        rest = None if _NOTHING.match(tail) else _cut_separator(tail, emphasised=False, loose=False)
    else:
        emphasised = bool(match["closing"]) and name.isupper()
        rest = _cut_separator(tail, emphasised=emphasised, loose=name.isupper())
    return None if rest is None else _Heading(section, rest)


def _cut_separator(tail: str, *, emphasised: bool, loose: bool) -> str | None:
    """Return the text behind a heading without colon; None where the words before it are no heading."""
    if _NOTHING.match(tail):
        return ""
    if dash := _DASH.match(tail) or (_LOOSE.match(tail) if loose else None):
        return tail[dash.end() :]
    return tail if emphasised else None


def _strip_quotes(lines: list[str]) -> list[str]:
    """Drop the ">" of a text that a mail program quoted, that is of one in which every line has it."""
    marks = [_QUOTE.match(line) if line.strip() else None for line in lines]
    if any(mark is None and line.strip() for mark, line in zip(marks, lines, strict=True)):
        return lines
    return [line[mark.end() :] if mark else line for mark, line in zip(marks, lines, strict=True)]


def _strip_quotation_marks(text: str) -> str:
    """Drop the quotation marks around a text that holds no others, as tables write it."""
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2
    return text[1:-1] if quoted else text
