"""Paediatric radiographs of Guangzhou (Kermany et al. 2018), whose labels are the names of folders and files.

    {train,test}/NORMAL/IM-0115-0001.jpeg                    a person, an image; some names begin with NORMAL2-
    {train,test}/PNEUMONIA/person1_bacteria_2.jpeg           a person, the pathogen, an image

An image is a study. The published parts are not followed: both hold images of the same persons. Where files have
equal bytes, only the first in the order of names is read.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from contract.errors import InputError
from training.data.collections.mapping import load_label_map
from training.data.collections.study import PublishedImage, PublishedStudy

logger = logging.getLogger(__name__)
_NAMES: Final = {
    "NORMAL": re.compile(r"(?:NORMAL2-)?(?P<person>IM-\d+)-\d+(?:-\d+)?"),
    "PNEUMONIA": re.compile(r"(?P<person>person\d+)_(?P<pathogen>bacteria|virus)_\d+(?:_\d+)?"),
}
_SUFFIXES: Final = (".jpeg", ".jpg", ".png")


def read_kermany(source: Path) -> Iterator[PublishedStudy]:
    """Yield a study for each image, in the order of file names.

    Args:
        source: The directory above `train` and `test`, or any directory below which folders are called NORMAL and
            PNEUMONIA.

    Raises:
        InputError: There is no image in such a folder, or the name of one is not as published.
    """
    labels = load_label_map("kermany")
    found = [path for path in sorted(source.rglob("*"), key=lambda path: path.name) if _is_image(path)]
    if not found:
        raise InputError(f"{source} holds no images in folders called {' and '.join(_NAMES)}.")
    seen: set[bytes] = set()
    for path in found:
        kind = path.parent.name
        name = _NAMES[kind].fullmatch(path.stem)
        if name is None:
            raise InputError(f"{path} is not named as the published images of {kind} are.")
        content = hashlib.sha256(_read(path)).digest()
        if content in seen:
            continue
        seen.add(content)
        yield PublishedStudy(
            path.stem,
            name["person"],
            (PublishedImage(path.stem, path.stem, "AP"),),  # the collection holds no other view
            labels.derive_listed([_name_label(kind, name)]),
        )
    if len(seen) < len(found):
        logger.warning("Left out %d images whose bytes equal those of another one.", len(found) - len(seen))


def _is_image(path: Path) -> bool:
    is_shown = path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    return is_shown and path.parent.name in _NAMES and path.is_file()


def _name_label(kind: str, name: re.Match[str]) -> str:
    return kind if kind == "NORMAL" else f"{kind} {name['pathogen']}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
