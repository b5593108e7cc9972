"""Run a published model in this process, without Triton: the same files, configs, runtime and threads.

The benchmarks measure serving against it. It also runs a published model without a server:

    model = InProcess(Path("model_repository"))
    answer = model.run("predict_image", {"image_bytes": contract.steps.pack([Path("chest.dcm").read_bytes()])})
    answer["probabilities"]  # (1, 22) float32
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from contract.errors import ArtifactError, ConfigError, TensorError
from contract.report.tokens import TokenLimits
from contract.runtime.session import Session, open_session, read_parameter, require_fingerprint
from contract.runtime.walk import Arrays, Step, sort_steps, walk
from contract.steps import open_step
from contract.tensors import LAYOUTS, TEXT_GATE, ModelSpec
from serving.triton import read_fingerprint

Array = NDArray[Any]
_MOST_THREADS: Final = 2  # one for each encoder of a study
Run = Callable[[Mapping[str, Array]], Arrays]

_SPECS: Final[dict[str, ModelSpec]] = {
    name: spec for layout in LAYOUTS.values() for name, spec in layout.items() if spec.backend != "ensemble"
}


@dataclass(frozen=True)
class _Model:
    """One loaded version of a model."""

    spec: ModelSpec
    compute: Run
    session: Session | None = None  # only of a graph

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        for tensor in self.spec.inputs:
            tensor.check(inputs[tensor.name])
        return self.compute(inputs)

    def describe(self) -> str:
        return self.session.describe() if self.session else "contract"


@dataclass(frozen=True)
class _Plan:
    """The steps of a model in stages, and the loaded model of each step by name."""

    stages: list[list[Step[Array]]]
    models: Mapping[str, _Model]

    def list_models(self) -> list[_Model]:
        return [self.models[step.name] for stage in self.stages for step in stage]


class InProcess:
    """The models of one published repository, each loaded at its first use. For one caller at a time.

    Args:
        repository: A repository that `cxr export` wrote.
        concurrent: Whether the two encoders of a study run at the same time, each in a thread of its own. Triton never
            does that (`contract.tensors`).
        timed: Whether the runtime records the time of each operation (`read_times`).

    Raises:
        ArtifactError: The directory is not a published repository.
    """

    def __init__(self, repository: Path, *, concurrent: bool = False, timed: bool = False) -> None:
        self.repository = repository.absolute()
        self.fingerprint = read_fingerprint(self.repository)
        self._pool = ThreadPoolExecutor(_MOST_THREADS) if concurrent else None
        self._timed = timed
        self._configs: dict[str, dict[str, Any]] = {}
        self._plans: dict[str, _Plan] = {}
        self._models: dict[tuple[str, str], _Model] = {}

    def run(self, model: str, inputs: Mapping[str, Array]) -> Arrays:
        """Answer one batch as the served model does.

        Args:
            model: An ensemble, raw (`predict_study`) or of tensors (`predict_study_tensors`), or one step.
            inputs: Its inputs by name, batched; `image_bytes` and `report` are (B, 1) objects, see `pack`;
                of studies with V images `image_bytes` is (B, V).

        Returns:
            Its outputs by name.

        Raises:
            ConfigError: The repository serves no such model.
            ArtifactError: A file of the repository is missing or damaged.
            InputError: An input is missing, has another type or shape, or cannot be read.
            ServerError: The runtime failed.
        """
        plan, config = self._plan(model), self._read_config(model)
        _check_batch(model, [entry["name"] for entry in config["input"]], inputs)
        tensors = walk(plan.stages, inputs, self._pool)
        return {entry["name"]: tensors[entry["name"]] for entry in config["output"]}

    def describe(self, model: str) -> dict[str, str]:
        """Return step -> runtime, precision and threads, of the steps of a model."""
        return {entry.spec.name: entry.describe() for entry in self._plan(model).list_models()}

    def read_parameter(self, model: str, name: str) -> str:
        """Return a parameter of a model's config, or "" if it has none. Raise ConfigError for an unknown model."""
        return read_parameter(self._read_config(model), name)

    def read_times(self, model: str) -> dict[str, dict[str, float]]:
        """Return step -> kind of operation -> milliseconds of all runs. Call it once; it needs `timed`."""
        models = self._plan(model).list_models()
        return {entry.spec.name: entry.session.read_times() for entry in models if entry.session}

    def _plan(self, model: str) -> _Plan:
        if model not in self._plans:
            self._plans[model] = self._make_plan(model)
        return self._plans[model]

    def _make_plan(self, name: str) -> _Plan:
        config = self._read_config(name)
        entries = config.get("ensemble_scheduling", {}).get("step")
        if not entries:
            model = self._load(name, "-1")
            inputs = {tensor.name: tensor.name for tensor in model.spec.inputs}
            outputs = {entry["name"]: entry["name"] for entry in config["output"]}
            return _Plan([[Step(name, model.run, inputs, outputs)]], {name: model})
        if self._pool:
            entries = _remove_gate(entries)
        models = {
            entry["model_name"]: self._load(entry["model_name"], str(entry.get("model_version", "-1")))
            for entry in entries
        }
        steps = [
            Step(
                entry["model_name"],
                models[entry["model_name"]].run,
                entry["input_map"],
                entry["output_map"],
            )
            for entry in entries
        ]
        return _Plan(sort_steps(steps, source=f"The ensemble {name} in {self.repository}"), models)

    def _load(self, name: str, version: str) -> _Model:
        if (name, version) not in self._models:
            if name not in _SPECS:
                raise ConfigError(
                    f"{self.repository} holds a model {name}, which this version of the software does not know."
                )
            config, spec = self._read_config(name), _SPECS[name]
            directory = _find_version(self.repository / name, version)
            if spec.backend == "python":
                step = open_step(name, config, directory)
                model = _Model(spec, lambda inputs: step(inputs, ()))
            else:
                session = _open_graph(config, directory, self._timed)
                # A graph of an older version of this software lacks some outputs of the table.
                outputs = [entry["name"] for entry in config["output"]]
                model = _Model(spec, _bind(session, spec, outputs, directory), session)
            self._models[name, version] = model
        return self._models[name, version]

    def _read_config(self, name: str) -> dict[str, Any]:
        if name not in self._configs:
            path = self.repository / name / "config.pbtxt"
            if not path.is_file():
                raise ConfigError(f"{self.repository} serves no model {name}.")
            self._configs[name] = read_config(path)
        return self._configs[name]


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.pbtxt as the JSON that Triton hands to a python model.

    Raises:
        ConfigError: tritonclient is not installed.
        ArtifactError: The file cannot be read or is no config.
    """
    try:
        from google.protobuf import json_format, text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise ConfigError(
            "Reading a config.pbtxt needs the package tritonclient: pip install cxr-serving."
        ) from error
    try:
        message = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a Triton config ({type(error).__name__}). Publish the model again with "
            "`cxr export`."
        ) from error
    return dict(json_format.MessageToDict(message, preserving_proto_field_name=True))


def _find_version(directory: Path, version: str) -> Path:
    """Return the directory of a version; "-1" is the newest."""
    if version != "-1":
        return directory / version
    numbers = [int(path.name) for path in directory.iterdir() if path.is_dir() and path.name.isdecimal()]
    if not numbers:
        raise ArtifactError(f"{directory} holds no version. Publish the model again with `cxr export`.")
    return directory / str(max(numbers))


def _open_graph(config: Mapping[str, Any], directory: Path, timed: bool) -> Session:
    groups = config.get("instance_group", [])
    kind = groups[0].get("kind", "KIND_CPU") if groups else "KIND_CPU"
    path = directory / (config.get("default_model_filename") or "model.onnx")
    session = open_session(path, config, kind=kind, timed=timed)
    require_fingerprint(session, config, directory)
    return session


def _remove_gate(listed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps of an ensemble without the gate. The steps behind it read the gate's inputs directly."""
    gates = [entry for entry in listed if entry["model_name"] == TEXT_GATE]
    sources = {
        tensor: gate["input_map"][name] for gate in gates for name, tensor in gate["output_map"].items()
    }
    return [
        {**entry, "input_map": {name: sources.get(x, x) for name, x in entry["input_map"].items()}}
        for entry in listed
        if entry not in gates
    ]


def _bind(session: Session, spec: ModelSpec, outputs: Sequence[str], directory: Path) -> Run:
    inputs = [tensor.name for tensor in spec.inputs]
    limits = TokenLimits.find(directory)

    def run(tensors: Mapping[str, Array]) -> Arrays:
        if limits is not None:
            limits.check_inputs(tensors)
        arrays = session.run(outputs, {name: tensors[name] for name in inputs})
        return dict(zip(outputs, arrays, strict=True))

    return run


def _check_batch(model: str, names: Sequence[str], tensors: Mapping[str, Array]) -> None:
    """Raise TensorError unless every input is given, for the same number of items."""
    if missing := [name for name in names if name not in tensors]:
        raise TensorError(f"{model} needs the tensor {missing[0]}.")
    counts = {len(tensors[name]) if tensors[name].ndim else 0 for name in names}
    if len(counts) > 1 or 0 in counts:
        raise TensorError(f"The inputs of {model} must hold the same number of items, at least 1.")
