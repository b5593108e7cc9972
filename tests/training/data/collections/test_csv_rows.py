import gzip

import pytest

from contract.errors import InputError
from training.data.collections.csv_rows import read_csv_rows


def read(path, *columns):
    return [(row.line, row.cells) for row in read_csv_rows(path, columns)]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_with_their_lines(mark, end, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        mark + end.join(["a, b,,", '1,"x, y",,', "", " 2 ,z"]) + end, encoding="utf-8", newline=""
    )
    assert read(path, "b") == [(2, {"a": "1", "b": "x, y"}), (4, {"a": "2", "b": "z"})]


def test_a_packed_file(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert read(path, "a") == [(2, {"a": "1", "b": "2"})]
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 50)[:-20])
    with pytest.raises(InputError, match=r"a\.csv\.gz cannot be read: it is damaged"):
        read(path, "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,c\n1,2\n", "line 1: there is no column 'b'"),
        (b"", "line 1: there is no column 'b'"),
        (b"a,b,b\n1,2,3\n", "line 1: the column 'b' appears twice"),
        (b"a,b\n1,2\n1\n", "line 3: 1 cells, while line 1 names 2 columns, the last of them 'b'"),
        (b"a,b\n1,2,3\n", "line 2: 3 cells"),
        (b'a,b\n1,"2\n', "line 3: this is not a CSV file in UTF-8"),
        (b"a,b\n1,\xff\n", "this is not a CSV file in UTF-8"),
        (b"\x00\x01\x02", "no column 'b'|not a CSV file"),
    ],
)
def test_what_is_not_as_it_should_be_is_named(content, message, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as info:
        read(path, "b")
    assert str(path) in str(info.value)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read(tmp_path / "none.csv", "a")


def test_cells_that_have_to_hold_something(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n,nan\n")
    [row] = read_csv_rows(path, ("a", "b"))
    with pytest.raises(InputError, match=r"a\.csv, line 2, column 'a' is empty\."):
        row.require("a")
    with pytest.raises(InputError, match="column 'b' is not a number: 'nan'"):
        row.read_number("b")
