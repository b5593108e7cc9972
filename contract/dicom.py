"""File bytes in, pixels out: the one image preprocessing of training, serving and explanation.

    DICOM:  stored values -> modality LUT -> VOI LUT or window -> inversion -> grey 0..1   (DICOM PS3.3 C.11, PS3.4 N.2)
    PNG, JPEG:  decoded values -> grey 0..1
    both:   fit into a square, aspect ratio kept, black at the sides -> uint8

The file is untrusted: sizes are checked before anything is allocated, and every failure is an ImageError whose
message holds no patient data.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_IMAGE_BYTES: Final = 256 * 2**20
MAX_PIXELS: Final = 64_000_000
MIN_SIDE: Final = 16
FALLBACK_PERCENTILES: Final = (0.5, 99.5)  # the grey range of an image that brings no window of its own
RADIOGRAPH_MODALITIES: Final = ("CR", "DX", "RF", "XA", "RG", "PX", "OT", "SC", "HC", "XC")
_FOREIGN_FORMATS: Final = {b"%PDF": "a PDF document", b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive"}

Grey = NDArray[np.float32]


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
    if not data:
        raise ImageError("The image is empty.")
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"The image has {len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are read.")
    grey = _decode_picture(data) if _is_picture(data) else _decode_dicom(data)
    return _fit_square(grey, size)[None]


def read_view(data: bytes) -> str:
    """Return how a radiograph was taken: "PA", "AP", "LATERAL" or "UNKNOWN" (also for PNG and JPEG).

    Raises:
        ImageError: The bytes are no image.
    """
    if _is_picture(data):
        return "UNKNOWN"
    view = str(_read_dataset(data, stop_before_pixels=True).get("ViewPosition", "") or "").strip().upper()
    if view in {"PA", "AP"}:
        return view
    return "LATERAL" if view in {"LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT"} else "UNKNOWN"


def _is_picture(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff"


def _decode_picture(data: bytes) -> Grey:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise _missing_extra() from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                _check_size(image.height, image.width)
                if image.mode in {"I;16", "I;16B", "I"}:
                    values = np.asarray(image, dtype=np.float32) / np.float32(65535)
                elif image.mode == "L":
                    values = np.asarray(image, dtype=np.float32) / np.float32(255)
                else:
                    values = np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255)
    except ImageError:
        raise
    except Exception as error:  # the decoders raise many kinds for damaged files
        raise ImageError("The PNG or JPEG image is damaged or truncated.") from error
    return values


def _decode_dicom(data: bytes) -> Grey:
    dataset = _read_dataset(data)
    _check_dataset(dataset)
    values = _decode_stored_values(dataset)
    if values.ndim == 3:  # colour, channels last
        return _to_grey(values, dataset)
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


def _read_dataset(data: bytes, *, stop_before_pixels: bool = False) -> "Dataset":
    import pydicom

    for magic, name in _FOREIGN_FORMATS.items():
        if data.startswith(magic):
            raise ImageError(f"The file is {name}, not an image.")
    has_preamble = data[128:132] == b"DICM"
    # Without a preamble a DICOM data set starts with a low, even group number (little or big endian).
    if not has_preamble and not re.match(rb"[\x02\x08]\x00[\x00-\xff]{2}|\x00[\x02\x08]", data):
        raise ImageError("The file is not a DICOM, PNG or JPEG image.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(
                io.BytesIO(data), force=not has_preamble, stop_before_pixels=stop_before_pixels
            )
            if not stop_before_pixels and "PixelData" not in dataset:
                str(dataset.get("Modality", ""))
            len(dataset)
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise ImageError("The DICOM file is damaged or truncated.") from error
    if not len(dataset):
        raise ImageError("The file is not a DICOM, PNG or JPEG image.")
    return dataset


def _check_dataset(dataset: "Dataset") -> None:
    modality = str(dataset.get("Modality", "") or "").strip().upper()
    if modality and modality not in RADIOGRAPH_MODALITIES:
        shown = modality if re.fullmatch(r"[A-Z0-9_]{1,16}", modality) else "unknown"
        raise ImageError(f"The DICOM file has modality {shown}, which is no radiograph.")
    if "PixelData" not in dataset:
        raise ImageError("The DICOM file holds no pixel data.")
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        samples = int(dataset.get("SamplesPerPixel", 1))
        allocated, stored = int(dataset.BitsAllocated), int(dataset.get("BitsStored", dataset.BitsAllocated))
        frames = int(dataset.get("NumberOfFrames", 1) or 1)
    except (AttributeError, TypeError, ValueError) as error:
        raise ImageError("The DICOM file does not say how its pixels are stored.") from error
    _check_size(rows, columns)
    if allocated not in {8, 16} or not 1 <= stored <= allocated or samples not in {1, 3} or frames < 1:
        raise ImageError(f"The DICOM file stores pixels as {stored} of {allocated} bits, which is not supported.")
    expected = rows * columns * samples * (allocated // 8)
    if not _is_compressed(dataset) and len(dataset.PixelData) < expected:
        raise ImageError(
            f"The DICOM file is truncated: {rows}x{columns} pixels need {expected:,} bytes, "
            f"it holds {len(dataset.PixelData):,}."
        )


def _check_size(rows: int, columns: int) -> None:
    if rows * columns > MAX_PIXELS:
        raise ImageError(f"The image claims {rows}x{columns} pixels; at most {MAX_PIXELS:,} are read.")
    if min(rows, columns) < MIN_SIDE:
        raise ImageError(f"The image has {rows}x{columns} pixels, which is too small for a radiograph.")


def _is_compressed(dataset: "Dataset") -> bool:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    return bool(syntax is not None and syntax.is_compressed and not syntax.is_deflated)


def _decode_stored_values(dataset: "Dataset") -> NDArray[Any]:
    """Return the first frame: (rows, columns) or (rows, columns, 3)."""
    from pydicom.pixels import pixel_array

    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        _assume_syntax(dataset)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = pixel_array(dataset, index=0)
    except Exception as error:  # each decoder raises its own kinds
        if _is_compressed(dataset) and "missing" in str(error).lower():
            name = dataset.file_meta.TransferSyntaxUID.name
            raise ImageError(
                f"No decoder is installed for {name}: pip install pylibjpeg-openjpeg python-gdcm."
            ) from error
        raise ImageError("The pixel data of the DICOM file is damaged or truncated.") from error
    return np.asarray(values)


def _assume_syntax(dataset: "Dataset") -> None:
    """Give a data set without file meta information the syntax it was read with."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = dataset.original_encoding
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _to_grey(values: NDArray[Any], dataset: "Dataset") -> Grey:
    """Turn an RGB secondary capture into luminance (ITU-R BT.601)."""
    top = np.float32(2 ** int(dataset.BitsStored) - 1)
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.clip(values.astype(np.float32) @ weights / top, 0, 1).astype(np.float32)


