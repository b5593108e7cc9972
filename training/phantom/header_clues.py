"""What the real headers tell of the view beside View Position, counted and drawn with them.

View Position says PA on laterals, too. So a phantom carries the evidence by which its real counterpart is known to be
frontal or lateral, and shows what the header tells.
"""

import ast
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset

from contract.image.view import rank_view, weigh_study
from contract.image.view_clues import ViewClues, describe_shape, read_clues

CLUES: Final = {  # DICOM keyword -> column of the csv
    "AcquisitionDeviceProcessingCode": "Acquisition Device Processing Code",
    "PostprocessingFunction": "Postprocessing Function",
}
CREATORS: Final = {"AGFA": "AGFA", "SIEMENS": "SIEMENS MEDCOM HEADER"}  # maker -> creator of a private block
QUANTILES: Final = tuple(np.arange(0.05, 1, 0.1))  # of the exposures of one kind of image
_READ: Final = {
    **CLUES,
    "ViewPosition": "View Position",
    "PatientOrientation": "Patient Orientation",
    "PlateType": "Plate Type",
    "ExposureInuAs": "Exposure in uAs",
    "Exposure": "Exposure",
}
_NUMBERS: Final = ("ExposureInuAs", "Exposure")
_EVEN: Final = 0.45  # two silent images have a little less than 0.5 each: a few studies hold frontals alone


def read_row_clues(row: dict[str, str]) -> ViewClues:
    """Return what a row of the csv says of the view, read as from a file that holds the same."""
    dataset = Dataset()
    for keyword, column in _READ.items():
        text = row[column]
        if text:
            value = int(float(text)) if keyword in _NUMBERS else text
            setattr(dataset, keyword, ast.literal_eval(text) if text.startswith("[") else value)
    if row["Private Creator"]:
        dataset.add_new(0x00190010, "LO", row["Private Creator"])
    return read_clues(dataset, rows=int(row["Rows"]), columns=int(row["Columns"]))


def find_laterals(studied: Sequence[ViewClues]) -> list[bool]:
    """Say which images of a study show it from the side.

    Where the evidence is even, the first is the frontal one and the others are laterals.
    """
    verdicts = weigh_study(studied)
    first = min(range(len(verdicts)), key=lambda place: (rank_view(verdicts[place]), place), default=0)
    return [
        verdict.view == "LATERAL" or (verdict.lateral >= _EVEN and place != first)
        for place, verdict in enumerate(verdicts)
    ]


def get_variant(row: dict[str, str], clues: ViewClues, *, lateral: bool) -> tuple[str, str, str, str, bool]:
    """Return what is counted together: the evidence, the maker where a code is, the shape, and what the image shows."""
    code = clues.code if clues.maker else ""
    return code, row[CLUES["PostprocessingFunction"]], clues.maker if code else "", clues.shape, lateral


def describe_exposures(exposures: Sequence[float]) -> list[float]:
    """Return quantiles of exposures in mAs, two digits each, ascending; none where most images have none."""
    known = [exposure for exposure in exposures if exposure]
    if len(known) * 2 < len(exposures) or not known:
        return []
    return [float(f"{value:.2g}") for value in np.quantile(known, QUANTILES)]


def draw_exposure(quantiles: Sequence[float], chance: float) -> float:
    """Return an exposure in mAs, 0 where none is known; images of one patient share the chance."""
    return round(float(np.interp(chance, QUANTILES, quantiles)), 3) if quantiles else 0.0


def merge_sizes(sizes: "Counter[tuple[int, int]]", *, rare: int, step: int) -> "Counter[tuple[int, int]]":
    """Return sizes with rare ones rounded to `step`, unless that changes the shape of the image."""
    merged: Counter[tuple[int, int]] = Counter()
    for (rows, columns), count in sizes.items():
        rounded = (round(rows / step) * step, round(columns / step) * step)
        keeps = count < rare and describe_shape(*rounded) == describe_shape(rows, columns)
        merged[rounded if keeps else (rows, columns)] += count
    return merged


def add_clues(dataset: Dataset, clues: dict[str, Any], exposure: float) -> None:
    """Write the evidence of a drawn header into a file."""
    for keyword in CLUES:
        if clues.get(keyword):
            setattr(dataset, keyword, clues[keyword])
    if clues.get("maker"):
        dataset.private_block(0x0029, CREATORS[clues["maker"]], create=True)
    if exposure:
        dataset.ExposureInuAs = round(exposure * 1000)
