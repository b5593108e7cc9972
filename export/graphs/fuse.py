"""The graphs of one kind of question -> ONE ONNX graph, and the ensembles that then run one step in their place.

A request to `predict_study` crosses from model to model three times (image encoder, text encoder, fusion) and
the image and text tokens are copied each time. A fused graph is one hop, and no token leaves the runtime. Its
price: two requests share a batch only when their texts have the same bucket length (an image encoder of its own
batches all images), and each fused file holds the weights it needs, so the three together are about twice as large as
the five graphs they replace.

The graphs are composed as https://onnx.ai/onnx/api/compose.html describes; nothing is computed differently.
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
from export.graphs.checks import EXTERNAL_DATA_FROM_BYTES, FINGERPRINT_KEY, read_fingerprint, seal_graph

_PRODUCER: Final = "cxr export"
_SMALLEST_EXTERNAL_BYTES: Final = 1024


def fuse_graphs(graphs: Mapping[str, Path], out: Path) -> dict[str, Path]:
    """Compose the exported graphs of each kind into one file.

    Args:
        graphs: Graph name -> ONNX file (`export.graphs.from_torch.export_graphs`), all parts of every fused graph, made
            from one bundle. They may be optimised or converted, all with the same operator sets.
        out: Directory for the files; made if needed. A graph whose weights pass 1.5 GB keeps them beside it
            in `<graph>.onnx.data`.

    Returns:
        Fused graph name -> `<out>/<name>.onnx`, in the order of `contract.tensors.FUSED`. Each has the inputs
        and outputs of its entry there, a dynamic batch and length, and the fingerprint of its parts.

    Raises:
        FingerprintError: The parts come from different bundles.
        ArtifactError: A part is missing or does not fit the others, or the disk refused the write.
    """
    paths: dict[str, Path] = {}
    for name, spec in FUSED.items():
        paths[name] = out / f"{name}.onnx"
        sizes, fingerprint = _fuse(spec, _find_parts(graphs, name), paths[name])
        seal_graph(paths[name], spec, sizes, fingerprint)
    return paths


def fuse_ensemble(config: Any, kind: str) -> Any:
    """Rewrite an ensemble so that its encoders and its fusion become the one step `fused_<kind>`.

    The fused step comes first, though it runs last: Triton 2.51, when it leaves out what a request does not ask
    for, takes each input of the ensemble that is left out for an output of the first step. Only of a step that is
    left out before any input, it is harmless (`tests/model_repository/test_configs.py` rehearses it).

    Args:
        config: Triton's `ModelConfig` of a `predict_<kind>` or `predict_<kind>_tensors`; it is not changed.
        kind: "study", "image" or "text".

    Returns:
        A new `ModelConfig`, its inputs, outputs and parameters as they were. The fused step has the version
        that the replaced steps are pinned to (-1: the newest).

    Raises:
        ConfigError: The kind is unknown, or the config does not run the steps of that kind, pins them to different
            versions or gives their tokens out.
    """
    fused = f"fused_{kind}"
    if fused not in FUSED:
        raise ConfigError(f"The kind must be study, image or text, not {kind}.")
    replaced = _find_replaced_steps(config, fused)
    made = {tensor for part in replaced for tensor in part.output_map.values()}
    result = type(config)()
    result.CopyFrom(config)
    step = type(replaced[0])(
        model_name=fused, model_version=replaced[0].model_version, model_namespace=replaced[0].model_namespace
    )
    sources = {
        name: tensor for part in replaced for name, tensor in part.input_map.items() if tensor not in made
    }
    for tensor in FUSED[fused].inputs:
        step.input_map[tensor.name] = sources[tensor.name]
    step.output_map.update(replaced[-1].output_map)
    names = {part.model_name for part in replaced}
    kept = [other for other in config.ensemble_scheduling.step if other.model_name not in names]
    steps = [*kept, step]  # in the order of the data
    result.ensemble_scheduling.ClearField("step")
    result.ensemble_scheduling.step.extend(steps)
    return result


def drop_check(config: Any) -> Any:
    """Rewrite a fused ensemble so that the fused step itself reads what a check step handed on.

    Args:
        config: Triton's `ModelConfig` that `fuse_ensemble` made; it is not changed.

    Returns:
        A new `ModelConfig`; the same where there is no check.
    """
    result = type(config)()
    result.CopyFrom(config)
    scheduling = result.ensemble_scheduling
    handed_on = {
        made: step.input_map[name]
        for step in scheduling.step
        if step.model_name in CHECKS
        for name, made in step.output_map.items()
    }
    kept = [step for step in scheduling.step if step.model_name not in CHECKS]
    for step in kept:
        for name, tensor in dict(step.input_map).items():
            step.input_map[name] = handed_on.get(tensor, tensor)
    scheduling.ClearField("step")
    scheduling.step.extend(kept)
    return result


def _find_replaced_steps(config: Any, fused: str) -> list[Any]:
    """Return the steps that `fused` stands for, the gate between the encoders among them, the fusion last."""
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
    if shown := sorted(inner & read):
        raise ConfigError(f"{config.name} cannot run {fused}, which does not give out {', '.join(shown)}.")
    return replaced


def _fuse(spec: ModelSpec, files: Mapping[str, Path], path: Path) -> tuple[dict[str, int], str]:
    """Write one fused graph; returns the sizes and the fingerprint that its parts have."""
    models = {part: _load_part(part, file) for part, file in files.items()}
    sizes, fingerprint = _read_sizes(models), read_fingerprint(files[FUSED_PARTS[spec.name][-1]])
    model = _compose(spec, models)
    helper.set_model_props(model, {FINGERPRINT_KEY: fingerprint, "graph": spec.name})
    _save(model, path, weight_bytes=sum(_measure_bytes(file) for file in files.values()))
    return sizes, fingerprint


def _find_parts(graphs: Mapping[str, Path], name: str) -> dict[str, Path]:
    """Return the files of a fused graph's parts, which must come from one bundle."""
    if missing := [part for part in FUSED_PARTS[name] if part not in graphs]:
        raise ArtifactError(f"{name} cannot be composed: no graph was given for {', '.join(missing)}.")
    files = {part: graphs[part] for part in FUSED_PARTS[name]}
    *encoders, fusion = files.values()
    for path in encoders:
        require_same_fingerprint(
            read_fingerprint(fusion),
            read_fingerprint(path),
            expected_from=fusion.name,
            found_from=path.name,
        )
    return files


