"""Open-i files to the studies table: the real collection, and files that are not what they should be."""

import csv
import errno
import gzip
import io
import re
import tarfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from contract.errors import ArtifactError, ConfigError, InputError, ReportError
from contract.image_header import read_image_header
from contract.text import Report
from training import openi
from training.openi import (
    MAX_XML_BYTES,
    SCHEMA,
    build_table,
    find_images,
    get_image_key,
    parse_study,
    read_reports,
    read_table,
    write_table,
)

FINDINGS = '<AbstractText Label="FINDINGS">Clear.</AbstractText>'


def make_xml(number=7, *, images=(), major=("normal",), automatic=(), sections=FINDINGS) -> bytes:
    headings = "".join(f"<major>{heading}</major>" for heading in major)
    headings += "".join(f"<automatic>{heading}</automatic>" for heading in automatic)
    parents = "".join(f'<parentImage id="{name}"><figureId>F1</figureId></parentImage>' for name in images)
    return (
        f'<eCitation><uId id="CXR{number}"/><MeSH>{headings}</MeSH><MedlineCitation><Article><Abstract>'
        f"{sections}</Abstract></Article></MedlineCitation>{parents}</eCitation>"
    ).encode()


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


def make_archive(files: dict[str, bytes], mode="w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def check_sentence(info) -> None:
    message = str(info.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert "4711" not in message
    assert len(message) < 400


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


def test_directory_and_archive_are_read_alike(openi_archive, real_studies, tmp_path):
    with tarfile.open(openi_archive) as archive:
        for member in archive:
            if member.isfile():
                path = tmp_path / str(len(member.name)) / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    assert tuple(read_reports(tmp_path)) == real_studies


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
        assert row["views"] == ["UNKNOWN"] * len(row["image_ids"])
    known = {name for study in real_studies for name in study.image_ids}
    assert {path.stem for path in (openi_directory / "png").iterdir()} <= known


# --- one report ------------------------------------------------------------------------------------------------


def test_parse_study():
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


def test_labels_do_not_come_from_the_text():
    text = '<AbstractText Label="FINDINGS">Pneumothorax, large effusion.</AbstractText>'
    assert parse_study(make_xml(sections=text, automatic=["pneumothorax"]), name="7.xml").labels == {"normal"}


BOMB = "".join(f'<!ENTITY b{i} "{f"&b{i - 1};" * 10 if i else "4711"}">' for i in range(10))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MRN-4711",
        b"\x89PNG\r\n\x1a\n4711",
        b"<",
        b"<a>" * 100_000,
        make_xml()[:-5],
        make_xml() + b"4711",
        make_xml().replace(b"Clear.", b"\xff\xfe"),
        make_xml().replace(b"Clear.", b"&b;"),
        b'<?xml version="1.0" encoding="unheard-of"?>' + make_xml(),
        f"<!DOCTYPE eCitation [{BOMB}]>".encode() + make_xml().replace(b"Clear.", b"&b9;"),
        b"<!DOCTYPE eCitation>" + make_xml(),
        b'<!DOCTYPE eCitation [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
        + make_xml().replace(b"Clear.", b"&e;"),
        b'<!DOCTYPE eCitation SYSTEM "http://127.0.0.1:9/x.dtd">' + make_xml(),
        b"<html><body>404 4711</body></html>",
        make_xml().replace(b"eCitation", b"article"),
        b"<eCitation/>",
        make_xml().replace(b"CXR7", b""),
        make_xml().replace(b"CXR7", b"4711"),
        make_xml().replace(b"CXR7", b"CXR4711/../7"),
        make_xml() + b" " * MAX_XML_BYTES,
    ],
    ids=lambda data: repr(data[:40]),
)
def test_no_report(data, tmp_path):
    with pytest.raises(ReportError, match=re.escape("bad.xml")) as info:
        parse_study(data, name="bad.xml")
    check_sentence(info)
    (tmp_path / "good.xml").write_bytes(make_xml())
    (tmp_path / "bad.xml").write_bytes(data)
    with pytest.raises(ReportError, match=re.escape("bad.xml")):
        read_reports(tmp_path)


def test_unknown_heading_is_named():
    with pytest.raises(ConfigError, match="Kryptonite/lung"):
        parse_study(make_xml(major=["normal", "Kryptonite/lung"]), name="7.xml")


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=40), st.integers(0, 400), st.integers(0, 40))
def test_anything_else_is_a_study_or_refused(insert, start, length):
    data = make_xml(images=["CXR7_IM-0001-1001"])
    try:
        study = parse_study(data[:start] + insert + data[start + length :], name="7.xml")
    except (ReportError, ConfigError):
        return
    assert re.fullmatch(r"CXR\d+", study.study_id)


