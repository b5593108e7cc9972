"""Notes on how a case was read, with warnings that accompany every answer.

An unusual but readable image or report is served, with a warning beside the answer. The python models send these notes
as UTF-8 JSON, the client parses them, and offline explanations make the same notes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from contract.errors import ArtifactError
from contract.image.header import list_warnings
from contract.image.view import VIEWS, View
from contract.report.names import SECTIONS, Part
from contract.report.statements import count_sentences

if TYPE_CHECKING:
    from contract.image.read import Radiograph
    from contract.report.text import TokenBatch

NOTICE: Final = "Research and teaching only: never a diagnosis."  # printed with every answer
_MAX_WARNINGS: Final = 16
_MAX_CHARS: Final = 400
_MAX_PARTS: Final = 256
SURE_LATERAL: Final = (
    0.9  # probability of a lateral (or frontal) view from which the model's opinion is reported
)
_UNFAMILIAR: Final = (
    "Most words of the report are not in the model's vocabulary: it may be in another language, or no report at all. "
    "Do not rely on the answer."
)
_SEVERAL: Final = "The report seems to hold several examinations. They were read as one report."


class _Notes:
    """Methods of both kinds of notes."""

    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {**vars(self), "warnings": list(self.warnings)}

    def to_json(self) -> bytes:
        """Return the fields as UTF-8 JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False).encode()


@dataclass(frozen=True)
class ImageNotes(_Notes):
    """How an image was taken, and warnings. A value that the file does not state is "".

    Attributes:
        view: "PA", "AP", "FRONTAL" (one of these), "LATERAL" or "UNKNOWN".
        laterality: "L", "R", "B" (both) or "U" (unpaired), as DICOM writes it.
        modality: DICOM modality, "CR" or "DX" for most radiographs.
        warnings: One sentence each.
    """

    view: View = "UNKNOWN"
    laterality: str = ""
    modality: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: bytes) -> "ImageNotes":
        """Parse the result of `to_json`.

        Raises:
            ArtifactError: The bytes are not such notes.
        """
        values = _parse(data, {"view": str, "laterality": str, "modality": str, "warnings": list})
        if values["view"] not in VIEWS:
            raise ArtifactError("The server's image notes name an unknown view.")
        for name in ("laterality", "modality"):
            _require_line(values[name])
        view = cast(View, values["view"])
        return cls(view, values["laterality"], values["modality"], _read_warnings(values["warnings"]))


@dataclass(frozen=True)
class ReadPart:
    """How the text under one heading was read. It holds no text of the report.

    Attributes:
        heading: The heading in small letters, one of the known headings; "" for text without one.
        section: "indication", "comparison", "findings" or "impression"; "" for text that is in no section.
        sentences: Number of sentences, 0 or more.
    """

    heading: str
    section: str
    sentences: int


