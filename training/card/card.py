"""Write the model card, MODEL_CARD.md, from the results of a run, for readers and for the Hugging Face hub.

It starts with the hub's metadata, a YAML block with licence, tags and results (`model-index`). The sections follow
Mitchell et al. 2019, Model Cards for Model Reporting (arXiv:1810.03993).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from huggingface_hub import EvalResult, ModelCardData

from contract.labels import LABEL_NAMES, LABELS
from contract.training_data import read_trained_on, warn_of_training
from training.card.origin import choose_licence, find_base_models, write_licence, write_start
from training.card.results import (
    HUB_METRICS,
    METRICS,
    list_unlearned,
    list_ways,
    name_way,
    write_labels,
    write_results,
    write_view_head,
)
from training.card.source import Source, find_source
from training.config.settings import SWIN, ModelConfig, TrainConfig
from training.config.toml_file import format_config
from training.data.mesh import list_doubts

RARE: Final = 10  # labels with fewer training cases are listed in the limits
_MARKS: Final = ("<!-- evaluation -->", "<!-- end of evaluation -->")
_MAP_MARKS: Final = ("<!-- maps -->", "<!-- end of maps -->")
_TEXT_MODES: Final = {
    "findings": "the findings, or the impression of a report without findings",
    "findings_masked": "the findings (or the impression of a report without findings), with the words that state a "
    "label hidden",
    "full": "findings and impression",
    "indication": "only the indication, which was written before the image was read",
}


def write_card(config: TrainConfig, metrics: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """Return the Markdown of a model card.

    Args:
        config: The training run.
        metrics: Content of metrics.json.
        details: Entries of the manifest: versions, git commit, data hash, seed, device, seconds. Optional are
            "data_source" ("openi", "phantom", or another name in words), "datasets" (ids of data sets on the hub),
            "started_from" (`training.start.describe_start`) and "calibration" (`training.recalibrate`).
    """
    source = find_source(details)
    parts = [
        _write_metadata(config, metrics, details, source),
        _write_summary(config, metrics, details),
        _write_use(),
        _write_data(metrics, source),
        write_results(metrics),
        write_labels(config, metrics),
        write_view_head(metrics),
        _write_doubts(source),
        _write_calibration(details),
        _write_limits(config, metrics, source),
        _write_training(config, details),
        write_licence(config, details),
        _write_citations(config, details),
    ]
    note = (
        "Not run yet. `cxr evaluate` writes the results of the controls here: word counts (TF-IDF), another patient's "
        "image or report, masked label words, and search. Without the controls the results above cannot be judged."
    )
    return _append_evaluation("\n".join(parts), note)


def insert_evaluation(card: str, summary: str) -> str:
    """Return a model card with the summary of an evaluation at its end. It replaces an earlier summary."""
    note = "Written by `cxr evaluate`. The full report with plots is in `evaluation/`."
    return _append_evaluation(_cut_out(card, _MARKS), f"{note}\n\n{summary.rstrip()}")


def insert_maps(card: str, summary: str) -> str:
    """Return a model card with the summary of `cxr evaluate explain` at its end. It replaces an earlier summary."""
    start, end = _MAP_MARKS
    note = "Written by `cxr evaluate explain`. The full report with plots is in `explanations/`."
    text = f"{start}\n# Explanations\n\n{note}\n\n{summary.rstrip()}\n{end}\n"
    return f"{_cut_out(card, _MAP_MARKS).rstrip()}\n\n{text}"


def _cut_out(card: str, marks: tuple[str, str]) -> str:
    """Return a card without the part between two marks, and without them."""
    start, end = marks
    before, opened, rest = card.partition(start)
    _, closed, after = rest.partition(end)
    return before.rstrip() + "\n" + after if opened and closed else card


def _append_evaluation(card: str, text: str) -> str:
    start, end = _MARKS
    return f"{card.rstrip()}\n\n{start}\n# Evaluation\n\n{text}\n{end}\n"


def _write_metadata(
    config: TrainConfig, metrics: Mapping[str, Any], details: Mapping[str, Any], source: Source
) -> str:
    """Return the YAML block. hub-docs/modelcard.md describes its keys."""
    results = list(_make_results(metrics, details, source))
    data = ModelCardData(
        language="en",
        **choose_licence(config, details),
        library_name="cxr-serving",
        pipeline_tag="image-classification" if "image" in metrics["test"] else "text-classification",
        tags=["chest-x-ray", "radiology", "medical", "multi-label", "multimodal", "retrieval", source.key],
        datasets=list(details.get("datasets", ())) or None,
        base_model=find_base_models(config) or None,
        metrics=list(HUB_METRICS.values()),
        model_name=f"cxr-serving {config.name}" if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _make_results(
    metrics: Mapping[str, Any], details: Mapping[str, Any], source: Source
) -> Iterator[EvalResult]:
    """Yield the macro means on the test split. The way to read a study is given as the data set's config."""
    for way, result in list_ways(metrics):
        for name, hub_name in HUB_METRICS.items():
            interval = result["macro"].get(name)
            if interval is None or not math.isfinite(interval["value"]):
                continue
            yield EvalResult(
                task_type="text-classification" if way == "text" else "image-classification",
                task_name=f"22 finding categories from {name_way(way)}",
                dataset_type=source.key,
                dataset_name=source.name,
                dataset_config=way,
                dataset_split="test",
                dataset_args={"table_sha256": details["data_sha256"], "studies": result.get("studies")},
                metric_type=hub_name,
                metric_name=f"{METRICS[name]}, macro mean",
                metric_value=float(interval["value"]),
                metric_args={
                    "average": "macro",
                    "low_95": float(interval["low"]),
                    "high_95": float(interval["high"]),
                },
            )