# --- directories and archives ----------------------------------------------------------------------------------

FILES = {"10.xml": make_xml(10), "sub/9.xml": make_xml(9), "notes.txt": b"4711", "8.xml": make_xml(8)}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_archives(mode, tmp_path):
    (tmp_path / "reports").write_bytes(make_archive(FILES, mode))
    seen = []
    studies = read_reports(tmp_path / "reports", lambda done, total: seen.append((done, total)))
    assert [study.study_id for study in studies] == ["CXR8", "CXR9", "CXR10"]
    assert seen == [(3, 3)]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_truncated_archive(mode, tmp_path):
    data = make_archive(FILES, mode)
    path = tmp_path / "reports.tgz"
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(InputError) as info:
            read_reports(path)
        check_sentence(info)


def test_truncated_real_archive(openi_archive, tmp_path):
    data = openi_archive.read_bytes()
    path = tmp_path / "reports.tgz"
    path.write_bytes(data[: len(data) // 10])
    with pytest.raises(InputError, match=r"reports\.tgz cannot be read") as info:
        read_reports(path)
    check_sentence(info)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_damaged_archive(mode, tmp_path):
    noise = np.random.default_rng(0).bytes(100_000).hex().encode()
    data = bytearray(make_archive({"noise": noise, **FILES}, mode))
    path = tmp_path / "reports.tgz"
    for place in range(50, len(data) - 20, len(data) // 20):
        damaged = data.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read") as info:
            read_reports(path)
        check_sentence(info)


def test_damaged_header_inside_an_archive_is_not_its_end(tmp_path):
    data = bytearray(make_archive(FILES, "w"))
    data[1024] ^= 1  # of the second file
    (tmp_path / "reports.tar").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        read_reports(tmp_path / "reports.tar")


def test_no_archive(tmp_path):
    for name, data in {"a.tgz": b"MRN-4711", "b.tgz": b"", "c.xml": make_xml()}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name) as info:
            read_reports(tmp_path / name)
        check_sentence(info)
    with pytest.raises(InputError, match="missing"):
        read_reports(tmp_path / "missing.tgz")


def test_nothing_to_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.tgz").write_bytes(make_archive({"notes.txt": b"4711"}))
    for name in ("empty", "other.tgz"):
        with pytest.raises(ConfigError, match=f"no XML reports in .*{name}"):
            read_reports(tmp_path / name)


def test_oversized_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    member = tarfile.TarInfo("7.xml")
    member.size = 10**12
    (tmp_path / "reports.tar").write_bytes(member.tobuf() + b" " * 1024)
    (tmp_path / "sparse").mkdir()
    with (tmp_path / "sparse" / "7.xml").open("wb") as file:
        file.truncate(MAX_XML_BYTES + 1)
    for name in ("reports.tar", "sparse"):
        with pytest.raises(ReportError, match=r"7\.xml is larger than 4 MB"):
            read_reports(tmp_path / name)


def test_nothing_of_an_archive_is_unpacked_or_followed(tmp_path):
    link = tarfile.TarInfo("link.xml")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(link)
        member = tarfile.TarInfo("../../outside.xml")
        member.size = len(make_xml())
        archive.addfile(member, io.BytesIO(make_xml()))
    path = tmp_path / "a" / "b" / "reports.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(buffer.getvalue())
    assert [study.study_id for study in read_reports(path)] == ["CXR7"]
    assert [found.name for found in tmp_path.rglob("*") if found.is_file()] == ["reports.tar"]


def test_a_report_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "reports.tgz").write_bytes(make_archive({"7.xml": make_xml(), "copy/7.xml": make_xml()}))
    with pytest.raises(ReportError, match=r"copy/7\.xml repeats") as info:
        read_reports(tmp_path / "reports.tgz")
    check_sentence(info)


# --- images ----------------------------------------------------------------------------------------------------


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


@pytest.fixture
def reports(tmp_path):
    ids = [f"CXR7_IM-0001-{number}001" for number in range(1, 8)]
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "7.xml").write_bytes(make_xml(images=ids))
    (tmp_path / "reports" / "8.xml").write_bytes(make_xml(8))
    return tmp_path / "reports"


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
        assert {**found, "view": view} == asdict(read_image_header(Path(path).read_bytes()))
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


def test_an_image_that_cannot_be_opened_is_named(images, reports, monkeypatch):
    gone = images / "gone.dcm"
    monkeypatch.setattr(openi, "find_images", lambda directory: {"7_IM-0001-1001": gone})
    with pytest.raises(InputError, match=r"gone\.dcm cannot be read: No such file") as info:
        build_table(reports, images)
    check_sentence(info)


