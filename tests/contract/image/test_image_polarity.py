"""A radiograph that was read as a negative is answered with a warning; no real radiograph is called one."""

import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from contract.image.contrast import NEGATIVE, crop_borders, list_remarks
from contract.image.polarity import NEGATIVE_LIMIT, measure_polarity
from contract.image.read import load_radiograph
from contract.notes import note_image

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")


def crop_padding(image: np.ndarray) -> np.ndarray:
    """Return an image without the black around it that makes it a square."""
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def judge(data: bytes, size: int = 224) -> tuple[bool, bool]:
    """Return whether a file is called a negative, and whether its negative is."""
    radiograph = load_radiograph(data, size=size)
    image = crop_padding(radiograph.pixels[0])
    return NEGATIVE in radiograph.remarks, NEGATIVE in list_remarks(255 - image)


def count(files: Iterable[bytes], size: int = 224) -> tuple[int, int, int]:
    """Return how many files there are, how many are called negatives, and how many of their negatives are."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda data: judge(data, size), files))
    return len(found), sum(alarm for alarm, _ in found), sum(caught for _, caught in found)


@pytest.mark.parametrize("size", [56, 224])
def test_real_radiographs_and_their_negatives(real_radiographs, size):
    assert count((path.read_bytes() for path in real_radiographs), size) == (677, 0, 677)


@pytest.mark.slow
def test_radiographs_of_children_and_their_negatives(children_archive):
    with tarfile.open(children_archive) as archive:
        files = [archive.extractfile(name).read() for name in archive.getnames() if name.endswith(".jpeg")]
    assert count(files) == (5840, 0, 5839)


def test_phantoms_and_their_negatives(tmp_path):
    """Frontal and lateral ones; of laterals the collections at hand hold but two."""
    from training.phantom import draw_dataset

    draw_dataset(tmp_path / "phantom", studies=30, seed=3, scale=0.05, workers=1)
    files = [path.read_bytes() for path in sorted((tmp_path / "phantom").rglob("*.dcm"))]
    found = count(files)
    assert found == (len(files), 0, len(files))


def test_wrong_polarity_in_the_header(dicom, openi_directory):
    """A file marked MONOCHROME1 whose pixels are MONOCHROME2, with a window and without."""
    film = np.asarray(image_module.open(openi_directory / "png" / "CXR1900_IM-0584-1001.png").convert("L"))
    for window in ({}, {"WindowCenter": 128, "WindowWidth": 256}):
        for elements in (
            {"photometric": "MONOCHROME1"},
            {"photometric": "MONOCHROME2", "PresentationLUTShape": "INVERSE"},
        ):
            data = dicom.build(
                film, bits=8, BodyPartExamined="CHEST", ViewPosition="PA", **elements, **window
            )
            assert note_image(load_radiograph(data, size=224)).warnings == (NEGATIVE,)
        data = dicom.build(film, bits=8, BodyPartExamined="CHEST", ViewPosition="PA", **window)
        assert note_image(load_radiograph(data, size=224)).warnings == ()
        data = dicom.build(255 - film, bits=8, photometric="MONOCHROME1", ViewPosition="PA", **window)
        assert note_image(load_radiograph(data, size=224)).warnings == ()


def test_a_negative_has_the_sum_with_the_other_sign(real_radiographs):
    image = crop_borders(load_radiograph(real_radiographs[0].read_bytes(), size=224).pixels[0])
    found = measure_polarity(image)
    assert found > 1 > NEGATIVE_LIMIT
    assert measure_polarity(255 - image) == pytest.approx(-found, abs=0.05)


def test_a_level_image_has_no_polarity():
    assert measure_polarity(np.full((40, 30), 99, np.uint8)) == 0
