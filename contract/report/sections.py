"""Text with headings (`contract.report.headings`) -> parts, each of which is a section or is not read.

Text without a heading is findings where the report has no findings of its own: before the first heading, below a
"REPORT", and behind the reason for the examination, the comparison or the technique once it speaks of the image.
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
# What `contract.report.text.format_report` writes where less would be ambiguous: nothing is sought within its lines.
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
_LOOSE: Final = "loose"  # text that is findings where there are no others
_SPARE: Final = "spare"  # text that is findings where there is nothing else to read
_ONE_LINE: Final = ("technique", "exam")
_MAJOR: Final = ("findings", "impression")


@dataclass
class _Block:
    """A heading and the lines below it; `kind` is None before the first heading."""

    name: str = ""
    kind: Kind | None = None
    inline: bool = False
    lines: list[str] = field(default_factory=list)

    @property
    def section(self) -> str:
        """The section, "" for what is not read, or what `_settle` decides."""
        return _LOOSE if self.kind is None else _SECTION_OF.get(self.kind, "")


def read_parts(text: str) -> tuple[Part, ...]:
    """Return the parts of a report of `normalize_text` in their order; all of a text without headings is findings."""
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
    return {section: " ".join(found) for section, found in texts.items()}


def _split_blocks(lines: Sequence[str], *, whole: bool = False, bare: bool = False) -> list[_Block]:
    """Return the headings and their lines in their order; the first block is what stands before the first one."""

    @functools.cache
    def find_taken() -> set[Kind]:
        headings = [heading for heading in map(match_heading, lines) if heading]
        return (
            {heading.kind for heading in headings if heading.kind in _MAJOR} if len(headings) > 1 else set()
        )

    blocks = [_Block()]
    opened = previous = ""
    for line in lines:
        for place, piece in enumerate([line] if whole else split_inline(line, find_taken)):
            if piece and (heading := _find_heading(piece, previous, blocks[-1], bare)):
                blocks.append(_Block(heading.name, heading.kind, place > 0, [heading.rest]))
                opened = heading.opened
            elif place or not RULE.fullmatch(line):
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
    """Return the blocks of "Indication Cough / Findings Clear lungs."; [] unless two headings bear each other out."""
    blocks = _split_blocks(lines, bare=True)
    kinds = {block.kind for block in blocks[1:]}
    return blocks if len(kinds) > 1 and kinds & {*_MAJOR} else []


def _assign(blocks: Sequence[_Block]) -> list[Part]:
    """Return the parts, of which some are loose or spare."""
    last = max((place for place, block in enumerate(blocks) if block.kind == "findings"), default=-1)
    last_major = max((place for place, block in enumerate(blocks) if block.section in _MAJOR), default=-1)
    parts: list[Part] = []
    major = ""
    for place, block in enumerate(blocks):
        if block.kind == "diagnosis" and not major and place < last_major:
            block.kind = "indication"
        section, rest = block.section, list[str]()
        if section in _MAJOR:
            major = section
        if block.kind == "report" and major == "findings":
            section = major
        if section in (*_MAJOR, _LOOSE) or block.kind == "preliminary":
            own = block.lines
        elif section and (place < last or (last >= 0 and major == "impression")):
            own = block.lines  # what is read as findings stands elsewhere
        else:
            own, rest = _cut(block, among=bool(major) or place < last)
        parts += [Part(block.name, section, _join(own)), Part("", major or _LOOSE, _join(rest))]
    return parts


def _cut(block: _Block, *, among: bool) -> tuple[list[str], list[str]]:
    """Return the lines that a heading of less weight takes, and those behind them that speak of the image.

    Args:
        block: With such a heading.
        among: Whether text of more weight stands before it, or findings behind it.
    """
    lines, previous, blank = block.lines, "", False
    own_line = block.kind == "record" or (block.kind in _ONE_LINE and bool(lines[0].strip()))
    for place, line in enumerate(lines):
        if not line.strip():
            blank = bool(previous)
            continue
        goes_on = line.lstrip()[:1].islower() and not SENTENCE_END.search(previous[-99:])
        if previous and not goes_on and (own_line or (blank and not among) or is_statement(line)):
            return lines[:place], lines[place:]
        if (end := find_statement(line, lax=block.inline and block.kind in _ONE_LINE)) is not None:
            return [*lines[:place], line[:end]], [line[end:], *lines[place + 1 :]]
        previous, blank = line, False
    return lines, []


def _settle(parts: Sequence[Part]) -> Iterator[Part]:
    """Yield the parts with their sections; loose and spare ones are findings where there are no others."""
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
    """Return the lines of a text that name the examination, and the others; none where no other is a sentence."""
    lines = text.split("\n")
    titles = [line for line in lines if is_title(line)]
    others = [line for line in lines if not is_title(line)]
    if not any(SENTENCE_END.search(line[-99:]) or is_statement(line, lax=True) for line in others):
        return text, ""
    return _join(titles), _join(others)


def _is_spoken(text: str) -> bool:
    return is_statement(text, lax=True) and not is_title(text)


def _join(lines: Sequence[str]) -> str:
    return "\n".join(lines).strip()


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
