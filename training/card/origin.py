"""The origin and licence of a model's data and weights, for the model card (`training.card.card`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from contract.training_data import describe_training, read_trained_on
from training.card.source import find_source
from training.config.settings import TrainConfig

LICENCE_FILE: Final = "LICENSE.md"  # `export.hub` writes it from the card's section "Licence"


def choose_licence(config: TrainConfig, details: Mapping[str, Any]) -> dict[str, str]:
    """Return the hub's licence keys: MIT only if the model has no data or weights of other owners."""
    if not _list_foreign(config, details):
        return {"license": "mit"}
    return {"license": "other", "license_name": "depends-on-training-data", "license_link": LICENCE_FILE}


def _list_foreign(config: TrainConfig, details: Mapping[str, Any]) -> list[str]:
    """Return the data and pretrained weights with their own licence, also those of the start bundle."""
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
            "The weights were trained on Open-i, whose reports state CC BY-NC-ND 4.0 (attribution, not commercial, no "
            "derivatives). Whether that binds weights trained on them is not settled: take them as for non-commercial "
            "research with attribution, and clear anything else with the collection's makers."
        )
    elif named == "phantom":
        text = "The weights were trained on phantoms that the MIT-licensed code drew: nobody else's data is in them."
    else:
        text = (
            "The licence of the weights depends on the data that they were trained on, which the training record does "
            "not name or does not know the terms of: whoever publishes them has to state it."
        )
    if earlier := details.get("started_from"):
        names = ", ".join(dict.fromkeys(_list_foreign(TrainConfig(), earlier))) or "phantoms alone"
        text += f" The run started from an earlier model, in which is: {names}; those licences hold as well."
    if pretrained:
        text += f" They start from {' and '.join(f'`{source}`' for source in pretrained)}; those licences hold as well."
    return f"## Licence\n\nThe code (cxr-serving) is under the MIT licence. {text}\n"
