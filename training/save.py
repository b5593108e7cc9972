"""A trained model and its measurements as the files of a bundle."""

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from contract import bundle as files
from contract.labels import LABELS
from training.card import write_card
from training.config import TrainConfig
from training.model import CxrModel
from training.openi import read_collection
from training.selective import Selection, mark_unlearned


def write_bundle(
    directory: Path,
    config: TrainConfig,
    model: CxrModel,
    *,
    split_ids: Mapping[str, list[str]],
    thresholds: NDArray[np.float64],
    selection: Selection | None = None,
    metrics: Mapping[str, Any],
    details: Mapping[str, Any],
) -> None:
    """Write every file of a bundle into a directory and seal it.

    Args:
        directory: Holds tokenizer.json already.
        config: The training run.
        model: The trained and calibrated model.
        split_ids: Study ids of "train", "validation" and "test".
        thresholds: (K,) probabilities from which a finding counts as present.
        selection: From which probabilities on the model is uncertain, and its conformal set.
        metrics: Becomes metrics.json.
        details: Becomes part of the manifest; from `describe_origin`.
    """
    model = model.to("cpu").eval()
    main = "study" if "study" in metrics["test"] else next(iter(metrics["test"]), "study")
    scale, bias = (getattr(model.fusion, f"{name}_{main}").tolist() for name in ("scale", "bias"))
    labels = tuple(
        files.ServedLabel(label.key, label.name, float(threshold), one_scale, one_bias)
        for label, threshold, one_scale, one_bias in zip(LABELS, thresholds, scale, bias, strict=True)
    )
    if selection is not None:
        labels = selection.add_to(labels)
    labels = mark_unlearned(labels, {key for key, count in metrics["training_known"].items() if count})
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, directory / files.WEIGHTS
    )
    files.write_json(directory / files.CONFIG, make_bundle_config(config))
    files.write_labels(directory, labels)
    files.write_json(directory / files.METRICS, metrics)
    files.write_json(directory / files.SPLIT, split_ids)
    (directory / files.MODEL_CARD).write_text(write_card(config, metrics, details), encoding="utf-8")
    files.seal_bundle(directory, details)


def make_bundle_config(config: TrainConfig) -> dict[str, Any]:
    """Return what a bundle's config.json holds."""
    training = asdict(config)
    return {
        "model": training.pop("model"),
        "text_mode": config.data.text_mode,
        "max_length": config.data.max_length,
        "sizes": config.model.sizes,
        "training": training,
    }


def describe_origin(config: TrainConfig, table: Path, device: torch.device, seconds: float) -> dict[str, Any]:
    """Return where a bundle comes from, for its manifest."""
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
