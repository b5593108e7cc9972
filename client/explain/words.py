"""Tokens to words of the report, and the sections that the words stand in."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.explain.case import Inputs
from client.explanation import WordAttribution
from contract.bundle import Bundle
from contract.errors import InputError
from contract.report.label_words import mask_label_words
from contract.report.text import TextMode, clean_text, parse_report

Array = NDArray[np.float32]
Section = tuple[str, int, int]  # name, first and past-last character


def make_words(
    text: str,
    spans: NDArray[np.int32],
    attribution: Array,
    attention: Array,
    sections: Sequence[Section] = (),
) -> tuple[WordAttribution, ...]:
    """Return the words of a text with the sums over their tokens. Special tokens and padding are in no word.

    Args:
        text: The tokenized text.
        spans: (L, 2), as in `TokenBatch`.
        attribution: (L,).
        attention: (L,), 0 to 1.
        sections: The sections of the text.
    """
    words = []
    for first, last in group_pieces(text, spans):
        start, end = int(spans[first, 0]), int(spans[last, 1])
        pieces = slice(first, last + 1)
        added, seen = (float(values[pieces].sum(dtype=np.float64)) for values in (attribution, attention))
        section = next((name for name, begin, stop in sections if begin <= start < stop), "")
        words.append(WordAttribution(text[start:end], start, end, added, seen, section))
    return tuple(words)


def make_case_words(
    bundle: Bundle, inputs: Inputs, report: bytes | None, attribution: Array | None, attention: Array | None
) -> tuple[WordAttribution, ...]:
    """Return the words of a case, each with its section; () without a report.

    Args:
        bundle: The model.
        inputs: The case.
        report: The whole report.
        attribution: (L,); None without a report.
        attention: (L,), 0 to 1; None without a report.
    """
    if (
        inputs.text is None
        or inputs.spans is None
        or report is None
        or attribution is None
        or attention is None
    ):
        return ()
    sections = find_sections(report, inputs.text, bundle.config["text_mode"])
    return make_words(inputs.text, inputs.spans, attribution, attention, sections)


def group_pieces(text: str, spans: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Group the tokens of one text into words. Neighbours form one word without a gap or punctuation between them.

    Args:
        text: The tokenized text.
        spans: (L, 2), as in `TokenBatch`; empty for special tokens and padding.

    Returns:
        Index of the first and the last token of each word.
    """
    words: list[tuple[int, int]] = []
    for position, (start, end) in enumerate(spans.tolist()):
        if end <= start:
            continue
        if words:
            first, last = words[-1]
            joined = int(spans[last, 1]) == start and text[start - 1].isalnum() and text[start].isalnum()
            if joined:
                words[-1] = (first, position)
                continue
        words.append((position, position))
    return words


def find_sections(report: bytes | str, text: str, mode: TextMode) -> tuple[Section, ...]:
    """Return the sections of a report within the text that the model reads; none if they cannot be told.

    Args:
        report: The whole report.
        text: The part of it that the model reads.
        mode: Which part that is.
    """
    try:
        parsed = parse_report(report)
    except InputError:
        return ()
    names = ("indication",) if mode == "indication" else ("findings", "impression")
    bodies = {name: body for name in names if (body := clean_text(getattr(parsed, name)))}
    if mode in {"findings", "findings_masked"}:  # the impression stands in for missing findings
        bodies = dict(list(bodies.items())[:1])
    if mode == "findings_masked":
        bodies = {name: mask_label_words(body) for name, body in bodies.items()}
    if " ".join(bodies.values()) != text:
        return ()
    found, position = [], 0
    for name, body in bodies.items():
        found.append((name, position, position + len(body)))
        position += len(body) + 1
    return tuple(found)
