"""Read the image and the report that a command line names."""

import sys
from pathlib import Path

from client.inputs import find_path, read_image_file, read_report_file, read_stream
from contract.errors import ConfigError, ReportError


def read_image(path: Path | None) -> bytes | None:
    """Read a whole image file (DICOM, PNG or JPEG); `-` is standard input."""
    if path is None:
        return None
    if str(path) == "-":
        return read_stream(sys.stdin.buffer, "Standard input", "image")
    return read_image_file(path)


def read_report(value: str | None) -> bytes | None:
    """Read the value of `--report`: a file (text or Open-i XML), a pipe, `-` for standard input, or the text itself.

    Raises:
        ReportError: The value looks like a file name, but no such file can be read. It is not scored as text.
    """
    if value is None:
        return None
    if value == "-":
        return read_stream(sys.stdin.buffer, "Standard input", "report")
    kind = find_path(value)
    if kind == "a file":
        return read_report_file(Path(value))
    if kind:
        raise ReportError(
            f"--report {value!r} names {kind}. Give a file, or --report - with the text on standard input."
        )
    return value.encode("utf-8", errors="surrogateescape")


def require_input(image: Path | None, report: str | None) -> None:
    """Raise ConfigError if there is neither an image nor a report."""
    if image is None and report is None:
        raise ConfigError("Give an image, --report, or both.")
