"""What may be given as an image and as a report, turned into the bytes that travel to the server.

An image is a file by name, its bytes, an array, a pydicom data set or a Pillow image. A report is text, or a file as
`Path` or bytes. Text that looks like the name of a file is refused: it would be scored letter by letter.
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from client.picture import encode_pil_image, is_dataset, is_pil_image, write_dataset
from contract.errors import ConfigError, CxrError, ImageError, ReportError, number_image
from contract.image.dicom_file import MAX_IMAGE_BYTES
from contract.image.png import encode_png
from contract.tensors import MAX_VIEWS

if TYPE_CHECKING:
    from PIL.Image import Image
    from pydicom.dataset import Dataset

Bytes: TypeAlias = bytes | bytearray | memoryview
ReportSource: TypeAlias = Union[str, "os.PathLike[str]", Bytes]
ImageSource: TypeAlias = Union[str, "os.PathLike[str]", Bytes, NDArray[Any], "Dataset", "Image"]
# One image, or a list or tuple of the images of one study, the frontal one first.
StudyImages: TypeAlias = ImageSource | Sequence[ImageSource]

MAX_REPORT_BYTES: Final = 2**20
_LONGEST_NAME: Final = 1024  # characters; longer text is no name of a file
_DOCUMENTS: Final = {
    **{".pdf": "a PDF", ".rtf": "an RTF document", ".odt": "an office document"},
    **dict.fromkeys((".doc", ".docx"), "a Word document"),
}
_PICTURES: Final = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp")
_TEXTS: Final = (
    ".txt",
    ".text",
    ".xml",
    ".html",
    ".htm",
    ".md",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".hl7",
    ".log",
)
_OTHERS: Final = (".gz", ".zip", ".tgz", ".parquet", ".xlsx", ".xls", ".npy", ".yaml", ".yml")
_SUFFIXES: Final = (*_DOCUMENTS, *_PICTURES, *_TEXTS, *_OTHERS)
_ROOTED: Final = re.compile(
    r"(~\w*|\.{1,2})?/\S|\.{1,2}\\\S|\\\\\w|[A-Za-z]:[\\/]\S|[A-Za-z][A-Za-z0-9+.-]*://\S"
)


def read_image(image: ImageSource) -> bytes:
    """Return an image as the bytes of a file.

    Args:
        image: A file by name (text or `Path`); a whole DICOM, PNG or JPEG file as bytes; an array as for
            `contract.image.png.encode_png`; a pydicom data set; a Pillow image.

    Raises:
        ImageError: There is no such file, it cannot be read, or something else was given; says what.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
    elif isinstance(image, (str, os.PathLike)):
        data = read_image_file(Path(image))
    elif isinstance(image, np.ndarray):
        data = encode_png(image)
    elif is_dataset(image):
        data = write_dataset(image)  # type: ignore[arg-type]
    elif is_pil_image(image):
        data = encode_pil_image(image)
    else:
        raise ImageError(
            f"image is {_describe(image)}; give the path of a file, bytes, a numpy array, a pydicom data set or a "
            "Pillow image."
        )
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"The image has {len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are read.")
    return data


def read_images(images: StudyImages) -> list[bytes]:
    """Return the images of one study as the bytes of files, 1 to `MAX_VIEWS` of them.

    Args:
        images: One image as for `read_image`, or a list or tuple of them.

    Raises:
        ImageError: There are none, too many, or one of them twice; or one cannot be read: the message says which.
    """
    if not isinstance(images, (list, tuple)):
        return [read_image(images)]  # type: ignore[arg-type]
    count = len(images)
    if not 1 <= count <= MAX_VIEWS:
        raise ImageError(f"{count} images were given: a study is read from 1 to {MAX_VIEWS} images.")
    files: list[bytes] = []
    for number, image in enumerate(images, start=1):
        try:
            data = read_image(image)
        except ImageError as error:
            raise number_image(error, number, count) from error
        if data in files:
            raise ImageError(
                f"Images {files.index(data) + 1} and {number} are the same: give each image once."
            )
        files.append(data)
    return files


