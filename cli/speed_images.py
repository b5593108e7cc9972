"""Write one drawn radiograph as every kind of file that this machine can encode, for `cxr data speed`."""

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from contract.errors import ConfigError

BITS = 12
Values = NDArray[np.uint16]
_EXTENDED: dict[str, Any] = {"bitspersample": BITS, "lossless": False, "level": 95}
_LOSSLESS_JPEG: dict[str, Any] = {"bitspersample": BITS, "lossless": True}


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name and the function that encodes the 12 bit image.

    Attributes:
        name: Name in the table.
        write: 12 bit values, (rows, columns) uint16 -> a whole file; raises ConfigError without its encoder.
        bits: Number of the 12 bits that the file keeps.
        lossless: Whether decoding returns exactly the values, shifted to `bits`.
        dicom: Whether it is a DICOM file.
    """

    name: str
    write: Callable[[Values], bytes]
    bits: int = BITS
    lossless: bool = True
    dicom: bool = True


def draw_radiograph(rows: int, columns: int, *, seed: int = 0) -> Values:
    """Draw an image that compresses about as well as a radiograph: smooth shapes, and noise that grows with brightness.

    Returns:
        (rows, columns) uint16 of 12 bits.
    """
    generator = np.random.default_rng(seed)
    down = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, columns, dtype=np.float32)[None]
    lungs = sum(np.exp(-(((across - side) / 0.25) ** 2) - (down / 0.5) ** 2) for side in (-0.45, 0.45))
    ribs = 0.05 * np.sin(26 * down + 4 * across**2)
    smooth = 0.75 - 0.5 * lungs + ribs - 0.3 * across**4
    noise = generator.standard_normal((rows, columns), np.float32) * np.sqrt(np.clip(smooth, 0.02, 1)) * 0.012
    # The corners lie outside the collimator and have no noise, which suits run-length coding.
    open_field = (np.abs(across) < 0.94) & (np.abs(down) < 0.96)
    return np.where(open_field, np.clip((smooth + noise) * 4095, 0, 4095), 0).round().astype(np.uint16)


def write_dicom(values: NDArray[Any], syntax: str, *, bits: int = BITS, frame: bytes | None = None) -> bytes:
    """Write a CR image with a window over its whole range.

    Args:
        values: (rows, columns) uint8 or uint16.
        syntax: UID of the transfer syntax.
        bits: Bits stored.
        frame: The compressed image, if the syntax is compressed.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, "2.25.1"
    dataset.Modality, dataset.ViewPosition, dataset.BodyPartExamined = "CR", "PA", "CHEST"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * values.itemsize, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = 2 ** (bits - 1), 2**bits
    if frame is None:
        is_big = syntax == ExplicitVRBigEndian
        raw = values.astype(values.dtype.newbyteorder(">" if is_big else "<")).tobytes()
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    else:
        dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB" if frame is not None or values.itemsize == 1 else "OW"
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def reduce_bits(values: Values) -> NDArray[np.uint8]:
    """Keep the upper 8 of 12 bits."""
    return (values >> (BITS - 8)).astype(np.uint8)


def list_kinds() -> list[Kind]:
    """Return every kind of file that this stack reads and some package can encode."""
    return [
        Kind("uncompressed, little endian", lambda values: write_dicom(values, ExplicitVRLittleEndian)),
        Kind("uncompressed, implicit VR", lambda values: write_dicom(values, ImplicitVRLittleEndian)),
        Kind("uncompressed, big endian", lambda values: write_dicom(values, ExplicitVRBigEndian)),
        Kind("deflated", lambda values: write_dicom(values, DeflatedExplicitVRLittleEndian)),
        Kind("RLE", _pydicom(RLELossless)),
        Kind("JPEG baseline, 8 bit", _write_baseline, bits=8, lossless=False),
        _imagecodecs("JPEG extended, 12 bit", JPEGExtended12Bit, "jpeg8", _EXTENDED, lossless=False),
        _imagecodecs("JPEG lossless", JPEGLossless, "jpeg8", _LOSSLESS_JPEG | {"predictor": 4}),
        _imagecodecs("JPEG lossless SV1", JPEGLosslessSV1, "jpeg8", _LOSSLESS_JPEG | {"predictor": 1}),
        _imagecodecs("JPEG-LS", JPEGLSLossless, "jpegls", {"level": 0}),
        _imagecodecs("JPEG-LS near-lossless", JPEGLSNearLossless, "jpegls", {"level": 2}, lossless=False),
        Kind("JPEG 2000 lossless", _pydicom(JPEG2000Lossless)),
        Kind("JPEG 2000", _pydicom(JPEG2000, j2k_cr=[8]), lossless=False),
        _imagecodecs("HTJ2K lossless", HTJ2KLossless, "htj2k", {"reversible": True}),
        _imagecodecs("HTJ2K", HTJ2K, "htj2k", {"reversible": False, "level": 0.0005}, lossless=False),
        Kind("PNG, 16 bit", _write_png, bits=16, dicom=False),
        Kind("JPEG, 8 bit", _write_jpeg, bits=8, lossless=False, dicom=False),
    ]


def _pydicom(syntax: str, **settings: Any) -> Callable[[Values], bytes]:
    """Return a writer that compresses with pydicom."""

    def write(values: Values) -> bytes:
        from pydicom import dcmread

        dataset = dcmread(io.BytesIO(write_dicom(values, ExplicitVRLittleEndian)))
        dataset.compress(syntax, generate_instance_uid=False, **settings)
        file = io.BytesIO()
        dcmwrite(file, dataset)
        return file.getvalue()

    return write


def _imagecodecs(
    name: str, syntax: str, codec: str, settings: dict[str, Any], *, lossless: bool = True
) -> Kind:
    """Return a kind that imagecodecs compresses."""

    def write(values: Values) -> bytes:
        encode = getattr(_import_imagecodecs(name), f"{codec}_encode")
        return write_dicom(values, syntax, frame=bytes(encode(values, **settings)))

    return Kind(name, write, lossless=lossless)


def _import_imagecodecs(name: str) -> Any:
    try:
        return importlib.import_module("imagecodecs")
    except ImportError as error:
        raise ConfigError(
            f"Writing {name} needs the 'image' extra: pip install 'cxr-serving[image]'."
        ) from error


def _write_jpeg(values: Values) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(reduce_bits(values)).save(file, "JPEG", quality=95)
    return file.getvalue()


def _write_baseline(values: Values) -> bytes:
    return write_dicom(reduce_bits(values), JPEGBaseline8Bit, bits=8, frame=_write_jpeg(values))


def _write_png(values: Values) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(values << (16 - BITS)).save(file, "PNG", compress_level=6)
    return file.getvalue()
