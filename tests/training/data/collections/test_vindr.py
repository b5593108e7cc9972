import pytest

from contract.errors import InputError
from training.data.collections.table import build_collection_table

LABELS = (
    *(
        "Aortic enlargement",
        "Atelectasis",
        "Calcification",
        "Cardiomegaly",
        "Clavicle fracture",
        "Consolidation",
    ),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *(
        "Pulmonary fibrosis",
        "Rib fracture",
        "Other lesion",
        "COPD",
        "Lung tumor",
        "Pneumonia",
        "Tuberculosis",
    ),
    *("Other diseases", "No finding"),
)
BOXES = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"


def vote(*there, end=""):
    return ",".join(f"{int(label in there)}{end}" for label in LABELS)


TRAIN = "image_id,rad_id," + ",".join(LABELS) + "\n"
TRAIN += "".join(
    f"a1,R{number},{vote('Cardiomegaly', *more)}\n" for number, more in enumerate([(), (), ("ILD",)])
)
TRAIN += "".join(f"a2,R{number},{vote('No finding', end='.0')}\n" for number in (7, 8, 9))
TEST = (
    "image_id,"
    + ",".join(LABELS).replace("Other diseases", "Other disease")
    + f"\nb1,{vote('Nodule/Mass')}\n"
)
FILES = {
    "image_labels_train.csv": TRAIN,
    "image_labels_test.csv": TEST,
    "annotations_train.csv": BOXES
    + "a1,R1,Cardiomegaly,691.5,1375.25,1653.5,1831.75\na2,R7,No finding,,,,\n",
    "annotations_test.csv": "image_id,class_name,x_min,y_min,x_max,y_max\nb1,Nodule/Mass,10,20,30,45\n",
}


@pytest.mark.parametrize("folder", ["", "annotations/"])
def test_votes_and_boxes(folder, write_files, read_rows, chest_files, tmp_path):
    source = write_files({folder + name: text for name, text in FILES.items()})
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a1.dicom").write_bytes(chest_files["frontal"])
    rows = read_rows(source, "vindr", tmp_path / "train")
    first, clear, test = rows["a1"], rows["a2"], rows["b1"]
    assert first["labels"] == ["cardiac"]
    assert "fibrosis_ild" in first["unknown_labels"]  # one of three readers
    assert "pleural" not in first["unknown_labels"]
    assert clear["labels"] == ["normal"]
    assert test["labels"] == []
    assert {"malignancy", "nodule_cyst"} < set(test["unknown_labels"])
    assert "normal" not in test["unknown_labels"]
    assert [row["split"] for row in rows.values()] == ["train", "train", "test"]
    [box] = first["boxes"]
    assert (box["label"], box["category"], box["reader"]) == ("Cardiomegaly", "cardiac", "R1")
    assert (box["x"], box["y"], box["width"], box["height"]) == (691.5, 1375.25, 962.0, 456.5)
    header = first["headers"][0]
    assert (box["image_width"], box["image_height"]) == (header["columns"], header["rows"])
    assert clear["boxes"] == []
    assert [(box["category"], box["reader"], box["image_width"]) for box in test["boxes"]] == [
        (None, None, None)
    ]


def test_either_part_alone(write_files, read_rows):
    source = write_files({"image_labels_test.csv": TEST})
    assert list(read_rows(source, "vindr")) == ["b1"]
    (source / "nothing").mkdir()
    with pytest.raises(InputError, match=r"holds neither image_labels_train\.csv nor image_labels_test\.csv"):
        build_collection_table(source / "nothing", "vindr", None)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "image_labels_train.csv",
            ("a1,R1,0", "a1,R1,2"),
            "line 3, column 'Aortic enlargement' holds '2' instead of 0 or 1",
        ),
        (
            "image_labels_train.csv",
            ("a1,R1", "a1,R0"),
            "line 3, column 'rad_id' is in an earlier row for this image already",
        ),
        ("image_labels_train.csv", (",COPD", ",Copd"), "line 1: there is no column 'COPD'"),
        ("image_labels_test.csv", ("b1", "a1"), "names a study twice"),
        (
            "annotations_train.csv",
            ("1653.5", "600"),
            "line 2, column 'x_max' is not the edge of a box: '600'",
        ),
        ("annotations_train.csv", ("1375.25", ""), "line 2, column 'y_min' is not a number"),
        (
            "annotations_train.csv",
            ("R1,Cardiomegaly", "R1,Heart"),
            "line 2, column 'class_name' names 'Heart'",
        ),
    ],
)
def test_a_row_that_is_not_as_published(name, change, message, write_files):
    assert change[0] in FILES[name]
    source = write_files({**FILES, name: FILES[name].replace(change[0], change[1], 1)})
    with pytest.raises(InputError, match=message):
        build_collection_table(source, "vindr", None)
