"""File bytes in, pixels out: the one image preprocessing of training, serving and explanation.

    DICOM:  stored values -> modality LUT -> VOI LUT or window -> inversion -> grey 0..1
            (DICOM PS3.3 C.11, PS3.4 N.2)
    PNG, JPEG:  decoded values -> grey 0..1
    both:   fit into a square, aspect ratio kept, black at the sides -> uint8

The file is untrusted: sizes are checked before anything is allocated, and every failure is an ImageError
whose message holds no patient data. `contract.dicom_file` parses and decodes DICOM.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from contract import dicom_file
from contract.errors import ConfigError, ImageError
from contract.image_header import ImageHeader, read_image_header

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_IMAGE_BYTES: Final = dicom_file.MAX_IMAGE_BYTES
FALLBACK_PERCENTILES: Final = (0.5, 99.5)  # the grey range of an image that brings no window of its own
_LARGEST_NUMBER: Final = 1e9  # a window or rescale value beyond it is nonsense and would overflow float32

Grey = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Radiograph:
    """A decoded radiograph: (1, S, S) uint8 pixels and what its header says."""

    pixels: NDArray[np.uint8]
    header: ImageHeader


def load_pixels(data: bytes, *, size: int) -> NDArray[np.uint8]:
    """Decode one radiograph into the pixels the model was trained on.

    Args:
        data: A whole file: DICOM Part 10 (or without preamble), PNG or JPEG.
        size: Side of the square output, in pixels.

    Returns:
        (1, size, size) uint8. 0 is black (air); MONOCHROME1 is already inverted. The image is scaled to fit
        (area averaging when it shrinks), centred, and black around.

    Raises:
        ImageError: The bytes are not an image this model can read; the message says why.
    """
    return load_radiograph(data, size=size).pixels


def load_radiograph(data: bytes, *, size: int) -> Radiograph:
    """Decode one radiograph as `load_pixels` does, and say what its header says.

    Raises:
        ImageError: The bytes are not an image this model can read; the message says why.
    """
    if not data:
        raise ImageError("The image is empty.")
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"The image has {len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are read.")
    grey = _decode_picture(data) if dicom_file.is_picture(data) else _decode_dicom(data)
    return Radiograph(_fit_square(grey, size)[None], read_image_header(data))


def _decode_picture(data: bytes) -> Grey:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise _missing_extra() from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                dicom_file.check_size(image.height, image.width)
                if image.mode in {"I;16", "I;16B", "I"}:
                    values = np.asarray(image, dtype=np.float32) / np.float32(65535)
                elif image.mode == "L":
                    values = np.asarray(image, dtype=np.float32) / np.float32(255)
                else:
                    values = np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"The image claims too many pixels; at most {dicom_file.MAX_PIXELS:,} are read."
        ) from error
    except Exception as error:  # the decoders raise many kinds for damaged files
        raise ImageError("The PNG or JPEG image is damaged or truncated.") from error
    return values


def _decode_dicom(data: bytes) -> Grey:
    dataset = dicom_file.read_radiograph(data)
    values = dicom_file.decode_stored_values(dataset)
    if str(dataset.get("PhotometricInterpretation", "")).strip() == "PALETTE COLOR":
        values = _apply_palette(values, dataset)
        return _to_grey(values, bits=8 * values.itemsize)
    if values.ndim == 3:  # colour, channels last
        return _to_grey(values, bits=int(dataset.BitsStored))
    padding = _find_padding(values, dataset)
    shown = _apply_voi(_apply_modality(values, dataset), dataset, padding)
    if is_inverted(dataset):
        shown = 1 - shown
    shown[padding] = 0
    return shown


def is_inverted(dataset: "Dataset") -> bool:
    """Whether the smallest value of the image is shown white.

    MONOCHROME1 says so, and so does Presentation LUT Shape INVERSE; they are two words for one inversion and
    stand together in DX images (DICOM PS3.3 C.8.11.3.1.2), so it is done once.
    """
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    shape = str(dataset.get("PresentationLUTShape", "") or "").strip()
    return photometric == "MONOCHROME1" or shape == "INVERSE"


def _apply_palette(values: NDArray[Any], dataset: "Dataset") -> NDArray[Any]:
    """Return the colours (rows, columns, 3) that a palette image points at."""
    from pydicom.pixels.processing import apply_color_lut

    return _guard(lambda: np.asarray(apply_color_lut(values, dataset)), "colour palette")[..., :3]


def _to_grey(values: NDArray[Any], *, bits: int) -> Grey:
    """Turn the RGB of a secondary capture into luminance (ITU-R BT.601)."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.clip(values.astype(np.float32) @ weights / np.float32(2**bits - 1), 0, 1).astype(np.float32)


