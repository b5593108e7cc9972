"""Draw DICOM headers from the distribution of the real collection.

python training/phantom/headers.py nlmcxr_dicom_metadata.csv.gz

counts the headers of Open-i, as published by the torchxrayvision project, and writes headers.json beside this
file. The table holds only counts: no identifier, date or text of a study. A blank is a header that is empty in the
csv.
"""

import csv
import gzip
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from contract.errors import ArtifactError, ConfigError
from training.phantom.header_clues import (
    describe_exposures,
    draw_exposure,
    find_laterals,
    get_variant,
    merge_sizes,
    read_row_clues,
)

TABLE: Final = Path(__file__).with_name("headers.json")
FIELDS: Final = {  # DICOM keyword -> column of the csv
    "PhotometricInterpretation": "Photometric Interpretation",
    "PresentationLUTShape": "Presentation LUT Shape",
    "BitsStored": "Bits Stored",
    "ViewPosition": "View Position",
    "PatientOrientation": "Patient Orientation",
    "Modality": "Modality",
    "SOPClassUID": "SOP Class UID",
    "RescaleSlope": "Rescale Slope",
    "RescaleIntercept": "Rescale Intercept",
    "RescaleType": "Rescale Type",
    "PixelIntensityRelationship": "Pixel Intensity Relationship",
    "PixelIntensityRelationshipSign": "Pixel Intensity Relationship Sign",
}
_RARE: Final = 4  # rarer sizes and windows are rounded and merged


@dataclass(frozen=True)
class Header:
    """The header of one image.

    Attributes:
        fields: DICOM keyword -> value; "" if the header lacks it.
        window: Centre and width of the first window, or None.
        many_windows: Whether it has two more windows.
        rows: Height of the real image, in pixels.
        columns: Width of the real image, in pixels.
        lateral: Whether it is a lateral view.
        name: Last part of its file name, as in <n>_IM-0001-<name>.dcm.
        clues: Other evidence for the view (`training.phantom.header_clues`).
        exposure: Exposure in mAs; 0 if the header lacks it.
    """

    fields: dict[str, str]
    window: tuple[float, float] | None
    many_windows: bool
    rows: int
    columns: int
    lateral: bool
    name: str
    clues: dict[str, str] = field(default_factory=dict)
    exposure: float = 0.0

    @property
    def bits_stored(self) -> int:
        """Bits of a stored value."""
        return int(self.fields["BitsStored"])

    @property
    def inverted(self) -> bool:
        """Whether the smallest stored value is white."""
        return self.fields["PhotometricInterpretation"] == "MONOCHROME1"


def draw_headers(generator: np.random.Generator) -> list[Header]:
    """Draw the headers of one study's images, in a combination of the real collection."""
    table = load_table()
    together = _pick(generator, table["studies"])
    names = _pick(generator, [entry for entry in table["names"] if len(entry[0]) == len(together)])
    thickness = float(generator.random())  # thickness of the patient, which affects all exposures
    headers = []
    for (place, variant_place), name in zip(together, names, strict=True):
        kind = table["kinds"][place]
        variant = kind["variants"][variant_place]
        rows, columns = _pick(generator, variant["sizes"])
        window = tuple(_pick(generator, kind["windows"])) if kind["windows"] else None
        exposure = draw_exposure(variant["exposures"], thickness)
        many = kind["window"] == "multiple"
        lateral = variant["lateral"]
        headers.append(
            Header(kind["fields"], window, many, rows, columns, lateral, name, variant["clues"], exposure)
        )
    return headers


def _pick(generator: np.random.Generator, entries: list[list[Any]]) -> Any:
    """Draw one value of [[value, count], ...], with probabilities proportional to the counts."""
    ends = np.cumsum([count for _, count in entries])
    return entries[int(np.searchsorted(ends, generator.integers(ends[-1]), side="right"))][0]


@cache
def load_table() -> dict[str, Any]:
    """Return the table that is part of the package."""
    try:
        table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{TABLE} cannot be read. Install the package again.") from error
    return table


