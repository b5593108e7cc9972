"""Write a trained model and its results as a bundle."""

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from contract import bundle as files
from contract.decisions import Decisions
from training.card.card import write_card
from training.config.settings import TrainConfig
from training.data.openi import read_collection
from training.model.backbone import read_sizes
from training.model.model import CxrModel


def write_bundle(
    directory: Path,
    config: TrainConfig,
    model: CxrModel,
    *,
    split_ids: Mapping[str, list[str]],
    decisions: Decisions,
    metrics: Mapping[str, Any],
    details: Mapping[str, Any],
) -> None:
    """Write every file of a bundle into a directory and seal it.

    Args:
        directory: Directory that holds tokenizer.json already.
        config: The run's config.
        model: The trained and calibrated model.
        split_ids: Study ids of "train", "validation" and "test".
        decisions: Thresholds and bands of the calibrated model.
        metrics: Content of metrics.json.
        details: Entries of the manifest, from `describe_origin`.
    """
    model = model.to("cpu").eval()
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, directory / files.WEIGHTS
    )
    files.write_json(directory / files.CONFIG, make_bundle_config(config))
    files.write_labels(directory, decisions)
    files.write_json(directory / files.METRICS, metrics)
    files.write_json(directory / files.SPLIT, split_ids)
    (directory / files.MODEL_CARD).write_text(write_card(config, metrics, details), encoding="utf-8")
    files.seal_bundle(directory, details)


def make_bundle_config(config: TrainConfig) -> dict[str, Any]:
    """Return the content of a bundle's config.json."""
    training = asdict(config)
    return {
        "model": training.pop("model"),
        "text_mode": config.data.text_mode,
        "max_length": config.data.max_length,
        "sizes": read_sizes(config.model),
        "training": training,
    }


def describe_origin(config: TrainConfig, table: Path, device: torch.device, seconds: float) -> dict[str, Any]:
    """Return the origin of a bundle, for its manifest."""
    import timm
    import transformers

    modules = {"torch": torch, "timm": timm, "transformers": transformers, "numpy": np}
    return {
        "versions": {"python": platform.python_version()}
        | {name: str(module.__version__) for name, module in modules.items()},
        "git_commit": _read_commit(),
        "data_sha256": files.compute_sha256(table),
        "data_source": read_collection(table),
        "seed": config.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "seconds": round(seconds, 1),
    }


def _read_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
