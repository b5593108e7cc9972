"""The model card: MODEL_CARD.md, written from what was measured, for people."""

from collections.abc import Mapping
from typing import Any

from contract.labels import LABEL_NAMES
from training.config import TrainConfig

_MARKS = ("<!-- evaluation -->", "<!-- end of evaluation -->")
_KIND_NAMES = {"study": "image + report", "image": "image only", "text": "report only"}


def write_card(config: TrainConfig, metrics: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """Return the Markdown of a model card.

    Args:
        config: The training run.
        metrics: What metrics.json holds.
        details: What the manifest holds: versions, git commit, data hash, seed.
    """
    parts = [
        f"# Chest X-ray model, preset `{config.preset}`\n",
        "Predicts 22 finding categories from a chest radiograph, its report, or both; places cases in one "
        "embedding space for search; shows attention per finding.\n\n"
        "**Research and teaching only. Not a medical device: never use it for a diagnosis.**\n",
        _write_data(metrics),
        _write_results(metrics),
        _write_limits(config, metrics),
        _write_making(config, details),
    ]
    return "\n".join(parts)


def insert_evaluation(card: str, summary: str) -> str:
    """Return a model card with the summary of an evaluation at its end, in the place of an earlier one."""
    start, end = _MARKS
    if start in card and end in card:
        before, rest = card.split(start, 1)
        card = before.rstrip() + "\n" + rest.split(end, 1)[1]
    note = "Made by `cxr evaluate`; the whole of it, with plots, lies in `evaluation/`.\n"
    return f"{card.rstrip()}\n\n{start}\n# Evaluation\n\n{note}\n{summary.rstrip()}\n{end}\n"


def _write_data(metrics: Mapping[str, Any]) -> str:
    counts = metrics["studies"]
    rows = "".join(
        f"| {part} | {count['studies']} | {count['image']} | {count['text']} | {count['labelled']} |\n"
        for part, count in counts.items()
    )
    return (
        "## Data\n\nSplit by patient. Labels come from the MeSH major headings that indexers gave each "
        "report, never from phrases in the text that the model reads.\n\n"
        f"| part | studies | with image | with report | labelled |\n|---|---|---|---|---|\n{rows}"
    )


def _write_results(metrics: Mapping[str, Any]) -> str:
    rows = "".join(
        f"| {_KIND_NAMES[kind]} | "
        + " | ".join(_cell(result, name) for name in ("auroc", "ap", "f1"))
        + " |\n"
        for kind, result in metrics["test"].items()
    )
    return (
        "## Results on the test split\n\nMacro means over the labels with enough cases, with 95 % intervals "
        "from bootstrapping patients. Thresholds and calibration were fitted on the validation split.\n\n"
        f"| input | AUROC | average precision | F1 |\n|---|---|---|---|\n{rows}"
    )


def _write_limits(config: TrainConfig, metrics: Mapping[str, Any]) -> str:
    unseen = [name for key, name in LABEL_NAMES.items() if metrics["training_positives"].get(key, 0) < 10]
    lines = [
        "- The text model reads "
        f"`{config.text_mode}` of the report. A report can state its labels in words, so figures with the "
        "report say how well the text is read, not how well the image is.",
        "- One institution's data; other scanners, patients and wordings were not tested.",
        "- Attention shows where the model looked, not why.",
    ]
    if "image" not in metrics["test"]:
        lines.append(
            "- **No images were used: the image encoder is untrained, and image predictions mean nothing.**"
        )
    if unseen:
        lines.append(f"- Fewer than 10 training cases, not to be relied on: {', '.join(unseen)}.")
    return "## Limits\n\n" + "\n".join(lines) + "\n"


def _write_making(config: TrainConfig, details: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in details["versions"].items())
    model = config.model
    return (
        "## How it was made\n\n"
        f"Swin (stages {model.image_depths}, width {model.image_width}, {model.image_size} pixels) and BERT "
        f"({model.text_layers} layers, width {model.text_width}), {model.fusion_layers} fusion layers, token "
        f"width {model.width}, embedding size {model.embedding_size}. Image weights: "
        f"{config.image_weights or 'from scratch'}; text weights: {config.text_weights or 'from scratch'}. "
        f"{config.epochs} epochs, batch {config.batch_size}, seed {config.seed}.\n\n"
        f"Code {details['git_commit'] or 'unknown'}; table SHA-256 {details['data_sha256'][:12]}; "
        f"trained in {details['seconds']:.0f} s on {details['device']}; {versions}.\n"
    )


def _cell(result: Mapping[str, Any], name: str) -> str:
    value = result["macro"].get(name)
    if value is None:
        return "too few cases"
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