def _load_part(name: str, path: Path) -> ModelProto:
    """Read one graph, weights included, and hold its names to the tensor table."""
    try:
        model = onnx.load(path)
    except Exception as error:  # as in export.graphs.checks; a missing weights file is another type again
        raise ArtifactError(f"{path} cannot be read as an ONNX graph: {type(error).__name__}.") from error
    spec = MODELS[name]
    for role, values, tensors in (
        ("input", model.graph.input, spec.inputs),
        ("output", model.graph.output, spec.outputs),
    ):
        found, expected = [value.name for value in values], [tensor.name for tensor in tensors]
        if found != expected:
            raise ArtifactError(f"{path.name} must have the {role}s {expected}, not {found}.")
    return model


def _read_sizes(models: Mapping[str, ModelProto]) -> dict[str, int]:
    """Return S, N, C and D, as far as the parts' inputs and outputs have them; parts that disagree are an error."""
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
    dims = value.type.tensor_type.shape.dim[1:]  # the first is the batch
    return {
        letter: dim.dim_value
        for letter, dim in zip(tensor.shape, dims, strict=False)
        if isinstance(letter, str) and dim.dim_value
    }


def _compose(spec: ModelSpec, models: Mapping[str, ModelProto]) -> ModelProto:
    """Join the encoders side by side and the fusion behind them; takes the weights out of `models`."""
    opsets, ir_version = _read_versions(models)
    fusion = FUSED_PARTS[spec.name][-1]
    parts = {name: _prefix_names(name, model, is_last=name == fusion) for name, model in models.items()}
    weights = _take_weights(part.graph for part in parts.values())
    encoders = [name for name in parts if name != fusion]
    tokens = [tensor.name for name in encoders for tensor in MODELS[name].outputs]
    made = [f"{name}/{tensor.name}" for name in encoders for tensor in MODELS[name].outputs]
    graph = compose.merge_graphs(
        reduce(_put_side_by_side, (parts[name].graph for name in encoders)),
        parts[fusion].graph,
        [(output, f"{fusion}/{token}") for output, token in zip(made, tokens, strict=True)],
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
    """Move the weights out, for composing copies all that a graph holds several times."""
    weights: list[TensorProto] = []
    for graph in graphs:
        weights += graph.initializer
        del graph.initializer[:]
    return weights


def _put_side_by_side(left: GraphProto, right: GraphProto) -> GraphProto:
    return compose.merge_graphs(left, right, [])


def _read_versions(models: Mapping[str, ModelProto]) -> tuple[list[onnx.OperatorSetIdProto], int]:
    """Return the operator sets and the IR version; the parts must agree on both."""
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
    """Put the part's name before its names, in place; the fused graph's own inputs and outputs keep theirs.

    The fusion's inputs are prefixed all the same: its `input_ids` would clash with those of the text encoder.
    """
    return compose.add_prefix(
        model, f"{name}/", rename_inputs=is_last, rename_outputs=not is_last, inplace=True
    )


def _share_inputs(graph: GraphProto, inputs: Sequence[TensorSpec], fusion: str) -> None:
    """Let the fusion read the same `input_ids` and `attention_mask` as the text encoder."""
    own = {value.name: value for value in graph.input}
    again = {f"{fusion}/{tensor.name}": tensor.name for tensor in inputs if f"{fusion}/{tensor.name}" in own}
    # An empty prefix leaves every name but those of the map as it is, in nested graphs too.
    compose.add_prefix_graph(graph, "", rename_inputs=False, inplace=True, name_map=dict(again))
    kept = [own[tensor.name] for tensor in inputs]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del graph.input[:]
    graph.input.extend(copies)


def _measure_bytes(path: Path) -> int:
    """Return the size of a graph with the weights that lie beside it."""
    data = _name_data(path)
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def _name_data(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _save(model: ModelProto, path: Path, *, weight_bytes: int) -> None:
    """Write a composed graph; large weights go into one file beside it."""
    external = weight_bytes > EXTERNAL_DATA_FROM_BYTES
    data = _name_data(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data.unlink(missing_ok=True)  # onnx would write behind what an earlier run left
        if external:
            onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True,
                      location=data.name, size_threshold=_SMALLEST_EXTERNAL_BYTES)  # fmt: skip
        else:
            onnx.save(model, path)
    except OSError as error:
        raise ArtifactError(f"Could not write {path}: {error.strerror or error}.") from error
