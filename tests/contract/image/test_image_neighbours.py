"""Neighbours of images that were once read in silence or refused: labels, noise beside borders, tables, body parts."""

import io

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from contract.errors import ImageError
from contract.image.contrast import NOISE
from contract.image.header import list_warnings
from contract.image.read import load_pixels, load_radiograph

pytest.importorskip("cv2")


def save(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def draw(top: int) -> np.ndarray:
    """Return (256, 256) uint16 in two soft lobes, 0 to `top`."""
    rows, columns = np.mgrid[0:256, 0:256]
    grey = np.exp(-(((columns - 128) / 90) ** 2)) * (0.6 + 0.4 * np.cos(rows / 40))
    return np.rint((grey - grey.min()) / np.ptp(grey) * top).astype(np.uint16)


@pytest.mark.parametrize("top", [1023, 4095, 16_383])
@pytest.mark.parametrize("place", ["label", "frame", "scattered"])
def test_one_level_far_above_the_image_does_not_blacken_it(top, place):
    values = draw(top)
    marked = np.zeros(values.shape, bool)
    if place == "label":
        marked[10:30, 10:80] = True
    elif place == "frame":
        marked[[0, -1]] = marked[:, [0, -1]] = True
    else:
        marked.ravel()[np.random.default_rng(0).choice(values.size, 400, replace=False)] = True
    found = load_radiograph(save(np.where(marked, 65_535, values).astype(np.uint16)), size=256)
    expected = load_pixels(save(values), size=256)
    assert np.array_equal(found.pixels[0][~marked], expected[0][~marked])
    assert (found.pixels[0][marked] == 255).all()
    (remark,) = found.remarks
    assert "far brighter than all others" in remark


def test_a_large_bright_area_is_image():
    values = draw(4095)
    values[:60] = 65_535
    assert load_radiograph(save(values), size=256).pixels[0][60:].max() < 32


@pytest.mark.parametrize("size", [64, 224, 512])
@pytest.mark.parametrize("place", ["left half", "in a border", "in a white border"])
def test_noise_beside_a_level_area_is_noise(place, size):
    values = np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8)
    if place == "left half":
        values[:, 128:] = 0
    else:
        values = np.pad(values[:160, :160], 48, constant_values=255 * ("white" in place))
    assert load_radiograph(save(values), size=size).remarks == (NOISE,)


def make_table(descriptor: list[int], data: bytes) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "OW", data)
    return Sequence([item])


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
def test_a_table_of_zeros_beside_a_window_counts_as_absent(dicom, name):
    window = {"WindowCenter": 1500, "WindowWidth": 1800}
    found = dicom.build(dicom.ramp(12), **{name: make_table([0, 0, 0], b"\0\0")}, **window)
    assert np.array_equal(
        load_pixels(found, size=32), load_pixels(dicom.build(dicom.ramp(12), **window), size=32)
    )


def test_a_descriptor_that_is_an_empty_text_counts_as_absent(dicom):
    item = Dataset()
    item.add_new("LUTDescriptor", "LO", "")
    item.add_new("LUTData", "OW", b"\0\0")
    found = load_pixels(dicom.build(dicom.ramp(12), VOILUTSequence=Sequence([item])), size=32)
    assert np.array_equal(found, load_pixels(dicom.build(dicom.ramp(12)), size=32))


@pytest.mark.parametrize("entries", [4098, 4999])
def test_a_table_of_16_bits_that_is_too_short_is_not_taken_for_one_of_8(dicom, entries):
    data = np.arange(4096, dtype="<u2").tobytes()
    with pytest.raises(ImageError, match=r"VOI LUT of the DICOM file is damaged\.$"):
        load_pixels(dicom.build(dicom.ramp(12), VOILUTSequence=make_table([entries, 0, 16], data)), size=32)


@pytest.mark.parametrize("slope", ["0", "1e-12", "-1E-300", "1e300"])
def test_nonsensical_slope_counts_as_absent(dicom, slope):
    found = load_radiograph(dicom.build(dicom.ramp(12), RescaleSlope=slope, RescaleIntercept="0"), size=32)
    assert np.array_equal(found.pixels, load_pixels(dicom.build(dicom.ramp(12)), size=32))
    assert found.remarks == ()


@pytest.mark.parametrize(
    "part", ["UNKNOWN", "undefined", "OTHER", "NONE", "0", "HEART", "TORSO", "CHST", "GOGUS"]
)
def test_a_word_for_no_part_or_the_chest_is_no_reason_to_warn(dicom, part):
    found = load_radiograph(dicom.build(dicom.ramp(12), BodyPartExamined=part), size=32)
    assert list_warnings(found.header) == ()


def test_one_bit_is_named_in_the_singular(dicom):
    found = load_radiograph(dicom.build(dicom.ramp(12), BitsStored=1, HighBit=0), size=32)
    assert "exceed the 1 bit that" in found.remarks[0]
