"""Rows of a studies table as the cases that the exporter checks and the client indexes."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.data.rows import Row, get_image, get_report, has_text, is_readable, read_text

if TYPE_CHECKING:
    from client.results import CaseInput
    from export.gates.parity import ParityCase


def make_cases(rows: Sequence[Row], text_mode: str) -> Iterator["CaseInput"]:
    """Yield what the client indexes: each study once, with its frontal image and its report.

    The client reads an image file when the turn of its case comes; one that cannot be read is refused alone.
    """
    from client.results import CaseInput

    for row in rows:
        if not is_readable(row, text_mode):
            continue
        image = get_image(row)
        yield CaseInput(
            id=row["study_id"],
            study_id=row["study_id"],
            image=image,
            report=get_report(row) if has_text(row, text_mode) else None,
            labels=tuple(row["labels"]),
            image_ref=str(image) if image else "",
        )


def make_parity_cases(
    rows: Sequence[Row], text_mode: str, image_size: int, *, count: int = 8
) -> list["ParityCase"]:
    """Decode real cases for the parity gate: the shortest, the longest and evenly spaced reports between."""
    readable = [row for row in rows if is_readable(row, text_mode)]
    readable.sort(key=lambda row: (not row["image_paths"], len(get_report(row))))
    with_image = [row for row in readable if row["image_paths"]] or readable
    return [_make_case(row, text_mode, image_size) for row in _space(with_image, count)]


def make_precision_cases(
    rows: Sequence[Row],
    test_ids: Collection[str],
    text_mode: str,
    image_size: int,
    *,
    least: int = 64,
    most: int = 256,
) -> list["ParityCase"]:
    """Decode the cases that a precision profile is held to: the test split, with what is known of each.

    Args:
        rows: Of a studies table.
        test_ids: Study ids of the model's test split.
        text_mode: The part of a report that the model reads.
        image_size: Side of the pixels.
        least: A test split of fewer is filled up with evenly spaced other studies: few decisions show no flips, and
            AUROC and AP are measured from 50 cases on.
        most: Evenly spaced ones of more.
    """
    readable = [row for row in rows if is_readable(row, text_mode)]
    held_out = [row for row in readable if row["study_id"] in test_ids]
    others = [row for row in readable if row["study_id"] not in test_ids]
    chosen = [*held_out, *_space(others, max(least - len(held_out), 0))]
    return [_make_case(row, text_mode, image_size) for row in _space(chosen, most)]


def _space(rows: Sequence[Row], count: int) -> list[Row]:
    """Return `count` evenly spaced rows, the first and the last among them; all where there are no more."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / max(count - 1, 1))] for index in range(count)]


def _make_case(row: Row, text_mode: str, image_size: int) -> "ParityCase":
    from client.inputs import read_image_file
    from contract.image.read import load_pixels
    from contract.labels import LABELS
    from export.gates.parity import ParityCase

    image = get_image(row)
    there, unknown = (
        np.array([label.key in row[name] for label in LABELS]) for name in ("labels", "unknown_labels")
    )
    return ParityCase(
        pixels=load_pixels(read_image_file(image), size=image_size) if image else None,
        text=read_text(row, text_mode) or None,
        labels=there if row["labelled"] else None,
        known=~unknown,
    )
