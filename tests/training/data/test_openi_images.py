"""Images joined to reports: names, views and headers."""

import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from contract.errors import ConfigError, InputError
from contract.image.header import read_image_header
from training.data import openi
from training.data.openi import (
    SCHEMA,
    build_table,
    find_images,
    get_image_key,
    read_collection,
    read_table,
    write_table,
)


def make_dicom(view="", side=8) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    dataset.Modality, dataset.PhotometricInterpretation, dataset.ViewPosition = "CR", "MONOCHROME2", view
    dataset.Rows = dataset.Columns = side
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = np.zeros((side, side), np.uint16).tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def make_png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("CXR12_IM-0034-1001", "12_IM-0034-1001"),
        ("12_IM-0034-1001.dcm", "12_IM-0034-1001"),
        ("12_IM-0034-1001.dcm.png", "12_IM-0034-1001"),
        ("CXR12_IM-0034-1001.PNG", "12_IM-0034-1001"),
        ("12_IM-0034-1001.jpeg", "12_IM-0034-1001"),
        ("CXR1_1_IM-0001-3001", "1_IM-0001-3001"),
        ("1_IM-0001-3001.dcm", "1_IM-0001-3001"),
        ("CXR1021_IM-0017-1001-0001", "1021_IM-0017-1001-0001"),
        ("CXR1_11_IM-0001-3001", "1_11_IM-0001-3001"),
        ("", ""),
    ],
)
def test_image_key(name, key):
    assert get_image_key(name) == key


image_numbers = st.lists(st.integers(1, 9999), min_size=3, max_size=4)


@settings(deadline=None)
@given(image_numbers, image_numbers)
def test_names_of_one_image_agree_and_those_of_two_differ(first, second):
    def list_names(numbers):
        name = f"{numbers[0]}_IM-" + "-".join(f"{number:04d}" for number in numbers[1:])
        return [f"CXR{name}", f"{name}.dcm", f"{name}.dcm.png", f"CXR{name}.png", f"CXR{numbers[0]}_{name}"]

    keys = [{get_image_key(name) for name in list_names(numbers)} for numbers in (first, second)]
    assert len(keys[0]) == len(keys[1]) == 1
    assert (keys[0] == keys[1]) == (first == second)


@pytest.fixture
def images(tmp_path):
    """Five views of one study, two of them in two formats, and one of another study."""
    names = {
        "z/7_IM-0001-1001.dcm": make_dicom("LL", side=300),  # longer than the part that is read
        "a/CXR7_IM-0001-1001.png": make_png(),
        "a/7_IM-0001-2001.dcm.png": make_png(),
        "0/7_IM-0001-3001.png": make_png(),
        "a/7_IM-0001-3001.DCM": make_dicom("AP"),
        "a/7_IM-0001-4001.dcm": make_dicom("PA"),
        "a/7_IM-0001-5001.dcm": make_dicom("PA"),
        "a/70_IM-0001-1001.dcm": make_dicom("PA"),
        "a/7_IM-0001-6001.txt": b"",
    }
    for name, data in names.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "images" / "7_IM-0001-7001.png").mkdir()
    return tmp_path / "images"


def test_dicom_goes_before_png(images):
    found = find_images(images)
    assert found["7_IM-0001-1001"] == images / "z" / "7_IM-0001-1001.dcm"
    assert found["7_IM-0001-3001"] == images / "a" / "7_IM-0001-3001.DCM"
    assert found["7_IM-0001-2001"] == images / "a" / "7_IM-0001-2001.dcm.png"
    assert len(found) == 6


def test_images_are_joined_frontal_first(images, reports):
    seen = []
    table = build_table(reports, images, lambda done, total: seen.append((done, total)))
    row, other = table.to_pylist()
    assert row["views"] == ["PA", "PA", "AP", "UNKNOWN", "LATERAL"]
    assert row["image_ids"] == [f"CXR7_IM-0001-{number}001" for number in (4, 5, 3, 2, 1)]
    assert row["image_paths"][0] == str(images / "a" / "7_IM-0001-4001.dcm")
    assert row["image_paths"][-1] == str(images / "z" / "7_IM-0001-1001.dcm")
    assert other["image_ids"] == other["image_paths"] == other["views"] == other["headers"] == []
    assert seen == [(2, 2), (2, 2)]


