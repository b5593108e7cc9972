"""A published model in this process, without Triton: the same files, configs, runtime and threads.

It is what serving is measured against, and a way to use a published model where no server is wanted:

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
from contract.steps import open_step
from contract.tensors import LAYOUTS, TEXT_GATE, ModelSpec
from serving.triton import read_fingerprint

Array = NDArray[Any]
Arrays = dict[str, Array]
_MOST_AT_ONCE: Final = 2  # the encoders of a study
Run = Callable[[Mapping[str, Array]], Arrays]

_SPECS: Final[dict[str, ModelSpec]] = {
    name: spec for layout in LAYOUTS.values() for name, spec in layout.items() if spec.backend != "ensemble"
}


@dataclass(frozen=True)
class _Model:
    """One model at one version, loaded: its tensors, and what it does."""

    spec: ModelSpec
    run: Run
    session: Session | None = None  # of a graph

    def describe(self) -> str:
        return self.session.describe() if self.session else "contract"


@dataclass(frozen=True)
class _Step:
    """A model at its place in an ensemble, whose tensors have names of their own there."""

    model: _Model
    reads: Mapping[str, str]  # the model's input -> the ensemble's tensor
    makes: Mapping[str, str]  # the model's output -> the ensemble's tensor

    def run(self, tensors: Mapping[str, Array]) -> Arrays:
        given = {name: tensors[tensor] for name, tensor in self.reads.items()}
        for entry in self.model.spec.inputs:
            entry.check(given[entry.name])
        made = self.model.run(given)
        return {tensor: made[name] for name, tensor in self.makes.items()}


class InProcess:
    """The models of one published repository, each loaded when it is first needed. For one caller at a time.

    Args:
        repository: What `cxr export` wrote.
        concurrent: Whether the two encoders of a study run at once. In Triton they never do (`contract.tensors`).
        timed: Whether the time of each operation is noted (`read_times`).

    Raises:
        ArtifactError: There is no published repository.
    """

    def __init__(self, repository: Path, *, concurrent: bool = False, timed: bool = False) -> None:
        self.repository = repository.absolute()
        self.fingerprint = read_fingerprint(self.repository)
        self._pool = ThreadPoolExecutor(_MOST_AT_ONCE) if concurrent else None
        self._timed = timed
        self._configs: dict[str, dict[str, Any]] = {}
        self._plans: dict[str, list[list[_Step]]] = {}
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
            InputError: An input is missing, does not fit, or cannot be read.
            ServerError: The runtime failed.
        """
        waves = self._plan(model)
        config = self._read_config(model)
        tensors = dict(inputs)
        _check_batch(model, [entry["name"] for entry in config["input"]], tensors)
        for wave in waves:
            for made in self._run_wave(wave, tensors):
                tensors |= made
        return {entry["name"]: tensors[entry["name"]] for entry in config["output"]}

    def describe(self, model: str) -> dict[str, str]:
        """Return step -> runtime, precision and threads, of the steps of a model."""
        return {step.model.spec.name: step.model.describe() for wave in self._plan(model) for step in wave}

    def read_parameter(self, model: str, name: str) -> str:
        """Return a parameter of a model's config as text, "" where it has none; ConfigError for an unknown model."""
        return read_parameter(self._read_config(model), name)

    def read_times(self, model: str) -> dict[str, dict[str, float]]:
        """Return step -> kind of operation -> milliseconds of all runs so far, once, where `timed`."""
        models = [step.model for wave in self._plan(model) for step in wave]
        return {entry.spec.name: entry.session.read_times() for entry in models if entry.session}

    def _run_wave(self, wave: Sequence[_Step], tensors: Mapping[str, Array]) -> list[Arrays]:
        if self._pool is not None and len(wave) > 1:
            return list(self._pool.map(lambda step: step.run(tensors), wave))
        return [step.run(tensors) for step in wave]

    def _plan(self, model: str) -> list[list[_Step]]:
        """Return the steps of a model in waves: those of one wave need nothing of each other."""
        if model not in self._plans:
            self._plans[model] = self._make_plan(model)
        return self._plans[model]

    def _make_plan(self, model: str) -> list[list[_Step]]:
        listed = self._read_config(model).get("ensemble_scheduling", {}).get("step")
        if not listed:
            return [[self._place_alone(model)]]
        waiting = [self._place(entry) for entry in (_remove_gate(listed) if self._pool else listed)]
        made_later = {tensor for step in waiting for tensor in step.makes.values()}
        waves: list[list[_Step]] = []
        while waiting:
            ready = [step for step in waiting if not made_later & set(step.reads.values())]
            if not ready:
                raise ArtifactError(f"The steps of {model} in {self.repository} wait for each other.")
            waiting = [step for step in waiting if step not in ready]
            made_later -= {tensor for step in ready for tensor in step.makes.values()}
            waves.append(ready)
        return waves

    def _place(self, entry: Mapping[str, Any]) -> _Step:
        model = self._load(entry["model_name"], str(entry.get("model_version", "-1")))
        return _Step(model, entry["input_map"], entry["output_map"])

    def _place_alone(self, name: str) -> _Step:
        model = self._load(name, "-1")
        reads = {tensor.name: tensor.name for tensor in model.spec.inputs}
        makes = {entry["name"]: entry["name"] for entry in self._read_config(name)["output"]}
        return _Step(model, reads, makes)

    def _load(self, name: str, version: str) -> _Model:
        if (name, version) not in self._models:
            if name not in _SPECS:
                raise ConfigError(f"{self.repository} holds {name}, which this version does not know.")
            config = self._read_config(name)
            directory = _find_version(self.repository / name, version)
            spec = _SPECS[name]
            if spec.backend == "python":
                made = _Model(spec, _bind_step(name, config, directory))
            else:
                session = _open_graph(config, directory, self._timed)
                # Fewer than the table says where an older version published the graph.
                outputs = [entry["name"] for entry in config["output"]]
                made = _Model(spec, _bind(session, spec, outputs, directory), session)
            self._models[name, version] = made
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
        raise ConfigError("Reading config.pbtxt needs tritonclient: pip install cxr-serving.") from error
    try:
        message = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ArtifactError(f"{path} cannot be read as a Triton config: {type(error).__name__}.") from error
    return dict(json_format.MessageToDict(message, preserving_proto_field_name=True))


