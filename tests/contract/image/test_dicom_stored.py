"""Words that say more than Bits Stored: what is too large becomes white, what is too small black, never the reverse."""

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from contract.image.read import Radiograph, load_radiograph

pytest.importorskip("cv2")
pytest.importorskip("imagecodecs")
pytest.importorskip("openjpeg")
SIDE = 32  # images of this size are not scaled, so that each value can be compared


def load(data: bytes) -> Radiograph:
    return load_radiograph(data, size=SIDE)


def store(
    dicom, values: np.ndarray, syntax: uid.UID, bits: int, level: int | None = None, **elements
) -> bytes:
    """Return a file whose stream holds all 16 (or `level`'s 12) bits of values, and whose header says `bits`."""
    dataset = dicom.dataset(values, bits=bits, **elements)
    if syntax == uid.RLELossless:
        dataset = pydicom.dcmread(io.BytesIO(dicom.write(dataset)))
        dataset.compress(syntax, encoding_plugin="pydicom")
    elif syntax.is_encapsulated:
        dataset.file_meta.TransferSyntaxUID = syntax
        words = values.view(f"u{values.itemsize}")
        dataset.PixelData = encapsulate([dicom.encode(words, syntax, bits=16, level=level)])
    else:
        dataset = dicom.dataset(values, bits=bits, syntax=syntax, **elements)
    return dicom.write(dataset)


def show(dicom, values: np.ndarray, low: int, high: int) -> np.ndarray:
    return dicom.show((values.astype(float) - low) / (high - low))


def check_clipped(found: Radiograph, bits: int) -> None:
    """Exactly one warning, which names the bits."""
    (remark,) = found.remarks
    assert f"exceed the {bits} bits" in remark


EXACT = [
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian),
    *(uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1),
    *(uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL),
]


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 512, "WindowWidth": 1024}])
@pytest.mark.parametrize("syntax", EXACT)
def test_native_values_to_4095_with_10_bits_stored(dicom, syntax, window):
    values = dicom.ramp(12)
    found = load(store(dicom, values, syntax, 10, **window))
    clipped = np.minimum(values, 1023)
    assert np.array_equal(found.pixels, load(dicom.build(clipped, bits=10, **window)).pixels)
    if window:
        dicom.assert_close(found.pixels, dicom.show(dicom.window_linear(clipped.astype(float), 512, 1024)))
    assert found.pixels[0, -1, -1] == 255  # the largest value is white
    check_clipped(found, 10)


@pytest.mark.parametrize(
    ("syntax", "bits", "level", "tolerance"),
    [
        (uid.JPEGExtended12Bit, 10, 98, 6),  # a stream of 12 bits
        (uid.JPEG2000, 12, 95, 3),  # streams of 16
        (uid.HTJ2K, 12, None, 0),
        (uid.JPEGLSNearLossless, 12, 3, 1),
    ],
)
def test_lossy_and_wide_streams_stay_white_where_they_are_saturated(dicom, syntax, bits, level, tolerance):
    values = np.minimum(dicom.ramp(bits).astype(np.int64) * 5 // 4, 2**bits - 1 + 40).astype(np.uint16)
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    found = load(store(dicom, values, syntax, bits, level, **window))
    dicom.assert_close(found.pixels, show(dicom, values, 0, 2**bits - 1), tolerance)
    assert (found.pixels[0][values >= 2**bits] == 255).all()
    check_clipped(found, bits)


def test_near_lossless_runs_beyond_the_range_by_its_own_error(dicom):
    """The saturated half of the image holds 4095; the stream may say 4098."""
    values = np.where(np.indices((SIDE, SIDE))[1] < 9, dicom.ramp(11), 4095).astype(np.uint16)
    stream = dicom.encode(values, uid.JPEGLSNearLossless, bits=16, level=3)
    import imagecodecs

    assert imagecodecs.jpegls_decode(stream).max() >= 4092
    found = load(store(dicom, values, uid.JPEGLSNearLossless, 12, 3, WindowCenter=2048, WindowWidth=4096))
    assert (found.pixels[0][:, 9:] >= 254).all()


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless])
@pytest.mark.parametrize(("low", "high"), [(-3000, 3000), (-100, 4000), (-5000, 100), (0, 4095)])
def test_signed_values_are_clipped_to_the_signed_range(dicom, syntax, low, high):
    values = np.linspace(low, high, SIDE * SIDE).round().astype(np.int16).reshape(SIDE, SIDE)
    window = {"WindowCenter": 0, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}
    found = load(store(dicom, values, syntax, 12, **window))
    expected = show(dicom, np.clip(values, -2048, 2047), -2048, 2048)
    dicom.assert_close(found.pixels, expected)
    check_clipped(found, 12)


