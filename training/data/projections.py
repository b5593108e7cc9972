"""Read published lists of frontal and lateral images of Open-i, made by people who looked at the images.

A list is a CSV file with the columns `filename` and `projection`. Other columns, such as `uid`, are ignored:

    uid,filename,projection
    1,1_IM-0001-4001.dcm.png,Frontal
    1,1_IM-0001-3001.dcm.png,Lateral
"""

import csv
import io
from pathlib import Path
from typing import Final

from contract.errors import ConfigError
from contract.image.view_clues import Projection

_COLUMNS: Final = ("filename", "projection")
_PROJECTIONS: Final[dict[str, Projection]] = {"frontal": "FRONTAL", "lateral": "LATERAL"}


def read_projections(path: Path) -> dict[str, Projection]:
    """Return file name, as in the list, -> projection.

    Raises:
        ConfigError: The file cannot be read, is not such a list, or contradicts itself about an image.
    """
    reader = csv.DictReader(io.StringIO(_read_text(path)), strict=True)
    projections: dict[str, Projection] = {}
    try:
        names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
        if missing := [name for name in _COLUMNS if name not in names]:
            raise ConfigError(
                f"{path} is not a list of projections: its first line lacks {' and '.join(missing)}."
            )
        for row in reader:
            name, value = ((row[names[column]] or "").strip() for column in _COLUMNS)
            projection = _PROJECTIONS.get(value.lower(), "")
            if not name or not projection:
                raise ConfigError(
                    f"{path} is not a list of projections: line {reader.line_num} does not name an image "
                    "and Frontal or Lateral."
                )
            if projections.setdefault(name, projection) != projection:
                raise ConfigError(f"{path} calls {name[:60]} both frontal and lateral.")
    except csv.Error as error:
        raise ConfigError(
            f"{path} is not a list of projections: line {reader.reader.line_num} cannot be read."
        ) from error
    if not projections:
        raise ConfigError(f"{path} names no image.")
    return projections


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"Cannot read the projections {path}: {error.strerror or error}.") from error
    except UnicodeError as error:
        raise ConfigError(f"{path} is not a list of projections: it is not UTF-8 text.") from error
