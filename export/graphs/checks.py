"""Compare an ONNX file with the bundle and the tensor table. This module does not need torch.

The name of every graph holds the model, the fingerprint and a hash of the file. The reason is the engine cache of ONNX
Runtime's TensorRT provider. It names a cached engine after the graph, the ONNX file and the outputs of the nodes, but
not after the weights (onnxruntime issues 6455 and 32254; `TRTGenerateId` in tensorrt_execution_provider_utils.h). Two
versions of one architecture differ only in weights. With equal names the second would answer with the first's engine.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import onnx

from contract.bundle import Bundle, compute_sha256, require_same_fingerprint
from contract.errors import ArtifactError, ParityError
from contract.tensors import DataType, ModelSpec, TensorSpec

SIZE_LETTERS: Final = ("S", "N", "C", "D")
FINGERPRINT_KEY: Final = "fingerprint"
_NAME_DIGITS: Final = 12  # of the fingerprint, and of the hash, in a graph's name
EXTERNAL_DATA_FROM_BYTES: Final = 1_500_000_000  # a protobuf file has at most 2 GiB
_ONNX_TYPES: Final[dict[DataType, int]] = {
    "UINT8": onnx.TensorProto.UINT8,
    "INT32": onnx.TensorProto.INT32,
    "INT64": onnx.TensorProto.INT64,
    "FP32": onnx.TensorProto.FLOAT,
}


def read_sizes(bundle: Bundle) -> dict[str, int]:
    """Return the model's S, N, C and D from the bundle. Raise ArtifactError if one is missing."""
    sizes = bundle.config.get("sizes")
    if not isinstance(sizes, dict) or any(
        not isinstance(sizes.get(letter), int) or sizes[letter] < 1 for letter in SIZE_LETTERS
    ):
        raise ArtifactError(
            f"The config of {bundle.path} lacks the sizes {', '.join(SIZE_LETTERS)}. Train the model again."
        )
    return {letter: sizes[letter] for letter in SIZE_LETTERS}


def read_fingerprint(graph: Path) -> str:
    """Return the fingerprint in an ONNX file's metadata, or "" if it has none.

    Raises:
        ArtifactError: The file is not an ONNX graph.
    """
    return find_fingerprint(load_graph(graph))


def find_fingerprint(model: onnx.ModelProto) -> str:
    """Return the fingerprint in the metadata of a loaded ONNX model, or "" if it has none."""
    return next((entry.value for entry in model.metadata_props if entry.key == FINGERPRINT_KEY), "")


def seal_graph(path: Path, spec: ModelSpec, sizes: Mapping[str, int], fingerprint: str) -> None:
    """Write the name of the graph into a new ONNX file, then check the file; see `check_graph`.

    Raises:
        ArtifactError: See `check_graph`; or the disk refused the write.
        FingerprintError, ParityError: See `check_graph`.
    """
    name = f"{_begin_name(spec, fingerprint)}{compute_sha256(path)[:_NAME_DIGITS]}"
    named = onnx.ModelProto(graph=onnx.GraphProto(name=name))
    try:
        with path.open("ab") as file:
            # If a protobuf message holds two values of a field, the last one counts (protobuf.dev, "Last One Wins").
            file.write(named.SerializeToString())
    except OSError as error:
        raise ArtifactError(f"Could not write {path}: {error.strerror or error}.") from error
    check_graph(path, spec, sizes, fingerprint)


def _begin_name(spec: ModelSpec, fingerprint: str) -> str:
    return f"{spec.name}_{fingerprint[:_NAME_DIGITS]}_"


def check_graph(path: Path, spec: ModelSpec, sizes: Mapping[str, int], fingerprint: str) -> None:
    """Compare an ONNX file with the tensor table.

    Args:
        path: The file.
        spec: The served model that it implements.
        sizes: S, N, C and D of the model.
        fingerprint: Fingerprint of the bundle that the graph must come from.

    Raises:
        FingerprintError: The graph was made from another bundle.
        ArtifactError: The file is not valid ONNX, or a name, a data type or a shape differs. The message holds both.
        ParityError: No output depends on one of the inputs.
    """
    model = load_graph(path)
    graph = model.graph
    require_same_fingerprint(
        fingerprint, find_fingerprint(model), expected_from="the bundle", found_from=path.name
    )
    if not graph.name.startswith(begin := _begin_name(spec, fingerprint)):
        raise ArtifactError(f"{path.name}: the name of the graph must begin with {begin}, not {graph.name}.")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"{path.name} is not a valid ONNX graph: {str(error).splitlines()[0]}") from error
    for role, values, specs in (("input", graph.input, spec.inputs), ("output", graph.output, spec.outputs)):
        actual, expected = [value.name for value in values], [tensor.name for tensor in specs]
        if actual != expected:
            raise ArtifactError(f"{path.name} must have the {role}s {expected}, not {actual}.")
        for value, tensor in zip(values, specs, strict=True):
            _check_value(value, tensor, sizes, path.name)
    if unread := find_unread_inputs(graph):
        raise ParityError(
            f"{path.name} declares the input {', '.join(unread)}, but no output depends on it. A runtime may remove "
            "this input and confuse the others."
        )


def find_unread_inputs(graph: onnx.GraphProto) -> list[str]:
    """Return the inputs that no output of a graph depends on, in their order."""
    needed = {value.name for value in graph.output}
    for node in reversed(graph.node):  # a node stands behind the nodes that it reads
        if needed.intersection(node.output):
            needed.update(_list_reads(node))
    weights = {weight.name for weight in graph.initializer}
    return [value.name for value in graph.input if value.name not in needed | weights]


def _list_reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names of the values that a node and the graphs inside it read."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from (value.name for value in inner.output)
            for each in inner.node:
                yield from _list_reads(each)


def _check_value(
    value: onnx.ValueInfoProto, tensor: TensorSpec, sizes: Mapping[str, int], file_name: str
) -> None:
    actual_type = value.type.tensor_type
    if actual_type.elem_type != _ONNX_TYPES[tensor.dtype]:
        name = onnx.TensorProto.DataType.Name(actual_type.elem_type)
        raise ArtifactError(f"{file_name}: {tensor.name} must be {tensor.dtype}, not {name}.")
    expected = [-1, *tensor.dims(sizes)]  # the batch size is dynamic
    actual = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in actual_type.shape.dim]
    if actual != expected:
        raise ArtifactError(f"{file_name}: {tensor.name} must have shape {expected}, not {actual}.")


def name_weights(graph: Path) -> Path:
    """Return the path of the file that holds a graph's weights if they are too large for the graph itself."""
    return graph.with_name(f"{graph.name}.data")


def count_bytes(graph: Path) -> int:
    """Return the size of a graph with its file of weights, in bytes."""
    weights = name_weights(graph)
    return graph.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def load_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without its external weights. Raise ArtifactError if it is missing or not an ONNX graph."""
    try:
        return onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ArtifactError(f"There is no graph {path}.") from error
    except Exception as error:  # protobuf's implementations raise different DecodeErrors
        raise ArtifactError(f"{path} is not an ONNX graph.") from error
