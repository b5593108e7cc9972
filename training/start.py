"""A run that starts from a bundle: from its weights and its vocabulary, on other studies or with other settings.

Which parts may change, `weights.freeze` and the rates of `optimizer` say, as for pretrained weights. The lexical part,
calibration and thresholds are fitted anew at the end, as in every run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from contract.bundle import SPLIT, Bundle
from contract.errors import ConfigError
from training.config.settings import ModelConfig, PretrainingConfig, TrainConfig
from training.config.toml_file import read_model_config, read_train_config
from training.data.openi import read_collection
from training.model.model import CxrModel, load_model

# Settings of `ModelConfig` that are no part of the architecture; the vocabulary is the bundle's.
_FREE: Final = frozenset(["dropout", "image_drop_path", "vocabulary_size"])


def read_start_config(start: Bundle) -> TrainConfig:
    """Return the config of the run that made a bundle, to start another from: without what came before that run.

    Raises:
        ConfigError: The bundle does not record it.
    """
    config = read_train_config(start.config)
    weights = replace(config.weights, image=None, text=None, freeze=())
    return replace(config, weights=weights, pretraining=PretrainingConfig())


def fit_config(config: TrainConfig, start: Bundle) -> TrainConfig:
    """Return the config with the bundle's vocabulary, once it is sure that the weights fit.

    Raises:
        ConfigError: The bundle has another architecture, or the config names pretrained weights as well.
    """
    if config.weights.image or config.weights.text:
        raise ConfigError(
            "A run starts from a bundle or from pretrained weights: leave out weights.image and weights.text."
        )
    there: ModelConfig = read_model_config(start.config["model"])
    here, known = asdict(config.model), asdict(there)
    differing = [name for name in known if name not in _FREE and here[name] != known[name]]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{start.path} has another architecture: its model.{name} is {known[name]}, this run's is {here[name]}."
        )
    fitted = replace(config, model=replace(config.model, vocabulary_size=there.vocabulary_size))
    fitted.check()
    return fitted


def check_split(start: Bundle, table: Path, split: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError where a study is to be tested with that the bundle was trained on.

    Args:
        start: The bundle.
        table: Studies table of the new run; one of another collection has other studies, whatever their names.
        split: Part -> study ids of the new run.
    """
    if read_collection(table) != start.manifest.get("data_source"):
        return
    trained = set(start.split["train"])
    for part in ("validation", "test"):
        if common := trained.intersection(split[part]):
            raise ConfigError(
                f"{start.path} was trained on {len(common)} of the {len(split[part])} {part} studies: take its own "
                f"split by --split-file {start.path / SPLIT}."
            )


def load_start(model: CxrModel, start: Bundle) -> str:
    """Put a bundle's weights into a model and say so in one line.

    Raises:
        ArtifactError: The weights do not fit the bundle's config.
    """
    model.load_state_dict(load_model(start).state_dict())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"weights and vocabulary from {start.path} (model {start.fingerprint[:12]}): {parameters:,} parameters"


def describe_start(start: Bundle) -> dict[str, Any]:
    """Return what the manifest says of the bundle that a run started from; what that one started from is inside."""
    known = ("data_source", "data_sha256", "git_commit", "started_from")
    found = {name: start.manifest[name] for name in known if start.manifest.get(name) is not None}
    training = start.config.get("training", {})
    pretrained = [source for kind in ("image", "text") if (source := training.get("weights", {}).get(kind))]
    return {"fingerprint": start.fingerprint, "config": training.get("name"), "weights": pretrained, **found}
