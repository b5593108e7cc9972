"""What a person types, turned into what the client takes."""

import sys
from pathlib import Path

from contract.errors import ConfigError, ImageError, ReportError

MAX_REPORT_BYTES = 2**20


def read_image(path: Path | None) -> bytes | None:
    """Read an image file whole (DICOM, PNG or JPEG); `-` is standard input."""
    if path is None:
        return None
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"Cannot read the image file {path}: {error.strerror}.") from error


def read_report(value: str | None) -> bytes | None:
    """Take a report as typed: the name of a file (text or Open-i XML), `-` for standard input, or the text itself."""
    if value is None:
        return None
    if value == "-":
        return sys.stdin.buffer.read(MAX_REPORT_BYTES + 1)
    path = Path(value)
    if len(value) < 1024 and "\n" not in value and "\0" not in value:
        try:
            if path.is_file():
                return _read_file(path)
        except OSError:
            pass  # too long for a file name, so it is text
        if path.suffix.lower() in {".xml", ".txt"} and " " not in value:
            raise ReportError(f"There is no report file {value}.")
    return value.encode()


def _read_file(path: Path) -> bytes:
    if path.stat().st_size > MAX_REPORT_BYTES:
        raise ReportError(f"{path} is larger than {MAX_REPORT_BYTES // 2**20} MB, so it is not a report.")
    return path.read_bytes()


def require_input(image: Path | None, report: str | None) -> None:
    """Raise ConfigError unless at least one of the two is given."""
    if image is None and report is None:
        raise ConfigError("Give an image, --report, or both.")


def read_split(path: Path, part: str) -> list[str]:
    """Return the study ids of one part (train, validation, test) of a split file; see `training.split_file`."""
    from training.split_file import read_split_file

    ids = read_split_file(path)[part]
    if not ids:
        raise ConfigError(f"{path} names no study for {part}.")
    return ids
