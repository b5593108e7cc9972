"""The preprocessing steps over several images of one study."""

import numpy as np
import pytest

from contract.errors import ImageError, TensorError
from contract.image.read import load_pixels
from contract.notes import ImageNotes
from contract.steps import open_step, pack, read_study

CONFIG = {"parameters": {"image_size": {"string_value": "32"}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_step("preprocess_image", CONFIG, tmp_path_factory.mktemp("version"))


def make_files(*studies: list[bytes]) -> dict[str, np.ndarray]:
    return {"image_bytes": np.array(studies, dtype=np.object_)}


def test_each_image_of_each_study_is_read_in_its_place(run, chest_files):
    frontal, lateral, hand = (chest_files[name] for name in ("frontal", "lateral", "hand"))
    made = run(make_files([frontal, lateral], [hand, frontal]), ())
    assert made["pixels"].shape == (2, 2, 32, 32)
    assert made["pixels"].dtype == np.uint8
    for place, data in {(0, 0): frontal, (0, 1): lateral, (1, 0): hand, (1, 1): frontal}.items():
        np.testing.assert_array_equal(made["pixels"][place], load_pixels(data, size=32)[0])
    notes = [[ImageNotes.from_json(entry) for entry in row] for row in made["image_notes"]]
    assert [[note.view for note in row] for row in notes] == [["PA", "LATERAL"], ["PA", "PA"]]
    assert [[len(note.warnings) for note in row] for row in notes] == [[0, 0], [1, 0]]


def test_a_lateral_is_warned_of_where_it_comes_first(run, chest_files):
    for files, counts in (
        (["lateral"], [1]),
        (["lateral", "frontal"], [1, 0]),
        (["frontal", "lateral"], [0, 0]),
    ):
        made = run(make_files([chest_files[name] for name in files]), ("image_notes",))
        assert list(made) == ["image_notes"]
        assert [len(ImageNotes.from_json(entry).warnings) for entry in made["image_notes"][0]] == counts


def test_one_image_is_read_as_before(run, chest_files):
    made = run({"image_bytes": pack([chest_files["frontal"], chest_files["hand"]])}, ())
    assert made["pixels"].shape == (2, 1, 32, 32)
    assert made["image_notes"].shape == (2, 1)


@pytest.mark.parametrize("shape", [(1, 0), (1, 5), (2, 5), (1,), (1, 1, 1)])
def test_none_and_too_many_are_refused(run, shape):
    files = np.full(shape, b"no image", dtype=np.object_)
    with pytest.raises(TensorError, match="must hold 1 to 4 images of each study"):
        run({"image_bytes": files}, ())


def test_an_image_that_cannot_be_read_is_named(run, chest_files):
    with pytest.raises(ImageError, match=r"^Image 2 of 3: The"):
        run(make_files([chest_files["frontal"], b"MRN-4711 no image", b""]), ())
    with pytest.raises(ImageError) as alone:
        read_study([b"MRN-4711 no image"], size=32)
    assert "4711" not in str(alone.value)
    assert "Image 1" not in str(alone.value)
