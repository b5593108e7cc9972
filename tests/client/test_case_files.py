"""Find radiographs in folders and lists of paths, and skip all other files."""

import os
from pathlib import Path

import pytest

from client.case_files import CaseFile, find_cases, is_image, parse_paths
from contract.errors import ConfigError, ImageError, ReportError

DICOM = b"\0" * 128 + b"DICM" + b"rest"
BARE_DICOM = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + b"\0" * 200
PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
JPEG = b"\xff\xd8\xff\xe0rest"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of radiographs with and without suffixes, and of other files."""
    contents = {
        "b.dcm": DICOM,
        "a.PNG": b"damaged",
        "c/IM0001": DICOM,
        "c/IM0002": BARE_DICOM,
        "c/photo": JPEG,
        "c/picture.bin": PNG,
        "c/d/e.jpeg": JPEG,
        "c/d/1.2.840.10008": DICOM,
        "notes.txt": b"Normal.",
        "results.csv": b"path\n",
        "empty": b"",
        "DICOMDIR": DICOM,
        ".hidden.dcm": DICOM,
        ".git/b.dcm": DICOM,
    }
    for name, data in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "round").symlink_to(tmp_path)
    return tmp_path


def test_a_folder_holds_its_radiographs_by_name_or_by_content(folder):
    found = find_cases([CaseFile(folder)])
    names = ["a.PNG", "b.dcm", "c/IM0001", "c/IM0002", "c/photo", "c/picture.bin"]
    names += ["c/d/1.2.840.10008", "c/d/e.jpeg"]
    assert [case.name for case in found.cases] == [str(folder / name) for name in names]
    assert found.skipped == len(["notes.txt", "results.csv", "empty", "DICOMDIR", "pipe", "link"])


def test_a_file_counts_once_and_a_named_one_is_never_passed_over(folder):
    given = [folder / "c" / "IM0001", folder / "notes.txt", folder, folder / "gone.dcm"]
    found = find_cases(CaseFile(path) for path in given)
    assert [case.image for case in found.cases[:2]] == given[:2]
    assert found.cases[-1].image == given[-1]
    assert len({case.image for case in found.cases}) == len(found.cases) == 8 + 2


@pytest.mark.parametrize("make", ["empty", "others"])
def test_a_folder_without_a_radiograph_is_said(tmp_path, make):
    if make == "others":
        (tmp_path / "notes.txt").write_text("Normal.")
    with pytest.raises(
        ConfigError, match=rf"no DICOM, PNG or JPEG file in {tmp_path} \({int(make == 'others')} other"
    ):
        find_cases([CaseFile(tmp_path)])


def test_no_path_at_all():
    with pytest.raises(ConfigError, match="The list of paths is empty"):
        find_cases(parse_paths(b"\n\n"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a.dcm\nb c.dcm\n", [("a.dcm", None), ("b c.dcm", None)]),
        (b"a.dcm\r\n\r\nb.dcm", [("a.dcm", None), ("b.dcm", None)]),
        (b"\xef\xbb\xbfa.dcm\treports/a.txt\nb.dcm\t\n", [("a.dcm", "reports/a.txt"), ("b.dcm", None)]),
        (b"a\nb.dcm\0c.dcm\0", [("a\nb.dcm", None), ("c.dcm", None)]),
        (b"  \n\t\n", []),
    ],
)
def test_lists_of_paths(data, expected):
    found = [
        (str(case.image), None if case.report is None else str(case.report)) for case in parse_paths(data)
    ]
    assert found == expected


def test_names_that_are_no_text_can_be_written_and_opened(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xf6ntgen.png"))
    path.write_bytes(PNG)
    (case,) = parse_paths(os.fsencode(path))
    assert case.name.endswith(r"/r\xf6ntgen.png")
    case.name.encode()
    assert case.read() == (PNG, None)


@pytest.mark.parametrize(
    ("data", "answer"),
    [(DICOM, True), (BARE_DICOM, True), (PNG, True), (JPEG, True), (b"", False), (b"/scans/a.dcm\n", False)],
)
def test_standard_input_with_an_image_is_told_from_a_list(data, answer):
    assert is_image(data[:132]) is answer


def test_reading(tmp_path, monkeypatch):
    image, report = tmp_path / "a.png", tmp_path / "a.txt"
    image.write_bytes(PNG)
    report.write_text("Normal.")
    assert CaseFile(image, report).read() == (PNG, b"Normal.")
    refused = {
        CaseFile(tmp_path / "gone.png"): "The image file cannot be read: No such file or directory.",
        CaseFile(tmp_path): "The image is not a regular file.",
        CaseFile(Path("a\0b")): "The image file cannot be read",
        CaseFile(image, tmp_path / "gone.txt"): "The report file cannot be read: No such file",
    }
    for case, words in refused.items():
        with pytest.raises((ImageError, ReportError)) as info:
            case.read()
        assert words in str(info.value)
    monkeypatch.setattr("client.case_files.MAX_REPORT_BYTES", 3)
    with pytest.raises(ReportError, match="larger than"):
        CaseFile(image, report).read()


def test_the_state_tells_a_changed_file_from_the_same(tmp_path):
    image, report = tmp_path / "a.png", tmp_path / "a.txt"
    image.write_bytes(PNG)
    report.write_text("Normal.")
    case = CaseFile(image, report)
    before = case.read_state()
    assert before == case.read_state() != CaseFile(image).read_state()
    os.utime(report, ns=(1, 1))
    assert case.read_state() != before
    image.unlink()
    assert case.read_state() == ""


@pytest.mark.parametrize("other", [b"a.dcm", b"a.dcm\tc.txt"])
def test_an_image_with_two_reports_is_refused_for_one_would_be_lost(other):
    with pytest.raises(ConfigError, match=r"a\.dcm is given twice, with b\.txt and with"):
        find_cases(parse_paths(b"a.dcm\tb.txt\nz.dcm\n" + other))
    assert len(find_cases(parse_paths(b"a.dcm\tb.txt\na.dcm\tb.txt\n")).cases) == 1