def _find_padding(values: NDArray[Any], dataset: "Dataset") -> NDArray[np.bool_]:
    """Mark pixels that are no image (Pixel Padding Value, with its range limit)."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(values.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return np.asarray((values >= low) & (values <= high))


def _apply_modality(values: NDArray[Any], dataset: "Dataset") -> Grey:
    from pydicom.pixels import apply_modality_lut

    # Many CR files carry an empty or nonsensical slope; 0 would wipe out the image.
    if "ModalityLUTSequence" not in dataset and not dataset.get("RescaleSlope"):
        return values.astype(np.float32)
    return _guard(lambda: apply_modality_lut(values, dataset), "modality LUT")


def _apply_voi(values: Grey, dataset: "Dataset", padding: NDArray[np.bool_]) -> Grey:
    """Return grey 0..1 by the file's VOI LUT or its first window, else by robust limits of the pixels."""
    from pydicom.pixels import apply_voi

    if dataset.get("VOILUTSequence"):
        shown = _guard(lambda: apply_voi(values.astype(np.int32), dataset, index=0), "VOI LUT")
        return _stretch(shown, float(shown.min()), float(shown.max()))
    window = _read_window(dataset)
    if window is None:
        seen = values[~padding]
        seen = seen[:: max(1, seen.size // 500_000)] if seen.size else values.ravel()
        low, high = np.percentile(seen, FALLBACK_PERCENTILES)
        return _stretch(values, float(low), float(high))
    return _apply_window(values, *window)


def _read_window(dataset: "Dataset") -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window, None where there is no usable one."""
    try:
        centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    except (TypeError, ValueError):
        return None
    function = str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR").strip().upper()
    smallest = 1.0 if function == "LINEAR" else 0.0
    if centre is None or width is None or not np.isfinite([centre, width]).all() or width <= smallest:
        return None
    return centre, width, function


def _first(value: Any) -> float | None:
    from pydicom.multival import MultiValue

    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)


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


def _guard(step: Callable[[], Any], name: str) -> Grey:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(step(), np.float32)
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