def _find_version(directory: Path, version: str) -> Path:
    """Return the directory of a version; "-1" is the newest."""
    if version != "-1":
        return directory / version
    numbers = [int(path.name) for path in directory.iterdir() if path.is_dir() and path.name.isdecimal()]
    if not numbers:
        raise ArtifactError(f"{directory} holds no version: publish the model again.")
    return directory / str(max(numbers))


def _open_graph(config: Mapping[str, Any], directory: Path, timed: bool) -> Session:
    groups = config.get("instance_group", [])
    kind = groups[0].get("kind", "KIND_CPU") if groups else "KIND_CPU"
    path = directory / (config.get("default_model_filename") or "model.onnx")
    session = open_session(path, config, kind=kind, timed=timed)
    require_fingerprint(session, config, directory)
    return session


def _remove_gate(listed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps of an ensemble without the gate: what it hands on is read where it comes from."""
    gates = [entry for entry in listed if entry["model_name"] == TEXT_GATE]
    sources = {
        tensor: gate["input_map"][name] for gate in gates for name, tensor in gate["output_map"].items()
    }
    return [
        {**entry, "input_map": {name: sources.get(x, x) for name, x in entry["input_map"].items()}}
        for entry in listed
        if entry not in gates
    ]


def _bind_step(name: str, config: Mapping[str, Any], directory: Path) -> Run:
    step = open_step(name, config, directory)
    return lambda tensors: step(tensors, ())


def _bind(session: Session, spec: ModelSpec, outputs: Sequence[str], directory: Path) -> Run:
    inputs = [tensor.name for tensor in spec.inputs]
    limits = TokenLimits.find(directory)

    def run(tensors: Mapping[str, Array]) -> Arrays:
        if limits is not None:
            limits.check_inputs(tensors)
        found = session.run(outputs, {name: tensors[name] for name in inputs})
        return dict(zip(outputs, found, strict=True))

    return run


def _check_batch(model: str, names: Sequence[str], tensors: Mapping[str, Array]) -> None:
    """Raise TensorError unless every input is there, for the same number of items."""
    if missing := [name for name in names if name not in tensors]:
        raise TensorError(f"{model} needs the tensor {missing[0]}.")
    counts = {len(tensors[name]) if tensors[name].ndim else 0 for name in names}
    if len(counts) > 1 or 0 in counts:
        raise TensorError(f"The inputs of {model} must hold the same number of items, from 1 on.")
