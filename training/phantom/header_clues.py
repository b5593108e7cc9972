"""The view evidence of the real headers besides View Position, which is counted and drawn with them.

View Position is PA on some laterals too. So a phantom's header carries the evidence that shows whether its real
counterpart is frontal or lateral, and its picture shows that view.
"""

import ast
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset

from contract.image.elements import Elements, fill_view
from contract.image.view import rank_view, weigh_study
from contract.image.view_clues import ViewClues, describe_shape, read_clues

CLUES: Final = {  # DICOM keyword -> column of the csv
    "AcquisitionDeviceProcessingCode": "Acquisition Device Processing Code",
    "PostprocessingFunction": "Postprocessing Function",
}
CREATORS: Final = {"AGFA": "AGFA", "SIEMENS": "SIEMENS MEDCOM HEADER"}  # maker -> creator of a private block
QUANTILES: Final = tuple(np.arange(0.05, 1, 0.1))  # quantiles of the exposures of one kind of image
_READ: Final = {
    **CLUES,
    "ViewPosition": "View Position",
    "PatientOrientation": "Patient Orientation",
    "PlateType": "Plate Type",
    "ExposureInuAs": "Exposure in uAs",
    "Exposure": "Exposure",
}
_NUMBERS: Final = ("ExposureInuAs", "Exposure")
_EVEN: Final = 0.45  # two images without evidence: below 0.5, as a few studies have only frontals


def read_row_clues(row: dict[str, str]) -> ViewClues:
    """Return the view evidence of a row of the csv, read in the same way as from a file."""
    dataset = Dataset()
    for keyword, column in _READ.items():
        text = row[column]
        if text:
            value = int(float(text)) if keyword in _NUMBERS else text
            setattr(dataset, keyword, ast.literal_eval(text) if text.startswith("[") else value)
    if row["Private Creator"]:
        dataset.add_new(0x00190010, "LO", row["Private Creator"])
    return read_clues(fill_view(Elements(dataset)), rows=int(row["Rows"]), columns=int(row["Columns"]))


def find_laterals(studied: Sequence[ViewClues]) -> list[bool]:
    """Return whether each image of a study is a lateral.

    With even evidence, the first image is the frontal one and the others are laterals.
    """
    verdicts = weigh_study(studied)
    first = min(range(len(verdicts)), key=lambda place: (rank_view(verdicts[place]), place), default=0)
    return [
        verdict.view == "LATERAL" or (verdict.lateral >= _EVEN and place != first)
        for place, verdict in enumerate(verdicts)
    ]


def get_variant(row: dict[str, str], clues: ViewClues, *, lateral: bool) -> tuple[str, str, str, str, bool]:
    """Return the key for counting: the evidence, the maker if there is a code, the shape, and the view."""
    code = clues.code if clues.maker else ""
    return code, row[CLUES["PostprocessingFunction"]], clues.maker if code else "", clues.shape, lateral


def describe_exposures(exposures: Sequence[float]) -> list[float]:
    """Return quantiles of exposures in mAs, two digits each, ascending; [] if most images have none."""
    known = [exposure for exposure in exposures if exposure]
    if len(known) * 2 < len(exposures) or not known:
        return []
    return [float(f"{value:.2g}") for value in np.quantile(known, QUANTILES)]


def draw_exposure(quantiles: Sequence[float], chance: float) -> float:
    """Return an exposure in mAs; 0 if none is known. Images of one patient share `chance`."""
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
