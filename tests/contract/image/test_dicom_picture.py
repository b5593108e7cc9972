"""PNG and JPEG to pixels: every kind that an archive or a telephone writes."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest

from contract.errors import ImageError
from contract.image.header import read_image_header
from contract.image.read import load_pixels

image_module = pytest.importorskip("PIL.Image")
image_ops = pytest.importorskip("PIL.ImageOps")
SIDE = 32


# --- PNG and JPEG ------------------------------------------------------------------------------------------


def save(picture, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_pictures_of_one_image_are_equal(dicom):
    grey = dicom.ramp(8, np.uint8)
    picture = image_module.fromarray(grey)
    deep = image_module.fromarray(grey.astype(np.uint16) * 257)
    for data in (
        save(picture, "PNG"),
        save(deep, "PNG"),
        save(picture.convert("RGB"), "PNG"),
        save(picture.convert("RGBA"), "PNG"),
        save(picture.convert("LA"), "PNG"),
        save(picture.convert("P"), "PNG"),
    ):
        assert np.array_equal(load_pixels(data, size=SIDE)[0], grey)
    dicom.assert_close(load_pixels(save(picture, "JPEG", quality=98), size=SIDE), grey[None], tolerance=3)
    jpeg = save(picture.convert("RGB"), "JPEG", quality=98)
    dicom.assert_close(load_pixels(jpeg, size=SIDE), grey[None], tolerance=3)


def test_deep_png_is_read_as_16_bits(dicom):
    deep = save(image_module.fromarray(dicom.ramp(16)), "PNG")
    assert deep[24] == 16  # bit depth in IHDR
    dicom.assert_close(load_pixels(deep, size=SIDE), dicom.show(dicom.ramp(16) / 65535))


def test_dicom_and_png_of_one_image_are_equal(dicom):
    grey = np.random.default_rng(6).integers(0, 256, (60, 44)).astype(np.uint8)
    data = dicom.build(grey, bits=8, WindowCenter="128", WindowWidth="256")
    png = save(image_module.fromarray(grey), "PNG")
    assert np.array_equal(load_pixels(data, size=24), load_pixels(png, size=24))


def test_real_png_files_load(openi_directory):
    paths = sorted((openi_directory / "png").glob("*.png"))
    assert len(paths) == 5
    for path in paths:
        pixels = load_pixels(path.read_bytes(), size=224)[0]
        assert np.ptp(pixels) > 200, path.name
        assert 30 < pixels.mean() < 200, path.name
        assert read_image_header(path.read_bytes()).view == "UNKNOWN"


# --- depth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
def test_values_of_fewer_bits_in_16_are_spread(dicom, bits):
    """A detector's 12 bits stored in 16 would be nearly black."""
    png = save(image_module.fromarray(dicom.ramp(bits)), "PNG")
    dicom.assert_close(load_pixels(png, size=SIDE), dicom.show(dicom.ramp(bits) / (2**bits - 1)))


@pytest.mark.parametrize(("written", "depth"), [(12, 12), (16, 16), (10, 12)])
def test_significant_bits_of_the_file_go_first(dicom, written, depth):
    """An image that is dark stays dark where sBIT says how deep it is; a claim below its values is no claim."""
    values = dicom.ramp(12) // (1 if written == 10 else 2)
    png = add_chunk(save(image_module.fromarray(values), "PNG"), b"sBIT", bytes([written]))
    top = 2**depth - 1 if written != 10 else 65535
    dicom.assert_close(load_pixels(png, size=SIDE), dicom.show(values / top))


def add_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """Insert a chunk after IHDR."""
    checksum = zlib.crc32(kind + content)
    return (
        png[:33] + struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum) + png[33:]
    )


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
def test_colour_of_16_bits(dicom, bits, alpha):
    """Pillow would keep 8 of them: 15 levels of a 12 bit image."""
    grey = dicom.ramp(bits)
    channels = [grey] * 3 + [np.full_like(grey, 65535)] * alpha
    png = cv2.imencode(".png", np.stack(channels, axis=-1))[1].tobytes()
    assert png[24:26] == bytes([16, 6 if alpha else 2])
    dicom.assert_close(load_pixels(png, size=SIDE), dicom.show(grey / (2**bits - 1)))


