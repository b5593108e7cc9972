"""What was noticed while a case was read: sentences of warning that travel with every answer.

An image or a report that is unusual but readable is served, and whoever reads the answer is told. The python
models send these notes as UTF-8 JSON, the client parses them, and offline explanations make the same ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from contract.errors import ArtifactError
from contract.image_header import list_warnings
from contract.image_view import VIEWS, View

if TYPE_CHECKING:
    from contract.dicom import Radiograph
    from contract.text import TokenBatch

NOTICE: Final = "Research and teaching only: never a diagnosis."  # stands beside every answer
_MAX_WARNINGS: Final = 16
_MAX_CHARS: Final = 400
_UNFAMILIAR: Final = (
    "Most words of the report are not in the model's vocabulary: it may be in another language, or no report at all, "
    "so do not rely on what the model says of it."
)


class _Notes:
    """What both kinds of notes do."""

    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {**vars(self), "warnings": list(self.warnings)}

    def to_json(self) -> bytes:
        """Return the fields as UTF-8 JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False).encode()


@dataclass(frozen=True)
class ImageNotes(_Notes):
    """How an image was taken, and what to be warned of; what the file does not say is "".

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
        """Parse what `to_json` made.

        Raises:
            ArtifactError: The bytes are anything else.
        """
        values = _parse(data, {"view": str, "laterality": str, "modality": str, "warnings": list})
        if values["view"] not in VIEWS:
            raise ArtifactError("The server's image notes name an unknown view.")
        for name in ("laterality", "modality"):
            _require_line(values[name])
        view = cast(View, values["view"])
        return cls(view, values["laterality"], values["modality"], _read_warnings(values["warnings"]))


@dataclass(frozen=True)
class ReportNotes(_Notes):
    """How much of a report was read, and what to be warned of.

    Attributes:
        tokens: How many tokens the model read, [CLS] and [SEP] included.
        truncated: Whether the end was cut off.
        warnings: One sentence each.
    """

    tokens: int
    truncated: bool = False
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: bytes) -> "ReportNotes":
        """Parse what `to_json` made.

        Raises:
            ArtifactError: The bytes are anything else.
        """
        values = _parse(data, {"tokens": int, "truncated": bool, "warnings": list})
        if values["tokens"] < 0:
            raise ArtifactError("The server's report notes count fewer than 0 tokens.")
        return cls(values["tokens"], values["truncated"], _read_warnings(values["warnings"]))


def note_image(radiograph: "Radiograph") -> ImageNotes:
    """Return the notes on an image that was read: what its header says, and what was noticed in its pixels."""
    header = radiograph.header
    warnings = (*list_warnings(header), *radiograph.remarks)
    return ImageNotes(header.view, header.laterality, header.modality, warnings)


def note_reports(batch: "TokenBatch", *, text_mode: str, max_length: int) -> tuple[ReportNotes, ...]:
    """Return the notes on each report of a tokenized batch.

    Args:
        batch: What `ReportTokenizer.encode` returned.
        text_mode: Which part of a report the model reads (`contract.text.TextMode`).
        max_length: The most tokens that it reads.
    """
    cut = _describe_cut(text_mode, max_length)
    rows = zip(batch.attention_mask, batch.truncated, batch.unfamiliar, strict=True)
    return tuple(
        ReportNotes(int(mask.sum()), truncated, (cut,) * truncated + (_UNFAMILIAR,) * unfamiliar)
        for mask, truncated, unfamiliar in rows
    )


def join_warnings(*notes: ImageNotes | ReportNotes | None) -> tuple[str, ...]:
    """Return the warnings of all notes in their order, each once."""
    sentences = (sentence for note in notes if note is not None for sentence in note.warnings)
    return tuple(dict.fromkeys(sentences))


def _describe_cut(text_mode: str, max_length: int) -> str:
    if text_mode == "full":
        return (
            f"The report is longer than {max_length} tokens: its findings come first and were kept as far as "
            "they fit, but its end (the impression) was not read."
        )
    return f"The report is longer than {max_length} tokens: its end was not read."


def _parse(data: bytes, types: Mapping[str, type]) -> dict[str, Any]:
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # both not UTF-8 and not JSON are ValueErrors
        raise ArtifactError("The server's notes on a case are not JSON.") from error
    if not isinstance(values, dict) or set(values) != set(types):
        raise ArtifactError(f"The server's notes on a case must hold {', '.join(types)} and nothing else.")
    for name, kind in types.items():
        if type(values[name]) is not kind:  # isinstance would take true for a number
            raise ArtifactError(f"The server's notes on a case hold a {name} that is no {kind.__name__}.")
    return values


def _read_warnings(values: list[Any]) -> tuple[str, ...]:
    if len(values) > _MAX_WARNINGS:
        raise ArtifactError(f"The server's notes on a case hold more than {_MAX_WARNINGS} warnings.")
    for value in values:
        _require_line(value)
    return tuple(values)


def _require_line(value: Any) -> None:
    """Refuse what would not show as one line: a terminal obeys control characters."""
    if not isinstance(value, str) or len(value) > _MAX_CHARS or not value.isprintable():
        raise ArtifactError("The server's notes on a case hold something else than short lines of text.")
