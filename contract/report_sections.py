"""Text with headings (`contract.report_headings`) -> sections."""

import re
from typing import Final

from contract.report_headings import RULE, SECTIONS, SENTENCE_END, match_heading, split_inline

# Words of a title, such as "CHEST X-RAY, 2 VIEWS".
_TITLE_WORD: Final = re.compile(
    r"\b(?:x-?rays?|radiographs?|radiography|cxr|views?|report|date|name|mrn|accession|patient)\b",
    re.IGNORECASE,
)
_QUOTE: Final = re.compile(r"[ \t]*>(?:[ \t]?>)*[ \t]?(?![ \t]*[0-9=.])")


def split_sections(text: str) -> dict[str, str]:
    """Return section -> text of a report of `normalize_text`.

    Text before the first heading counts as findings where there are no others; so does all of a text without
    headings. A title does not, where there is an impression. The bodies of equal headings are joined.
    """
    lines = _strip_quotes(_strip_quotation_marks(text).split("\n"))
    bodies = _split_bodies(lines)
    if len(bodies) <= 2:  # one heading, or none: all of them may stand on one line
        bodies = _split_bodies([part for line in lines for part in split_inline(line)])
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
    return bool(_TITLE_WORD.search(line[:200])) and not SENTENCE_END.search(line[-99:])


def _split_bodies(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Return each section and its lines in their order; the first one is what stands before the first heading."""
    bodies: list[tuple[str, list[str]]] = [("", [])]
    opened = previous = ""
    for line in lines:
        if heading := match_heading(line, previous):
            resumed = bodies[-1][0]
            bodies.append((heading.section, [heading.rest]))
            if not heading.section and heading.rest.strip() and resumed in {"findings", "impression"}:
                bodies.append((resumed, []))  # "Exam: limited." among findings takes its own line only
            opened = heading.opened
        elif not RULE.fullmatch(line):
            bodies[-1][1].append(line)
        if opened and bodies[-1][1] and bodies[-1][1][-1].rstrip().endswith(opened):
            bodies[-1][1][-1] = bodies[-1][1][-1].rstrip().removesuffix(opened)
            opened = ""
        previous = line if line.strip() else ""
    return bodies


def _join(lines: list[str]) -> str:
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
