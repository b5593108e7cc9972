"""The origin and licence of a model's data and weights, for the model card (`training.card.card`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from contract.training_data import describe_training, read_trained_on
from training.card.source import find_source
from training.config.settings import TrainConfig

LICENCE_FILE: Final = "LICENSE.md"  # `export.hub` writes it from the card's section "Licence"


def choose_licence(config: TrainConfig, details: Mapping[str, Any]) -> dict[str, str]:
    """Return the hub's licence keys. The licence is MIT only if no data and no weights have other owners."""
    if not _list_foreign(config, details):
        return {"license": "mit"}
    return {"license": "other", "license_name": "depends-on-training-data", "license_link": LICENCE_FILE}


def _list_foreign(config: TrainConfig, details: Mapping[str, Any]) -> list[str]:
    """Return the data and pretrained weights that have their own licence, also those of the start bundle."""
    weights = [source for source in (config.weights.image, config.weights.text) if source]
    sources = [f"`{source}`" for source in (*weights, *details.get("weights", ()))]
    if details.get("data_source") != "phantom":
        sources.append(find_source(details).name)
    earlier = details.get("started_from")
    return [*sources, *(_list_foreign(TrainConfig(), earlier) if earlier else ())]


def find_base_models(config: TrainConfig) -> list[str]:
    """Return the hub ids among the pretrained weights; files and directories have none."""
    ids = []
    for source in (config.weights.image, config.weights.text):
        name = (source or "").removeprefix("hf-hub:").removeprefix("hf_hub:")
        owner, _, rest = name.partition("/")
        if owner and rest and "/" not in rest and owner[0] not in ".~" and not Path(name).exists():
            ids.append(name)
    return ids


def write_start(details: Mapping[str, Any]) -> str:
    """Return lines about the start bundle of the run, and about the start bundle of that bundle."""
    start = details.get("started_from")
    if not start:
        return ""
    trained = describe_training(read_trained_on(start.get("data_source")))
    model = f"model `{start['fingerprint'][:12]}` (config `{start['config']}`, {trained})"
    return f"- Started from the weights and vocabulary of {model}\n{write_start(start)}"


def write_licence(config: TrainConfig, details: Mapping[str, Any]) -> str:
    """Return the section on the terms of code, data and weights."""
    named = details.get("data_source")
    pretrained = [source for source in (config.weights.image, config.weights.text) if source]
    if named == "openi":
        text = (
            "The weights were trained on Open-i, whose reports have the licence CC BY-NC-ND 4.0 (attribution, not "
            "commercial, no derivatives). It is an open question whether this licence applies to weights. Use them "
            "only for non-commercial research with attribution, or ask the owners of the collection."
        )
    elif named == "phantom":
        text = "The weights were trained on phantoms of the MIT-licensed code. They hold no data of other owners."
    else:
        text = (
            "The licence of the weights depends on the training data. The training record does not name these data, or "
            "it does not know their terms. State the licence if you publish the weights."
        )
    if earlier := details.get("started_from"):
        names = ", ".join(dict.fromkeys(_list_foreign(TrainConfig(), earlier))) or "phantoms alone"
        text += f" The run started from an earlier model with data or weights of: {names}. Those licences apply too."
    if pretrained:
        sources = " and ".join(f"`{source}`" for source in pretrained)
        text += f" The run started from the pretrained weights {sources}. Those licences apply too."
    return f"## Licence\n\nThe code (cxr-serving) is under the MIT licence. {text}\n"
