"""Labels and persons that the names of folders and files tell."""

import logging
import tarfile

import pytest

from contract.errors import InputError
from contract.labels import LABEL_KEYS
from training.data.collections.table import build_collection_table

FILES = {
    "train/NORMAL/IM-0115-0001.jpeg": "a",
    "train/NORMAL/NORMAL2-IM-0115-0001-0002.jpeg": "b",
    "train/NORMAL/._IM-0115-0001.jpeg": "what an archiver leaves",
    "train/PNEUMONIA/person1_bacteria_2.jpeg": "c",
    "test/PNEUMONIA/person1_virus_6.jpeg": "d",
    "test/PNEUMONIA/person7_virus_9.jpeg": "e",
    "test/other/person9_virus_9.jpeg": "f",
}


def test_folder_and_name_tell_the_label_and_the_person(write_files, read_rows):
    rows = read_rows(write_files(FILES), "kermany")
    assert {name: row["labels"] for name, row in rows.items()} == {
        "IM-0115-0001": ["normal"],
        "NORMAL2-IM-0115-0001-0002": ["normal"],
        "person1_bacteria_2": ["infection"],
        "person1_virus_6": ["infection"],
        "person7_virus_9": ["infection"],
    }
    assert [row["patient_id"] for row in rows.values()] == [*["IM-0115"] * 2, *["person1"] * 2, "person7"]
    for row in rows.values():
        assert set(row["unknown_labels"]) == set(LABEL_KEYS) - {"normal", "infection"}
        assert row["split"] is None  # one person stands in both published parts


def test_images_are_found_by_their_names(write_files, draw_images, read_rows):
    rows = read_rows(write_files(FILES), "kermany", draw_images("deep/person1_virus_6.jpeg"))
    assert [name for name, row in rows.items() if row["image_paths"]] == ["person1_virus_6"]
    assert rows["person1_virus_6"]["views"] == ["AP"]


def test_equal_files_are_read_once_and_counted(write_files, read_rows, caplog):
    files = {**FILES, "train/PNEUMONIA/person1_bacteria_1.jpeg": "c", "test/NORMAL/IM-0116-0001.jpeg": "a"}
    with caplog.at_level(logging.WARNING):
        rows = read_rows(write_files(files), "kermany")
    assert set(rows) >= {"person1_bacteria_1", "IM-0115-0001"}
    assert not {"person1_bacteria_2", "IM-0116-0001"} & set(rows)
    assert "Left out 2 images" in caplog.text


def test_another_directory_is_refused(write_files):
    with pytest.raises(InputError, match="holds no images in folders named NORMAL and PNEUMONIA"):
        build_collection_table(write_files({"train/a.jpeg": "a", "NORMAL/b.txt": "b"}), "kermany", None)


@pytest.mark.parametrize("name", ["NORMAL/person1_virus_2.jpeg", "PNEUMONIA/person1_fungus_2.jpeg"])
def test_an_unknown_name_is_refused(write_files, name):
    with pytest.raises(InputError, match=rf"{name} is not named as the published images of"):
        build_collection_table(write_files({**FILES, name: "g"}), "kermany", None)


@pytest.mark.slow
def test_the_real_files(kermany_archive, tmp_path):
    with tarfile.open(kermany_archive) as archive:
        archive.extractall(tmp_path, filter="data")
    rows = build_collection_table(tmp_path, "kermany", tmp_path).to_pylist()
    assert len(rows) == 5840 - 32
    assert len({row["patient_id"] for row in rows}) == 2774
    assert all(row["image_paths"] and row["labelled"] for row in rows)
    folders = {True: "/NORMAL/", False: "/PNEUMONIA/"}
    assert all(folders[row["labels"] == ["normal"]] in row["image_paths"][0] for row in rows)
