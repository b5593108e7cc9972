"""Turn the images and reports that a caller may give into the bytes that the client sends.

An image is a path, the bytes of a file, an array, a pydicom data set or a Pillow image. A report is text, or a file as
`Path` or bytes. Text that looks like a path is an error, because the model would read the path as a report.
"""

import math
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
# One image, or a list or tuple with the images of one study, the frontal one first.
StudyImages: TypeAlias = ImageSource | Sequence[ImageSource]

MAX_REPORT_BYTES: Final = 2**20
_MAX_PATH_CHARS: Final = 1024  # longer text is not a path
_DOCUMENT_NAMES: Final = {
    ".pdf": "a PDF",
    ".rtf": "an RTF document",
    ".odt": "an office document",
    ".doc": "a Word document",
    ".docx": "a Word document",
}
_IMAGE_SUFFIXES: Final = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp")
_TEXT_SUFFIXES: Final = (
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
)
_OTHER_SUFFIXES: Final = (".log", ".gz", ".zip", ".tgz", ".parquet", ".xlsx", ".xls", ".npy", ".yaml", ".yml")
_SUFFIXES: Final = (*_DOCUMENT_NAMES, *_IMAGE_SUFFIXES, *_TEXT_SUFFIXES, *_OTHER_SUFFIXES)
_PATH_START: Final = re.compile(
    r"(~\w*|\.{1,2})?/\S|\.{1,2}\\\S|\\\\\w|[A-Za-z]:[\\/]\S|[A-Za-z][A-Za-z0-9+.-]*://\S"
)


def read_image(image: ImageSource) -> bytes:
    """Return an image as the bytes of a file.

    Args:
        image: A path (text or `Path`); a whole DICOM, PNG or JPEG file as bytes; an array as in
            `contract.image.png.encode_png`; a pydicom data set; a Pillow image.

    Raises:
        ImageError: The file does not exist or cannot be read, or `image` has another type.
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
            f"image is {_describe_type(image)}: give the path of a file, bytes, a numpy array, a pydicom data set "
            "or a Pillow image."
        )
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"The image has {len(data):,} bytes. At most {MAX_IMAGE_BYTES:,} are read.")
    return data


def read_images(images: StudyImages) -> list[bytes]:
    """Return the images of one study, each as the bytes of a file.

    Args:
        images: One image as in `read_image`, or a list or tuple of 1 to `MAX_VIEWS` images.

    Raises:
        ImageError: There is no image or there are too many, two are the same, or one cannot be read. The message has
            the number of the image.
    """
    if not isinstance(images, (list, tuple)):
        return [read_image(images)]  # type: ignore[arg-type]
    count = len(images)
    if not 1 <= count <= MAX_VIEWS:
        raise ImageError(f"{count} images were given: give 1 to {MAX_VIEWS} images of one study.")
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
    """Return a report as the bytes of its text or of its file.

    Args:
        report: The text; a file as `Path`; or the bytes of a file.

    Raises:
        ReportError: The file cannot be read, the text looks like a path, or `report` has another type.
    """
    if isinstance(report, (bytes, bytearray, memoryview)):
        return bytes(report)
    if isinstance(report, str):
        if kind := find_path(report):
            raise ReportError(
                f"report is text that names {kind}, {report!r}: give Path({report!r}) if it is a file, or "
                "report.encode() if it is the text of a report."
            )
        return report.encode("utf-8", errors="surrogatepass")
    if isinstance(report, os.PathLike):
        return read_report_file(Path(report))
    raise ReportError(f"report is {_describe_type(report)}: give its text, a Path or bytes.")


def require_case(image: object, report: object) -> None:
    """Raise ConfigError if there is neither an image nor a report."""
    if image is None and report is None:
        raise ConfigError("Give an image, a report, or both.")


def read_image_file(path: Path) -> bytes:
    """Read a whole image file, or a pipe to its end. Raise ImageError if it cannot be read."""
    return _read_file(path, "image", MAX_IMAGE_BYTES, ImageError)


def read_report_file(path: Path) -> bytes:
    """Read the whole file of a report, or a pipe to its end.

    Raises:
        ReportError: The file cannot be read, or its suffix is that of an image or a document.
    """
    suffix = path.suffix.lower()
    if suffix in _DOCUMENT_NAMES:
        raise ReportError(
            f"The report {path} is {_DOCUMENT_NAMES[suffix]}: a report must be text or Open-i XML. Copy its text "
            "into a text file."
        )
    if suffix in _IMAGE_SUFFIXES:
        raise ReportError(f"{path} has the suffix of an image: give it as the image, not as the report.")
    return _read_file(path, "report", MAX_REPORT_BYTES, ReportError)


def read_stream(file: BinaryIO, name: str, kind: str) -> bytes:
    """Read an image or a report from an open file, such as standard input, to its end.

    Args:
        file: The file.
        name: Its name, for the message.
        kind: "image" or "report".

    Raises:
        ImageError, ReportError: The file is larger than any image or report.
    """
    limit, error = (MAX_IMAGE_BYTES, ImageError) if kind == "image" else (MAX_REPORT_BYTES, ReportError)
    data = file.read(limit + 1)
    if len(data) > limit:
        raise error(f"{name} is larger than {limit // 2**20} MB, so it is not read as the {kind}.")
    return data


def find_path(text: str) -> str:
    """Return "a file", "a folder" or "a file that does not exist" if a text looks like a path, else ""."""
    name = text.strip()
    if not name or len(name) > _MAX_PATH_CHARS or re.search(r"[\n\r\0]", name):
        return ""
    try:
        mode = Path(name).stat().st_mode
        return "a folder" if stat.S_ISDIR(mode) else "a file"
    except (OSError, ValueError):
        pass  # there is no such file, or the text is too long for a path
    if name.lower().endswith(_SUFFIXES) or _PATH_START.match(name) or _is_inside_folder(name):
        return "a file that does not exist"
    return ""


def _is_inside_folder(name: str) -> bool:
    """Whether a text without spaces begins with an existing folder and a slash."""
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
        reason = (getattr(failure, "strerror", None) or "the name is not valid").rstrip(".")
        raise error(f"Cannot read the {kind} file {str(path)!r}: {reason}.") from failure
    if len(data) > limit:
        raise error(f"{path} is larger than {limit // 2**20} MB, so it is not read as the {kind}.")
    return data


def _describe_type(value: object) -> str:
    """Return the type of a value in words, without its content."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN, the empty cell of a table (give None instead)"
    return f"of type {type(value).__name__}"
