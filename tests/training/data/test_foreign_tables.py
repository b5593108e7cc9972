"""Studies tables as pandas 3.1, polars 2.1 and DuckDB 2.0 write them: what each was seen to write, built by pyarrow.

pandas    large_string; a category is dictionary<string>; an index is one more column; a column of empty lists is
          list<null>, one of None is null; "boolean" is bool with missing values
polars    large_string, large_list; Categorical is dictionary<large_string, uint32>, also inside lists; a column of
          None is null; string_view through Arrow with its newest types
DuckDB    the types of the schema, with "not null" for a constant
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import ArtifactError
from training.data.openi import HEADER, SCHEMA, build_table, read_table

TEXTS = ("study_id", "patient_id", "indication", "comparison", "findings", "impression")
LISTS = ("image_ids", "image_paths", "views", "mesh_major", "mesh_automatic", "labels")


@pytest.fixture
def table(reports) -> pa.Table:
    """Two studies, the second with two images."""
    rows = build_table(reports, None).to_pylist()
    header = {field.name: None for field in HEADER} | {"format": "DICOM", "bits": 12, "inverse": True}
    rows[1] |= {
        "image_ids": ["CXR8_IM-1", "CXR8_IM-2"],
        "image_paths": ["/a/1.dcm", "/a/2.dcm"],
        "views": ["PA", "LATERAL"],
        "headers": [header, header | {"bits": 16}],
    }
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def replace(table: pa.Table, **columns: Any) -> pa.Table:
    """Return the table with other columns in the places of its own."""
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def cast(table: pa.Table, names: tuple[str, ...], change: Callable[[pa.DataType], pa.DataType]) -> pa.Table:
    return replace(
        table, **{name: pa.array(table[name].to_pylist(), change(table[name].type)) for name in names}
    )


def to_large(kind: pa.DataType) -> pa.DataType:
    """Return the type with every string and list in it as polars writes it."""
    if pa.types.is_list(kind):
        return pa.large_list(to_large(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, to_large(field.type)) for field in kind])
    return pa.large_string() if pa.types.is_string(kind) else kind


def narrow(kind: pa.DataType) -> pa.DataType:
    """Return the headers with small numbers and with their fields in another order."""
    fields = [(field.name, pa.uint8() if field.type == pa.int64() else field.type) for field in HEADER]
    return pa.list_(pa.struct(fields[::-1]))


def to_category(values: pa.ChunkedArray, index: pa.DataType, kind: pa.DataType) -> pa.Array:
    flat = values.combine_chunks()
    return flat.cast(kind).dictionary_encode().cast(pa.dictionary(index, kind))


def to_category_lists(values: pa.ChunkedArray) -> pa.Array:
    flat = values.combine_chunks()
    inner = flat.flatten().cast(pa.large_string()).dictionary_encode()
    return pa.ListArray.from_arrays(flat.offsets, inner)


FOREIGN = {
    "polars": lambda table: cast(table, (*TEXTS, *LISTS, "headers"), to_large),
    "pandas": lambda table: cast(table, TEXTS, to_large),
    "pandas category": lambda table: replace(
        table, patient_id=to_category(table["patient_id"], pa.int8(), pa.string())
    ),
    "polars category": lambda table: replace(
        table,
        patient_id=to_category(table["patient_id"], pa.uint32(), pa.large_string()),
        views=to_category_lists(table["views"]),
        labels=to_category_lists(table["labels"]),
    ),
    "pandas index": lambda table: table.append_column("__index_level_0__", pa.array([7, 8])),
    "an index as the last column": lambda table: table.select([*table.column_names[1:], "study_id"]),
    "extra columns": lambda table: table.append_column("age", pa.array([50.5, None])).append_column(
        "more", pa.array([{"a": 1}, None])
    ),
    "other widths": lambda table: cast(table, ("headers",), narrow),
    "bytes for strings": lambda table: cast(table, TEXTS, lambda _: pa.binary()),
    "fixed lists": lambda table: replace(
        table.slice(1), image_ids=pa.array(table.slice(1)["image_ids"].to_pylist(), pa.list_(pa.string(), 2))
    ),
    "not null": lambda table: table.cast(
        pa.schema([field.with_nullable(field.name != "study_id") for field in table.schema])
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("rows_in_group", [1, 1000])
def test_the_values_are_those_of_the_own_table(name, rows_in_group, table, tmp_path):
    path = tmp_path / "studies.parquet"
    foreign = FOREIGN[name](table)
    pq.write_table(foreign, path, row_group_size=rows_in_group)
    own = table.slice(2 - foreign.num_rows)
    read = read_table(path)
    read.validate(full=True)
    assert read.schema.equals(SCHEMA)
    assert read.to_pylist() == own.to_pylist()
    assert (
        read_table(path, ["labels", "study_id"]).to_pylist() == own.select(["labels", "study_id"]).to_pylist()
    )


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.binary_view()])
def test_views_of_strings_are_read_where_arrow_hands_them_over(kind, table):
    """Parquet cannot keep a view today, so this is the step behind the file."""
    from training.data.studies_table import conform_table

    lists = {
        name: pa.ListViewArray.from_arrays(
            pa.array([0, 0], pa.int32()),
            pa.array([0, 2], pa.int32()),
            pa.array(table[name].to_pylist()[1], pa.string_view()),
        )
        for name in ("image_ids", "image_paths", "views")
    }
    foreign = replace(table, **lists, study_id=pa.array(table["study_id"].to_pylist(), kind))
    assert conform_table(foreign, SCHEMA).to_pylist() == table.to_pylist()


def test_a_column_without_values_is_empty_and_unlabelled(table, tmp_path):
    path = tmp_path / "studies.parquet"
    nothing, empty = pa.nulls(2), pa.array([[], []], pa.list_(pa.null()))
    foreign = replace(table, labels=nothing, mesh_automatic=nothing, mesh_major=empty, comparison=nothing)
    pq.write_table(foreign, path)
    rows = read_table(path).to_pylist()
    assert [row["labels"] for row in rows] == [[], []]
    assert [row["labelled"] for row in rows] == [False, False]  # unknown is never negative
    assert [(row["mesh_automatic"], row["mesh_major"]) for row in rows] == [([], []), ([], [])]
    assert [row["comparison"] for row in rows] == [None, None]
    assert [row["study_id"] for row in rows] == table["study_id"].to_pylist()
    assert [len(row["image_ids"]) for row in rows] == [0, 2]


def test_missing_values_among_others(table, tmp_path):
    path = tmp_path / "studies.parquet"
    first = table["labels"].to_pylist()[0]
    foreign = replace(
        table,
        labels=pa.array([first, None], pa.list_(pa.string())),
        labelled=pa.array([None, True], pa.bool_()),
        image_ids=pa.array([None, ["a", "b"]], pa.list_(pa.string())),
    )
    pq.write_table(foreign, path)
    rows = read_table(path).to_pylist()
    assert [row["labels"] for row in rows] == [first, []]
    assert [row["labelled"] for row in rows] == [False, False]
    assert [row["image_ids"] for row in rows] == [[], ["a", "b"]]


REFUSED = {
    "labels missing or of another type (string)": {"labels": pa.array(["normal", "normal"])},
    "labelled missing or of another type (int64)": {"labelled": pa.array([0, 2])},
    "patient_id missing or of another type (double)": {"patient_id": pa.array([7.0, 8.5])},
    "headers missing or of another type (list": {"headers": pa.array([[{"format": "DICOM"}]] * 2)},
    "views missing or of another type (list<element: int64>)": {"views": pa.array([[1], [2, 3]])},
    "study_id without a value in 1 places": {"study_id": pa.array(["CXR7", None])},
    "patient_id without a value in 2 places": {"patient_id": pa.nulls(2)},
    "labels without a value in 1 places": {"labels": pa.array([["normal", None], []])},
    "labels that hold 1 unknown keys ('Cardiomegaly')": {"labels": pa.array([["Cardiomegaly"], ["normal"]])},
    "image_paths and views with different numbers": {"views": pa.array([[], ["PA"]], pa.list_(pa.string()))},
    "image_paths and image_ids with different numbers": {
        "image_ids": pa.array([[], []], pa.list_(pa.string()))
    },
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_would_be_lost_names_its_column(words, table, tmp_path, check_sentence):
    path = tmp_path / "studies.parquet"
    pq.write_table(replace(table, **REFUSED[words]), path)
    with pytest.raises(ArtifactError) as info:
        read_table(path)
    check_sentence(info)
    assert words in str(info.value)
    assert str(path) in str(info.value)


def test_a_number_that_does_not_fit_names_its_column(table, tmp_path):
    path = tmp_path / "studies.parquet"
    fields = [(field.name, pa.float64() if field.type == pa.int64() else field.type) for field in HEADER]
    headers = table["headers"].to_pylist()
    for bits, fits in ((12.0, True), (12.5, False), (1e30, False)):
        headers[1][0]["bits"] = bits
        changed = pa.array(headers, pa.list_(pa.struct(fields)))
        pq.write_table(replace(table, headers=changed), path)
        if fits:
            assert read_table(path).to_pylist() == table.to_pylist()
        else:
            with pytest.raises(ArtifactError, match="headers missing or of another type"):
                read_table(path)


def test_a_column_that_is_there_twice_is_named(table, tmp_path):
    path = tmp_path / "studies.parquet"
    pq.write_table(table.append_column("findings", pa.array(["a", "b"])), path)
    with pytest.raises(ArtifactError, match="findings missing or of another type"):
        read_table(path)


def test_a_study_that_is_there_twice_is_refused(table, tmp_path, check_sentence):
    """As where two tables were joined: one study could be in two parts of a split."""
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "twice.parquet")
    with pytest.raises(ArtifactError, match="study_id with ids of earlier rows in 1 places") as info:
        read_table(tmp_path / "twice.parquet")
    check_sentence(info)
