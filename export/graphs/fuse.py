"""Fuse the graphs of one kind of request into one ONNX graph, and change the ensembles so that they run this graph.

A request to `predict_study` passes through three models (image encoder, text encoder, fusion), and its tokens are
copied each time. A fused graph is one model, and no token leaves the runtime. This has two costs. Two requests share a
batch only if their texts have the same bucket length, whereas a separate image encoder batches all images. And each
fused file holds its own weights, so the three files are about twice as large as the five graphs.

The graphs are composed with https://onnx.ai/onnx/api/compose.html. The computation is the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import GraphProto, ModelProto, TensorProto, compose, helper

from contract.bundle import require_same_fingerprint
from contract.errors import ArtifactError, ConfigError
from contract.tensors import CHECKS, FUSED, FUSED_PARTS, MODELS, TEXT_GATE, ModelSpec, TensorSpec
from export.graphs.checks import (
    EXTERNAL_DATA_FROM_BYTES,
    FINGERPRINT_KEY,
    count_bytes,
    find_fingerprint,
    name_weights,
    seal_graph,
)

_PRODUCER: Final = "cxr export"
_SMALLEST_EXTERNAL_BYTES: Final = 1024


def fuse_graphs(graphs: Mapping[str, Path], out: Path) -> dict[str, Path]:
    """Compose the exported graphs of each kind into one file.

    Args:
        graphs: Graph name -> ONNX file (`export.graphs.from_torch.export_graphs`) of all parts, made from one bundle.
            The graphs may be optimised or converted, but must have the same operator sets.
        out: Directory for the files. It is created if it does not exist. Weights of more than 1.5 GB are written beside
            the graph, in `<graph>.onnx.data`.

    Returns:
        Fused graph name -> `<out>/<name>.onnx`, in the order of `contract.tensors.FUSED`. Each has the inputs
        and outputs of its entry there, a dynamic batch size and length, and the fingerprint of its parts.

    Raises:
        FingerprintError: The parts come from different bundles.
        ArtifactError: A part is missing or does not match the others, or the disk refused the write.
    """
    paths: dict[str, Path] = {}
    for name, spec in FUSED.items():
        if missing := [part for part in FUSED_PARTS[name] if part not in graphs]:
            raise ArtifactError(f"{name} cannot be composed: no graph was given for {', '.join(missing)}.")
        files = {part: graphs[part] for part in FUSED_PARTS[name]}
        models = {part: _load_part(part, file) for part, file in files.items()}
        fingerprint, sizes = _read_fingerprint(models, files), _read_sizes(models)
        model = _compose(spec, models)
        helper.set_model_props(model, {FINGERPRINT_KEY: fingerprint, "graph": spec.name})
        paths[name] = out / f"{name}.onnx"
        _save(model, paths[name], weight_bytes=sum(count_bytes(file) for file in files.values()))
        seal_graph(paths[name], spec, sizes, fingerprint)
    return paths


def fuse_ensemble(config: Any, kind: str) -> Any:
    """Return an ensemble with the one step `fused_<kind>` instead of its encoders and its fusion.

    Args:
        config: Triton's `ModelConfig` of a `predict_<kind>` or `predict_<kind>_tensors`. It is not changed.
        kind: "study", "image" or "text".

    Returns:
        A new `ModelConfig` with the same inputs, outputs and parameters. The fused step has the version of the replaced
        steps (-1: the newest).

    Raises:
        ConfigError: The kind is unknown; or the config lacks steps of that kind, pins them to different versions, or
            returns their tokens.
    """
    fused = f"fused_{kind}"
    if fused not in FUSED:
        raise ConfigError(f"The kind must be study, image or text, not {kind}.")
    replaced = _find_replaced_steps(config, fused)
    inner = {tensor for part in replaced for tensor in part.output_map.values()}
    result = type(config)()
    result.CopyFrom(config)
    step = type(replaced[0])(
        model_name=fused, model_version=replaced[0].model_version, model_namespace=replaced[0].model_namespace
    )
    sources = {
        name: tensor for part in replaced for name, tensor in part.input_map.items() if tensor not in inner
    }
    for tensor in FUSED[fused].inputs:
        step.input_map[tensor.name] = sources[tensor.name]
    step.output_map.update(replaced[-1].output_map)
    names = {part.model_name for part in replaced}
    kept = [other for other in config.ensemble_scheduling.step if other.model_name not in names]
    steps = [*kept, step]  # in the order in which they run
    result.ensemble_scheduling.ClearField("step")
    result.ensemble_scheduling.step.extend(steps)
    return result


def drop_check(config: Any) -> Any:
    """Return a fused ensemble without its check step. The fused step reads the inputs of the check step.

    Args:
        config: A `ModelConfig` of `fuse_ensemble`. It is not changed.

    Returns:
        A new `ModelConfig`. It is equal to `config` if that has no check step.
    """
    result = type(config)()
    result.CopyFrom(config)
    scheduling = result.ensemble_scheduling
    sources = {  # output of the check step -> its input
        output: step.input_map[name]
        for step in scheduling.step
        if step.model_name in CHECKS
        for name, output in step.output_map.items()
    }
    kept = [step for step in scheduling.step if step.model_name not in CHECKS]
    for step in kept:
        for name, tensor in dict(step.input_map).items():
            step.input_map[name] = sources.get(tensor, tensor)
    scheduling.ClearField("step")
    scheduling.step.extend(kept)
    return result


def _find_replaced_steps(config: Any, fused: str) -> list[Any]:
    """Return the steps that `fused` replaces: the gate between the encoders, the encoders, and the fusion last."""
    steps = {step.model_name: step for step in config.ensemble_scheduling.step}
    if missing := [part for part in FUSED_PARTS[fused] if part not in steps]:
        raise ConfigError(f"{config.name} cannot run {fused}: it has no step {', '.join(missing)}.")
    gates = [step for name, step in steps.items() if name == TEXT_GATE]
    replaced = [*gates, *(steps[part] for part in FUSED_PARTS[fused])]
    versions = sorted({step.model_version for step in replaced})
    if len(versions) > 1:
        raise ConfigError(f"{config.name} pins the parts of {fused} to different versions: {versions}.")
    inner = {tensor for step in replaced[:-1] for tensor in step.output_map.values()}
    kept = [step for step in config.ensemble_scheduling.step if step not in replaced]
    read = {output.name for output in config.output}
    read |= {tensor for step in kept for tensor in step.input_map.values()}
    if missing := sorted(inner & read):
        raise ConfigError(f"{config.name} cannot run {fused}, which has no output {', '.join(missing)}.")
    return replaced


def _read_fingerprint(models: Mapping[str, ModelProto], files: Mapping[str, Path]) -> str:
    """Return the fingerprint of the parts. Raise FingerprintError if they come from different bundles."""
    *encoders, fusion = models
    fingerprint = find_fingerprint(models[fusion])
    for name in encoders:
        require_same_fingerprint(
            fingerprint,
            find_fingerprint(models[name]),
            expected_from=files[fusion].name,
            found_from=files[name].name,
        )
    return fingerprint


def _load_part(name: str, path: Path) -> ModelProto:
    """Read one graph with its weights, and compare its inputs and outputs with the tensor table."""
    if not path.is_file():
        raise ArtifactError(f"There is no graph {path}.")
    try:
        model = onnx.load(path)
    except Exception as error:  # as in `load_graph`; also for a missing file of weights
        raise ArtifactError(f"{path} cannot be read as an ONNX graph: {type(error).__name__}.") from error
    spec = MODELS[name]
    for role, values, tensors in (
        ("input", model.graph.input, spec.inputs),
        ("output", model.graph.output, spec.outputs),
    ):
        actual, expected = [value.name for value in values], [tensor.name for tensor in tensors]
        if actual != expected:
            raise ArtifactError(f"{path.name} must have the {role}s {expected}, not {actual}.")
    return model


def _read_sizes(models: Mapping[str, ModelProto]) -> dict[str, int]:
    """Return S, N, C and D, as far as they occur in inputs and outputs. Raise ArtifactError if two parts differ."""
    sizes: dict[str, int] = {}
    for name, model in models.items():
        values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
        for tensor in (*MODELS[name].inputs, *MODELS[name].outputs):
            for letter, size in _read_letters(tensor, values[tensor.name]).items():
                if sizes.setdefault(letter, size) != size:
                    raise ArtifactError(
                        f"The graphs do not fit: {letter} is {sizes[letter]}, but {size} in {tensor.name} of {name}."
                    )
    return sizes


def _read_letters(tensor: TensorSpec, value: onnx.ValueInfoProto) -> dict[str, int]:
    dims = value.type.tensor_type.shape.dim[1:]  # without the batch size
    return {
        letter: dim.dim_value
        for letter, dim in zip(tensor.shape, dims, strict=False)
        if isinstance(letter, str) and dim.dim_value
    }


def _compose(spec: ModelSpec, models: Mapping[str, ModelProto]) -> ModelProto:
    """Join the encoders side by side and the fusion behind them. The weights are moved out of `models`."""
    opsets, ir_version = _read_versions(models)
    fusion = FUSED_PARTS[spec.name][-1]
    parts = {name: _prefix_names(name, model, is_last=name == fusion) for name, model in models.items()}
    weights = _take_weights(part.graph for part in parts.values())
    encoders = [name for name in parts if name != fusion]
    tokens = [tensor.name for name in encoders for tensor in MODELS[name].outputs]
    outputs = [f"{name}/{tensor.name}" for name in encoders for tensor in MODELS[name].outputs]
    encoder_graphs = [parts[name].graph for name in encoders]
    graph = compose.merge_graphs(
        reduce(lambda left, right: compose.merge_graphs(left, right, []), encoder_graphs),
        parts[fusion].graph,
        [(output, f"{fusion}/{token}") for output, token in zip(outputs, tokens, strict=True)],
        name=spec.name,
        doc_string="",
    )
    _share_inputs(graph, spec.inputs, fusion)
    functions = [function for part in parts.values() for function in part.functions]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=ir_version, functions=functions, producer_name=_PRODUCER
    )
    model.graph.initializer.extend(weights)
    return model


def _take_weights(graphs: Iterable[GraphProto]) -> list[TensorProto]:
    """Move the weights out of the graphs, because composing would copy them several times."""
    weights: list[TensorProto] = []
    for graph in graphs:
        weights += graph.initializer
        del graph.initializer[:]
    return weights


def _read_versions(models: Mapping[str, ModelProto]) -> tuple[list[onnx.OperatorSetIdProto], int]:
    """Return the operator sets and the IR version. Raise ArtifactError if two parts differ in them."""
    opsets: dict[str, int] = {}
    for name, model in models.items():
        for entry in model.opset_import:
            if opsets.setdefault(entry.domain, entry.version) != entry.version:
                raise ArtifactError(
                    f"The graphs cannot be fused: {name} has version {entry.version} of the operator set "
                    f"{entry.domain or 'ai.onnx'}, another part has {opsets[entry.domain]}."
                )
    versions = {model.ir_version for model in models.values()}
    if len(versions) > 1:
        raise ArtifactError(f"The graphs cannot be fused: their IR versions differ, {sorted(versions)}.")
    return [helper.make_opsetid(domain, version) for domain, version in opsets.items()], versions.pop()


def _prefix_names(name: str, model: ModelProto, *, is_last: bool) -> ModelProto:
    """Put the part's name before all its names, in place, but not before inputs and outputs of the fused graph.

    The inputs of the fusion get the prefix too, because its `input_ids` would clash with those of the text encoder.
    """
    return compose.add_prefix(
        model, f"{name}/", rename_inputs=is_last, rename_outputs=not is_last, inplace=True
    )


def _share_inputs(graph: GraphProto, inputs: Sequence[TensorSpec], fusion: str) -> None:
    """Make the fusion read the same `input_ids` and `attention_mask` as the text encoder."""
    own = {value.name: value for value in graph.input}
    again = {f"{fusion}/{tensor.name}": tensor.name for tensor in inputs if f"{fusion}/{tensor.name}" in own}
    # With an empty prefix only the names in the map change, also in nested graphs.
    compose.add_prefix_graph(graph, "", rename_inputs=False, inplace=True, name_map=dict(again))
    kept = [own[tensor.name] for tensor in inputs]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del graph.input[:]
    graph.input.extend(copies)


def _save(model: ModelProto, path: Path, *, weight_bytes: int) -> None:
    """Write a composed graph. Large weights are written to one file beside it."""
    external = weight_bytes > EXTERNAL_DATA_FROM_BYTES
    data = name_weights(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data.unlink(missing_ok=True)  # onnx would append to the file of an earlier run
        if external:
            onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True,
                      location=data.name, size_threshold=_SMALLEST_EXTERNAL_BYTES)  # fmt: skip
        else:
            onnx.save(model, path)
    except OSError as error:
        raise ArtifactError(f"Could not write {path}: {error.strerror or error}.") from error