def count_headers(metadata: Path) -> dict[str, Any]:
    """Count the headers of the real collection.

    Args:
        metadata: nlmcxr_dicom_metadata.csv.gz.

    Returns:
        "images": how many; "kinds": [{"fields", "window", "windows", "variants", "count"}], a variant holding what
        tells the view: {"clues", "lateral", "sizes", "exposures"}; "studies": which kinds and variants stand together,
        [[[place in kinds, place in variants], ...], count]; "names": how the files of a study are called.

    Raises:
        ConfigError: The file does not exist, or is another file.
    """
    studies = [_describe_images(rows) for rows in _read_studies(metadata)]
    images = [image for study in studies for image in study]
    kinds = Counter(image.kind for image in images)
    order = _order(kinds)
    variants = {
        kind: _order(Counter(image.variant for image in images if image.kind == kind)) for kind in kinds
    }
    together = Counter(
        tuple((order[image.kind], variants[image.kind][image.variant]) for image in study)
        for study in studies
    )
    names = Counter(tuple(_get_name(image.row) for image in study) for study in studies)
    listed = [
        {
            "fields": dict(zip(FIELDS, kind, strict=False)),
            "window": kind[-1],
            "windows": _list_counts(
                Counter(_read_window(i.row) for i in images if i.kind == kind and kind[-1]), step=100
            ),
            "variants": [
                _describe_variant(variant, [i for i in images if (i.kind, i.variant) == (kind, variant)])
                for variant in variants[kind]
            ],
            "count": kinds[kind],
        }
        for kind in order
    ]
    return {
        "images": kinds.total(),
        "kinds": listed,
        "studies": _list_counts(together),
        "names": [entry for entry in _list_counts(names) if _is_usable(*entry)],
    }


@dataclass(frozen=True)
class _Image:
    """One row of the csv, and what it is counted with."""

    row: dict[str, str]
    kind: tuple[str, ...]
    variant: tuple[str, str, str, str, bool]
    exposure: float


def _describe_images(rows: list[dict[str, str]]) -> list[_Image]:
    """Return the images of one study."""
    clues = [read_row_clues(row) for row in rows]
    return [
        _Image(row, _get_kind(row), get_variant(row, found, lateral=lateral), found.exposure)
        for row, found, lateral in zip(rows, clues, find_laterals(clues), strict=True)
    ]


def _describe_variant(variant: tuple[str, str, str, str, bool], images: list[_Image]) -> dict[str, Any]:
    code, program, maker, _, lateral = variant
    sizes = Counter((int(image.row["Rows"]), int(image.row["Columns"])) for image in images)
    return {
        "clues": {"AcquisitionDeviceProcessingCode": code, "PostprocessingFunction": program, "maker": maker},
        "lateral": lateral,
        "sizes": _list_counts(merge_sizes(sizes, rare=_RARE, step=100)),
        "exposures": describe_exposures([image.exposure for image in images]),
    }


def _order(counts: "Counter[Any]") -> dict[Any, int]:
    """Return the place of each value, most frequent first."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {value: place for place, (value, _) in enumerate(ranked)}


def _read_studies(metadata: Path) -> list[list[dict[str, str]]]:
    try:
        with gzip.open(metadata, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file {metadata}.") from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{metadata} is not a csv file packed with gzip.") from error
    if not rows or not {"imageid", "Window Center", *FIELDS.values()} <= set(rows[0]):
        raise ConfigError(f"{metadata} does not hold the headers of Open-i.")
    studies: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        studies[row["imageid"].split("_")[0]].append(row)
    return [sorted(study, key=lambda row: row["imageid"]) for _, study in sorted(studies.items())]


def _get_kind(row: dict[str, str]) -> tuple[str, ...]:
    window = row["Window Center"]
    return (
        *(row[column] for column in FIELDS.values()),
        "multiple" if window[:1] == "[" else "single" if window else "",
    )


def _get_name(row: dict[str, str]) -> str:
    return row["imageid"].split("_IM-")[1].split("-", 1)[1]


def _is_usable(names: list[str], count: int) -> bool:
    """Leave out rare names, and names that two examinations in one study share."""
    return len(set(names)) == len(names) and (count >= _RARE or len(names) > 3)


def _read_window(row: dict[str, str]) -> tuple[float, float]:
    first = [row[name].strip("[]").split(",")[0].strip(" '") for name in ("Window Center", "Window Width")]
    return float(first[0]), float(first[1])


def _list_counts(counts: "Counter[tuple[Any, ...]]", *, step: int = 0) -> list[list[Any]]:
    """Return [[value, count], ...], most frequent first; rare values are rounded to `step` and counted together."""
    merged: Counter[tuple[Any, ...]] = Counter()
    for value, count in counts.items():
        rare = step and count < _RARE
        merged[tuple(round(part / step) * step for part in value) if rare else value] += count
    return [
        [list(value), count] for value, count in sorted(merged.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


def format_table(table: dict[str, Any]) -> str:
    """Return the table as JSON, one kind per line."""
    kinds = ",\n  ".join(json.dumps(kind, separators=(",", ":")) for kind in table["kinds"])
    rest = ",\n ".join(
        f"{json.dumps(name)}: {json.dumps(table[name], separators=(',', ':'))}"
        for name in table
        if name != "kinds"
    )
    return f'{{"kinds": [\n  {kinds}\n ],\n {rest}}}\n'


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python training/phantom/headers.py nlmcxr_dicom_metadata.csv.gz")
    try:
        TABLE.write_text(format_table(count_headers(Path(sys.argv[1]))), encoding="utf-8")
    except ConfigError as error:
        sys.exit(str(error))
