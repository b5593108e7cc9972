import pytest

from contract.errors import InputError
from contract.labels import LABEL_KEYS
from training.data.collections.table import build_collection_table

NAME = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEAD = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Report,MethodLabel,Labels,Localizations\n"
)


def image(number, study, labels, *, patient="8001", projection="PA"):
    return (
        f"{number},img{number}.png,0,20140915,{study},{patient},1930.0,M,POSTEROANTERIOR,{projection},"
        f'Manual review of DICOM fields,No,sin hallazg .,Physician,"{labels}","[]"\n'
    )


ROWS = (
    image(0, "9001", "['pleural effusion', ' cardiomegaly', '', 'unchanged']")
    + image(1, "9002", "['normal']", patient="8002")
    + image(2, "9001", "['pleural effusion', 'scoliosis']", projection="L")
    + image(3, "9003", "['unchanged']")
    + image(4, "9004", "['exclude', 'copd signs']", projection="EXCLUDE")
    + image(5, "9005", "nan")
    + image(6, "9006", "['COPD signs', 'suboptimal study']", projection="AP_horizontal")
)


def test_studies_of_the_published_file(write_files, read_rows, draw_images):
    source = write_files({NAME: HEAD + ROWS})
    rows = read_rows(source, "padchest", draw_images(*(f"0/img{number}.png" for number in range(7))))
    assert rows["9001"]["labels"] == ["cardiac", "msk_other", "pleural"]
    assert rows["9001"]["unknown_labels"] == ["general_disease"]
    assert rows["9001"]["views"] == ["PA", "LATERAL"]
    assert rows["9002"]["labels"] == ["normal"]
    assert [rows[name]["labelled"] for name in ("9003", "9004", "9005", "9006")] == [
        False,
        False,
        False,
        True,
    ]
    assert rows["9004"]["image_ids"] == []
    assert (rows["9006"]["labels"], rows["9006"]["views"]) == (["copd_emphysema"], ["AP"])
    assert {row["findings"] for row in rows.values()} == {""}
    assert set(rows["9006"]["unknown_labels"]) < set(LABEL_KEYS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("'normal'", "'healthy'"), "line 3, column 'Labels' names 'healthy', which is none"),
        (("['normal']", "normal"), "line 3, column 'Labels' is not a list of labels"),
        (("['normal']", "[1]"), "line 3, column 'Labels' is not a list of labels"),
        (("['normal']", "[open('x')]"), "line 3, column 'Labels' is not a list of labels"),
        (
            ("9001,8001,1930.0,M,POSTEROANTERIOR,L", "9001,8009,1930.0,M,X,L"),
            "line 4, column 'PatientID' differs",
        ),
        (("9002,8002", ",8002"), "line 3, column 'StudyID' is empty"),
        (("Projection,M", "Projektion,M"), "line 1: there is no column 'Projection'"),
    ],
)
def test_a_row_that_is_not_as_published(change, message, write_files):
    assert change[0] in HEAD + ROWS
    source = write_files({NAME: (HEAD + ROWS).replace(*change)})
    with pytest.raises(InputError, match=message):
        build_collection_table(source / NAME, "padchest", None)
