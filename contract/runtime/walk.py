"""Run several models in sequence: each reads the given tensors and the outputs of the models before it.

A study needs the image encoder, the text encoder, and the fusion graph that reads the tokens of both. In the fused
layout one graph does all of it. The gates (`export.gates`), the timing of profiles (`export.speed`) and the in-process
baseline (`serving.inprocess`) run their graphs with the functions of this module, so all of them pass tensors from
graph to graph in the same way as Triton's ensembles. No tensor is copied.

The functions do not look into a tensor. It may be a numpy array or a value on a device (`bench.gpu.onnx_part`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from numpy.typing import NDArray

from contract.bundle import Bundle, require_same_fingerprint
from contract.errors import ArtifactError, ServerError
from contract.runtime.session import Config, Session, open_session
from contract.tensors import FUSED, FUSED_PARTS, GRAPHS, MODELS, ModelSpec

T = TypeVar("T")
Arrays = dict[str, NDArray[Any]]
RunGraph = Callable[[str, dict[str, T]], Mapping[str, T]]  # graph, its inputs by name -> its outputs by name
_SPECS: Final[dict[str, ModelSpec]] = {**MODELS, **FUSED}


@dataclass(frozen=True)
class Step(Generic[T]):
    """One model of a sequence. Its inputs and outputs may have other names in the sequence than in the model.

    Attributes:
        name: Name of the model.
        run: Computes the model's outputs by name from its inputs by name.
        inputs: Input of the model -> tensor of the sequence.
        outputs: Output of the model -> tensor of the sequence. The model gives all of them; its others are dropped.
    """

    name: str
    run: Callable[[dict[str, T]], Mapping[str, T]]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    def compute(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Run the model on the tensors of the sequence; return its outputs under their names in the sequence.

        Raises:
            ServerError: The model did not give an output.
        """
        outputs = self.run({name: tensors[tensor] for name, tensor in self.inputs.items()})
        if missing := [name for name in self.outputs if name not in outputs]:
            raise ServerError(f"The step {self.name} answered without the output {missing[0]}.")
        return {tensor: outputs[name] for name, tensor in self.outputs.items()}


def sort_steps(steps: Sequence[Step[T]], *, source: str) -> list[list[Step[T]]]:
    """Return the steps in stages, so that each step reads only given tensors and outputs of earlier stages.

    Args:
        steps: The steps in any order, each model once. The order within a stage is the order here.
        source: Where the steps come from, for the error message.

    Raises:
        ArtifactError: Some steps read each other's outputs.
    """
    writers = {tensor: step.name for step in steps for tensor in step.outputs.values()}
    sorter = TopologicalSorter(
        {step.name: {writers[name] for name in step.inputs.values() if name in writers} for step in steps}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        raise ArtifactError(
            f"{source} cannot run, because its steps {', '.join(sorted(set(error.args[1])))} read each other's "
            "outputs. Publish it again with `cxr export`."
        ) from error
    stages: list[list[Step[T]]] = []
    while sorter.is_active():
        ready = sorter.get_ready()
        stages.append([step for step in steps if step.name in ready])
        sorter.done(*ready)
    return stages


def walk(
    stages: Iterable[Sequence[Step[T]]], tensors: Mapping[str, T], executor: Executor | None = None
) -> dict[str, T]:
    """Run the steps stage by stage.

    Args:
        stages: See `sort_steps`.
        tensors: The given tensors by name.
        executor: Runs the steps of one stage at the same time. None: one after the other.

    Returns:
        The given tensors and all outputs by name.
    """
    values = dict(tensors)
    for stage in stages:
        if executor is not None and len(stage) > 1:
            results = list(executor.map(lambda step: step.compute(values), stage))
        else:
            results = [step.compute(values) for step in stage]
        for outputs in results:
            values.update(outputs)
    return values


def list_graphs(kind: str, layout: str = "split") -> tuple[str, ...]:
    """Return the graphs that answer a request, in the order in which they run.

    Args:
        kind: "study", "image" or "text".
        layout: "split" for encoders and fusion, "fused" for the one fused graph.
    """
    fused = f"fused_{kind}"
    return (fused,) if layout == "fused" else FUSED_PARTS[fused]


def walk_graphs(
    graphs: Iterable[str], run: RunGraph[T], tensors: Mapping[str, T]
) -> dict[str, Mapping[str, T]]:
    """Run graphs in their order. Each reads the given tensors and the outputs of the graphs before it.

    Args:
        graphs: Names from `contract.tensors`, such as those of `list_graphs`.
        run: Runs one of them.
        tensors: The given tensors by name.

    Returns:
        Graph -> its outputs by name.
    """
    values, answers = dict(tensors), dict[str, Mapping[str, T]]()
    for graph in graphs:
        answers[graph] = run(graph, {tensor.name: values[tensor.name] for tensor in _SPECS[graph].inputs})
        values.update(answers[graph])
    return answers


def open_graphs(
    bundle: Bundle, graphs: Mapping[str, Path], config: Config, *, kind: str = "CPU"
) -> dict[str, Session]:
    """Open all graphs of `contract.tensors.GRAPHS`.

    Args:
        bundle: The bundle that they were made from.
        graphs: Graph name -> ONNX file.
        config: The settings of every graph; see `open_session`.
        kind: "CPU" or "GPU".

    Raises:
        ConfigError: This machine lacks a package or a capability that the settings need.
        FingerprintError: A graph comes from another bundle.
        ArtifactError: A graph is missing, or the runtime cannot read it.
    """
    if missing := [name for name in GRAPHS if name not in graphs]:
        raise ArtifactError(f"No graph was given for {missing[0]}.")
    sessions = {}
    for name in GRAPHS:
        sessions[name] = open_session(graphs[name], config, kind=kind)
        require_same_fingerprint(
            bundle.fingerprint,
            sessions[name].metadata.get("fingerprint", ""),
            expected_from=str(bundle.path),
            found_from=str(graphs[name]),
        )
    return sessions


def bind_sessions(sessions: Mapping[str, Session]) -> RunGraph[NDArray[Any]]:
    """Return a function that runs one of these graphs and returns all its outputs."""

    def run(graph: str, inputs: Arrays) -> Arrays:
        names = [tensor.name for tensor in _SPECS[graph].outputs]
        return dict(zip(names, sessions[graph].run(names, inputs), strict=True))

    return run
