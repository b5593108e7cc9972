"""Turn rows of a studies table into the cases that the exporter checks and the client indexes."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from contract.report.text import TextMode
from training.data.openi import read_text
from training.data.rows import Row, get_image, get_report, has_text, is_readable

if TYPE_CHECKING:
    from client.cases import CaseInput
    from export.gates.parity import ParityCase


def make_cases(rows: Sequence[Row], text_mode: str) -> Iterator["CaseInput"]:
    """Yield one case per study for the index: its frontal image and its report.

    The client reads an image file when it sends the case. If it cannot read the file, it refuses only that case.
    """
    from client.cases import CaseInput

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
    rows: Sequence[Row], text_mode: TextMode, image_size: int, *, count: int = 8
) -> list["ParityCase"]:
    """Decode real cases for the parity gate, evenly spaced by the length of the report, shortest to longest."""
    readable = [row for row in rows if is_readable(row, text_mode)]
    readable.sort(key=lambda row: (not row["image_paths"], len(get_report(row))))
    with_image = [row for row in readable if row["image_paths"]] or readable
    return [_make_case(row, text_mode, image_size) for row in _space(with_image, count)]


def make_precision_cases(
    rows: Sequence[Row],
    test_ids: Collection[str],
    text_mode: TextMode,
    image_size: int,
    *,
    least: int = 64,
    most: int = 256,
) -> list["ParityCase"]:
    """Decode the cases of the precision gate: the test split, with the known labels of each study.

    Args:
        rows: Rows of a studies table.
        test_ids: Study ids of the model's test split.
        text_mode: The part of a report that the model reads.
        image_size: Side of the square image, in pixels.
        least: Minimum number of cases. A smaller test split is filled up with evenly spaced other studies, because
            few decisions show no flips, and AUROC and AP need at least 50 cases.
        most: Maximum number of cases. Of a larger test split, evenly spaced studies are taken.
    """
    readable = [row for row in rows if is_readable(row, text_mode)]
    held_out = [row for row in readable if row["study_id"] in test_ids]
    others = [row for row in readable if row["study_id"] not in test_ids]
    chosen = [*held_out, *_space(others, max(least - len(held_out), 0))]
    return [_make_case(row, text_mode, image_size) for row in _space(chosen, most)]


def _space(rows: Sequence[Row], count: int) -> list[Row]:
    """Return `count` evenly spaced rows, with the first and the last; all rows if there are fewer."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / max(count - 1, 1))] for index in range(count)]


def _make_case(row: Row, text_mode: TextMode, image_size: int) -> "ParityCase":
    from client.inputs import read_image_file
    from contract.image.read import load_pixels
    from contract.labels import LABELS
    from export.gates.parity import ParityCase

    image = get_image(row)
    present, unknown = (
        np.array([label.key in row[name] for label in LABELS]) for name in ("labels", "unknown_labels")
    )
    return ParityCase(
        pixels=load_pixels(read_image_file(image), size=image_size) if image else None,
        text=read_text(row, text_mode) or None,
        labels=present if row["labelled"] else None,
        known=~unknown,
    )
