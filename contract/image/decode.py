"""Decode the first frame of a DICOM image, for every supported transfer syntax.

pydicom decodes JPEG 2000, through openjpeg. imagecodecs (BSD) decodes JPEG and JPEG-LS, because pydicom's other
decoders for these are GPL, decode only 8 bits, or crash on damaged pixel data. It decodes RLE too, because pydicom's
decoder has no limit: 1 MB of runs becomes 64 MB. A stream is compared with the DICOM header before decoding, because a
decoder allocates the size that the stream claims.
"""

import struct
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError
from contract.image import dicom_file
from contract.image.record import DicomImage

if TYPE_CHECKING:
    from pydicom.uid import UID

# A decoder processes the whole image once for each scan of a progressive JPEG. An encoder writes about ten scans.
MAX_SCANNED_PIXELS: Final = 4 * dicom_file.MAX_PIXELS
_LONGEST_TAIL: Final = 1024  # bytes allowed after a stream; one byte is enough to make its length even
_MAX_TILES: Final = 4096  # tiles of a JPEG 2000 stream; each one costs memory even if it is empty
_MAX_BLOCKS: Final = 150_000  # code blocks or precincts; 64 million pixels in blocks of 32x32 are 62,500
_MAX_SEGMENTS: Final = 100_000  # of a JPEG 2000 stream
_MAX_JPEG_SEGMENTS: Final = 10_000  # with filling bytes
_RLE_HEADER: Final = struct.Struct("<16I")  # number of segments and their offsets (DICOM PS3.5 G.5)
_LONGEST_FILLING: Final = (
    128  # bytes that a segment may decode to beyond the image; the last run may be too long
)
_FRAME_MARKERS: Final = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG SOF0 to SOF15, JPEG-LS SOF55


