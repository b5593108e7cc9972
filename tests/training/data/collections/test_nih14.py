"""ChestX-ray14's files: made-up ids in the published layout, and the real rows of 670 images."""

import pytest

from contract.errors import ConfigError, InputError
from contract.labels import LABEL_KEYS
from training.data.collections.table import build_collection_table
from training.data.openi import read_collection, read_table, write_table

# Data_Entry_2017.csv as first published: the brackets split two columns, and every line ends with a comma.
OLD_HEAD = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
NEW_HEAD = OLD_HEAD.replace("y],\n", "y]\n")
BOX_HEAD = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
END = ",M,PA,2500,2048,0.17,0.17"
ROWS = (
    f"00090001_000.png,Cardiomegaly|Hernia,0,90001,058Y{END},\n"
    f"00090001_001.png,No Finding,1,90001,058Y{END},\n"
    f"00090002_000.png,Mass,0,90002,034Y{END.replace('PA', 'AP')},\n"
)
LISTS = {"train_val_list.txt": "00090001_000.png\n00090001_001.png\n", "test_list.txt": "00090002_000.png\n"}
NEVER = {
    *("general_radiographic", "general_disease", "aortic_vascular", "pulmonary_vascular", "granulomatous"),
    *("lymphadenopathy", "msk_trauma", "msk_degenerative", "msk_other", "abdominal_gi", "miscellaneous"),
}


def test_studies_of_the_published_file(write_files, read_rows, draw_images):
    source = write_files({"Data_Entry_2017.csv": OLD_HEAD + ROWS})
    rows = read_rows(source, "nih14", draw_images("a/00090001_000.png", "b/00090002_000.jpg"))
    first, second, third = rows.values()
    assert list(rows) == ["00090001_000", "00090001_001", "00090002_000"]
    assert [row["patient_id"] for row in rows.values()] == ["90001", "90001", "90002"]
    assert first["labels"] == ["cardiac", "hernia_diaphragm"]
    assert set(first["unknown_labels"]) == NEVER
    assert set(third["unknown_labels"]) == NEVER | {
        "hernia_diaphragm"
    }  # a hernia that is not named denies nothing
    assert second["labels"] == ["normal"]
    assert [row["views"] for row in rows.values()] == [["PA"], [], ["AP"]]
    assert first["image_paths"][0].endswith("a/00090001_000.png")
    assert third["headers"][0]["format"] == "PNG"
    assert [row["split"] for row in rows.values()] == [None] * 3


