"""Read the image and the report that a command line names."""

import sys
from collections.abc import Sequence
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


def read_images(image: Path | None, views: Sequence[Path] | None) -> bytes | list[bytes] | None:
    """Read the images of one study: the first, and further views of it; each as `read_image` does.

    Raises:
        ConfigError: There are further views without a first image, or two are standard input.
    """
    if not views:
        return read_image(image)
    if image is None:
        raise ConfigError("--view adds an image to the first one: give that one without --view.")
    paths = [image, *views]
    if [str(path) for path in paths].count("-") > 1:
        raise ConfigError("Standard input holds one image only.")
    return [data for path in paths if (data := read_image(path)) is not None]


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
