"""Results of an evaluation as Markdown, for the bundle, its model card and the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from contract.labels import LABEL_NAMES
from contract.training_data import describe_training, warn_of_training
from training.evaluation.image_control import TITLES as IMAGE_CONTROLS
from training.evaluation.markdown import format_difference, format_interval, format_table
from training.evaluation.report_prompts import write_prompt_scores, write_zero_shot
from training.evaluation.report_search import (
    write_as_published,
    write_leads,
    write_pairs,
    write_retrieval,
    write_sentences,
)
from training.evaluation.view_scores import describe_score

TITLES: Final = {"auroc": "AUROC", "ap": "AP", "f1": "F1", "brier": "Brier", "ece": "ECE"}
PLOTS: Final = {
    "roc": "ROC curves per label",
    "precision_recall": "Precision and recall per label",
    "reliability": "Reliability of the probabilities",
    "risk_coverage": "Risk by coverage",
    "retrieval": "Precision of the search by place",
}
TOO_FEW: Final = "too few cases"
_FORMULAS: Final = (
    "For AUROC, AP (average precision) and F1 higher is better. For the Brier score and ECE (expected calibration "
    "error, 15 bins) lower is better. Thresholds and calibration were fitted on the validation split, separately for "
    "the image, the report and both."
)


def write_report(results: Mapping[str, Any]) -> str:
    """Return the whole report for a result of `training.evaluation.measure.measure`."""
    parts = [
        "# Evaluation\n",
        _write_warnings(results),
        _describe(results),
        write_classification(results),
        _write_paired(results),
        _write_parts(results),
        _write_micro(results),
        _write_labels(results),
        write_abstention(results),
        write_prompt_scores(results),
        write_zero_shot(results),
        _write_subgroups(results),
        _write_view_head(results),
        write_retrieval(results),
        write_leads(results),
        write_sentences(results),
        write_pairs(results),
        write_as_published(results),
        _write_plots(""),
    ]
    return "\n".join(part for part in parts if part)


def write_summary(results: Mapping[str, Any], folder: str) -> str:
    """Return the part for a model card. `folder` holds the plots."""
    parts = (
        _write_warnings(results),
        write_classification(results),
        _write_paired(results),
        _write_parts(results),
        write_zero_shot(results),
        _write_view_head(results),
        write_retrieval(results, brief=True),
        write_leads(results),
        _write_plots(f"{folder}/"),
    )
    return "\n".join(part for part in parts if part)


def _write_warnings(results: Mapping[str, Any]) -> str:
    warnings = [*warn_of_training(results["trained_on"]), *results.get("warnings", ())]
    return "".join(f"**{sentence}**\n" for sentence in warnings)


def write_classification(results: Mapping[str, Any]) -> str:
    """Return the table of ways and controls, macro averages with intervals."""
    rows = results["classification"]
    lines = [
        [
            f"{row['title']}{' *(control)*' if row['kind'] == 'control' else ''}",
            str(row["studies"]),
            *(format_interval(row["macro"].get(name)) for name in TITLES),
        ]
        for row in rows
    ]
    head = ["read", "studies", *TITLES.values()]
    return (
        "## Findings\n\n"
        f"Means over the labels with at least 5 positive and 5 negative test studies ({_name_averaged(results)}), with "
        f"95 % intervals from a bootstrap of patients. {_FORMULAS} A report nearly states its own labels. So compare "
        "its rows with the masked rows, with the image alone and with the controls.\n\n"
        + format_table(head, lines)
    )


def _write_paired(results: Mapping[str, Any]) -> str:
    """Return the paired tests of ways against controls; "" without them."""
    rows = (results.get("paired") or {}).get("classification", ())
    names = ("auroc", "ap", "f1")
    lines = [[row["title"], *(format_difference(row["values"].get(name)) for name in names)] for row in rows]
    if not lines:
        return ""
    return (
        "### Model minus control\n\n"
        "The difference on the same studies, with the same resamples of patients for both. p is two-sided. It is not "
        "adjusted for the number of rows, so some rows fall below .05 by chance.\n\n"
        + format_table(["read", *(TITLES[name] for name in names)], lines)
    )


def _write_parts(results: Mapping[str, Any]) -> str:
    """Return the table of `training.evaluation.parts`; "" for a model without a lexical part."""
    rows = results.get("parts")
    if not rows:
        return ""
    lines = [
        [
            f"{row['title']}: {row['part']}",
            *(format_interval(row["macro"].get(name)) for name in ("auroc", "ap")),
            format_difference(row["gain"]),
        ]
        for row in rows
    ]
    return (
        "### Parts of the model\n\n"
        "The model adds the logits of a transformer and of a lexical part, which is TF-IDF with logistic regression. "
        "The rows show each part alone and both together, on reports alone. The last column is the AP of both minus "
        "that of the part.\n\n" + format_table(["read", "AUROC", "AP", "both minus this part"], lines)
    )


def _describe(results: Mapping[str, Any]) -> str:
    studies, text = results["studies"], results["text_mode"]
    lines = [
        f"Model `{results['fingerprint'][:12]}`, {describe_training(results['trained_on'])}, which reads `{text}` of a "
        f"report. {results['data']}",
        f"{studies['test']} test studies that can be read in every way, of {studies['labelled']['test']} labelled "
        f"ones ({studies['unreadable']} with an unreadable image); {studies['gallery']} training studies to search.",
    ]
    if note := results.get("external"):
        lines.append(note)
    if served := results.get("served"):
        lines.append(
            f"The answers came from the served model. PyTorch read the same inputs: largest difference of a "
            f"probability {served['probabilities']:.1e} (allowed {served['allowed']['probabilities']:.0e}), of an "
            f"embedding {served['embeddings']:.1e} in cosine (allowed {served['allowed']['embeddings']:.0e}), of a "
            f"macro average {served['macro']:.1e}, over {served['cases']:.0f} answers."
        )
    return "\n\n".join(lines) + "\n"


def _write_micro(results: Mapping[str, Any]) -> str:
    lines = [
        [row["title"], *(format_interval(row["micro"].get(name)) for name in TITLES)]
        for row in results["classification"]
    ]
    return "### Micro averages\n\nAll answers of these labels as if they were one label.\n\n" + format_table(
        ["read", *TITLES.values()], lines
    )


def _write_labels(results: Mapping[str, Any]) -> str:
    """Return one table per common metric: label by way."""
    rows = _choose_ways(results["classification"], results["text_mode"])
    parts = []
    stated = [key for key in LABEL_NAMES if key not in results.get("unstated", ())]
    for name in ("auroc", "ap", "f1"):
        lines = []
        for key in stated:
            counts = [str(row["labels"][key]["positives"]) for row in rows if key in row["labels"]]
            cells = (
                format_interval(row["labels"][key].get(name)) if key in row["labels"] else TOO_FEW
                for row in rows
            )
            lines.append([LABEL_NAMES[key], counts[0] if counts else TOO_FEW, *cells])
        head = ["label", "positive", *(row["title"] for row in rows)]
        parts.append(f"### {TITLES[name]} per label\n\n" + format_table(head, lines))
    return "\n".join(parts)


def _choose_ways(rows: Sequence[Mapping[str, Any]], mode: str) -> list[Mapping[str, Any]]:
    keys = ("image", *IMAGE_CONTROLS, f"image+{mode}", mode, f"tfidf/{mode}")
    return [row for key in keys for row in rows if row["key"] == key]


def write_abstention(results: Mapping[str, Any]) -> str:
    """Return the tables of `training.evaluation.abstention`; "" if it was not measured."""
    rows = results.get("abstention")
    if not rows:
        return ""
    names = {
        "coverage": "coverage",
        "error": "error outside",
        "error_all": "error of all",
        "missed": "missed",
        "false_alarms": "false alarms",
        "aurc": "AURC",
        "aurc_excess": "excess AURC",
    }
    lines = [
        [row["title"], str(row["studies"]), *(format_interval(row["macro"].get(name)) for name in names)]
        for row in rows
    ]
    bands = "" if _count_bands(rows) else "**This model has no bands, so it is never uncertain.** "
    return (
        "## Abstention\n\n"
        f"{bands}Means over all labels, with and without limits. Inside the band of a label the decision is "
        '"uncertain". Coverage: share of the decisions outside the band. Error outside: share of these that are wrong. '
        'Missed: share of the studies with the finding that are decided "absent". False alarms: share of the studies '
        'without it that are decided "present". A band limits the last two. The error outside may be larger than that '
        'of all decisions, because a weak model can no longer decide "absent", which is right for most studies. AURC: '
        "area under the curve of risk by coverage, lower is better. Excess AURC: AURC minus that of a perfect order of "
        "refusal.\n\n"
        + format_table(["read", "studies", *names.values()], lines)
        + _write_bands(rows)
        + _write_sets(rows)
    )


def _count_bands(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(label["band"] is not None for row in rows for label in row["labels"].values())


def _write_bands(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return for each way the stated limits of each label, and its shares of missed cases and false alarms."""
    if not _count_bands(rows):
        return ""
    parts = []
    for row in rows:
        lines = [[LABEL_NAMES[key], *_tell_band(label)] for key, label in row["labels"].items()]
        head = ["label", "band", "missed, stated", "reached", "false alarms, stated", "reached", "coverage"]
        parts.append(f"#### {row['title']}\n\n" + format_table(head, lines))
    return (
        "\n### Bands per label\n\n"
        "The limits that were fitted on the validation split for each way of reading, and the shares reached here.\n\n"
        + "\n".join(parts)
    )


