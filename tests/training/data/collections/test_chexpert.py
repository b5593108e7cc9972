import pytest

from contract.errors import InputError
from contract.labels import LABEL_KEYS
from training.data.collections.table import build_collection_table

HEAD = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)
ROOT = "CheXpert-v1.0-small"
# Cardiomegaly uncertain, no edema, pneumonia, effusion denied, pleural other not mentioned; two views.
LABELS = ",,-1.0,,,0.0,,1.0,,,0.0,,,"
TRAIN = (
    f"{ROOT}/train/patient90001/study1/view1_frontal.jpg,Female,68,Frontal,AP,{LABELS}\n"
    f"{ROOT}/train/patient90002/study1/view1_frontal.jpg,Male,87,Frontal,PA,1.0,,,,,,,,,,,,,1.0\n"
    f"{ROOT}/train/patient90001/study1/view2_lateral.jpg,Female,68,Lateral,,{LABELS}\n"
    f"{ROOT}/train/patient90003/study2/view1_frontal.jpg,Male,50,Frontal,AP,1.0,,,,,,,,,,,,,\n"
    f"{ROOT}/train/patient90004/study2/view1_frontal.jpg,Male,50,Frontal,AP,,,,,1.0,,,,,,,,,\n"
    f"{ROOT}/train/patient90005/study2/view1_frontal.jpg,Male,50,Frontal,AP,,,,,,,,,,,,,,\n"
)
VALUES = ",".join(["0.0", *["1.0"] * 3, *["0.0"] * 10])
VALID = f"{ROOT}/valid/patient99001/study1/view1_frontal.jpg,Male,73,Frontal,AP,{VALUES}\n"


def know(row):
    """Return what is there, and what is not."""
    if not row["labelled"]:
        return set(), set()
    return set(row["labels"]), set(LABEL_KEYS) - set(row["labels"]) - set(row["unknown_labels"])


@pytest.fixture
def source(write_files):
    return write_files({"train.csv": HEAD + TRAIN, "valid.csv": HEAD + VALID})


def test_all_views_of_a_study_and_what_is_said_of_it(source, read_rows, draw_images):
    image = "CheXpert-v1.0/train/patient90001/study1"
    images = draw_images(
        f"{image}/view1_frontal.jpg", f"{image}/view2_lateral.jpg", f"{image}/view3_frontal.jpg"
    )
    rows = read_rows(source, "chexpert", images)
    assert list(rows) == [
        *(f"patient9000{number}_study{1 + (number > 2)}" for number in range(1, 6)),
        "patient99001_study1",
    ]
    first = rows["patient90001_study1"]
    assert first["views"] == ["AP", "LATERAL"]
    assert [name.split("/")[-1] for name in first["image_ids"]] == ["view1_frontal", "view2_lateral"]
    assert [row["split"] for row in rows.values()] == ["train"] * 5 + ["validation"]
    assert first["patient_id"] == "patient90001"


def test_uncertain_and_not_mentioned_are_unknown(source, read_rows):
    rows = read_rows(source, "chexpert")
    assert know(rows["patient90001_study1"]) == ({"infection"}, {"pleural", "normal"})
    denied = {
        *(
            "cardiac",
            "infection",
            "atelectasis",
            "air_leak",
            "pleural",
            "msk_trauma",
            "malignancy",
            "nodule_cyst",
        ),
    }
    assert know(rows["patient90003_study2"]) == ({"normal"}, denied)
    assert know(rows["patient90002_study1"]) == (
        {"miscellaneous"},
        denied | {"normal"},
    )  # devices are not normal
    assert know(rows["patient90004_study2"]) == (set(), set())  # a lesion: a nodule or a mass
    assert not rows["patient90004_study2"]["labelled"]
    assert not rows["patient90005_study2"]["labelled"]
    assert know(rows["patient99001_study1"]) == (
        {"cardiac", "general_radiographic"},
        (denied - {"cardiac"}) | {"normal"},
    )


def test_one_file_is_the_part_that_it_is_named_after(source, read_rows, write_files):
    assert {row["split"] for row in read_rows(source / "valid.csv", "chexpert").values()} == {"validation"}
    other = write_files({"some.csv": HEAD + TRAIN})
    assert {row["split"] for row in read_rows(other / "some.csv", "chexpert").values()} == {None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("68,Frontal,AP,,,-1.0", "68,Frontal,AP,,,2.0"),
            r"line 2, column 'Cardiomegaly' holds '2\.0' instead of 1, 0, -1",
        ),
        (
            ("68,Lateral,,,,-1.0", "68,Lateral,,,,1.0"),
            "line 4, column 'Path' names a study whose other images have other",
        ),
        (
            ("view2_lateral.jpg,Female,68,Lateral", "view1_frontal.jpg,Female,68,Frontal"),
            "line 4, column 'Path' names an im",
        ),
        (
            ("68,Lateral", "68,Frontal"),
            "line 4, column 'Frontal/Lateral' is 'Frontal', while the file is named view2_lat",
        ),
        (("train/patient90002/", "train/"), r"line 3, column 'Path' is not like \.\.\./patient00001/study1"),
        ((",Fracture", ""), "line 1: there is no column 'Fracture'"),
    ],
)
def test_a_row_that_is_not_as_published(change, message, write_files):
    assert change[0] in HEAD + TRAIN
    source = write_files({"train.csv": (HEAD + TRAIN).replace(*change)})
    with pytest.raises(InputError, match=message):
        build_collection_table(source, "chexpert", None)


def test_a_directory_without_the_training_part(write_files):
    with pytest.raises(InputError, match=r"holds no file train\.csv"):
        build_collection_table(write_files({"valid.csv": HEAD + VALID}), "chexpert", None)
