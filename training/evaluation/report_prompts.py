"""The scores of labels in words as Markdown: of labels that the model was trained on, and of those held out."""

from collections.abc import Mapping
from typing import Any, Final

from contract.labels import LABEL_NAMES
from training.evaluation.markdown import format_interval, format_table

METRICS: Final = {"auroc": "AUROC", "ap": "AP"}


def write_prompt_scores(results: Mapping[str, Any]) -> str:
    """Return the tables of `training.evaluation.prompt_scores`; "" if it was not measured."""
    rows = results.get("prompt_scores")
    if not rows:
        return ""
    averages = [
        [row["title"], str(row["studies"]), *(format_interval(row["macro"].get(name)) for name in METRICS)]
        for row in rows
    ]
    labels = [
        [
            LABEL_NAMES[key],
            str(label["positives"]),
            *(format_interval(row["labels"][key]["auroc"]) for row in rows),
        ]
        for key, label in rows[0]["labels"].items()
    ]
    return (
        "## Prompt scores\n\n"
        "The score of a study says how much nearer its embedding is to sentences that state the label than to "
        "sentences that deny it (Tiu et al. 2022). The scores rank studies. They are no probabilities, and no "
        "zero-shot scores, because the model was trained on these labels. A report states its own findings, so the row "
        "of the image alone is the relevant one.\n\n"
        + format_table(["read", "studies", *METRICS.values()], averages)
        + "\n### AUROC of the prompt scores per label\n\n"
        + format_table(["label", "positive", *(row["title"] for row in rows)], labels)
    )


def write_zero_shot(results: Mapping[str, Any]) -> str:
    """Return the tables of `training.evaluation.zero_shot`; "" for a model without labels held out."""
    result = results.get("zero_shot")
    if not result:
        return ""
    rows, prevalence = result["rows"], result["prevalence"]
    measured = rows[0]["averaged"]
    few = [LABEL_NAMES[key] for key in result["labels"] if key not in measured]
    note = f" Too few cases of {', '.join(few)}." if few else ""
    head = ["scored by", "studies", *METRICS.values()]
    lines = [
        [
            f"{row['title']}{' *(control)*' if row['kind'] == 'control' else ''}",
            str(row["studies"]),
            *(format_interval(row["macro"].get(name)) for name in METRICS),
        ]
        for row in rows
    ]
    if measured:
        chance = sum(prevalence[key] for key in measured) / len(measured)
        lines.append(["chance *(control)*", str(rows[0]["studies"]), "0.500", f"{chance:.3f}"])
    return (
        "## Zero-shot (labels held out of training)\n\n"
        "Prompt scores of labels that no loss, threshold or calibration used. The model read reports whose words may "
        "state them. So a row with a report measures mostly how well its words are read. Compare it with TF-IDF, the "
        "cosine between the words of the report and of the sentences. The AP of chance is the share of studies with "
        f"the label.{note}\n\n"
        + format_table(head, lines)
        + "".join(_write_metric(result, name) for name in METRICS if measured)
    )


def _write_metric(result: Mapping[str, Any], name: str) -> str:
    """Return the table of one metric by label."""
    rows, prevalence = result["rows"], result["prevalence"]
    lines = [
        [
            LABEL_NAMES[key],
            str(rows[0]["labels"][key]["positives"]),
            *(format_interval(row["labels"][key][name]) for row in rows),
            "0.500" if name == "auroc" else f"{prevalence[key]:.3f}",
        ]
        for key in rows[0]["averaged"]
    ]
    head = ["label", "positive", *(row["title"] for row in rows), "chance"]
    return f"\n### {METRICS[name]} of the zero-shot scores per label\n\n" + format_table(head, lines)