def test_signed_values_without_their_upper_bits_are_no_large_ones(dicom):
    """Negative values in the stored bits alone: -1 is 0x0FFF, not 4095."""
    values = dicom.ramp(12, np.int16, -2048)
    words = (values.view(np.uint16) & 0x0FFF).view(np.int16)
    found = load(dicom.build(words))
    assert np.array_equal(found.pixels, load(dicom.build(values)).pixels)
    assert found.remarks == ()


@pytest.mark.parametrize(("bits", "high"), [(10, 11), (12, 13), (10, 13)])
def test_high_bit_above_the_stored_ones(dicom, bits, high):
    """The value stands in bits `high` - `bits` + 1 to `high`; what is above is too large."""
    values = np.linspace(0, 2**bits * 1.5, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    found = load(dicom.build(values << (high + 1 - bits), bits=bits, HighBit=high, **window))
    dicom.assert_close(found.pixels, show(dicom, values, 0, 2**bits - 1))
    check_clipped(found, bits)


def test_8_bits_allocated_and_fewer_stored(dicom):
    values = dicom.ramp(8, np.uint8)
    found = load(dicom.build(values, bits=6, WindowCenter=32, WindowWidth=64))
    dicom.assert_close(found.pixels, show(dicom, values, 0, 63))
    check_clipped(found, 6)


def declare(dataset: pydicom.Dataset, bit: Any, vr: str = "US") -> None:
    dataset.add_new((0x6000, 0x0100), "US", 16)
    dataset.add_new((0x6000, 0x0102), vr, bit)


@pytest.mark.parametrize("bit", [12, 15])
def test_declared_overlay_is_masked_without_a_warning(dicom, bit):
    values = dicom.ramp(12)
    dataset = dicom.dataset(values | (np.eye(SIDE, dtype=np.uint16) << bit))
    declare(dataset, bit)
    found = load(dicom.write(dataset))
    dicom.assert_close(found.pixels, load(dicom.build(values)).pixels)
    assert found.remarks == ()


@pytest.mark.parametrize(
    ("bit", "vr"),
    [(0, "US"), (5, "US"), (16, "US"), (99, "US"), ([12, 13], "US"), (None, "US"), (b"\x0c\0\0\0", "OB")],
)
def test_overlay_elsewhere_declares_no_bits(dicom, bit, vr):
    """An overlay of its own has bit position 0; one inside the value or beyond the word is nonsense."""
    dataset = dicom.dataset(dicom.ramp(13), WindowCenter=2048, WindowWidth=4096)
    declare(dataset, bit, vr)
    found = load(dicom.write(dataset))
    dicom.assert_close(found.pixels, show(dicom, dicom.ramp(13), 0, 4095))
    check_clipped(found, 12)


@pytest.mark.parametrize("padding", [65535, 63536])
def test_padding_beyond_the_stored_bits_is_black_and_no_reason_to_warn(dicom, padding):
    values = dicom.ramp(12)
    values[:4] = padding
    found = load(dicom.build(values, PixelPaddingValue=padding, WindowCenter=2048, WindowWidth=4096))
    assert not found.pixels[0, :4].any()
    dicom.assert_close(found.pixels[:, 4:], show(dicom, dicom.ramp(12), 0, 4095)[:, 4:])
    assert found.remarks == ()


def test_colours_are_clipped_each(dicom):
    colours = np.zeros((SIDE, SIDE, 3), np.uint16)
    colours[..., 0] = dicom.ramp(13)
    found = load(dicom.build(colours, bits=12, photometric="RGB", Modality="SC"))
    expected = np.minimum(dicom.ramp(13), 4095) / 4095 * 0.299
    dicom.assert_close(found.pixels, dicom.show(expected))
    assert found.pixels[0, -1, -1] == 76  # of 255, as red is
    assert any("exceed the 12 bits" in remark for remark in found.remarks)


def test_palette_index_is_read_from_the_stored_bits(dicom):
    """The bits above the index hold an overlay, which pydicom would take for part of it."""
    from pydicom.dataset import Dataset

    index = dicom.ramp(8, np.uint16)
    dataset = dicom.dataset(index | (np.eye(SIDE, dtype=np.uint16) << 9), bits=8, Modality="SC")
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    declare(dataset, 9)
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = (np.arange(256) * 257).astype("<u2").tobytes()
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table)
    assert isinstance(dataset, Dataset)
    dicom.assert_close(load(dicom.write(dataset)).pixels, dicom.show(index / 255))


def test_modality_and_voi_tables_see_the_clipped_value(dicom):
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [1024, 0, 16])
    item.add_new("LUTData", "US", list(range(1024)))
    dataset = dicom.dataset(dicom.ramp(12), bits=10, VOILUTSequence=Sequence([item]))
    found = load(dicom.write(dataset))
    dicom.assert_close(found.pixels, show(dicom, dicom.ramp(12), 0, 1023))
    check_clipped(found, 10)
