"""Directories and archives of reports: every kind, and damaged, oversized and hostile ones."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ConfigError, InputError, ReportError
from training.data.openi import (
    MAX_XML_BYTES,
    read_reports,
)


def make_archive(files: dict[str, bytes], mode="w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def files(make_xml) -> dict[str, bytes]:
    return {"10.xml": make_xml(10), "sub/9.xml": make_xml(9), "notes.txt": b"4711", "8.xml": make_xml(8)}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_archives(mode, tmp_path, files):
    (tmp_path / "reports").write_bytes(make_archive(files, mode))
    seen = []
    studies = read_reports(tmp_path / "reports", lambda done, total: seen.append((done, total)))
    assert [study.study_id for study in studies] == ["CXR8", "CXR9", "CXR10"]
    assert seen == [(3, 3)]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_truncated_archive(mode, tmp_path, files, check_sentence):
    data = make_archive(files, mode)
    path = tmp_path / "reports.tgz"
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(InputError) as info:
            read_reports(path)
        check_sentence(info)


def test_truncated_real_archive(openi_archive, tmp_path, check_sentence):
    data = openi_archive.read_bytes()
    path = tmp_path / "reports.tgz"
    path.write_bytes(data[: len(data) // 10])
    with pytest.raises(InputError, match=r"reports\.tgz cannot be read") as info:
        read_reports(path)
    check_sentence(info)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_damaged_archive(mode, tmp_path, files, check_sentence):
    noise = np.random.default_rng(0).bytes(100_000).hex().encode()
    data = bytearray(make_archive({"noise": noise, **files}, mode))
    path = tmp_path / "reports.tgz"
    for place in range(50, len(data) - 20, len(data) // 20):
        damaged = data.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read") as info:
            read_reports(path)
        check_sentence(info)


def test_damaged_header_inside_an_archive_is_not_its_end(tmp_path, files):
    data = bytearray(make_archive(files, "w"))
    data[1024] ^= 1  # of the second file
    (tmp_path / "reports.tar").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        read_reports(tmp_path / "reports.tar")


def test_no_archive(tmp_path, make_xml, check_sentence):
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


def test_nothing_of_an_archive_is_unpacked_or_followed(tmp_path, make_xml):
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


def test_a_report_that_is_there_twice_is_refused(tmp_path, make_xml, check_sentence):
    (tmp_path / "reports.tgz").write_bytes(make_archive({"7.xml": make_xml(), "copy/7.xml": make_xml()}))
    with pytest.raises(ReportError, match=r"copy/7\.xml repeats") as info:
        read_reports(tmp_path / "reports.tgz")
    check_sentence(info)
