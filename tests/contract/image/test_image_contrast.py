"""Images that show nothing are answered with a warning, and no real radiograph is warned of."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from contract.image.contrast import NEGATIVE, NO_CONTRAST, NOISE, TWO_LEVELS
from contract.image.read import load_radiograph
from contract.notes import note_image

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")
SIZES = (56, 224)


def save(values: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image_module.fromarray(values, mode).save(file, "PNG")
    return file.getvalue()


def read(data: bytes, size: int = 224) -> tuple[str, ...]:
    """Return the warnings that travel with an answer about an image."""
    return note_image(load_radiograph(data, size=size)).warnings


def draw_chest(top: int = 255, side: int = 300, dtype=np.uint8) -> np.ndarray:
    """Two dark lungs in a bright chest, over the whole range."""
    rows, columns = np.indices((side, side)) / side
    lungs = sum(np.exp(-((columns - x) ** 2 / 0.02 + (rows - 0.5) ** 2 / 0.07)) for x in (0.3, 0.7))
    return (top * (0.9 - 0.8 * lungs / lungs.max())).astype(dtype)


generator = np.random.default_rng(13)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "data",
    [
        save(np.zeros((300, 200), np.uint8)),
        save(np.full((300, 200), 255, np.uint8)),
        save(np.full((300, 300), 130, np.uint8)),
        save(np.full((300, 300), 40_000, np.uint16)),
        save(draw_chest() // 16),
        save(np.dstack([draw_chest(), np.zeros((300, 300), np.uint8)]), "LA"),
        save(np.dstack([draw_chest()] * 3 + [np.zeros((300, 300), np.uint8)])),
        save(generator.integers(0, 256, (1500, 1500)).astype(np.uint8)),  # its averages are one grey
    ],
    ids=["black", "white", "grey", "deep grey", "dim", "transparent", "transparent colour", "fine noise"],
)
def test_without_contrast(data, size):
    assert read(data, size) == (NO_CONTRAST,)


@pytest.mark.parametrize("side", [64, 224, 512])
@pytest.mark.parametrize("draw", ["uniform", "normal", "lines"])
def test_noise(side, draw):
    if draw == "uniform":
        values = generator.integers(0, 256, (side, side))
    elif draw == "normal":
        values = np.clip(generator.normal(128, 90, (side, side)), 0, 255)
    else:
        values = np.repeat(generator.integers(0, 256, (side, 1)), side, axis=1)
    assert read(save(values.astype(np.uint8))) == (NOISE,)


def test_two_greys(dicom):
    stripes = (np.indices((300, 300))[1] // 40 % 2 * 255).astype(np.uint8)
    assert read(save(stripes)) == (TWO_LEVELS,)
    assert read(dicom.build(stripes, bits=8)) == (TWO_LEVELS,)


@pytest.mark.parametrize("size", SIZES)
def test_a_drawn_chest_is_not_warned_of(dicom, chest_files, size):
    assert read(save(draw_chest()), size) == ()
    assert read(dicom.build(draw_chest(4095, dtype=np.uint16), BodyPartExamined="CHEST"), size) == ()
    assert read(chest_files["frontal"], size) == ()


@pytest.mark.parametrize("size", SIZES)
def test_no_real_radiograph_is_warned_of(real_radiographs, size):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda path: read(path.read_bytes(), size), real_radiographs))
    assert [(path.name, said) for path, said in zip(real_radiographs, found, strict=True) if said] == []


# --- a range that does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("centre", "width", "top"),
    [(2048, 4096, 255), (-1500, 2000, 255), (128, 256, 16_383), (40, 80, 4095), (32_768, 65_536, 4095)],
)
def test_window_of_other_values_is_overruled(dicom, photometric, centre, width, top):
    """It leaves the image black or white, as 2048/4096 does with 8 bits."""
    dtype = np.uint8 if top == 255 else np.uint16
    values = draw_chest(top, dtype=dtype)
    values[values < 0.1 * top] += dtype(0.1 * top)  # beside the small windows
    settings = {"bits": int(top).bit_length(), "photometric": photometric}
    found = load_radiograph(dicom.build(values, WindowCenter=centre, WindowWidth=width, **settings), size=224)
    expected = load_radiograph(dicom.build(values, **settings), size=224)
    assert np.array_equal(found.pixels, expected.pixels)
    assert np.ptp(found.pixels) > 200
    remark, *others = found.remarks
    assert remark.startswith(
        "The window or the VOI LUT of the file would show the image as all black or white"
    )
    assert others == list(expected.remarks) == ([NEGATIVE] if photometric == "MONOCHROME1" else [])


@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1500, 3000), (2048, 8000), (1000, 8000)])
def test_window_that_shows_the_image_is_kept(dicom, centre, width):
    values = draw_chest(4095, dtype=np.uint16)
    found = load_radiograph(dicom.build(values, WindowCenter=centre, WindowWidth=width), size=300)
    expected = dicom.show(dicom.window_linear(values.astype(float), centre, width))
    dicom.assert_close(found.pixels, expected)
    assert found.remarks == ()


def test_a_flat_image_keeps_its_window(dicom):
    values = np.full((64, 64), 2000, np.uint16)
    found = load_radiograph(dicom.build(values, WindowCenter=2000, WindowWidth=4000), size=64)
    assert (found.pixels == 128).all()
    assert found.remarks == (NO_CONTRAST,)


def add_significant_bits(png: bytes, bits: int) -> bytes:
    """Put an sBIT chunk behind the header (PNG 11.3.2.3)."""
    import struct
    import zlib

    chunk = b"sBIT" + bytes([bits])
    return png[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


@pytest.mark.parametrize("written", [0, 12])
@pytest.mark.parametrize("hot", [1, 60])
def test_hot_pixels_do_not_blacken_a_deep_picture(dicom, hot, written):
    values = draw_chest(4095, dtype=np.uint16)
    plain = save(values)
    values.reshape(-1)[generator.choice(values.size, hot, replace=False)] = 65_535
    data = add_significant_bits(save(values), written) if written else save(values)
    found = load_radiograph(data, size=300)
    expected = load_radiograph(plain, size=300).pixels
    differs = found.pixels != expected
    assert differs.sum() <= hot
    assert (found.pixels[differs] == 255).all()
    (remark,) = found.remarks
    assert remark.startswith("A few pixels are far brighter")


@pytest.mark.parametrize(("top", "bright"), [(4095, 8191), (4095, 4095), (60_000, 65_535), (1023, 2047)])
def test_bright_pixels_that_are_near_the_others_set_the_depth(dicom, top, bright):
    """As before: one bit more is no sign of a broken pixel."""
    values = draw_chest(top, dtype=np.uint16)
    values[100, 100] = bright
    found = load_radiograph(save(values), size=300)
    white = 2 ** int(bright).bit_length() - 1
    dicom.assert_close(found.pixels, dicom.show(values / white))
    assert found.remarks == ()