def _find_padding(values: NDArray[Any], dataset: "Dataset") -> NDArray[np.bool_]:
    """Mark pixels that are no image (Pixel Padding Value, with its range limit)."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(values.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    # Signed images whose padding was written as unsigned are common: 63536 means -2000.
    ends = np.array([value, limit if isinstance(limit, int) else value]).astype(values.dtype)
    return np.asarray((values >= ends.min()) & (values <= ends.max()))


def _apply_modality(values: NDArray[Any], dataset: "Dataset") -> Grey:
    """Apply the modality LUT or rescale slope and intercept (DICOM PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _guard(lambda: _apply_lut(values, dataset, "ModalityLUTSequence")[0], "modality LUT")
    slope = _read_number(dataset, "RescaleSlope")
    # Many CR files carry an empty or nonsensical slope; 0 would wipe out the image.
    if not slope:
        return values.astype(np.float32)
    intercept = _read_number(dataset, "RescaleIntercept") or 0.0
    return values.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _apply_lut(values: NDArray[Any], dataset: "Dataset", sequence: str) -> tuple[Grey, NDArray[Any]]:
    """Look values up in the first table of a sequence (DICOM PS3.3 C.11.1.1.1); return them and the table."""
    item = dataset[sequence][0]
    count, first, _ = (int(float(number)) for number in item.LUTDescriptor)
    count = count or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        words = len(data) >= 2 * count  # else 8 bit entries, packed
        big = dataset.original_encoding[1] is False
        data = np.frombuffer(data, np.dtype("u1") if not words else np.dtype(">u2" if big else "<u2"))
    table = np.atleast_1d(np.asarray(data, np.float32))[:count]
    if table.size < count:
        raise ValueError(f"The table holds {table.size} of {count} entries.")
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    return table[index], table


def _apply_voi(values: Grey, dataset: "Dataset", padding: NDArray[np.bool_]) -> Grey:
    """Return grey 0..1 by the file's VOI LUT or its first window, else by robust limits of the pixels."""
    if dataset.get("VOILUTSequence"):
        shown, table = _guard(lambda: _apply_lut(values, dataset, "VOILUTSequence"), "VOI LUT")
        # The table's own range: many tables use fewer bits than their descriptor says.
        return _stretch(shown, float(table.min()), float(table.max()))
    window = _read_window(dataset)
    if window is None:
        seen = values[~padding]
        seen = seen[:: max(1, seen.size // 500_000)] if seen.size else values.ravel()
        low, high = np.percentile(seen, FALLBACK_PERCENTILES)
        if not low < high:  # nearly all pixels are equal: what little differs is the image
            low, high = seen.min(), seen.max()
        return _stretch(values, float(low), float(high))
    return _apply_window(values, *window)


def _read_window(dataset: "Dataset") -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window, None where there is no usable one."""
    centre, width = (_read_number(dataset, name) for name in dicom_file.WINDOW_ELEMENTS)
    function = str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR").strip().upper()
    smallest = 1.0 if function == "LINEAR" else 0.0
    if centre is None or width is None or width <= smallest:
        return None
    return centre, width, function


def _read_number(dataset: "Dataset", name: str) -> float | None:
    """Return an element's first value, None where it is absent, empty or nonsense."""
    from pydicom.multival import MultiValue

    value = dataset.get(name)
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < _LARGEST_NUMBER else None


def _apply_window(values: Grey, centre: float, width: float, function: str) -> Grey:
    """Apply a window (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - centre) / width, -60, 60)
        return np.asarray(1 / (1 + np.exp(exponent)), np.float32)
    if function == "LINEAR_EXACT":
        return _stretch(values, centre - width / 2, centre + width / 2)
    low = centre - 0.5 - (width - 1) / 2
    return _stretch(values, low, low + width - 1)


def _stretch(values: NDArray[Any], low: float, high: float) -> Grey:
    scale = max(high - low, 1e-6)
    return np.clip((values.astype(np.float32) - np.float32(low)) / np.float32(scale), 0, 1)


def _guard(step: Callable[[], T], name: str) -> T:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return step()
    except Exception as error:  # a damaged table fails in many ways
        raise ImageError(f"The {name} of the DICOM file is damaged.") from error


def _fit_square(grey: Grey, size: int) -> NDArray[np.uint8]:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise _missing_extra() from error
    rows, columns = grey.shape
    scale = size / max(rows, columns)
    height, width = (max(1, round(side * scale)) for side in (rows, columns))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    fitted = cv2.resize(np.ascontiguousarray(grey, np.float32), (width, height), interpolation=method)
    square = np.zeros((size, size), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = np.rint(np.clip(fitted, 0, 1) * 255).astype(np.uint8)
    return square


def _missing_extra() -> ConfigError:
    return ConfigError("Reading images needs the 'image' extra: pip install 'cxr-serving[image]'.")
