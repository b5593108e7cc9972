"""Paediatric radiographs of Guangzhou (Kermany et al. 2018), whose labels are the names of folders and files.

    {train,test}/NORMAL/IM-0115-0001.jpeg                    person, image; some names begin with NORMAL2-
    {train,test}/PNEUMONIA/person1_bacteria_2.jpeg           person, pathogen, image

Each image is a study. The published parts are ignored, because both hold images of the same persons. Of files with
equal bytes, only the first by name is read.
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
        source: The directory above `train` and `test`, or any directory with folders named NORMAL and PNEUMONIA below
            it.

    Raises:
        InputError: There is no image in such a folder, or an image's name is not as published.
    """
    labels = load_label_map("kermany")
    paths = [path for path in sorted(source.rglob("*"), key=lambda path: path.name) if _is_image(path)]
    if not paths:
        raise InputError(f"{source} holds no images in folders named {' and '.join(_NAMES)}.")
    hashes: set[bytes] = set()
    for path in paths:
        kind = path.parent.name
        name = _NAMES[kind].fullmatch(path.stem)
        if name is None:
            raise InputError(f"{path} is not named as the published images of {kind} are.")
        content = hashlib.sha256(_read(path)).digest()
        if content in hashes:
            continue
        hashes.add(content)
        yield PublishedStudy(
            path.stem,
            name["person"],
            (PublishedImage(path.stem, path.stem, "AP"),),  # the collection has no other view
            labels.derive_listed([_name_label(kind, name)]),
        )
    if len(hashes) < len(paths):
        logger.warning("Left out %d images whose bytes equal those of another one.", len(paths) - len(hashes))


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
