import gzip
import zipfile

import pytest

from contract.errors import InputError
from training.data.collections.table import build_collection_table

LABELS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
META = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning\n"
)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with ?pleural effusion

 FINDINGS:

 There is a small effusion, as described to ___.
 The heart is normal.

 IMPRESSION:

 Small effusion.
"""


def image(name, patient, study, view):
    return f'{name},{patient},{study},"CHEST (PA AND LAT)",{view},3056,2544,21800506,213014.53,,,Erect\n'


FILES = {
    "mimic-cxr-2.0.0-chexpert.csv": f"subject_id,study_id,{LABELS}\n19990001,59990001,1.0,,,,,,,,,0.0,,-1.0,,\n",
    "mimic-cxr-2.0.0-metadata.csv": META
    + image("aaaaaaaa-1", 19990001, 59990001, "LATERAL")
    + image("bbbbbbbb-2", 19990001, 59990001, "PA")
    + image("cccccccc-3", 19990002, 59990002, ""),
    "mimic-cxr-2.0.0-split.csv": "dicom_id,study_id,subject_id,split\n"
    "aaaaaaaa-1,59990001,19990001,train\nbbbbbbbb-2,59990001,19990001,train\ncccccccc-3,59990002,19990002,validate\n",
}
REPORT_NAME = "files/p19/p19990001/s59990001.txt"


def test_tables_reports_and_images_together(write_files, read_rows, draw_images):
    source = write_files({**FILES, REPORT_NAME: REPORT})
    images = draw_images("files/p19/p19990001/s59990001/aaaaaaaa-1.jpg", "x/bbbbbbbb-2.jpg")
    rows = read_rows(source, "mimic-cxr", images)
    first, second = rows["s59990001"], rows["s59990002"]
    assert (first["patient_id"], first["split"], first["views"]) == ("p19990001", "train", ["PA", "LATERAL"])
    assert first["labels"] == ["atelectasis"]
    assert not {"pleural", "normal"} & set(first["unknown_labels"])
    assert {"infection", "cardiac", "air_leak"} < set(first["unknown_labels"])
    assert first["findings"] == "There is a small effusion, as described to XXXX. The heart is normal."
    assert first["impression"] == "Small effusion."
    assert first["indication"].startswith("XXXX year old woman")
    assert (second["labelled"], second["split"], second["findings"]) == (False, "validation", "")


def test_packed_tables_and_an_archive_of_reports(write_files, read_rows):
    source = write_files(FILES)
    for name, text in FILES.items():
        (source / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        (source / name).unlink()
    with zipfile.ZipFile(source / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr(REPORT_NAME, REPORT)
    rows = read_rows(source, "mimic-cxr")
    assert rows["s59990001"]["impression"] == "Small effusion."


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "split",
            ("cccccccc-3,59990002,19990002,validate", "c,59990002,19990002,dev"),
            r"line 4, column 'split' is 'dev'",
        ),
        (
            "split",
            ("bbbbbbbb-2,59990001,19990001,train", "b,59990001,19990001,test"),
            "into another part than the rest",
        ),
        ("chexpert", ("59990001", "59990009"), "names 1 studies that mimic-cxr-2.0.0-metadata.csv lacks"),
        ("chexpert", (",-1.0,", ",-2.0,"), r"line 2, column 'Pneumonia' holds '-2\.0'"),
        ("metadata", ("19990002,59990002", "19990002,59990001"), "study_id 59990001 belongs to two patients"),
        ("metadata", ("19990002,", "p19990002,"), "line 4, column 'subject_id' is not a number"),
        ("metadata", ("ViewPosition", "View"), "line 1: there is no column 'ViewPosition'"),
    ],
)
def test_a_row_that_is_not_as_published(name, change, message, write_files):
    files = dict(FILES)
    path = f"mimic-cxr-2.0.0-{name}.csv"
    assert change[0] in files[path]
    source = write_files({**files, path: files[path].replace(*change)})
    with pytest.raises(InputError, match=message):
        build_collection_table(source, "mimic-cxr", None)


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_table(missing, write_files):
    source = write_files({name: text for name, text in FILES.items() if name != missing})
    with pytest.raises(InputError, match=r"holds no file mimic-cxr-2\.\*-"):
        build_collection_table(source, "mimic-cxr", None)


def test_reports_that_cannot_be_read(write_files):
    source = write_files({**FILES, REPORT_NAME: "FINDINGS: \x00\x01"})
    with pytest.raises(InputError, match=rf"The report {REPORT_NAME} cannot be read: "):
        build_collection_table(source, "mimic-cxr", None)
    (source / "mimic-cxr-reports.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"mimic-cxr-reports\.zip cannot be read as a ZIP"):
        build_collection_table(source, "mimic-cxr", None)
