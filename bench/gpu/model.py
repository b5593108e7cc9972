"""The model for the GPU measurements: the size of a training config, random weights, and random requests."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.gpu.log import Settings
from contract.bundle import (
    CONFIG,
    METRICS,
    MODEL_CARD,
    SPLIT,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    load_bundle,
    seal_bundle,
    write_directory,
    write_json,
    write_labels,
)
from contract.decisions import Decisions, ServedLabel
from contract.labels import LABELS
from contract.probe_case import PROBE_REPORT
from contract.tensors import MODELS

if TYPE_CHECKING:
    from export.profiles import Profile
    from training.config.settings import ModelConfig

STUDY: Final = ("image_encoder", "text_encoder", "fusion_study")
BUNDLE: Final = Path("model", "bundle")
_VOCABULARY: Final = 300
_ANSWERED: Final = 0.5  # the threshold of every label


def read_size(settings: Settings) -> "ModelConfig":
    """Return the sizes of the model."""
    from training.config.toml_file import load_config

    return load_config(settings.size, {}).model


def open_bundle(out: Path, settings: Settings) -> Bundle:
    """Return the bundle of this run. Create it if it is missing."""
    path = out / BUNDLE
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_directory(path) as scratch:
            _write_bundle(scratch, settings)
    return load_bundle(path)


def draw_inputs(settings: Settings, batch: int) -> dict[str, NDArray[Any]]:
    """Return random pixels and token ids of a study, batched."""
    numbers, model = np.random.default_rng(batch), read_size(settings)
    length = min(settings.length, model.text_positions)
    return {
        "pixels": numbers.integers(0, 256, (batch, 1, model.image_size, model.image_size), dtype=np.uint8),
        "input_ids": numbers.integers(5, min(model.vocabulary_size, _VOCABULARY), (batch, length)),
        "attention_mask": np.ones((batch, length), dtype=np.int64),
    }


def make_profile(name: str, settings: Settings) -> "Profile":
    """Return a precision profile for the graphs of this run: only ONNX Runtime, on the measured device."""
    from export.profiles import load_profile

    machine: Any = "gpu" if settings.device == "cuda" else "cpu"
    return replace(load_profile(name), target=machine, accelerator="", parameters={}, faster_than="")


def make_graphs(out: Path, settings: Settings, name: str) -> dict[str, Path]:
    """Return the five graphs of a profile, `plain` or `tensorrt-fp16`. Create them if they are missing."""
    from contract.tensors import GRAPHS
    from export.graphs.convert import convert_graphs
    from export.graphs.from_torch import export_graphs

    folder = out / "model" / name
    done = folder / "done"
    if name == "plain" and not done.is_file():
        export_graphs(open_bundle(out, settings), folder)
    elif not done.is_file():
        profile = make_profile(name.rpartition("-")[2], settings)
        target = "tensorrt" if name.startswith("tensorrt") else profile.target
        converted = convert_graphs(
            open_bundle(out, settings), make_graphs(out, settings, "plain"), profile, folder, target=target
        )
        for graph, path in converted.paths.items():
            if path != folder / f"{graph}.onnx":  # optimised but not converted
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{graph}.onnx").write_bytes(path.read_bytes())
    done.touch()
    return {graph: folder / f"{graph}.onnx" for graph in GRAPHS}


def list_outputs(graph: str) -> list[str]:
    """Return the names of a graph's outputs."""
    return [tensor.name for tensor in MODELS[graph].outputs]


def _write_bundle(directory: Path, settings: Settings) -> None:
    import torch
    from safetensors.torch import save_file

    from contract.report.text import train_tokenizer
    from training.model.model import CxrModel

    torch.manual_seed(0)
    config = read_size(settings)
    model = CxrModel(config)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, directory / WEIGHTS)
    values: Mapping[str, Any] = {
        "model": asdict(config),
        "sizes": model.sizes,
        "text_mode": "findings",
        "max_length": min(config.text_positions, 256),
    }
    write_json(directory / CONFIG, dict(values))
    train_tokenizer([PROBE_REPORT.decode()] * 3, directory / TOKENIZER, vocab_size=_VOCABULARY)
    labels = tuple(ServedLabel(label.key, label.name, _ANSWERED) for label in LABELS)
    write_labels(directory, Decisions.repeat(labels))
    for name in (METRICS, SPLIT):
        write_json(directory / name, {})
    (directory / MODEL_CARD).write_text("Random weights: for measuring speed alone.\n", encoding="utf-8")
    seal_bundle(directory, {})