def test_colour_order_of_16_bits(dicom):
    colours = np.zeros((SIDE, SIDE, 3), np.uint16)
    colours[..., 2] = 65535  # red, as opencv orders it
    pixels = load_pixels(cv2.imencode(".png", colours)[1].tobytes(), size=SIDE)
    assert set(np.unique(pixels)) == {76}  # 0.299 of 255


# --- what is not grey --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_is_black(mode):
    picture = image_module.fromarray(np.full((SIDE, SIDE), 200, np.uint8))
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[:, : SIDE // 2] = 255
    alpha[:, SIDE // 2] = 128
    if mode == "PA":
        picture = picture.convert("P")
        data = save(picture, "PNG", transparency=bytes([255] * 200 + [0] + [255] * 55))
        assert not load_pixels(data, size=SIDE).any()
        return
    picture = picture.convert("RGB" if mode == "RGBA" else "L")
    picture.putalpha(image_module.fromarray(alpha))
    pixels = load_pixels(save(picture, "PNG"), size=SIDE)[0]
    assert (pixels[:, : SIDE // 2] == 200).all()
    assert abs(int(pixels[0, SIDE // 2]) - 100) <= 1
    assert not pixels[:, SIDE // 2 + 1 :].any()


def test_one_bit():
    black = np.random.default_rng(7).integers(0, 2, (SIDE, SIDE)).astype(bool)
    pixels = load_pixels(save(image_module.fromarray(black), "PNG"), size=SIDE)[0]
    assert np.array_equal(pixels, black * np.uint8(255))


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (20, 90, 200)])
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "P"])
def test_colour_becomes_luminance(mode, colour):
    picture = image_module.new("RGB", (SIDE, SIDE), colour)
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    data = save(picture, "PNG") if mode == "P" else save(picture, "JPEG", quality=98)
    expected = np.dot(colour, (0.299, 0.587, 0.114))
    assert np.abs(load_pixels(data, size=SIDE).astype(float) - expected).max() < 4


@pytest.mark.parametrize("gamma", [b"\x00\x00\xb1\x8f", b"\x00\x01\x86\xa0"])  # 0.45455, 1.0
def test_gamma_is_ignored(dicom, gamma):
    png = save(image_module.fromarray(dicom.ramp(8, np.uint8)), "PNG")
    assert np.array_equal(load_pixels(add_chunk(png, b"gAMA", gamma), size=SIDE), load_pixels(png, size=SIDE))


# --- orientation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "deep PNG"])
def test_picture_is_turned_as_every_viewer_does(kind, orientation):
    values = np.zeros((48, 32), np.uint16 if kind == "deep PNG" else np.uint8)
    values[:24, :16] = np.iinfo(values.dtype).max
    values[:24, 16:] = np.iinfo(values.dtype).max // 2
    picture = image_module.fromarray(values)
    picture.getexif()[0x0112] = orientation
    data = save(
        picture, kind.split()[-1], exif=picture.getexif(), **({"quality": 98} if kind == "JPEG" else {})
    )
    shown = image_module.fromarray((values >> (8 if kind == "deep PNG" else 0)).astype(np.uint8))
    shown.getexif()[0x0112] = orientation
    expected = load_pixels(save(image_ops.exif_transpose(shown), "PNG"), size=48)
    assert np.abs(load_pixels(data, size=48).astype(int) - expected).max() <= 4


# --- hostile pictures --------------------------------------------------------------------------------------


def test_truncated_deep_colour_is_refused():
    """opencv would return the part that is there."""
    colours = np.random.default_rng(8).integers(0, 65536, (64, 64, 3)).astype(np.uint16)
    data = cv2.imencode(".png", colours)[1].tobytes()
    load_pixels(data, size=SIDE)
    for length in (len(data) // 3, len(data) - 40):
        with pytest.raises(ImageError, match="damaged or truncated"):
            load_pixels(data[:length], size=SIDE)


def test_progressive_jpeg_of_many_scans():
    """Each scan is a walk over all pixels, and a few bytes: 1 MB of them would take minutes."""
    picture = image_module.fromarray(np.zeros((4000, 4000), np.uint8))
    data = save(picture, "JPEG", progressive=True)
    load_pixels(data, size=SIDE)
    start = data.rindex(b"\xff\xda")
    many = data[:start] + data[start:-2] * 100 + data[-2:]
    with pytest.raises(ImageError, match="too many scans"):
        load_pixels(many, size=SIDE)
