"""What a person types, turned into what the client takes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from client.inputs import find_path, read_image_file, read_report_file, read_stream
from contract.errors import ConfigError, ReportError


def read_image(path: Path | None) -> bytes | None:
    """Read an image file whole (DICOM, PNG or JPEG); `-` is standard input."""
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
    """Take a report as typed: a file (text or Open-i XML) or a pipe by name, `-` for standard input, or the text.

    Raises:
        ReportError: What looks like the name of a file is none that can be read: its letters are never scored.
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
            f"--report {value!r} names {kind}: give a file, or text on standard input with --report -."
        )
    return value.encode("utf-8", errors="surrogateescape")


def require_input(image: Path | None, report: str | None) -> None:
    """Raise ConfigError unless at least one of the two is given."""
    if image is None and report is None:
        raise ConfigError("Give an image, --report, or both.")