def test_the_published_split_and_boxes(write_files, read_rows):
    boxes = (
        BOX_HEAD
        + "00090001_000.png,Cardiomegaly,337.9,509.6,417.6,403.5,,,\n00090009_000.png,Infiltrate,1,2,3,4\n"
    )
    source = write_files({"Data_Entry_2017_v2020.csv": NEW_HEAD + ROWS, "BBox_List_2017.csv": boxes, **LISTS})
    rows = read_rows(source / "Data_Entry_2017_v2020.csv", "nih14")
    assert [row["split"] for row in rows.values()] == ["train", "train", "test"]
    assert [len(row["boxes"]) for row in rows.values()] == [1, 0, 0]
    assert rows["00090001_000"]["boxes"][0] == {
        "image_id": "00090001_000",
        "label": "Cardiomegaly",
        "category": "cardiac",
        "reader": None,
        **{"x": 337.9, "y": 509.6, "width": 417.6, "height": 403.5},
        **{"image_width": 1024, "image_height": 1024},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("Mass", "Masses"), r"line 4, column 'Finding Labels' names 'Masses', which is none"),
        (
            ("No Finding", "No Finding|Mass"),
            "line 3, column 'Finding Labels' names 'No Finding' beside a finding",
        ),
        (("|Hernia", "|"), "line 2, column 'Finding Labels' names ''"),
        (
            (",90002,", ",90003,"),
            "line 4, column 'Patient ID' is not the number that the image's name begins with",
        ),
        ((",90002,", ",,"), "line 4, column 'Patient ID' is empty"),
        (("00090001_001", "00090001_000"), "names a study twice"),
        (("Finding Labels", "Findings"), "line 1: there is no column 'Finding Labels'"),
        (("1,90001,058Y", "1,90001"), "line 3, column 'View Position' is '2500' instead of PA or AP"),
    ],
)
def test_a_row_that_is_not_as_published(change, message, write_files):
    source = write_files({"Data_Entry_2017.csv": (OLD_HEAD + ROWS).replace(*change)})
    with pytest.raises(InputError, match=message):
        build_collection_table(source, "nih14", None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"BBox_List_2017.csv": BOX_HEAD + "a.png,Cardiomegaly,1,2,0,4\n"},
            r"line 2, column 'w' is not the edge",
        ),
        (
            {"BBox_List_2017.csv": BOX_HEAD + "a.png,Cardiomegaly,1,x,3,4\n"},
            r"column 'y' is not a number: 'x'",
        ),
        ({"BBox_List_2017.csv": BOX_HEAD + "a.png,Heart,1,2,3,4\n"}, r"column 'Finding Label' names 'Heart'"),
        ({"BBox_List_2017.csv": "Image Index,Finding Label,a,b,c,d\n"}, r"are not Bbox \[x,y,w,h\]"),
        ({**LISTS, "test_list.txt": ""}, "line 4, column 'Image Index' names an image that neither"),
        (
            {**LISTS, "test_list.txt": "00090001_000.png\n"},
            r"test_list\.txt, line 1: the image is in a list",
        ),
        ({"Data_Entry_2017_v2020.csv": NEW_HEAD}, "several label files"),
    ],
)
def test_a_file_beside_it_that_is_not_as_published(files, message, write_files):
    source = write_files({"Data_Entry_2017.csv": OLD_HEAD + ROWS, **files})
    with pytest.raises(InputError, match=message):
        build_collection_table(source, "nih14", None)


def test_sources_without_studies(write_files, tmp_path, draw_images):
    with pytest.raises(InputError, match="There is no "):
        build_collection_table(tmp_path / "none", "nih14", None)
    with pytest.raises(InputError, match=r"holds no file Data_Entry_2017\*\.csv"):
        build_collection_table(tmp_path, "nih14", None)
    source = write_files({"Data_Entry_2017.csv": OLD_HEAD})
    with pytest.raises(ConfigError, match="names no study"):
        build_collection_table(source, "nih14", None)
    source = write_files({"Data_Entry_2017.csv": OLD_HEAD + ROWS})
    with pytest.raises(ConfigError, match=r"None of 3 images .* 00090001_000 is searched by its name"):
        build_collection_table(source, "nih14", draw_images("other.png"))


def test_the_real_files(nih14_directory, tmp_path):
    counts, path = [], tmp_path / "studies.parquet"
    table = build_collection_table(
        nih14_directory, "nih14", nih14_directory / "images", on_images=counts.append
    )
    write_table(table, path)
    assert read_table(path).equals(table)
    assert read_collection(path) == "nih14"
    rows = table.to_pylist()
    assert (len(rows), len({row["patient_id"] for row in rows})) == (670, 453)
    assert (counts[0].named, counts[0].found) == (670, 670)
    assert sum(len(row["boxes"]) for row in rows) == 35
    assert sum(row["labels"] == ["normal"] for row in rows) == 318
    # Each row's categories anew, from the words of the file alone.
    published = (nih14_directory / "Data_Entry_2017_v2020.csv").read_text().splitlines()[1:]
    words = {
        "Effusion": "pleural",
        "Pleural_Thickening": "pleural",
        "Nodule": "nodule_cyst",
        "Fibrosis": "fibrosis_ild",
    }
    for line, row in zip(published, rows, strict=True):
        findings = line.split(",")[1].split("|")
        assert {words[name] for name in findings if name in words} == set(row["labels"]) & set(words.values())
        assert set(row["unknown_labels"]) == NEVER | ({"hernia_diaphragm"} - set(row["labels"]))
        assert set(row["labels"]) | set(row["unknown_labels"]) < set(LABEL_KEYS)
