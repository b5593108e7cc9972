"""Templates in `model_repository/` + graphs -> a repository that Triton loads as it is.

The repository appears in one rename, complete, and replaces an older one the same way. Every config carries
the fingerprint; the `predict_*` configs carry what a client needs to read the answers (labels,
thresholds, sizes).

Targets: `cpu` runs the graphs on the processor. `gpu` asks for an instance of each graph on every GPU
(KIND_GPU); preprocessing stays on the processor. For TensorRT on NVIDIA's Triton image publish for `gpu` and
add to the config of an encoder, in the published repository:

    optimization { execution_accelerators { gpu_execution_accelerator : [ {
      name : "tensorrt" parameters { key: "precision_mode" value: "FP32" } } ] } }
"""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import model_repository
from contract.bundle import Bundle, compute_sha256, require_same_fingerprint, write_directory, write_json
from contract.errors import ArtifactError, ConfigError
from contract.tensors import GRAPHS, MODELS, ModelSpec
from export.checks import read_fingerprint, read_sizes

Target = Literal["cpu", "gpu"]
MARKER: Final = ".published.json"  # Triton reads directories only, so it passes over this file
TEMPLATES: Final = Path(model_repository.__file__).parent
VERSION: Final = "1"
_CODE: Final = "model.py"
_CONFIG_NAME: Final = "config.pbtxt"


def publish(bundle: Bundle, graphs: Mapping[str, Path], repository: Path, target: Target = "cpu") -> Path:
    """Write the repository of one model, all or nothing.

    Args:
        bundle: The verified bundle.
        graphs: Graph name -> ONNX file made from this bundle (`export.graphs.export_graphs`).
        repository: Where it goes. A repository published earlier is replaced once the new one is complete;
            anything else there is left alone.
        target: What the graphs run on.

    Returns:
        The repository's absolute path.

    Raises:
        ConfigError: `repository` holds something that was not published by this function, or a setting of the
            bundle or the target is unknown.
        FingerprintError: A graph comes from another bundle.
        ArtifactError: A graph or a template is missing, or the disk refused the write; nothing is left.
    """
    if target not in ("cpu", "gpu"):
        raise ConfigError(f"The target must be cpu or gpu, not {target}.")
    repository = repository.absolute()
    replaces = check_replaceable(repository)
    _check_graphs(bundle, graphs)
    if not replaces:
        with write_directory(repository) as scratch:
            _fill(scratch, bundle, graphs, target)
        return repository
    fresh = _reserve_name(repository)
    with write_directory(fresh) as scratch:
        _fill(scratch, bundle, graphs, target)
    _swap(fresh, repository)
    return repository


def read_template(name: str) -> Any:
    """Parse the template config of one model into a Triton `ModelConfig` message.

    Raises:
        ArtifactError: The template is missing or not a config.
    """
    path = TEMPLATES / name / _CONFIG_NAME
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except OSError as error:
        raise ArtifactError(f"This installation lacks {path}: install the package again.") from error
    except text_format.ParseError as error:
        raise ArtifactError(f"{path} is not a Triton config: {error}.") from error


def fill_config(bundle: Bundle, spec: ModelSpec, target: Target = "cpu") -> Any:
    """Return the `ModelConfig` of one model with its sizes, parameters and device filled in."""
    sizes = read_sizes(bundle)
    config = read_template(spec.name)
    for entries, tensors in ((config.input, spec.inputs), (config.output, spec.outputs)):
        for entry, tensor in zip(entries, tensors, strict=True):
            entry.dims[:] = tensor.dims(sizes)
    for key, value in _make_parameters(bundle, spec, sizes).items():
        config.parameters[key].string_value = value
    if target == "gpu" and spec.backend == "onnxruntime":
        for group in config.instance_group:
            group.kind = model_config_pb2.ModelInstanceGroup.KIND_GPU
    return config


def _make_parameters(bundle: Bundle, spec: ModelSpec, sizes: Mapping[str, int]) -> dict[str, str]:
    values: dict[str, str] = {"fingerprint": bundle.fingerprint}
    if spec.name == "preprocess_image":
        values["image_size"] = str(sizes["S"])
    if spec.name == "preprocess_text":
        values |= {key: _read_setting(bundle, key) for key in ("text_mode", "max_length")}
    if spec.backend == "ensemble":
        values |= {
            "labels": json.dumps([label.describe() for label in bundle.labels]),
            "text_mode": _read_setting(bundle, "text_mode"),
            "max_length": _read_setting(bundle, "max_length"),
            "image_size": str(sizes["S"]),
            "embedding_size": str(sizes["D"]),
            "image_tokens_grid": str(_read_grid(bundle, sizes)),
        }
    temperature = bundle.config.get("training", {}).get("loss", {}).get("temperature")
    if spec.backend == "ensemble" and temperature:
        values["temperature"] = str(temperature)
    return values