def test_every_image_has_its_header(images, reports, tmp_path):
    """The header stands in the same place as its image, and survives the file."""
    write_table(build_table(reports, images), tmp_path / "studies.parquet")
    row, _ = read_table(tmp_path / "studies.parquet").to_pylist()
    assert len(row["headers"]) == len(row["image_paths"]) == 5
    for path, view, found in zip(row["image_paths"], row["views"], row["headers"], strict=True):
        header = asdict(read_image_header(Path(path).read_bytes()))
        assert view == header["view"]
        # What the view was told from is not kept, and the other images of the study have a say in it.
        assert set(header) - set(found) == {"view", "clues"}
        assert found["view_source"].startswith(header["view_source"])
        same = set(found) - {"view_confidence", "view_source"}
        assert {name: found[name] for name in same} == {name: header[name] for name in same}
    lateral, picture = row["headers"][4], row["headers"][3]
    assert (lateral["modality"], lateral["photometric"], lateral["bits"]) == ("CR", "MONOCHROME2", 12)
    assert (lateral["rows"], lateral["columns"], lateral["window"], lateral["voi_lut"]) == (
        300,
        300,
        False,
        False,
    )
    assert lateral["syntax"] == ExplicitVRLittleEndian
    assert (picture["format"], picture["bits"], picture["photometric"]) == ("PNG", 8, "")


def test_table_without_images(reports):
    table = build_table(reports, None)
    assert table.schema == SCHEMA
    assert table["study_id"].to_pylist() == ["CXR7", "CXR8"]
    assert table["image_ids"].to_pylist() == [[], []]
    assert table["labels"].to_pylist() == [["normal"], ["normal"]]
    assert table["findings"].to_pylist() == ["Clear.", "Clear."]


def test_paths_of_a_table_do_not_depend_on_where_it_is_read(images, reports, monkeypatch):
    monkeypatch.chdir(images.parent)
    row = build_table(reports, Path("images")).to_pylist()[0]
    assert row["image_paths"] == build_table(reports, images).to_pylist()[0]["image_paths"]


def test_missing_image_directory(reports, tmp_path):
    with pytest.raises(ConfigError, match="no image directory"):
        build_table(reports, tmp_path / "missing")


def test_a_damaged_image_has_an_unknown_view(images, reports):
    path = images / "a" / "7_IM-0001-4001.dcm"
    for data in (b"", b"MRN-4711", path.read_bytes()[:150]):
        path.write_bytes(data)
        row = build_table(reports, images).to_pylist()[0]
        assert row["views"] == ["PA", "AP", "UNKNOWN", "UNKNOWN", "LATERAL"]
        assert row["headers"][3]["format"] == ""
        assert row["headers"][0]["format"] == "DICOM"


def test_an_image_that_cannot_be_opened_is_named(images, reports, monkeypatch, check_sentence):
    gone = images / "gone.dcm"
    monkeypatch.setattr(openi, "find_images", lambda directory: {"7_IM-0001-1001": gone})
    with pytest.raises(InputError, match=r"gone\.dcm cannot be read: No such file") as info:
        build_table(reports, images)
    check_sentence(info)


def title(name: str) -> bytes:
    return (
        f'<eCitation><uId id="CXR1"/><title>{name}</title><Abstract/><MeSH><major>normal</major></MeSH></eCitation>'
    ).encode()


@pytest.mark.parametrize(
    ("titles", "collection"),
    [
        (["Phantom Chest X-ray Collection"], "phantom"),
        (["Indiana University Chest X-ray Collection"], "openi"),
        (["Indiana University Chest X-ray Collection", "Phantom Chest X-ray Collection"], None),
        (["A lab's own"], None),
        (["Indiana University Chest X-ray Collection", ""], None),
    ],
)
def test_table_says_which_collection_it_is_of(tmp_path, titles, collection):
    for number, name in enumerate(titles, start=1):
        (tmp_path / f"{number}.xml").write_bytes(title(name).replace(b"CXR1", f"CXR{number}".encode()))
    write_table(build_table(tmp_path, None), tmp_path / "studies.parquet")
    assert read_collection(tmp_path / "studies.parquet") == collection
