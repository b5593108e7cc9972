"""The studies table on disk: read back, written whole or not at all, every damage noticed."""

import errno
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import ArtifactError, ConfigError
from training.data.openi import (
    build_table,
    read_reports,
    read_table,
    write_table,
)


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


def test_real_table_is_read_back(few_reports, tmp_path):
    table, studies = build_table(few_reports, None), read_reports(few_reports)
    write_table(table, tmp_path / "studies.parquet")
    rows = read_table(tmp_path / "studies.parquet").to_pylist()
    assert len(rows) == 300
    assert [frozenset(row["labels"]) for row in rows] == [study.labels for study in studies]
    assert [row["impression"] for row in rows] == [study.report.impression for study in studies]


@pytest.mark.parametrize("before", [False, True])
def test_full_disk_leaves_nothing(before, table, tmp_path, monkeypatch, check_sentence):
    path = tmp_path / "out" / "studies.parquet"
    if before:
        write_table(table, path)

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArtifactError, match=r"studies\.parquet: No space left on device") as info:
        write_table(table.slice(0, 1), path)
    check_sentence(info)
    assert path.parent.exists() == before
    assert [found.name for found in path.parent.glob("*")] == ["studies.parquet"] * before
    if before:
        assert read_table(path).equals(table)


def test_table_that_cannot_be_written(table, tmp_path, monkeypatch, check_sentence):
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
def test_a_table_that_is_not_one(data, tmp_path, check_sentence):
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
