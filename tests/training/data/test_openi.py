"""Open-i reports to studies: the real collection, and files that are no reports."""

import csv
import gzip
import re
import tarfile
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import ConfigError, ReportError
from contract.report.text import Report
from training.data.openi import (
    MAX_XML_BYTES,
    build_table,
    get_image_key,
    parse_study,
    read_reports,
)

# --- the real archive ------------------------------------------------------------------------------------------


def test_counts_of_the_collection(real_studies):
    assert len(real_studies) == 3955
    assert sum(not study.image_ids for study in real_studies) == 104
    assert sum(not study.report.findings for study in real_studies) == 530
    assert sum(not study.report.impression for study in real_studies) == 34
    assert sum(not study.report.findings + study.report.impression for study in real_studies) == 28
    assert sum(study.mesh_major == ("No Indexing",) for study in real_studies) == 95
    assert sum("XXXX" in " ".join(vars(study.report).values()) for study in real_studies) == 3411


def test_image_ids_of_the_collection(real_studies):
    ids = [name for study in real_studies for name in study.image_ids]
    assert len(ids) == len(set(ids)) == len(set(map(get_image_key, ids))) == 7470
    shapes = Counter(re.sub(r"\d+", "0", name) for name in ids)
    assert shapes == {"CXR0_IM-0-0": 7064, "CXR0_IM-0-0-0": 404, "CXR0_0_IM-0-0": 2}
    assert {name for name in ids if name.startswith("CXR1_")} == {
        "CXR1_1_IM-0001-3001",
        "CXR1_1_IM-0001-4001",
    }


def test_studies_are_ordered_by_number(real_studies):
    numbers = [int(study.study_id[3:]) for study in real_studies]
    assert numbers == sorted(set(numbers))
    assert [study.patient_id for study in real_studies] == [str(number) for number in numbers]


def test_every_report_names_its_collection(real_studies):
    assert {study.collection for study in real_studies} == {"openi"}


def test_directory_and_archive_are_read_alike(few_reports, real_studies, tmp_path):
    """Of the directory also in folders below it."""
    names = set()
    for path in few_reports.iterdir():
        place = tmp_path / str(len(path.name)) / "ecgen-radiology" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
        names.add(f"CXR{path.stem}")
    assert len(names) == 300
    assert tuple(read_reports(tmp_path)) == tuple(study for study in real_studies if study.study_id in names)