def read_report(report: ReportSource) -> bytes:
    """Return a report as the bytes of its text.

    Args:
        report: The text itself; a file as `Path`; the bytes of one.

    Raises:
        ReportError: The file cannot be read, the text looks like the name of a file, or something else was given.
    """
    if isinstance(report, (bytes, bytearray, memoryview)):
        return bytes(report)
    if isinstance(report, str):
        if kind := find_path(report):
            raise ReportError(
                f"report is text that names {kind}, {report!r}: give Path({report!r}) to have a file read, or "
                "report.encode() to have these words read."
            )
        return report.encode("utf-8", errors="surrogatepass")
    if isinstance(report, os.PathLike):
        return read_report_file(Path(report))
    raise ReportError(f"report is {_describe(report)}; give its text, a Path or bytes.")


def require_case(image: object, report: object) -> None:
    """Raise ConfigError unless there is at least one of the two."""
    if image is None and report is None:
        raise ConfigError("Give an image, a report, or both.")


def read_image_file(path: Path) -> bytes:
    """Read an image file whole; a pipe is read to its end. ImageError: it cannot be read."""
    return _read_file(path, "image", MAX_IMAGE_BYTES, ImageError)


def read_report_file(path: Path) -> bytes:
    """Read a report's file whole; a pipe is read to its end. ReportError: it cannot be read, or is none by its name."""
    suffix = path.suffix.lower()
    if suffix in _DOCUMENTS:
        raise ReportError(
            f"The report {path} is {_DOCUMENTS[suffix]}; reports are text or Open-i XML: take the text out of it first."
        )
    if suffix in _PICTURES:
        raise ReportError(f"{path} is an image by its name: give it as the image, not as the report.")
    return _read_file(path, "report", MAX_REPORT_BYTES, ReportError)


def read_stream(file: BinaryIO, name: str, kind: str) -> bytes:
    """Read an image or a report from an open file, such as standard input, to its end."""
    limit, error = (MAX_IMAGE_BYTES, ImageError) if kind == "image" else (MAX_REPORT_BYTES, ReportError)
    data = file.read(limit + 1)
    if len(data) > limit:
        raise error(f"{name} is larger than {limit // 2**20} MB, so it is no {kind} that is read.")
    return data


def find_path(text: str) -> str:
    """Return what a text names if it looks like a file rather than a report: "a folder", say; else ""."""
    name = text.strip()
    if not name or len(name) > _LONGEST_NAME or re.search(r"[\n\r\0]", name):
        return ""
    try:
        mode = Path(name).stat().st_mode
        return "a folder" if stat.S_ISDIR(mode) else "a file"
    except (OSError, ValueError):
        pass  # there is none, or the text is too long for a name
    if name.lower().endswith(_SUFFIXES) or _ROOTED.match(name) or _is_inside_folder(name):
        return "a file that is not there"
    return ""


def _is_inside_folder(name: str) -> bool:
    """Whether a relative path begins with an existing folder."""
    first, slash, rest = name.partition("/")
    try:
        return bool(slash and rest and not re.search(r"\s", name)) and Path(first).is_dir()
    except OSError:
        return False


def _read_file(path: Path, kind: str, limit: int, error: type[CxrError]) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as failure:
        reason = (getattr(failure, "strerror", None) or "it is no name of a file").rstrip(".")
        raise error(f"Cannot read the {kind} file {str(path)!r}: {reason}.") from failure
    if len(data) > limit:
        raise error(f"{path} is larger than {limit // 2**20} MB, so it is no {kind} that is read.")
    return data


def _describe(value: object) -> str:
    """Return what was given, without any of its content."""
    if isinstance(value, float) and value != value:  # noqa: PLR0124
        return "NaN, which tables hold where there is nothing (leave it out then, or give None)"
    return f"of type {type(value).__name__}"