def _tell_band(label: Mapping[str, Any]) -> list[str]:
    """Return the cells of one label: its band, each limit with the measured share, and the coverage."""
    band = "-" if label["band"] is None else "{:.3f} to {:.3f}".format(*label["band"])
    cells = [band]
    for name in ("missed", "false_alarms"):
        stated = label[f"stated_{name}"]
        cells += ["-" if stated is None else f"{stated:.2f}", format_interval(label.get(name), whole=False)]
    return [*cells, format_interval(label.get("coverage"), whole=False)]


def _write_sets(rows: Sequence[Mapping[str, Any]]) -> str:
    sets = [(row["title"], row["set"]) for row in rows if row["set"]]
    if not sets:
        return ""
    lines = [
        [
            title,
            f"{values['stated_recall']:.2f}",
            *(format_interval(values[name]) for name in ("recall", "size", "labels")),
        ]
        for title, values in sets
    ]
    return (
        "\n### Conformal sets\n\n"
        "A set names every label that is still possible. It states that it holds, on average, at least this share of a "
        "study's labels. The client names sets of up to 5 labels, because a longer one says little.\n\n"
        + format_table(
            ["read", "recall, stated", "recall, reached", "labels in the set", "labels it has"], lines
        )
    )


def _write_subgroups(results: Mapping[str, Any]) -> str:
    rows = results["subgroups"]
    if not rows:
        return ""
    lines = [
        [
            f"{row['group']}: {row['value']}",
            row["way"],
            str(row["studies"]),
            str(len(row["averaged"])),
            *(format_interval(row["macro"].get(name)) for name in ("auroc", "ap", "f1", "ece")),
        ]
        for row in rows
    ]
    head = ["first image", "read", "studies", "labels", "AUROC", "AP", "F1", "ECE"]
    return (
        "## Subgroups\n\n"
        "Groups of at least 20 test studies by the header of the first image. Each row averages the labels with enough "
        "cases in its group, so rows can average different labels.\n\n" + format_table(head, lines)
    )


