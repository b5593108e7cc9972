"""A shrunk radiograph is read as the pixels that its file holds, and its notes are those on the file."""

import numpy as np
import pytest

from contract.errors import ImageError
from contract.image.png import encode_png
from contract.image.read import load_pixels, load_radiograph
from contract.notes import note_image
from contract.shrink import is_worth_shrinking, shrink_image

SIZES = (56, 224, 384)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(900, 700), (700, 900), (640, 640), (30, 40), (224, 224)])
def test_the_pixels_are_those_of_the_file(shape, size):
    rng = np.random.default_rng(3)
    for dtype, top in ((np.uint8, 256), (np.uint16, 4096), (np.uint16, 65536)):
        file = encode_png(rng.integers(0, top, shape, dtype))
        picture, notes = shrink_image(file, size=size)
        np.testing.assert_array_equal(load_pixels(picture, size=size), load_pixels(file, size=size))
        assert notes == note_image(load_radiograph(file, size=size))


def test_no_grey_changes_on_the_way():
    ramp = np.arange(256, dtype=np.uint8).repeat(256).reshape(256, 256)
    picture, _ = shrink_image(encode_png(ramp), size=256)
    np.testing.assert_array_equal(load_pixels(picture, size=256)[0], ramp)


def test_real_radiographs_keep_their_pixels(real_radiographs):
    for path in real_radiographs[::45]:
        file = path.read_bytes()
        picture, _ = shrink_image(file, size=384)
        np.testing.assert_array_equal(load_pixels(picture, size=384), load_pixels(file, size=384))


def test_the_notes_are_on_the_file_and_the_header_stays_behind(dicom):
    file = dicom.build(dicom.ramp(12, side=300), ViewPosition="LL", Modality="DX")
    picture, notes = shrink_image(file, size=64)
    assert (notes.view, notes.modality) == ("LATERAL", "DX")
    for secret in dicom.secrets:
        assert secret.encode() in file
        assert secret.encode() not in picture


def test_what_is_no_image_is_refused():
    with pytest.raises(ImageError, match=r"not an image|damaged or truncated|not a DICOM"):
        shrink_image(b"no image" * 100, size=64)


def test_small_files_are_sent_as_they_are():
    assert not is_worth_shrinking(bytes(4 * 64 * 64), size=64)
    assert is_worth_shrinking(bytes(4 * 64 * 64 + 1), size=64)