def decode_first_frame(image: DicomImage) -> NDArray[Any]:
    """Return the first frame of a checked image.

    Returns:
        Monochrome and palette: (rows, columns) uint8 or uint16, the words as stored; `contract.image.stored_values`
        handles the sign and the bits outside the stored ones. Colour: (rows, columns, 3), RGB.

    Raises:
        ImageError: The pixel data is damaged, or its decoder is not installed. The message names the package.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoder = choose_decoder(image)
            if decoder == "numpy":
                return _view_words(image)
            if dicom_file.is_compressed(image):
                values = _decode_compressed(image, decoder)
            else:
                values = _decode_by_pydicom(image)
    except ImageError:
        raise
    except Exception as error:  # each decoder raises its own error types
        raise ImageError("The pixel data of the DICOM file is damaged or truncated.") from error
    return values.astype(f"u{image.allocated // 8}", copy=False)


def choose_decoder(image: DicomImage) -> str:
    """Return the package that decodes the pixels: "numpy", "pydicom" (uncompressed), "imagecodecs" or "openjpeg".

    Raises:
        ImageError: The compression is not supported.
    """
    from pydicom import uid

    syntax = dicom_file.get_syntax(image)
    if not dicom_file.is_compressed(image):
        return "numpy" if image.samples == 1 and image.little_endian else "pydicom"
    if syntax in {uid.RLELossless, *uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes}:
        return "imagecodecs"
    if syntax in uid.JPEG2000TransferSyntaxes:
        return "openjpeg"
    raise ImageError(f"The DICOM file is compressed as {syntax.name}, which is not supported.")


def expand_palette(image: DicomImage, values: NDArray[np.int32]) -> NDArray[Any]:
    """Return the colours of values of a palette image (DICOM PS3.3 C.7.6.3.1.5).

    Returns:
        (*shape of `values`, 3) uint8 or uint16, RGB.

    Raises:
        ImageError: The palette is damaged or segmented.
    """
    from pydicom.pixels.processing import apply_color_lut

    palette = image.dataset
    if palette is not None and "SegmentedRedPaletteColorLookupTableData" in palette:
        # A few bytes of it can expand without limit.
        raise ImageError("The colour palette of the DICOM file is segmented, which is not supported.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            colours = np.asarray(apply_color_lut(values, palette))[..., :3]
            if colours.shape[-1] != 3:
                raise ValueError("A table of the palette is missing.")  # pydicom does not report it
    except Exception as error:  # a damaged palette fails in many ways
        raise ImageError("The colour palette of the DICOM file is damaged.") from error
    return colours


def _view_words(image: DicomImage) -> NDArray[Any]:
    """Return the first frame of uncompressed little endian pixels, without a copy."""
    words = np.dtype(f"<u{image.allocated // 8}")
    shape = image.rows, image.columns
    return np.frombuffer(image.pixels, words, image.rows * image.columns).reshape(shape)


def _decode_by_pydicom(image: DicomImage, plugin: str = "") -> NDArray[Any]:
    from pydicom.pixels.utils import pixel_array

    # Keep the bits outside the stored ones, because `contract.image.stored_values` reads them.
    array = pixel_array(image.dataset, index=0, decoding_plugin=plugin, correct_unused_bits=False)
    return np.asarray(array)


def _decode_compressed(image: DicomImage, decoder: str) -> NDArray[Any]:
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    syntax = dicom_file.get_syntax(image)
    _check_decoder(syntax, decoder)
    frame = get_frame(image.pixels, 0, number_of_frames=image.frames)
    is_rle = syntax == RLELossless
    if not is_rle:  # an RLE stream states no size
        _check_frame(image, frame)
    if decoder == "openjpeg":
        return _decode_by_pydicom(image, "pylibjpeg")
    values = _decode_rle(image, frame) if is_rle else _decode_jpeg(image, frame)
    if image.photometric.startswith("YBR"):  # only the luminance of YCbCr is needed
        values = np.repeat(values[..., :1], 3, axis=-1)
    return values


def _check_decoder(syntax: "UID", module: str) -> None:
    packages = {"imagecodecs": "imagecodecs", "openjpeg": "pylibjpeg pylibjpeg-openjpeg"}
    if find_spec(module) is None:
        raise ImageError(f"There is no decoder for {syntax.name}: pip install {packages[module]}.")


def _decode_jpeg(image: DicomImage, frame: bytes) -> NDArray[Any]:
    """Decode lossy or lossless JPEG of 8 to 16 bits and JPEG-LS, without converting colours."""
    import imagecodecs

    marker, _ = _read_jpeg_header(frame)
    if marker == 0xF7:  # SOF55
        values = imagecodecs.jpegls_decode(frame)
    else:
        # Equal input and output colour spaces prevent a conversion. Otherwise libjpeg guesses the colours by markers.
        space = "RGB" if image.samples == 3 else None
        values = imagecodecs.jpeg8_decode(frame, colorspace=space, outcolorspace=space)
    return np.asarray(values)


def _decode_rle(image: DicomImage, frame: bytes) -> NDArray[Any]:
    """Decode RLE (DICOM PS3.5 G). Each segment holds one byte of every sample, the most significant byte first."""
    import imagecodecs

    count, *offsets = _RLE_HEADER.unpack_from(frame)
    width, pixels = image.allocated // 8, image.rows * image.columns
    if count != image.samples * width:
        raise ValueError(f"The RLE stream has {count} segments, not {image.samples * width}.")
    planes = []
    for start, end in zip(offsets[:count], [*offsets[1:count], len(frame)], strict=True):
        plane = imagecodecs.packbits_decode(frame[start:end], out=pixels + _LONGEST_FILLING)
        planes.append(np.frombuffer(plane, np.uint8, pixels))  # ValueError if there are fewer
    words = np.stack(planes, axis=-1).view(f">u{width}")  # (rows * columns, samples)
    return words.reshape((image.rows, image.columns, image.samples)[: 3 if image.samples > 1 else 2])


def _check_frame(image: DicomImage, frame: bytes) -> None:
    """Refuse a compressed frame that contradicts the header, before a decoder allocates memory for it."""
    expected = image.rows, image.columns, image.samples
    if frame.startswith(b"\xff\xd8"):
        precision, *actual = _read_jpeg_header(frame)[1]
    else:
        precision, *actual = _read_jpeg2000_header(frame)
    if tuple(actual) != expected or precision > image.allocated:
        raise ValueError(f"The stream claims {actual} of {precision} bits, the DICOM header {expected}.")
    if frame.startswith(b"\xff\xd8") and b"\xff\xd9" not in frame[-_LONGEST_TAIL:]:
        raise ValueError("The JPEG stream has no end marker. libjpeg would invent the missing pixels.")
    check_scans(frame, expected[0] * expected[1])


def check_scans(stream: bytes, pixels: int) -> None:
    """Raise ImageError for a JPEG stream with so many scans that decoding would take long."""
    if stream.startswith(b"\xff\xd8") and stream.count(b"\xff\xda") * pixels > MAX_SCANNED_PIXELS:
        raise ImageError("The JPEG image has too many scans for its size.")


def _read_jpeg_header(frame: bytes) -> tuple[int, tuple[int, ...]]:
    """Return the marker and the header of the frame of a JPEG or JPEG-LS stream (ISO/IEC 10918-1 B.2.2).

    Returns:
        The marker's second byte; and precision, rows, columns and components.

    Raises:
        ValueError: The segments before the scan are not contiguous, there are too many, or the tables are missing.
        IndexError, struct.error: The stream ends before the scan.
    """
    at, kind, header, tables = 2, 0, None, False
    for _ in range(_MAX_JPEG_SEGMENTS):
        if frame[at] != 0xFF:
            raise ValueError("The segments of the JPEG stream are not contiguous.")
        marker = frame[at + 1]
        if marker == 0xDA and header and tables:
            return kind, header
        if marker in _FRAME_MARKERS:
            kind, header = marker, struct.unpack_from(">BHHB", frame, at + 4)
        tables = tables or marker in {0xC4, 0xCC, 0xF7}  # Huffman or arithmetic tables; JPEG-LS needs none
        at += 1 if marker == 0xFF else 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    raise ValueError("The JPEG stream has too many segments.")


def _read_jpeg2000_header(frame: bytes) -> tuple[int, ...]:
    """Return precision, rows, columns and components of a JPEG 2000 stream (SIZ, ISO/IEC 15444-1 A.5.1)."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0 or (start > 0 and frame.count(b"\xff\x4f\xff\x51") > 1):
        raise ValueError("The frame is neither JPEG nor JPEG 2000, or it holds several streams.")
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", frame, start + 8)
    components, depth = struct.unpack_from(">HB", frame, start + 40)
    rows, columns = bottom - top, right - left
    if -(-right // tile_width) * -(-bottom // tile_height) > _MAX_TILES:
        raise ValueError("The JPEG 2000 stream has too many tiles.")
    smallest = min(_list_block_areas(frame, start + 2))
    if rows * columns * components > _MAX_BLOCKS * smallest:
        raise ValueError("The JPEG 2000 stream has too many code blocks.")
    return (depth & 0x7F) + 1, rows, columns, components


def _list_block_areas(frame: bytes, at: int) -> Iterator[int]:
    """Yield the areas, in pixels, of the code blocks and precincts of a JPEG 2000 stream.

    The main header and each tile header define them (COD and COC, ISO/IEC 15444-1 A.6.1 and A.6.2). openjpeg
    allocates memory for each one, even if it is empty: a file of 1 kB with precincts of 2x2 used all memory.
    """
    tile_end = len(frame)
    for _ in range(_MAX_SEGMENTS):
        if at + 4 > len(frame):
            return
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker == 0xFF90:  # SOT
            tile_length = struct.unpack_from(">I", frame, at + 6)[0]
            tile_end = at + tile_length if tile_length else len(frame)
        elif marker in {0xFF52, 0xFF53}:
            coding = at + (5 if marker == 0xFF52 else 6)  # after Scod or Scoc
            levels, width, height = (
                frame[coding + 4 : coding + 7] if marker == 0xFF52 else frame[coding : coding + 3]
            )
            yield 1 << ((width & 15) + (height & 15) + 4)
            if frame[coding - 1] & 1:
                first = coding + (9 if marker == 0xFF52 else 5)
                yield from (1 << ((size & 15) + (size >> 4)) for size in frame[first : first + levels + 1])
        if marker == 0xFF93:  # SOD
            if tile_end <= at:
                raise ValueError("The tiles of the JPEG 2000 stream are not contiguous.")
            at = tile_end
        else:
            at += 2 + length
    raise ValueError("The JPEG 2000 stream has too many segments.")
