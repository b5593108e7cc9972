"""Read the report of an HL7 v2 message: only the text of its OBX segments.

HL7 v2.5.1, chapter 2 (segments, escapes) and chapter 7 (OBX). The segments that name the patient are not read.
"""

import re
from typing import Final

from contract.errors import ReportError
from contract.report.names import find_section

_FRAME: Final = "\x0b\x1c \t\r\n\ufeff"  # frame characters of the minimal lower layer protocol, and blanks
_BATCH: Final = re.compile(r"(?:FHS|BHS)[|^~\\&]")
_START: Final = re.compile(r"MSH[^\w\s]")
_SEGMENT: Final = re.compile(r"[\r\n](?=[A-Z][A-Z0-9]{2}(?:[^\w\s]|[\r\n]|\Z))")
_TEXT_TYPES: Final = ("TX", "FT", "ST")
_SUFFIXES: Final = {
    "IMP": "impression",
    "GDT": "findings",
}  # of OBX-3: HL7 2.5.1, 7.2.4 (impression, description)


def is_hl7(text: str) -> bool:
    """Whether a text is an HL7 v2 message or a batch of them."""
    text = text[:64].lstrip(_FRAME)
    return bool(_START.match(text) or _BATCH.match(text))


def read_observations(text: str) -> str:
    """Return the report of an HL7 v2 message: OBX-5 of the types TX, FT and ST, one line each, with headings.

    A heading is written where OBX-3 names a section (`find_section`) or has the suffix &IMP or &GDT.

    Raises:
        ReportError: There are several messages, or no such text.
    """
    segments = _SEGMENT.split(text.strip(_FRAME))
    if sum(bool(_START.match(segment)) for segment in segments) != 1:
        raise ReportError("The report is a file of several HL7 messages. Give one message, or its text.")
    header = next(segment for segment in segments if _START.match(segment))
    field = header[3]
    component, repetition, escape, subcomponent = tuple(_read_delimiters(header))
    signs = {"F": field, "S": component, "T": subcomponent, "R": repetition, "E": escape}
    lines: list[str] = []
    current = ""
    for segment in segments:
        fields = segment.split(field)
        if fields[0] != "OBX" or len(fields) < 6 or fields[2].strip() not in _TEXT_TYPES:
            continue
        section = _find_section(fields[3], component)
        if section and section != current:
            lines.append(f"{section.upper()}:")
        current = section or current
        lines += (_unescape(part, signs) for part in fields[5].split(repetition))
    if not any(line.strip() for line in lines):
        raise ReportError(
            "The report is an HL7 message without text in its OBX segments (OBX-5 of type TX, FT or ST). Give its text."
        )
    return "\n".join(lines)


def _find_section(identifier: str, component: str) -> str:
    for part in identifier.split(component):
        if section := find_section(part):
            return section
        if (suffix := part.rpartition("&")[2]) in _SUFFIXES:
            return _SUFFIXES[suffix]
    return ""


def _read_delimiters(header: str) -> str:
    """Return the delimiters of MSH-2: component, repetition, escape, subcomponent. Missing ones have their default."""
    stated = header[4:8].partition(header[3])[0]
    return stated + "^~\\&"[len(stated) :]


def _unescape(text: str, signs: dict[str, str]) -> str:
    """Unescape the delimiters. Formatting escapes stay for `normalize_text`."""
    mark = re.escape(signs["E"])
    return re.sub(
        rf"{mark}(?:([FSTRE])|(\.[a-z]{{2}}[+-]?[0-9]{{0,4}}|X[0-9A-F]{{2,8}}|[HN])){mark}",
        lambda match: signs[match[1]] if match[1] else f"\\{match[2]}\\",
        text,
    )