def _write_summary(config: TrainConfig, metrics: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    model = config.model
    trained_on = read_trained_on(details.get("data_source"))
    warning = "".join(f"**{sentence}**\n\n" for sentence in warn_of_training(trained_on))
    ways = ", ".join(name_way(way) for way, _ in list_ways(metrics)) or "none"
    return (
        f"# Chest X-ray model, config `{config.name}`\n\n"
        "This model predicts 22 finding categories from a chest radiograph, its report, or both. It embeds cases in "
        "one space for search, and it computes the attention for each finding.\n\n"
        "**Research and teaching only. This is not a medical device: never use it for a diagnosis.**\n\n"
        f"{warning}"
        f"- Image: {_describe_backbone(model)}, "
        f"{model.image_size} x {model.image_size} pixels, at most {config.data.views} view(s) of a study.\n"
        f"- Text: a BERT encoder, {model.text_layers} layers, width {model.text_width}, at most "
        f"{config.data.max_length} word pieces. It reads `{config.data.text_mode}`: "
        f"{_TEXT_MODES[config.data.text_mode]}.\n"
        f"- Fusion: {model.fusion_layers} layer(s), token width {model.width}. The same weights read image and report "
        f"together or either of them alone. Tested: {ways}.\n"
        f"- Embedding: {_describe_embedding(model)}\n"
    )


def _describe_embedding(model: ModelConfig) -> str:
    joint = f"{model.embedding_size} numbers of the space that images, reports and sentences share"
    if not model.label_share:
        return f"{joint}."
    return (
        f"{joint}, and behind them the {len(LABELS)} probabilities, which make {model.label_share:.0%} of the "
        "similarity of two studies."
    )


def _describe_backbone(model: ModelConfig) -> str:
    if model.image_backbone != SWIN:
        return f"the backbone `{model.image_backbone}` of timm"
    return f"a Swin Transformer, stages {', '.join(map(str, model.image_depths))}, width {model.image_width}"


def _write_use() -> str:
    return (
        "## Intended use\n\n"
        "Research on multimodal models and on their serving, and teaching about the strengths and errors of such a "
        "model. `cxr export` of `cxr-serving` publishes it for Triton.\n\n"
        "Out of scope: any decision about a patient (diagnosis, triage, screening, second reading); images of other "
        "parts of the body or of other modalities; reports in other languages than English. 22 coarse categories do "
        "not replace a radiology report.\n"
    )


def _write_data(metrics: Mapping[str, Any], source: Source) -> str:
    rows = "".join(
        f"| {part} | {count['studies']} | {count['image']} | {count['text']} | {count['labelled']} |\n"
        for part, count in metrics["studies"].items()
    )
    unreadable = metrics.get("unreadable_images", 0)
    note = f"\n{unreadable} image(s) could not be read and were left out.\n" if unreadable else ""
    return (
        f"## Data\n\n{source.about} The split is by patient, and `split.json` holds the study ids. {source.labels}\n\n"
        f"| part | studies | with image | with report | labelled |\n|---|---|---|---|---|\n{rows}{note}"
    )


def _write_doubts(source: Source) -> str:
    """Return the headings that differ in meaning from their category; "" for labels that are not from headings."""
    if not source.from_headings:
        return ""
    rows = "".join(
        f"| {LABEL_NAMES[key]} | {'; '.join(f'`{heading}`' for heading in headings)} | {doubt} |\n"
        for key, doubts in list_doubts().items()
        for doubt, headings in doubts.items()
    )
    return (
        "### Labels in doubt\n\n"
        "The categories follow a published grouping of MeSH headings. Some headings mean something else than their "
        "category, or less. Interpret such a category by its headings. `training/data/mesh.csv` gives a reason for "
        "every heading.\n\n"
        f"| category | headings | doubt |\n|---|---|---|\n{rows}"
    )


def _write_calibration(details: Mapping[str, Any]) -> str:
    again = details.get("calibration")
    return (
        "## Calibration, thresholds and abstention\n\n"
        "Probabilities are calibrated for each category and each way of reading a study (Platt scaling). A category is "
        "present if its probability is at least its threshold in `labels.json`. The threshold has the highest F1 for "
        "its way. It is 0.5 if the validation split has too few cases. A way that the model was not trained for has no "
        "thresholds. All values were fitted on the validation split, none on the test split. The calibration is valid "
        "only where findings are as frequent as in this data. For other data fit probabilities and thresholds "
        "again.\n\n"
        "A category with a band for a way of reading (`uncertain_low` to `uncertain_high`) is uncertain inside the "
        "band. A category without a band is never uncertain. The band limits two shares to the stated risks, in "
        "expectation: studies with the finding that are decided absent, and studies without it that are decided "
        "present (conformal risk control, Angelopoulos et al. 2022, arXiv:2208.02814). This holds for cases like those "
        "of the validation split, on which calibration and thresholds were fitted too. Compare it with the measured "
        "shares in the evaluation.\n" + (_write_recalibration(again) if again else "")
    )


def _write_recalibration(again: Mapping[str, Any]) -> str:
    """Return the recalibrated ways, their numbers of studies, and the labels with unchanged values."""
    source = find_source(again).name
    lines = [
        f"- {name_way(way)}: {fit['studies']} studies"
        + (
            f"; too few cases of {', '.join(f'`{key}`' for key in fit['kept'])}, so their values are unchanged"
            if fit["kept"]
            else ""
        )
        for way, fit in again["ways"].items()
    ]
    return (
        f"\n**Calibrated again**: this is model `{again['from'][:12]}` with calibration, thresholds and bands fitted "
        f"on {source} (studies table with SHA-256 {again['data_sha256']}), not on the validation split. So its F1, "
        "Brier score and calibration error on the test split are unknown. `cxr evaluate` measures them on other "
        "studies.\n\n" + "\n".join(lines) + "\n"
    )


def _write_limits(config: TrainConfig, metrics: Mapping[str, Any], source: Source) -> str:
    known = metrics["training_positives"]
    held_out = [key for key in LABEL_NAMES if key in config.data.held_out]
    unlearned = [key for key in list_unlearned(metrics) if key not in held_out]
    unseen = [
        name
        for key, name in LABEL_NAMES.items()
        if known.get(key, 0) < RARE and key not in (*unlearned, *held_out)
    ]
    lines = [
        source.limit,
        f"The text model reads `{config.data.text_mode}` of the report. A report can state its labels in words, so "
        "figures with the report measure how well the model reads text, not how well it reads images.",
        "The macro means do not include categories with too few test cases, although these are often the important "
        "ones.",
        "There are no figures by age, sex or scanner.",
        "Attention shows which parts of the input the model used, but not why.",
    ]
    if "image" not in metrics["test"]:
        lines.append(
            "**The training had no images: the image encoder is untrained, and predictions from images mean nothing.**"
        )
    if unlearned:
        names = ", ".join(LABEL_NAMES[key] for key in unlearned)
        lines.append(
            f"**Never learned, because the training data do not state where they are absent: {names}.** The model "
            "always answers 0.5 and uncertain to each of them."
        )
    if held_out:
        names = ", ".join(LABEL_NAMES[key] for key in held_out)
        lines.append(
            f"**Held out of training on purpose (`data.held_out`): {names}.** The model always answers 0.5 and "
            "uncertain to each of them. Only scores of free-text findings say something about them."
        )
    if unseen:
        lines.append(
            f"Do not rely on these categories with fewer than {RARE} training cases: {', '.join(unseen)}."
        )
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines)


