"""Convert a studies table that another program wrote to the types of the schema, if that loses nothing.

pandas, polars and DuckDB keep the values of a table but change its types: large strings and lists, categories for
strings, other widths of numbers, the null type for a column without values, columns in another order.
"""

from collections.abc import Collection
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from contract.bundle import PARTS
from contract.labels import LABEL_INDEX

_IDS: Final = ("study_id", "patient_id")  # required for every study
# Columns that older tables lack: they state all labels of a labelled study and have no boxes and no split.
OPTIONAL: Final = ("unknown_labels", "boxes", "split")
_PER_IMAGE: Final = ("image_ids", "image_paths", "views", "headers")
_OF_HEADERS: Final = ("views", "headers")  # unknown if empty
_SHOWN: Final = 3
_SHOWN_CHARS: Final = 40  # characters of a type in a message; the type of headers is very long


def conform_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of a schema, each with its type.

    A missing list becomes an empty one. A study with missing labels becomes unlabelled.

    Args:
        table: A table with at least the columns of the schema, except those of `OPTIONAL`.
        schema: Target columns and types. Its metadata is ignored.

    Raises:
        ValueError: A column cannot be converted without loss, or its values contradict others. The message names it and
            begins in lower case.
    """
    columns = {
        field.name: _convert_column(table[field.name], field.type)
        if field.name in table.column_names or field.name not in OPTIONAL
        else pa.chunked_array([pa.nulls(table.num_rows, field.type)])
        for field in schema
    }
    if wrong := [name for name, column in columns.items() if column is None]:
        types = ", ".join(str(table[name].type)[:_SHOWN_CHARS] for name in wrong)
        raise ValueError(f"{', '.join(wrong)} missing or of another type ({types})")
    _fill_missing(columns, table.num_rows)
    _check_values(columns)
    return pa.table(columns, schema=schema.with_metadata(table.schema.metadata))


def _fill_missing(columns: dict[str, pa.ChunkedArray], count: int) -> None:
    labels, labelled = columns.get("labels"), columns.get("labelled")
    if labelled is not None:
        known = pa.array([True] * count) if labels is None else labels.is_valid()
        columns["labelled"] = pc.and_(labelled.fill_null(False), known)
    for name, column in columns.items():
        if pa.types.is_list(column.type) and column.null_count:
            columns[name] = pa.chunked_array(
                [_fill_lists(chunk) for chunk in column.chunks], type=column.type
            )


def _fill_lists(array: pa.ListArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(_make_offsets(array), array.flatten(), type=array.type)


def _check_values(columns: dict[str, pa.ChunkedArray]) -> None:
    for name, column in columns.items():
        values = column.combine_chunks().flatten() if pa.types.is_list(column.type) else column
        if (name in _IDS or pa.types.is_list(column.type)) and values.null_count:
            raise ValueError(f"{name} without a value in {values.null_count:,} places")
    if "study_id" in columns and (count := len(columns["study_id"])):
        repeated = count - pc.count_distinct(columns["study_id"]).as_py()
        if repeated:  # one study could otherwise be in two parts of a split
            raise ValueError(f"study_id with ids of earlier rows in {repeated:,} places")
    for name in ("labels", "unknown_labels"):
        if name in columns:
            _check_keys(name, columns[name], LABEL_INDEX, "unknown keys")
    if "split" in columns:
        _check_keys("split", columns["split"], PARTS, "other parts than train, validation and test")
    if "labels" in columns and "unknown_labels" in columns:
        pairs = zip(columns["labels"].to_pylist(), columns["unknown_labels"].to_pylist(), strict=True)
        if both := sum(not set(present).isdisjoint(unknown) for present, unknown in pairs):
            raise ValueError(f"labels and unknown_labels that name the same label in {both:,} studies")
    lengths = {name: pc.list_value_length(columns[name]) for name in _PER_IMAGE if name in columns}
    images = lengths.pop("image_paths", None)
    for name, length in lengths.items() if images is not None else ():
        unknown = pc.equal(length, 0 if name in _OF_HEADERS else -1)
        if not pc.all(pc.or_(pc.equal(length, images), unknown)).as_py() and len(length):
            raise ValueError(f"image_paths and {name} with different numbers of images for a study")


def _check_keys(name: str, column: pa.ChunkedArray, allowed: Collection[str], what: str) -> None:
    flat = column.combine_chunks()
    values = pc.unique(flat.flatten() if pa.types.is_list(flat.type) else flat.drop_null()).to_pylist()
    if unknown := sorted(set(values) - set(allowed)):
        examples = ", ".join(repr(key[:40]) for key in unknown[:_SHOWN])
        raise ValueError(f"{name} that hold{'s' * (name == 'split')} {len(unknown):,} {what} ({examples})")


def _convert_column(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray | None:
    """Return a column with another type; None if the conversion would lose values."""
    if column.type == target:
        return column
    try:
        return pa.chunked_array([_convert(chunk, target) for chunk in column.chunks], type=target)
    except (TypeError, pa.ArrowException):
        return None


def _convert(array: Any, target: pa.DataType) -> Any:
    """Return an array with another type.

    Raises:
        TypeError: There is no conversion between the types.
        pa.ArrowException: A value cannot be converted, such as a number that is too large.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _convert(array.dictionary_decode(), target)
    if kind == target:
        return array
    if pa.types.is_null(kind):
        return pa.nulls(len(array), target)
    if pa.types.is_list(target):
        return _convert_list(array, target)
    if pa.types.is_struct(target):
        return _convert_struct(array, target)
    return _convert_value(array, target)


def _convert_value(array: Any, target: pa.DataType) -> Any:
    if pa.types.is_string(target):
        return _convert_string(array, target)
    kind = array.type
    numeric = pa.types.is_integer(target) or pa.types.is_floating(target)
    if numeric and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return array.cast(target)  # raises if a value would change
    raise TypeError(f"{kind} is not {target}")


def _convert_string(array: Any, target: pa.DataType) -> Any:
    kind = array.type
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary(kind):
        return array.cast(target)
    if kind in {pa.string_view(), pa.binary_view()}:
        plain = pa.large_string() if kind == pa.string_view() else pa.large_binary()
        return pa.array(array.to_pylist(), plain).cast(target)
    raise TypeError(f"{kind} is not {target}")


def _convert_list(array: Any, target: pa.DataType) -> Any:
    kind = array.type
    lists = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    if not any(test(kind) for test in lists):
        raise TypeError(f"{kind} is not {target}")
    values = _convert(array.flatten(), target.value_type)
    return pa.ListArray.from_arrays(_make_offsets(array), values, type=target, mask=array.is_null())


def _make_offsets(array: Any) -> Any:
    """Return the offsets of the lists in `array.flatten()`. A missing list is empty."""
    lengths = pc.cumulative_sum(pc.list_value_length(array).fill_null(0).cast(pa.int64()))
    return pa.concat_arrays([pa.array([0], pa.int64()), lengths]).cast(pa.int32())


def _convert_struct(array: Any, target: pa.StructType) -> Any:
    if not pa.types.is_struct(array.type):
        raise TypeError(f"{array.type} is not {target}")
    present = {field.name for field in array.type}
    if lacking := [field.name for field in target if field.name not in present]:
        raise TypeError(f"{array.type} lacks {', '.join(lacking)}")
    arrays = [_convert(pc.struct_field(array, field.name), field.type) for field in target]
    return pa.StructArray.from_arrays(arrays, fields=list(target), mask=array.is_null())