@dataclass(frozen=True)
class ReportNotes(_Notes):
    """How a report was read, and warnings.

    Attributes:
        tokens: Number of tokens that the model read, with [CLS] and [SEP].
        truncated: Whether the end was cut off.
        warnings: One sentence each.
        parts: How each part was read, in the order of the report.
    """

    tokens: int
    truncated: bool = False
    warnings: tuple[str, ...] = ()
    parts: tuple[ReadPart, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {**super().to_dict(), "parts": [asdict(part) for part in self.parts]}

    def describe_parts(self) -> str:
        """Return how the parts were read: 'indication 1 sentence ("history"), findings 2 sentences; left out 1 ...'."""
        descriptions = {section: _describe_section(section, self.parts) for section in (*SECTIONS, "")}
        left_out = descriptions.pop("")
        read = ", ".join(filter(None, descriptions.values())) or "nothing"
        return f"{read}; left out {left_out}" if left_out else read

    @classmethod
    def from_json(cls, data: bytes) -> "ReportNotes":
        """Parse the result of `to_json`.

        Raises:
            ArtifactError: The bytes are not such notes.
        """
        values = _parse(data, {"tokens": int, "truncated": bool, "warnings": list, "parts": list})
        if values["tokens"] < 0:
            raise ArtifactError("The server's report notes count fewer than 0 tokens.")
        warnings, parts = _read_warnings(values["warnings"]), _read_parts(values["parts"])
        return cls(values["tokens"], values["truncated"], warnings, parts)


def note_image(radiograph: "Radiograph", *, is_first: bool = True) -> ImageNotes:
    """Return the notes on an image: the facts of its header, and the warnings about its header and pixels.

    `is_first` says whether it is the first image of its study (`list_warnings`).
    """
    header = radiograph.header
    warnings = (*list_warnings(header, is_first=is_first), *radiograph.remarks)
    return ImageNotes(header.view, header.laterality, header.modality, warnings)


def note_reports(
    batch: "TokenBatch", parts: Iterable[Sequence[Part]], *, text_mode: str, max_length: int
) -> tuple[ReportNotes, ...]:
    """Return the notes on each report of a tokenized batch.

    Args:
        batch: Result of `ReportTokenizer.encode`.
        parts: The parts of each of its reports (`contract.report.text.parse_parts`).
        text_mode: The part of a report that the model reads (`contract.report.text.TextMode`).
        max_length: Largest number of tokens that the model reads.
    """
    cut = _describe_cut(text_mode, max_length)
    rows = zip(batch.attention_mask, batch.truncated, batch.unfamiliar, parts, strict=True)
    return tuple(
        ReportNotes(
            tokens=int(mask.sum()),
            truncated=truncated,
            warnings=(cut,) * truncated
            + (_UNFAMILIAR,) * unfamiliar
            + (_SEVERAL,) * _has_several(parts_of_report),
            parts=_note_parts(parts_of_report),
        )
        for mask, truncated, unfamiliar, parts_of_report in rows
    )


def _note_parts(parts: Sequence[Part]) -> tuple[ReadPart, ...]:
    """Return the parts without their text. Parts with the same heading and section are merged."""
    sentences: dict[tuple[str, str], int] = {}
    for part in parts:
        key = part.heading, part.section
        sentences[key] = sentences.get(key, 0) + count_sentences(part.text)
    return tuple(ReadPart(*key, count) for key, count in sentences.items() if count)


def _has_several(parts: Sequence[Part]) -> bool:
    """Whether the name of an examination is between two findings, or between two impressions."""
    seen: set[str] = set()  # sections before the last examination
    since: set[str] = set()
    for part in parts:
        if part.heading.startswith(("exam", "procedure", "stud")):
            seen |= since
            since = set()
        elif part.heading and part.text and part.section in {"findings", "impression"}:
            if part.section in seen:
                return True
            since.add(part.section)
    return False


def _describe_section(section: str, parts: Sequence[ReadPart]) -> str:
    """Return the number of sentences of a section, and its headings if they differ; "" if it is empty."""
    section_parts = [part for part in parts if part.section == section]
    count = sum(part.sentences for part in section_parts)
    if not count:
        return ""
    names = ", ".join(f'"{part.heading}"' if part.heading else "no heading" for part in section_parts)
    detail = f" ({names})" if names != f'"{section}"' else ""
    return f"{section} {count} sentence{'s' * (count != 1)}{detail}".strip()


def warn_of_view(
    notes: ImageNotes | None, lateral: float | None, *, is_first: bool = True
) -> tuple[str, ...]:
    """Return a warning if the model sees another view than the header states, at most one sentence.

    Args:
        notes: Notes on the image; None without an image.
        lateral: Probability of a lateral view by the model's view head, 0 to 1; None from a model without one.
        is_first: Whether it is the first image of its study; the others are expected to be other views.
    """
    if notes is None or lateral is None:
        return ()
    sees_lateral, sees_frontal = lateral >= SURE_LATERAL, lateral <= 1 - SURE_LATERAL
    if sees_lateral and notes.view == "UNKNOWN":
        if not is_first:
            return ()
        return (f"The model sees a lateral radiograph ({lateral:.2f}); it learned mostly from frontal ones.",)
    if sees_lateral and notes.view != "LATERAL":
        return (
            f"The model sees a lateral radiograph ({lateral:.2f}) where the header says {notes.view}: one of the two "
            "is wrong.",
        )
    if sees_frontal and notes.view == "LATERAL":
        return (
            f"The model sees a frontal radiograph ({1 - lateral:.2f}) where the header says LATERAL: one of the "
            "two is wrong.",
        )
    return ()


def join_warnings(*notes: ImageNotes | ReportNotes | None) -> tuple[str, ...]:
    """Return the warnings of all notes in their order, without duplicates."""
    sentences = (sentence for note in notes if note is not None for sentence in note.warnings)
    return tuple(dict.fromkeys(sentences))


def _describe_cut(text_mode: str, max_length: int) -> str:
    if text_mode == "full":
        return (
            f"The report is longer than {max_length} tokens: the findings were read as far as they fit, but "
            "the end (the impression) was not read."
        )
    return f"The report is longer than {max_length} tokens: its end was not read."


def _parse(data: bytes, types: Mapping[str, type]) -> dict[str, Any]:
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # invalid UTF-8 and invalid JSON both raise ValueError
        raise ArtifactError("The server's notes on a case are not JSON.") from error
    if not isinstance(values, dict) or set(values) != set(types):
        raise ArtifactError(f"The server's notes on a case must hold {', '.join(types)} and nothing else.")
    for name, kind in types.items():
        if type(values[name]) is not kind:  # isinstance would accept true as a number
            raise ArtifactError(
                f"The server's notes on a case hold a {name} that is not of type {kind.__name__}."
            )
    return values


def _read_warnings(values: list[Any]) -> tuple[str, ...]:
    if len(values) > _MAX_WARNINGS:
        raise ArtifactError(f"The server's notes on a case hold more than {_MAX_WARNINGS} warnings.")
    for value in values:
        _require_line(value)
    return tuple(values)


def _read_parts(values: list[Any]) -> tuple[ReadPart, ...]:
    if len(values) > _MAX_PARTS:
        raise ArtifactError(f"The server's report notes hold more than {_MAX_PARTS} parts.")
    return tuple(map(_read_part, values))


def _read_part(value: Any) -> ReadPart:
    try:
        part = ReadPart(**value)
    except TypeError as error:
        raise ArtifactError("The server's report notes hold an entry that is not a part.") from error
    _require_line(part.heading)
    if part.section not in (*SECTIONS, "") or type(part.sentences) is not int or part.sentences < 0:
        raise ArtifactError("The server's report notes hold a part without section or number of sentences.")
    return part


def _require_line(value: Any) -> None:
    """Refuse text that is not one printable line, because a terminal obeys control characters."""
    if not isinstance(value, str) or len(value) > _MAX_CHARS or not value.isprintable():
        raise ArtifactError("The server's notes on a case hold an entry that is not a short line of text.")
