"""Split files of bundles and publications: every way to name a study, and what is refused."""

import json
import logging

import pytest

from contract.errors import ConfigError
from training.data.split_file import find_split_rows, get_study_id, read_split_file

IDS = [f"CXR{number}" for number in range(1, 7)]
WANTED = {"train": ["CXR1", "CXR2"], "validation": ["CXR3"], "test": ["CXR4"]}
FILES = {
    "bundle.json": json.dumps(WANTED),
    "val.json": '\ufeff{"train": [1, "2"], "val": ["3.0"], "test": ["0004"]}',
    "valid.json": '{"TRAIN": ["cxr1", "CXR2"], "valid": ["CXR3"], "test": ["4.xml"], "validation": ["CXR3"]}',
    "content": '  {"train": ["CXR1", "CXR2", "CXR1"], "dev": ["3"], "test": ["4"]}',
    "images.json": json.dumps(
        {
            "train": ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001.png", "images/2_IM-0652-1001.dcm.png"],
            "val": ["CXR3_IM-1384-1001.dcm"],
            "test": ["C:\\x\\4_IM-2050-1001-0001.dcm"],
        }
    ),
    "a.csv": "id,split\nCXR1,train\nCXR2,train\n\nCXR3,val\nCXR4,test\n",
    "b.csv": "uid,MeSH,split\n1,\"a, b\nc\",train\n2,,Train\n3,,validation\n4,,test",
    "c.tsv": "\ufeffFilename\tSplit\r\n1_IM-0001-4001.dcm.png\ttrain\r\n2_IM-1.png\ttrain\r\n"
    "3_IM-1.png\tval\r\n4_IM-1.png\ttest\r\n",
    "d.csv": "split;study_id\ntrain;CXR1\ntrain;CXR2\nvalid;CXR3\ntest;CXR4\n",
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="split.json"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8", newline="")
        return path

    return write_file


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("study_ids", [IDS, None])
def test_every_way_to_write_a_split(name, study_ids, write):
    assert read_split_file(write(FILES[name], name), study_ids) == WANTED


def test_names_of_another_collection_are_taken_as_they_are(write):
    path = write('{"train": ["study-7", "12"], "test": [" b "]}')
    assert read_split_file(path, ["study-7", "12", "b"]) == {
        "train": ["study-7", "12"],
        "validation": [],
        "test": ["b"],
    }


def test_ids_of_the_collection(real_studies):
    """Every image of the collection leads back to its study, in each of its names."""
    for study in real_studies[:500]:
        number = study.study_id.removeprefix("CXR")
        for image in study.image_ids:
            key = image.removeprefix("CXR")
            for name in (image, f"{image}.png", f"{key}.dcm", f"{key}.dcm.png"):
                assert get_study_id(name) == study.study_id
        assert get_study_id(number) == study.study_id


BAD = {
    "no.json": ("no json", "not valid JSON"),
    "deep.json": ("[" * 100_000, "not valid JSON"),
    "list.json": ("[]", "not like"),
    "number.json": ('{"train": 7}', "not like"),
    "nested.json": ('{"train": [["CXR1"]]}', "'train' holds a value that is not a list of ids"),
    "null.json": ('{"train": [null]}', "'train' holds a value that is not a list of ids"),
    "part.json": ('{"train": ["1"], "holdout": ["2"]}', "part 'holdout'; the parts are train, validation, test"),
    "unknown.json": ('{"train": ["1", "7", "8", "9", "10"]}', r"names 4 studies .* 7, 8, 9, \.\.\.\.$"),
    "two.json": ('{"train": ["1", "2", "3"], "test": ["CXR1", "2"]}', "puts 2 studies into two parts: CXR1, CXR2"),
    "empty.csv": ("", "names no column"),
    "header.csv": ("CXR1,train\n", "names no column study_id or uid or id or filename and no column split"),
    "short.csv": ("id,split\nCXR1,train\nCXR2\n", "line 3 is too short"),
    "part.csv": ("id,split\nCXR1,train\nCXR2,\n", "part ''"),
    "images.csv": ("image,split\n1_IM-1-1.png,train\n1_IM-1-2.png,test\n", "puts 1 studies into two parts"),
    "cell.csv": ("id,split\n" + "x" * 200_000 + ",train\n", "line 2 cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refused(name, write):
    content, message = BAD[name]
    with pytest.raises(ConfigError, match=message) as info:
        read_split_file(write(content, name), IDS)
    assert name in str(info.value)
    assert len(str(info.value)) < 500


def test_not_readable(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read the split file .*No such file"):
        read_split_file(tmp_path / "missing.json")
    (tmp_path / "latin.csv").write_bytes(b"id,split\n\xff\xfe,train\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_split_file(tmp_path / "latin.csv")


# --- the rows of a training run --------------------------------------------------------------------------------


def test_studies_that_are_not_mentioned_or_not_readable_are_left_out(write, caplog):
    patients = {study_id: study_id for study_id in IDS}
    readable = ["CXR6", "CXR4", "CXR3", "CXR1"]
    with caplog.at_level(logging.WARNING):
        rows = find_split_rows(write(FILES["a.csv"], "a.csv"), readable, patients)
    assert rows == {"train": [3], "validation": [2], "test": [1]}
    assert [record.getMessage() for record in caplog.records] == [
        "Leaving out 2 studies of the table that a.csv does not mention.",
        "Leaving out 1 studies of a.csv without an image or a text to read.",
    ]


def test_a_patient_in_two_parts_is_refused(write):
    patients = {study_id: "p" if study_id in {"CXR1", "CXR4"} else study_id for study_id in IDS}
    with pytest.raises(ConfigError, match="one patient into different parts, for 1 of 3 patients") as info:
        find_split_rows(write(FILES["a.csv"], "a.csv"), IDS, patients)
    assert "p," not in str(info.value)


@pytest.mark.parametrize(
    ("content", "readable"), [('{"train": ["1"], "val": ["2"]}', IDS), (FILES["bundle.json"], IDS[:3])]
)
def test_an_empty_part_is_refused(content, readable, write):
    with pytest.raises(ConfigError, match="leaves no readable study for test"):
        find_split_rows(write(content), readable, dict.fromkeys(IDS) | {name: name for name in IDS})
