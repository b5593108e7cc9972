"""How the DICOM headers of the real collection are distributed, and headers drawn from that.

python training/phantom/headers.py nlmcxr_dicom_metadata.csv.gz

counts the headers of Open-i as the torchxrayvision project published them, and writes headers.json beside this
file. The table holds counts only: no identifier, date or text of any study. A blank stands for a header that the
csv leaves empty.
"""

import csv
import gzip
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from contract.errors import ArtifactError, ConfigError

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
LATERAL_VIEWS: Final = frozenset({"LL", "RL", "LATERAL", "LARGE LATERAL"})
_VIEW_ORDER: Final = {"PA": 0, "AP": 1}
_RARE: Final = 4  # sizes and windows seen less often are rounded together


@dataclass(frozen=True)
class Header:
    """What one image's header says.

    Attributes:
        fields: DICOM keyword -> value; "" where the header lacks it.
        window: Centre and width of the first window, or None.
        many_windows: Whether two more windows follow.
        rows: Height of the real image, in pixels.
        columns: Its width.
        lateral: Whether it shows the chest from the side.
        name: End of its file name, as in <n>_IM-0001-<name>.dcm.
    """

    fields: dict[str, str]
    window: tuple[float, float] | None
    many_windows: bool
    rows: int
    columns: int
    lateral: bool
    name: str

    @property
    def bits_stored(self) -> int:
        """Bits of a stored value."""
        return int(self.fields["BitsStored"])

    @property
    def inverted(self) -> bool:
        """Whether the smallest stored value is white."""
        return self.fields["PhotometricInterpretation"] == "MONOCHROME1"


def find_laterals(views: Sequence[str]) -> list[bool]:
    """Say which images of a study show it from the side.

    Where no image is called lateral, the first in the order PA, AP, blank is the frontal one: more than half of the
    real studies give both images the same view position.

    Args:
        views: View positions of one study's images, in the order of their names.
    """
    called = [view in LATERAL_VIEWS for view in views]
    if any(called) or not views:
        return called
    frontal = min(range(len(views)), key=lambda place: (_VIEW_ORDER.get(views[place], 2), place))
    return [place != frontal for place in range(len(views))]


def draw_headers(generator: np.random.Generator) -> list[Header]:
    """Draw the headers of one study's images, as they stand together in the real collection."""
    table = load_table()
    kinds = [table["kinds"][place] for place in _pick(generator, table["studies"])]
    names = _pick(generator, [entry for entry in table["names"] if len(entry[0]) == len(kinds)])
    laterals = find_laterals([kind["fields"]["ViewPosition"] for kind in kinds])
    headers = []
    for kind, name, lateral in zip(kinds, names, laterals, strict=True):
        rows, columns = _pick(generator, kind["sizes"]["lateral" if lateral else "frontal"])
        window = tuple(_pick(generator, kind["windows"])) if kind["windows"] else None
        headers.append(
            Header(kind["fields"], window, kind["window"] == "multiple", rows, columns, lateral, name)
        )
    return headers


def _pick(generator: np.random.Generator, entries: list[list[Any]]) -> Any:
    """Return one value of [[value, count], ...], each as often as it was counted."""
    ends = np.cumsum([count for _, count in entries])
    return entries[int(np.searchsorted(ends, generator.integers(ends[-1]), side="right"))][0]


@cache
def load_table() -> dict[str, Any]:
    """Return the table that is part of the package."""
    try:
        table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{TABLE} cannot be read; install the package again.") from error
    return table


def count_headers(metadata: Path) -> dict[str, Any]:
    """Count the headers of the real collection.

    Args:
        metadata: nlmcxr_dicom_metadata.csv.gz.

    Returns:
        "images": how many; "kinds": [{"fields", "window", "windows", "sizes", "count"}]; "studies": which kinds
        stand together [[places in kinds], count]; "names": how the files of a study are called.

    Raises:
        ConfigError: There is no such file, or it is another one.
    """
    studies = _read_studies(metadata)
    kinds = Counter(_get_kind(row) for rows in studies for row in rows)
    order = {
        kind: place
        for place, (kind, _) in enumerate(sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))
    }
    together = Counter(tuple(order[_get_kind(row)] for row in rows) for rows in studies)
    names = Counter(tuple(_get_name(row) for row in rows) for rows in studies)
    sizes: dict[Any, Counter[tuple[int, int]]] = defaultdict(Counter)
    windows: dict[Any, Counter[tuple[float, float]]] = defaultdict(Counter)
    for rows in studies:
        laterals = find_laterals([row["View Position"] for row in rows])
        for row, lateral in zip(rows, laterals, strict=True):
            sizes[_get_kind(row), lateral][int(row["Rows"]), int(row["Columns"])] += 1
            if row["Window Center"]:
                windows[_get_kind(row)][_read_window(row)] += 1
    listed = [
        {
            "fields": dict(zip(FIELDS, kind, strict=False)),
            "window": kind[-1],
            "windows": _list_counts(windows[kind], step=100),
            "sizes": {
                "frontal": _list_counts(sizes[kind, False], step=100),
                "lateral": _list_counts(sizes[kind, True], step=100),
            },
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