def _read_setting(bundle: Bundle, key: str) -> str:
    value = bundle.config.get(key)
    if value in (None, ""):
        raise ConfigError(f"The config of {bundle.path} lacks {key}.")
    return str(value)


def _read_grid(bundle: Bundle, sizes: Mapping[str, int]) -> int:
    """Return the side of the square that the image tokens form, row by row."""
    grid = math.isqrt(sizes["N"])
    if grid * grid != sizes["N"]:
        raise ConfigError(f"The {sizes['N']} image tokens of {bundle.path} do not form a square.")
    return grid


def check_replaceable(repository: Path) -> bool:
    """Return whether there is a published (or empty) directory to replace; False when there is nothing.

    Raises:
        ConfigError: Something else is there.
    """
    if not repository.exists() and not repository.is_symlink():
        return False
    if repository.is_dir() and not repository.is_symlink():
        if (repository / MARKER).is_file() or not any(repository.iterdir()):
            return True
        raise ConfigError(
            f"{repository} was not published by cxr (it has no {MARKER}): choose another directory."
        )
    raise ConfigError(f"{repository} is not a directory: choose another path.")


def _check_graphs(bundle: Bundle, graphs: Mapping[str, Path]) -> None:
    if missing := [name for name in GRAPHS if name not in graphs]:
        raise ArtifactError(f"No graph was given for {', '.join(missing)}.")
    for name in GRAPHS:
        found = read_fingerprint(graphs[name])
        require_same_fingerprint(
            bundle.fingerprint, found, expected_from=str(bundle.path), found_from=str(graphs[name])
        )


def _fill(scratch: Path, bundle: Bundle, graphs: Mapping[str, Path], target: Target) -> None:
    for name, spec in MODELS.items():
        version = scratch / name / VERSION  # an ensemble needs it too, empty
        version.mkdir(parents=True)
        config = text_format.MessageToString(fill_config(bundle, spec, target))
        head = f"# Written by `cxr export` for model {bundle.fingerprint[:12]}, target {target}.\n"
        (scratch / name / _CONFIG_NAME).write_text(head + config, encoding="utf-8")
        if spec.backend == "onnxruntime":
            _copy_graph(graphs[name], version)
        elif spec.backend == "python":
            _copy_code(name, version)
    shutil.copyfile(bundle.tokenizer_path, scratch / "preprocess_text" / VERSION / bundle.tokenizer_path.name)
    _write_marker(scratch, bundle, target)


def _copy_graph(graph: Path, version: Path) -> None:
    shutil.copyfile(graph, version / "model.onnx")
    weights = graph.with_name(f"{graph.name}.data")
    if weights.is_file():  # the graph refers to them by this name
        shutil.copyfile(weights, version / weights.name)


def _copy_code(name: str, version: Path) -> None:
    code = TEMPLATES / name / VERSION / _CODE
    if not code.is_file():
        raise ArtifactError(f"This installation lacks {code}: install the package again.")
    shutil.copyfile(code, version / _CODE)


def _write_marker(scratch: Path, bundle: Bundle, target: Target) -> None:
    files = sorted(path for path in scratch.rglob("*") if path.is_file())
    hashes = {path.relative_to(scratch).as_posix(): compute_sha256(path) for path in files}
    marker = {
        "fingerprint": bundle.fingerprint,
        "target": target,
        "sizes": read_sizes(bundle),
        "files": hashes,
    }
    write_json(scratch / MARKER, marker)


def _reserve_name(repository: Path) -> Path:
    """Return a free name beside the repository, on the same file system so that a rename is possible."""
    try:
        name = Path(tempfile.mkdtemp(prefix=f".{repository.name}-", dir=repository.parent))
        name.rmdir()
    except OSError as error:
        raise ArtifactError(f"Could not write beside {repository}: {error.strerror or error}.") from error
    return name


def _swap(fresh: Path, repository: Path) -> None:
    """Put `fresh` in the place of `repository`; on failure the old one is back and `fresh` is gone."""
    old = Path(f"{fresh}-old")
    try:
        repository.rename(old)
        try:
            fresh.rename(repository)
        except OSError:
            old.rename(repository)
            raise
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise ArtifactError(f"Could not replace {repository}: {error.strerror or error}.") from error
    shutil.rmtree(old, ignore_errors=True)
