"""Split a text with headings (`contract.report.headings`) into parts. Each part is a section or is not read.

If a report has no heading for findings, text without a heading counts as findings: before the first heading, below
"REPORT", and from the first sentence about the image within the indication, comparison or technique.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from contract.report.headings import (
    RULE,
    SENTENCE_END,
    Heading,
    match_exam_name,
    match_heading,
    split_inline,
)
from contract.report.names import SECTIONS, Kind, Part
from contract.report.statements import find_statement, is_statement, is_title

_QUOTE: Final = re.compile(r"[ \t]*>(?:[ \t]?>)*[ \t]?(?![ \t]*[0-9=.])")
# The form that `contract.report.text.format_report` writes if a shorter one would be ambiguous. Its lines are not
# searched for headings.
_WHOLE: Final = re.compile("\n".join(f"{name.upper()}:(?: [^\n]*)?" for name in SECTIONS))
_SECTION_OF: Final[dict[Kind, str]] = {
    **{
        "findings": "findings",
        "impression": "impression",
        "addendum": "impression",
        "diagnosis": "impression",
    },
    **{"comparison": "comparison", "indication": "indication", "report": "loose"},
    **{"technique": "spare", "exam": "spare", "preliminary": "spare"},
}
_LOOSE: Final = "loose"  # text that counts as findings if there are no other findings
_SPARE: Final = "spare"  # text that counts as findings if there is no other text to read
_ONE_LINE: Final = ("technique", "exam")
_MAJOR: Final = ("findings", "impression")


@dataclass
class _Block:
    """A heading and the lines below it. `kind` is None before the first heading."""

    name: str = ""
    kind: Kind | None = None
    inline: bool = False
    lines: list[str] = field(default_factory=list)

    @property
    def section(self) -> str:
        """The section; "" if it is not read or `_settle` decides it."""
        return _LOOSE if self.kind is None else _SECTION_OF.get(self.kind, "")


def read_parts(text: str) -> tuple[Part, ...]:
    """Return the parts of a normalised report in their order. A text without headings is all findings."""
    lines = _strip_quotes(_strip_quotation_marks(text).split("\n"))
    blocks = _split_blocks(lines, whole=bool(_WHOLE.fullmatch(text)))
    if len(blocks) == 1:
        blocks = _split_bare(lines) or blocks
    if len(blocks) == 1:
        return (Part("", "findings", _join(blocks[0].lines)),)
    return tuple(part for part in _settle(_assign(blocks)) if part.text or part.heading)


def split_sections(parts: Iterable[Part]) -> dict[str, str]:
    """Return section -> text; the texts of one section are joined."""
    texts: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for part in parts:
        if part.section and part.text:
            texts[part.section].append(part.text)
    return {section: " ".join(bodies) for section, bodies in texts.items()}


def _split_blocks(lines: Sequence[str], *, whole: bool = False, bare: bool = False) -> list[_Block]:
    """Return the headings and their lines in their order. The first block holds the lines before the first heading."""

    @functools.cache
    def find_taken() -> set[Kind]:
        headings = [heading for heading in map(match_heading, lines) if heading]
        return (
            {heading.kind for heading in headings if heading.kind in _MAJOR} if len(headings) > 1 else set()
        )

    blocks = [_Block()]
    opened = previous = ""
    for line in lines:
        for index, piece in enumerate([line] if whole else split_inline(line, find_taken)):
            if piece and (heading := _find_heading(piece, previous, blocks[-1], bare)):
                blocks.append(_Block(heading.name, heading.kind, index > 0, [heading.rest]))
                opened = heading.opened
            elif index or not RULE.fullmatch(line):
                blocks[-1].lines.append(piece)
            if opened and blocks[-1].lines and blocks[-1].lines[-1].rstrip().endswith(opened):
                blocks[-1].lines[-1] = blocks[-1].lines[-1].rstrip().removesuffix(opened)
                opened = ""
        previous = line if line.strip() else ""
    return blocks


def _find_heading(line: str, previous: str, block: _Block, bare: bool) -> Heading | None:
    if heading := match_heading(line, previous, bare=bare):
        return heading
    minor = block.kind is not None and _SECTION_OF.get(block.kind) not in _MAJOR
    return match_exam_name(line) if minor and block.kind != "closing" else None


def _split_bare(lines: Sequence[str]) -> list[_Block]:
    """Return the blocks of "Indication Cough / Findings Clear lungs."; [] unless at least two headings are found."""
    blocks = _split_blocks(lines, bare=True)
    kinds = {block.kind for block in blocks[1:]}
    return blocks if len(kinds) > 1 and kinds & {*_MAJOR} else []


def _assign(blocks: Sequence[_Block]) -> list[Part]:
    """Return the parts. Some of them are loose or spare."""
    last = max((index for index, block in enumerate(blocks) if block.kind == "findings"), default=-1)
    last_major = max((index for index, block in enumerate(blocks) if block.section in _MAJOR), default=-1)
    parts: list[Part] = []
    major = ""
    for index, block in enumerate(blocks):
        if block.kind == "diagnosis" and not major and index < last_major:
            block.kind = "indication"
        section, rest = block.section, list[str]()
        if section in _MAJOR:
            major = section
        if block.kind == "report" and major == "findings":
            section = major
        if section in (*_MAJOR, _LOOSE) or block.kind == "preliminary":
            lines = block.lines
        elif section and (index < last or (last >= 0 and major == "impression")):
            lines = block.lines  # the findings are in another block
        else:
            lines, rest = _cut(block, among=bool(major) or index < last)
        parts += [Part(block.name, section, _join(lines)), Part("", major or _LOOSE, _join(rest))]
    return parts


def _cut(block: _Block, *, among: bool) -> tuple[list[str], list[str]]:
    """Split a minor block into the lines of its heading, and the lines after them that describe the image.

    Args:
        block: A block with a minor heading.
        among: Whether a major block is before it, or findings are after it.
    """
    lines, previous, blank = block.lines, "", False
    own_line = block.kind == "record" or (block.kind in _ONE_LINE and bool(lines[0].strip()))
    for index, line in enumerate(lines):
        if not line.strip():
            blank = bool(previous)
            continue
        goes_on = line.lstrip()[:1].islower() and not SENTENCE_END.search(previous[-99:])
        if previous and not goes_on and (own_line or (blank and not among) or is_statement(line)):
            return lines[:index], lines[index:]
        if (end := find_statement(line, lax=block.inline and block.kind in _ONE_LINE)) is not None:
            return [*lines[:index], line[:end]], [line[end:], *lines[index + 1 :]]
        previous, blank = line, False
    return lines, []


def _settle(parts: Sequence[Part]) -> Iterator[Part]:
    """Yield the parts with their sections. Loose and spare parts become findings if there are no other findings."""
    read = {part.section for part in parts if part.text}
    for part in parts:
        if part.section == _LOOSE and "findings" not in read:
            titles, text = _part_titles(part.text)
            yield from (Part(part.heading, "findings", text), Part("", "", titles))
        elif part.section == _SPARE and not read & {*_MAJOR, _LOOSE} and _is_spoken(part.text):
            yield part._replace(section="findings")
        else:
            yield part if part.section in SECTIONS else part._replace(section="")


def _part_titles(text: str) -> tuple[str, str]:
    """Return the lines that name the examination, and the other lines; no titles if no other line is a sentence."""
    lines = text.split("\n")
    titles = [line for line in lines if is_title(line)]
    sentences = [line for line in lines if not is_title(line)]
    if not any(SENTENCE_END.search(line[-99:]) or is_statement(line, lax=True) for line in sentences):
        return text, ""
    return _join(titles), _join(sentences)


def _is_spoken(text: str) -> bool:
    return is_statement(text, lax=True) and not is_title(text)


def _join(lines: Sequence[str]) -> str:
    return "\n".join(lines).strip()


def _strip_quotes(lines: list[str]) -> list[str]:
    """Remove the ">" of a text that a mail program quoted, if every line has it."""
    marks = [_QUOTE.match(line) if line.strip() else None for line in lines]
    if any(mark is None and line.strip() for mark, line in zip(marks, lines, strict=True)):
        return lines
    return [line[mark.end() :] if mark else line for mark, line in zip(marks, lines, strict=True)]


def _strip_quotation_marks(text: str) -> str:
    """Remove the quotation marks around a text without other quotation marks, as tables write it."""
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2
    return text[1:-1] if quoted else text
