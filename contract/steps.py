"""What the served python models do: files, reports and a caller's own tensors to named tensors and notes.

The one adapter in `model_repository/model.py`, the in-process baseline (`serving.inprocess`) and offline explanations
(`client.explain`) all call this, so that preprocessing exists once, to its last step.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError, TensorError, number_image
from contract.image.read import Radiograph, load_radiograph
from contract.notes import ImageNotes, ReportNotes, note_image, note_reports
from contract.report.sections import split_sections
from contract.report.text import Report, ReportTokenizer, TextMode, TokenBatch, parse_parts, select_text
from contract.report.tokens import TokenLimits
from contract.runtime.session import read_parameter
from contract.tensors import (
    ATTENTION_MASK,
    IMAGE_BYTES,
    IMAGE_NOTES,
    INPUT_IDS,
    MAX_VIEWS,
    PIXELS,
    REPORT,
    REPORT_NOTES,
    REPORT_TEXT,
    TEXT_GATE,
    TOKEN_SPANS,
    VIEWS,
)

Array = NDArray[Any]
Arrays = dict[str, Array]
Makers = dict[str, Callable[[], Array]]
# Inputs by name, and the names of the outputs that are wanted (none: all) -> outputs by name.
Step = Callable[[Mapping[str, Array], Collection[str]], Arrays]

TOKENIZER_STEPS: Final = ("preprocess_text", "preprocess_study")  # a tokenizer.json lies in their version


@dataclass(frozen=True)
class ReportBatch:
    """Reports as the model reads them, B of them."""

    texts: tuple[str, ...]  # the part of each report that the model reads
    tokens: TokenBatch
    notes: tuple[ReportNotes, ...]


class ReportReader:
    """Reads reports: the part that the model reads, its tokens, and what was noticed."""

    def __init__(self, tokenizer: ReportTokenizer, mode: TextMode, max_length: int) -> None:
        """Take the tokenizer, the part of a report that the model reads, and the most tokens it reads."""
        self.tokenizer = tokenizer
        self._mode: TextMode = mode
        self._max_length = max_length

    def read(self, reports: Iterable[bytes | str]) -> ReportBatch:
        """Return the reports as one batch; ReportError for one that cannot be read."""
        parts = [parse_parts(report) for report in reports]
        texts = [select_text(Report(**split_sections(found)), self._mode) for found in parts]
        tokens = self.tokenizer.encode(texts, self._max_length)
        notes = note_reports(tokens, parts, text_mode=self._mode, max_length=self._max_length)
        return ReportBatch(tuple(texts), tokens, notes)


def read_radiograph(data: bytes, *, size: int, is_first: bool = True) -> tuple[Radiograph, ImageNotes]:
    """Return one radiograph, (1, size, size) pixels and its header, and what was noticed; ImageError if unreadable.

    `is_first` says whether it is the first image of its study (`contract.image.header.list_warnings`).
    """
    radiograph = load_radiograph(data, size=size)
    return radiograph, note_image(radiograph, is_first=is_first)


def read_study(files: Sequence[bytes], *, size: int) -> list[tuple[Radiograph, ImageNotes]]:
    """Read the images of one study, the frontal one first, each as `read_radiograph` does.

    Raises:
        ImageError: One cannot be read; where there are several, the message names it by its number.
    """
    return [_read_view(data, place, len(files), size) for place, data in enumerate(files)]


def _read_view(data: bytes, place: int, count: int, size: int) -> tuple[Radiograph, ImageNotes]:
    try:
        return read_radiograph(data, size=size, is_first=place == 0)
    except ImageError as error:
        if count == 1:
            raise
        raise number_image(error, place + 1, count) from error


def open_step(name: str, config: Mapping[str, Any], directory: Path) -> Step:
    """Load the step that a python model of a published repository runs.

    Args:
        name: Of the model, a python one of `contract.tensors.MODELS`.
        config: Its config.pbtxt as Triton's JSON.
        directory: That of the version; the tokenizer or the token limits lie there where a step needs them.

    Returns:
        A function of the batched inputs by name, and of the names of the wanted outputs (none: all). It raises
        InputError for an input that cannot be read.

    Raises:
        ArtifactError: The tokenizer or the token limits are missing or damaged.
    """
    return _OPENERS[name](config, directory)


def _open_image(config: Mapping[str, Any], _: Path) -> Step:
    size = int(read_parameter(config, "image_size"))

    def run(tensors: Mapping[str, Array], wanted: Collection[str]) -> Arrays:
        return _make(_read_images(tensors[IMAGE_BYTES.name], size), wanted)

    return run


def _open_text(config: Mapping[str, Any], directory: Path) -> Step:
    reader = _open_reader(config, directory)

    def run(tensors: Mapping[str, Array], wanted: Collection[str]) -> Arrays:
        return _make(_read_reports(tensors[REPORT.name], reader), wanted)

    return run


def _open_study(config: Mapping[str, Any], directory: Path) -> Step:
    """Both in one step, one after the other: reading a report takes a fraction of the time of an image.

    The report comes first, so that a bad one costs no decoding.
    """
    size, reader = int(read_parameter(config, "image_size")), _open_reader(config, directory)

    def run(tensors: Mapping[str, Array], wanted: Collection[str]) -> Arrays:
        reports = _read_reports(tensors[REPORT.name], reader)
        return _make(_read_images(tensors[IMAGE_BYTES.name], size) | reports, wanted)

    return run


def _open_check(_: Mapping[str, Any], directory: Path) -> Step:
    """Hand on the tensors of a caller who preprocesses, once the token ids are such as the model can read."""
    limits = TokenLimits.read(directory)

    def run(tensors: Mapping[str, Array], wanted: Collection[str]) -> Arrays:
        limits.check(tensors[INPUT_IDS.name], tensors[ATTENTION_MASK.name])
        names = (PIXELS.name, INPUT_IDS.name, ATTENTION_MASK.name)
        return {name: tensors[name] for name in names if name in tensors and (not wanted or name in wanted)}

    return run


def _open_gate(_: Mapping[str, Any], __: Path) -> Step:
    """Hand the token ids on. The image tokens among the inputs say that the image encoder is done."""

    def run(tensors: Mapping[str, Array], wanted: Collection[str]) -> Arrays:
        names = (INPUT_IDS.name, ATTENTION_MASK.name)
        return {name: tensors[name] for name in names if not wanted or name in wanted}

    return run


_OPENERS: Final[dict[str, Callable[[Mapping[str, Any], Path], Step]]] = {
    "preprocess_image": _open_image,
    "preprocess_text": _open_text,
    "preprocess_study": _open_study,
    "check_study": _open_check,
    "check_text": _open_check,
    TEXT_GATE: _open_gate,
}


def _open_reader(config: Mapping[str, Any], directory: Path) -> ReportReader:
    mode: Any = read_parameter(config, "text_mode")
    tokenizer = ReportTokenizer.load(directory / "tokenizer.json")
    return ReportReader(tokenizer, mode, int(read_parameter(config, "max_length")))


def _read_images(files: Array, size: int) -> Makers:
    """Read files (B, V); see `read_study`. TensorError: V is none of 1 to `MAX_VIEWS`."""
    if files.ndim != 2 or not 1 <= files.shape[1] <= MAX_VIEWS:
        raise TensorError(
            f"Tensor {IMAGE_BYTES.name} must hold 1 to {MAX_VIEWS} images of each study, not shape {list(files.shape)}."
        )
    studies = [read_study([bytes(data) for data in row], size=size) for row in files]
    return {
        VIEWS.name: lambda: np.stack(
            [np.concatenate([radiograph.pixels for radiograph, _ in images]) for images in studies]
        ),  # (B, V, S, S)
        IMAGE_NOTES.name: lambda: np.array(
            [[notes.to_json() for _, notes in images] for images in studies], dtype=np.object_
        ),  # (B, V)
    }


def _read_reports(reports: Array, reader: ReportReader) -> Makers:
    batch = reader.read(_unpack(reports))
    return {
        INPUT_IDS.name: lambda: batch.tokens.input_ids,  # (B, L)
        ATTENTION_MASK.name: lambda: batch.tokens.attention_mask,  # (B, L)
        REPORT_TEXT.name: lambda: pack([text.encode() for text in batch.texts]),  # (B, 1)
        TOKEN_SPANS.name: lambda: batch.tokens.spans,  # (B, L, 2)
        REPORT_NOTES.name: lambda: pack([notes.to_json() for notes in batch.notes]),  # (B, 1)
    }


def _make(makers: Makers, wanted: Collection[str]) -> Arrays:
    return {name: make() for name, make in makers.items() if not wanted or name in wanted}


def pack(values: Iterable[bytes]) -> Array:
    """Return files, reports or notes as a BYTES tensor, (B, 1) objects."""
    return np.array([[value] for value in values], dtype=np.object_)


def _unpack(values: Array) -> Iterator[bytes]:
    return (bytes(value) for value in values.reshape(-1))
