"""Find radiographs: single files, all files below a folder, and lists of paths.

A file in a folder counts as a radiograph if its suffix says so, or, without a known suffix, if its first bytes do
(DICOM files often have no suffix). All other files are skipped and counted. Hidden files and folders are ignored.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.inputs import MAX_REPORT_BYTES
from contract.errors import ConfigError, ImageError, InputError, ReportError
from contract.files import read_state
from contract.image.dicom_file import MAX_IMAGE_BYTES

IMAGE_SUFFIXES: Final = frozenset({".dcm", ".dicom", ".png", ".jpg", ".jpeg"})
_START_BYTES: Final = 132
_DIRECTORY_FILE: Final = "DICOMDIR"  # table of contents of a DICOM medium: a DICOM file without an image
# PNG, JPEG, and a DICOM data set without a preamble, which begins with an element of group 0002 or 0008.
_START: Final = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|[\x02\x08]\x00[\x00-\xff]\x00")


@dataclass(frozen=True)
class CaseFile:
    """The file of a radiograph, and the file of its report if there is one."""

    image: Path
    report: Path | None = None

    @property
    def name(self) -> str:
        """The path of the image as text; see `to_text`."""
        return to_text(self.image)

    def read_state(self) -> str:
        """Return `contract.files.read_state` of the image and the report."""
        return read_state(path for path in (self.image, self.report) if path is not None)

    def read(self) -> tuple[bytes, bytes | None]:
        """Return the content of the image file and of the report file.

        Raises:
            ImageError, ReportError: A file cannot be read, or is larger than any image or report.
        """
        image = _read_file(self.image, MAX_IMAGE_BYTES, ImageError, "image")
        if self.report is None:
            return image, None
        return image, _read_file(self.report, MAX_REPORT_BYTES, ReportError, "report")


@dataclass(frozen=True)
class CaseList:
    """Cases in the order of the arguments, each file once.

    Attributes:
        cases: The files.
        skipped: Number of other files in the folders.
    """

    cases: tuple[CaseFile, ...]
    skipped: int = 0


def find_cases(given: Iterable[CaseFile]) -> CaseList:
    """Replace each folder by the radiographs below it, sorted by name.

    Args:
        given: Files, and folders in place of an image.

    Raises:
        ConfigError: A folder cannot be read, a file has two reports, or there is no radiograph.
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
            "The list of paths is empty: give one path on each line, as `find . -name '*.dcm'` prints them."
        )
    if not cases:
        where = " and ".join(map(to_text, folders))
        raise ConfigError(f"There is no DICOM, PNG or JPEG file in {where} ({count_files(skipped)}).")
    return CaseList(tuple(cases.values()), skipped)


def count_files(skipped: int) -> str:
    """Return the number of other files in words, such as "2 other files"."""
    return f"{skipped:,} other file{'' if skipped == 1 else 's'}"


def _require_same_report(first: CaseFile, second: CaseFile) -> None:
    """Raise ConfigError if one image has two reports, because the results have a single row for each image."""
    if first.report == second.report:
        return
    reports = " and ".join(
        "without a report" if case.report is None else f"with {to_text(case.report)}"
        for case in (first, second)
    )
    raise ConfigError(
        f"{first.name} is given twice, {reports}: give it once, or copy it to a file with another name."
    )


def parse_paths(data: bytes) -> list[CaseFile]:
    """Parse a list of paths.

    Args:
        data: One case on each line: the path of an image, or of an image and its report with a tab between them. Empty
            lines are ignored. If there are null bytes, as from `find -print0`, they separate the cases instead of line
            ends.
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
    """Return a path as text that every file and terminal accepts. Bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # the name is too long or has a null byte; reading it will raise the error
        return False


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder by name. The files of one folder come before those of the next."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"Could not read the folder {error.filename}: {error.strerror}.") from error

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _is_radiograph(path: Path) -> bool:
    """Whether a file in a folder is a radiograph. A damaged file counts by its suffix, so that the user hears of it."""
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
    """Read a regular file. The error does not name it: the row of the file has its path."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise error(f"The {kind} is not a regular file.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or "the name is not valid"
        raise error(f"The {kind} file cannot be read: {reason}.") from failure
    if len(data) > limit:
        raise error(f"The {kind} is larger than {limit // 2**20} MB, so it is not read.")
    return data