# --- the table on disk -----------------------------------------------------------------------------------------


@pytest.fixture
def table(reports):
    return build_table(reports, None)


def test_table_is_read_back(table, tmp_path):
    path = tmp_path / "new" / "studies.parquet"
    write_table(table.slice(0, 1), path)
    write_table(table, path)
    assert read_table(path).equals(table)
    assert read_table(path, ["labels", "study_id"]).column_names == ["labels", "study_id"]
    assert [found.name for found in path.parent.iterdir()] == ["studies.parquet"]


def test_real_table_is_read_back(openi_archive, real_studies, tmp_path):
    table = build_table(openi_archive, None)
    write_table(table, tmp_path / "studies.parquet")
    rows = read_table(tmp_path / "studies.parquet").to_pylist()
    assert [frozenset(row["labels"]) for row in rows] == [study.labels for study in real_studies]
    assert [row["impression"] for row in rows] == [study.report.impression for study in real_studies]


def fail_halfway(error):
    def write(table, path, **settings):
        path.write_bytes(b"PAR1 half a table")
        raise error

    return write


@pytest.mark.parametrize("before", [False, True])
def test_full_disk_leaves_nothing(before, table, tmp_path, monkeypatch):
    path = tmp_path / "out" / "studies.parquet"
    if before:
        write_table(table, path)
    monkeypatch.setattr(pq, "write_table", fail_halfway(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(ArtifactError, match=r"studies\.parquet: No space left on device") as info:
        write_table(table.slice(0, 1), path)
    check_sentence(info)
    assert [found.name for found in path.parent.iterdir()] == ["studies.parquet"] * before
    if before:
        assert read_table(path).equals(table)


def test_interrupted_write_leaves_nothing(table, tmp_path, monkeypatch):
    monkeypatch.setattr(pq, "write_table", fail_halfway(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_table(table, tmp_path / "out" / "studies.parquet")
    assert list((tmp_path / "out").iterdir()) == []


def test_table_that_cannot_be_written(table, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="Could not write") as info:
        write_table(table, tmp_path / "file" / "studies.parquet")
    check_sentence(info)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path.relative_to(tmp_path)):
        with pytest.raises(ConfigError, match="is a directory"):
            write_table(table, path)


def test_missing_table(tmp_path):
    for path in (tmp_path / "missing.parquet", tmp_path):
        with pytest.raises(ConfigError, match="cxr data table"):
            read_table(path)


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"study_id,labels\n4711,normal\n", b"PAR1" + b"\0" * 100 + b"PAR1"]
)
def test_a_table_that_is_not_one(data, tmp_path):
    (tmp_path / "studies.parquet").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"studies\.parquet is not a Parquet file") as info:
        read_table(tmp_path / "studies.parquet")
    check_sentence(info)


def test_other_tables_name_what_is_wrong(table, tmp_path):
    path = tmp_path / "studies.parquet"
    pq.write_table(table.drop_columns(["headers"]), path)  # as version 0.1.0 wrote it
    with pytest.raises(ArtifactError, match=r"not a studies table: headers missing .* `cxr data table`"):
        read_table(path)
    assert read_table(path, ["study_id"]).num_rows == 2
    place = table.column_names.index("labels")
    pq.write_table(table.set_column(place, "labels", pa.array(["normal", "normal"])), path)
    with pytest.raises(ArtifactError, match="labels missing or of another type"):
        read_table(path)


def test_truncated_table(table, tmp_path):
    path = tmp_path / "studies.parquet"
    write_table(table, path)
    data = path.read_bytes()
    for length in range(0, len(data), 50):
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            read_table(path)


def test_a_changed_byte_is_noticed(table, tmp_path):
    path = tmp_path / "studies.parquet"
    write_table(table, path)
    data = path.read_bytes()
    place = data.index(b"normal")
    path.write_bytes(data[:place] + b"N" + data[place + 1 :])
    with pytest.raises(ArtifactError, match="damaged"):
        read_table(path)
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.choice(len(data), size=300, replace=False):
        path.write_bytes(
            data[:place] + bytes([data[place] ^ int(generator.integers(1, 256))]) + data[place + 1 :]
        )
        try:
            assert read_table(path).equals(table)
        except ArtifactError:
            refused += 1
    assert refused > 200


def test_text_that_is_not_utf_8_is_refused(table, tmp_path):
    path = tmp_path / "studies.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    path.write_bytes(path.read_bytes().replace(b"Clear.", b"\xff\xfe\xff\xfe\xff\xfe"))
    with pytest.raises(ArtifactError, match="damaged"):
        read_table(path)
