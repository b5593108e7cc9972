"""Which files are cases: files by name, folders with all that is below them, lists of paths.

In a folder a file counts as a radiograph by its ending, or by its first bytes where the ending says nothing (DICOM
files often have none). Everything else there is passed over and counted; hidden files and folders are not looked at.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contract.errors import ConfigError, ImageError, InputError, ReportError
from contract.image.dicom_file import MAX_IMAGE_BYTES

IMAGE_SUFFIXES: Final = frozenset({".dcm", ".dicom", ".png", ".jpg", ".jpeg"})
_MAX_REPORT_BYTES: Final = 2**20
_START_BYTES: Final = 132
_DIRECTORY_FILE: Final = "DICOMDIR"  # the table of contents of a DICOM medium: DICOM, but no image
# PNG, JPEG, and a DICOM data set without preamble, which begins with an element of group 0002 or 0008.
_START: Final = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|[\x02\x08]\x00[\x00-\xff]\x00")


@dataclass(frozen=True)
class CaseFile:
    """A radiograph's file and, where there is one, its report's."""

    image: Path
    report: Path | None = None

    @property
    def name(self) -> str:
        """The path as it was given; bytes that are no UTF-8 are written by their numbers."""
        return to_text(self.image)

    def read_state(self) -> str:
        """Return size and time of change of the files, which tell a changed file from the same; "" without a file."""
        try:
            found = [path.stat() for path in (self.image, self.report) if path is not None]
        except (OSError, ValueError):
            return ""
        return " ".join(f"{one.st_size}@{one.st_mtime_ns}" for one in found)

    def read(self) -> tuple[bytes, bytes | None]:
        """Return the content of the image and of the report.

        Raises:
            ImageError, ReportError: A file cannot be read, or is larger than any image or report.
        """
        image = _read_file(self.image, MAX_IMAGE_BYTES, ImageError, "image")
        if self.report is None:
            return image, None
        return image, _read_file(self.report, _MAX_REPORT_BYTES, ReportError, "report")


@dataclass(frozen=True)
class CaseList:
    """Cases in the order in which they were found, each file once.

    Attributes:
        cases: The files.
        skipped: How many other files the folders held.
    """

    cases: tuple[CaseFile, ...]
    skipped: int = 0


def find_cases(given: Iterable[CaseFile]) -> CaseList:
    """Put the files of a folder in the place of the folder, sorted by name; what is no folder stays as it is.

    Raises:
        ConfigError: A folder cannot be read, a file is given with two reports, or there is no radiograph at all.
    """
    cases: dict[Path, CaseFile] = {}
    folders: list[Path] = []
    skipped = 0
    for case in given:
        if not _is_folder(case.image):
            _require_same_report(cases.setdefault(case.image, case), case)
            continue
        folders.append(case.image)
        for path in _walk(case.image):
            if _is_radiograph(path):
                cases.setdefault(path, CaseFile(path))
            else:
                skipped += 1
    if not cases and not folders:
        raise ConfigError(
            "The list of paths is empty: give a path a line, as `find . -name '*.dcm'` prints them."
        )
    if not cases:
        where = " and ".join(map(to_text, folders))
        raise ConfigError(f"There is no DICOM, PNG or JPEG file in {where} ({count_files(skipped)}).")
    return CaseList(tuple(cases.values()), skipped)


def count_files(skipped: int) -> str:
    """Return how many other files a folder holds, in words."""
    return f"{skipped:,} other file{'' if skipped == 1 else 's'}"


def _require_same_report(first: CaseFile, second: CaseFile) -> None:
    """Raise ConfigError where one image has two reports: there is a single row for it, and one would be lost."""
    if first.report == second.report:
        return
    reports = " and ".join(
        "without a report" if case.report is None else f"with {to_text(case.report)}"
        for case in (first, second)
    )
    raise ConfigError(
        f"{first.name} is given twice, {reports}: give it once, or a copy of it under another name."
    )


def parse_paths(data: bytes) -> list[CaseFile]:
    """Read a list of paths, one a line: PATH, or PATH, a tab and the PATH of its report; empty lines do not count.

    With null bytes, as `find -print0` writes them, these end the paths, and line ends belong to names.
    """
    lines = data.split(b"\0") if b"\0" in data else data.removeprefix(b"\xef\xbb\xbf").splitlines()
    cases = []
    for line in lines:
        image, _, report = line.partition(b"\t")
        if image.strip():
            cases.append(CaseFile(Path(os.fsdecode(image)), Path(os.fsdecode(report)) if report else None))
    return cases


def is_image(data: bytes) -> bool:
    """Whether the first bytes of a file are those of a DICOM, PNG or JPEG image."""
    return data[128:132] == b"DICM" or _START.match(data) is not None


def to_text(path: Path) -> str:
    """Return a path as text that any file and terminal takes."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, or a null byte: reading it tells
        return False


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, those of one folder before those of the next, by name."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"Could not read the folder {error.filename}: {error.strerror}.") from error

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _is_radiograph(path: Path) -> bool:
    """Whether a file of a folder is worth asking the model; a damaged one is, by its ending, to be told of."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    if path.name.upper() == _DIRECTORY_FILE:
        return False
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return is_image(file.read(_START_BYTES))
    except OSError:
        return False


def _read_file(path: Path, limit: int, error: type[InputError], kind: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise error(f"The {kind} is no regular file.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or "it is no name of a file"
        raise error(f"The {kind} file cannot be read: {reason}.") from failure
    if len(data) > limit:
        raise error(f"The {kind} is larger than {limit // 2**20} MB, the most that is read.")
    return data