def _write_training(config: TrainConfig, details: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in details["versions"].items())
    return (
        "## Training\n\n"
        f"Image weights: {_name_weights(config.weights.image)}; text weights: {_name_weights(config.weights.text)}. "
        f"{config.loop.epochs} epochs, batch {config.loop.batch_size}, seed {config.seed}; "
        f"{details['seconds']:.0f} s on {details['device']}.\n\n"
        f"{write_start(details)}"
        f"- Code: commit {details['git_commit'] or 'unknown'}\n"
        f"- Data: studies table with SHA-256 {details['data_sha256']}\n"
        f"- Versions: {versions}\n\n"
        f"All settings in the format of `cxr train --config`:\n\n```toml\n{format_config(config).rstrip()}\n```\n"
    )


def _write_citations(config: TrainConfig, details: Mapping[str, Any]) -> str:
    """Return the papers for the methods of this run."""
    loss, lines = config.loss, []
    if details.get("data_source") == "openi":
        lines.append(
            "Data: Demner-Fushman et al. 2016, Preparing a collection of radiology examinations for distribution and "
            "retrieval, JAMIA 23(2)"
        )
    lines += [
        "Image encoder: Liu et al. 2021, Swin Transformer, arXiv:2103.14030"
        if config.model.image_backbone == SWIN
        else "Image encoder: Wightman 2019, PyTorch Image Models, doi:10.5281/zenodo.4414861",
        "Text encoder: Devlin et al. 2019, BERT, arXiv:1810.04805",
        "Adapters: Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, arXiv:1902.00751",
        "Calibration: Platt 1999, Probabilistic Outputs for Support Vector Machines",
    ]
    if loss.bce_share < 1:
        lines.append("Loss: Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002")
    if loss.contrastive_weight:
        lines.append(
            "Contrastive loss: Radford et al. 2021, CLIP, arXiv:2103.00020; Khosla et al. 2020, arXiv:2004.11362"
        )
    if config.optimizer.name == "muon":
        lines.append("Optimizer: Liu et al. 2025, Muon is Scalable for LLM Training, arXiv:2502.16982")
    else:
        lines.append("Optimizer: Loshchilov and Hutter 2019, Decoupled Weight Decay, arXiv:1711.05101")
    return "## Methods to cite\n\n" + "".join(f"- {line}\n" for line in lines)


def _name_weights(source: str | None) -> str:
    return f"`{source}`" if source else "from scratch"