def _write_view_head(results: Mapping[str, Any]) -> str:
    """Return the accuracy of the view head; "" if it was not measured."""
    score = results.get("view_head")
    return f"## View head\n\n{describe_score(score)}\n" if score else ""


def _write_plots(folder: str) -> str:
    images = "".join(f"![{title}]({folder}{name}.png)\n\n" for name, title in PLOTS.items())
    return f"## Plots\n\n{images}".rstrip() + "\n"


def _name_averaged(results: Mapping[str, Any]) -> str:
    """Return the number of averaged labels, and the reason for leaving out the others."""
    widest = max((row["averaged"] for row in results["classification"]), key=len)
    held_out = results.get("held_out", ())
    unstated = [key for key in results.get("unstated", ()) if key not in held_out]
    few = [name for key, name in LABEL_NAMES.items() if key not in {*widest, *unstated, *held_out}]
    parts = [f"{len(widest)} of {len(LABEL_NAMES)}"]
    if few:
        parts.append(f"{TOO_FEW} of {', '.join(few)}")
    if unstated:
        parts.append(f"no test study states {', '.join(LABEL_NAMES[key] for key in unstated)}")
    if held_out:
        parts.append(f"held out of training: {', '.join(LABEL_NAMES[key] for key in held_out)}")
    return "; ".join(parts)
