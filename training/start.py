"""Start a run from a bundle's weights and vocabulary, on other studies or with other settings.

`weights.freeze` and the rates of `optimizer` decide which parts change, as for pretrained weights. The lexical part,
calibration and thresholds are fitted again at the end, as in every run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from contract.bundle import SPLIT, Bundle
from contract.errors import ConfigError
from training.config.removed import list_used
from training.config.settings import ModelConfig, TrainConfig
from training.config.toml_file import read_model_config, read_train_config
from training.known_studies import list_known_ids
from training.model.model import CxrModel, load_model

# Settings of `ModelConfig` that are not part of the architecture, and those that the bundle's vocabulary decides.
_FREE: Final = frozenset(["dropout", "image_drop_path", "label_share", "vocabulary_size"])
_BEFORE: Final = "pretraining."  # settings of a removed step, which came before the training of the weights


def read_start_config(start: Bundle) -> TrainConfig:
    """Return the config of a bundle's run, without its pretrained weights, for a new run.

    Raises:
        ConfigError: The bundle does not record its config, or it was trained in a way that was removed.
    """
    config = read_train_config(start.config)
    used = [name for name in list_used(start.config["training"]) if not name.startswith(_BEFORE)]
    if used:
        raise ConfigError(
            f"{start.path} was trained with {used[0]}, which does not exist any more. Name the config of the new run: "
            "--config."
        )
    weights = replace(config.weights, image=None, text=None, freeze=())
    return replace(config, weights=weights)


def fit_config(config: TrainConfig, start: Bundle) -> TrainConfig:
    """Check that the bundle's weights fit the config; return the config with the bundle's vocabulary.

    Raises:
        ConfigError: The bundle has another architecture, or the config names pretrained weights as well.
    """
    if config.weights.image or config.weights.text:
        raise ConfigError(
            "A run starts either from a bundle or from pretrained weights. Leave out weights.image and weights.text."
        )
    bundle_config: ModelConfig = read_model_config(start.config["model"])
    model, bundle_model = asdict(config.model), asdict(bundle_config)
    differing = [name for name in bundle_model if name not in _FREE and model[name] != bundle_model[name]]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{start.path} has another architecture: its model.{name} is {bundle_model[name]}, "
            f"this run's is {model[name]}."
        )
    fitted = replace(config, model=replace(config.model, vocabulary_size=bundle_config.vocabulary_size))
    fitted.check()
    return fitted


def check_split(start: Bundle, table: Path, split: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError if a validation or test study is a training study of the bundle.

    Args:
        start: The bundle.
        table: Studies table of the new run. A table of another collection has other studies, even with equal ids.
        split: Part -> study ids of the new run.
    """
    trained = list_known_ids(start, table, ("train",))
    for part in ("validation", "test"):
        if common := trained.intersection(split[part]):
            raise ConfigError(
                f"{start.path} was trained on {len(common)} of the {len(split[part])} {part} studies. Use the bundle's "
                f"split: --split-file {start.path / SPLIT}."
            )


def check_held_out(start: Bundle, keys: Sequence[str]) -> None:
    """Raise ConfigError if a bundle was trained with one of the labels (`keys`) that a new run holds out."""
    trained = [key for key in keys if key not in start.held_out]
    if trained:
        raise ConfigError(
            f"{start.path} was trained with {', '.join(trained)}, so data.held_out cannot name it. Start from a model "
            "that held it out, too."
        )


def load_start(model: CxrModel, start: Bundle) -> str:
    """Load a bundle's weights into a model; return one line about it.

    Raises:
        ArtifactError: The weights do not fit the bundle's config.
    """
    model.load_state_dict(load_model(start).state_dict())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"weights and vocabulary from {start.path} (model {start.fingerprint[:12]}): {parameters:,} parameters"


def describe_start(start: Bundle) -> dict[str, Any]:
    """Return the manifest entry for the start bundle, which includes the entry of that bundle's own start."""
    recorded = ("data_source", "data_sha256", "git_commit", "started_from")
    entry = {name: start.manifest[name] for name in recorded if start.manifest.get(name) is not None}
    training = start.config.get("training", {})
    pretrained = [source for kind in ("image", "text") if (source := training.get("weights", {}).get(kind))]
    return {"fingerprint": start.fingerprint, "config": training.get("name"), "weights": pretrained, **entry}