def test_headers_of_the_collection_join_its_reports(openi_directory, real_studies):
    with gzip.open(openi_directory / "nlmcxr_dicom_metadata.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    files = {get_image_key(row["filename"].removeprefix("./")): row for row in rows}
    ids = {get_image_key(name): study for study in real_studies for name in study.image_ids}
    assert len(rows) == len(files) == 7469
    assert ids.keys() - files.keys() == {"1000_IM-0003-1001"}  # the one image whose header was not published
    assert not files.keys() - ids.keys()
    for key, row in files.items():
        assert row["filename"] == f"./{key}.dcm"
        assert row["Patient ID"] == ids[key].patient_id
        assert get_image_key(row["imageid"]) == key


def test_real_png_files_join_their_reports(openi_archive, openi_directory, real_studies, tmp_path):
    with tarfile.open(openi_archive) as archive:
        for number in (25, 54, 1900):
            data = archive.extractfile(f"ecgen-radiology/{number}.xml").read()
            (tmp_path / f"{number}.xml").write_bytes(data)
    rows = build_table(tmp_path, openi_directory / "png").to_pylist()
    assert {row["study_id"]: row["image_ids"] for row in rows} == {
        "CXR25": ["CXR25_IM-1024-2001"],
        "CXR54": ["CXR54_IM-2145-1001", "CXR54_IM-2145-1002"],
        "CXR1900": ["CXR1900_IM-0584-1001", "CXR1900_IM-0584-2001"],
    }
    for row in rows:
        assert row["image_paths"] == [
            str(openi_directory / "png" / f"{name}.png") for name in row["image_ids"]
        ]
        # Of a PNG only the shape is known: CXR54 has a landscape image beside a portrait one, CXR1900 two squares.
        other = ["FRONTAL", "LATERAL"] if row["study_id"] == "CXR54" else ["UNKNOWN"] * len(row["image_ids"])
        assert row["views"] == other
    known = {name for study in real_studies for name in study.image_ids}
    assert {path.stem for path in (openi_directory / "png").iterdir()} <= known


# --- one report ------------------------------------------------------------------------------------------------


def test_parse_study(make_xml):
    data = make_xml(
        12,
        images=["CXR12_IM-0034-1001", "CXR12_IM-0034-2001"],
        major=["Cardiomegaly/mild", " Aorta/tortuous\n", ""],
        automatic=["aorta"],
        sections='<AbstractText Label="COMPARISON"/><AbstractText Label="Findings ">Big\n <b>heart</b>.</AbstractText>'
        '<AbstractText Label="FINDINGS">Clear.</AbstractText><AbstractText Label="NOTE">no</AbstractText>',
    )
    study = parse_study(data, name="12.xml")
    assert (study.study_id, study.patient_id) == ("CXR12", "12")
    assert study.report == Report(findings="Big heart. Clear.")
    assert study.mesh_major == ("Cardiomegaly/mild", "Aorta/tortuous")
    assert study.mesh_automatic == ("aorta",)
    assert study.image_ids == ("CXR12_IM-0034-1001", "CXR12_IM-0034-2001")
    assert study.labels == {"cardiac", "aortic_vascular"}
    assert study.labelled


def test_labels_do_not_come_from_the_text(make_xml):
    text = '<AbstractText Label="FINDINGS">Pneumothorax, large effusion.</AbstractText>'
    assert parse_study(make_xml(sections=text, automatic=["pneumothorax"]), name="7.xml").labels == {"normal"}


BOMB = "".join(f'<!ENTITY b{i} "{f"&b{i - 1};" * 10 if i else "4711"}">' for i in range(10))


BAD = {
    "empty": lambda xml: b"",
    "text": lambda xml: b"MRN-4711",
    "picture": lambda xml: b"\x89PNG\r\n\x1a\n4711",
    "one bracket": lambda xml: b"<",
    "deep": lambda xml: b"<a>" * 100_000,
    "truncated": lambda xml: xml[:-5],
    "continued": lambda xml: xml + b"4711",
    "not UTF-8": lambda xml: xml.replace(b"Clear.", b"\xff\xfe"),
    "unknown entity": lambda xml: xml.replace(b"Clear.", b"&b;"),
    "unknown encoding": lambda xml: b'<?xml version="1.0" encoding="unheard-of"?>' + xml,
    "bomb": lambda xml: f"<!DOCTYPE eCitation [{BOMB}]>".encode() + xml.replace(b"Clear.", b"&b9;"),
    "document type": lambda xml: b"<!DOCTYPE eCitation>" + xml,
    "file of the machine": lambda xml: (
        b'<!DOCTYPE eCitation [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + xml.replace(b"Clear.", b"&e;")
    ),
    "address": lambda xml: b'<!DOCTYPE eCitation SYSTEM "http://127.0.0.1:9/x.dtd">' + xml,
    "web page": lambda xml: b"<html><body>404 4711</body></html>",
    "another root": lambda xml: xml.replace(b"eCitation", b"article"),
    "nothing in it": lambda xml: b"<eCitation/>",
    "no id": lambda xml: xml.replace(b"CXR7", b""),
    "number as id": lambda xml: xml.replace(b"CXR7", b"4711"),
    "path as id": lambda xml: xml.replace(b"CXR7", b"CXR4711/../7"),
    "too large": lambda xml: xml + b" " * MAX_XML_BYTES,
}


@pytest.mark.parametrize("name", BAD)
def test_no_report(name, tmp_path, make_xml, check_sentence):
    data = BAD[name](make_xml())
    with pytest.raises(ReportError, match=re.escape("bad.xml")) as info:
        parse_study(data, name="bad.xml")
    check_sentence(info)
    (tmp_path / "good.xml").write_bytes(make_xml())
    (tmp_path / "bad.xml").write_bytes(data)
    with pytest.raises(ReportError, match=re.escape("bad.xml")):
        read_reports(tmp_path)


def test_unknown_heading_is_named(make_xml):
    with pytest.raises(ConfigError, match="Kryptonite/lung"):
        parse_study(make_xml(major=["normal", "Kryptonite/lung"]), name="7.xml")


@settings(deadline=None, max_examples=100)
@given(insert=st.binary(max_size=40), start=st.integers(0, 400), length=st.integers(0, 40))
def test_anything_else_is_a_study_or_refused(insert, start, length, make_xml):
    data = make_xml(images=["CXR7_IM-0001-1001"])
    try:
        study = parse_study(data[:start] + insert + data[start + length :], name="7.xml")
    except (ReportError, ConfigError):
        return
    assert re.fullmatch(r"CXR\d+", study.study_id)
