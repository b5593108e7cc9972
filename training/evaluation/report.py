"""Results of an evaluation as Markdown, for the bundle, its model card and the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from contract.labels import LABEL_NAMES
from contract.training_data import describe_training, warn_of_training

TITLES: Final = {"auroc": "AUROC", "ap": "AP", "f1": "F1", "brier": "Brier", "ece": "ECE"}
RETRIEVAL: Final = ("p@1", "p@5", "p@10", "r@10", "map", "mrr", "ndcg@5", "ndcg@10")
GALLERIES: Final = {"test_to_test": "test → test", "test_to_train": "test → train"}
BLOCKS: Final = {
    "with_normal": "`normal` counts as a label",
    "without_normal": "without `normal`: studies with a finding only",
}
PLOTS: Final = {
    "roc": "ROC curves per label",
    "precision_recall": "Precision and recall per label",
    "reliability": "Reliability of the probabilities",
    "risk_coverage": "Risk by coverage",
    "retrieval": "Precision of the search by place",
}
_FORMULAS: Final = (
    "AUROC, AP (average precision) and F1: higher is better; Brier score and ECE (expected calibration error, 15 "
    "bins): lower is better. Thresholds and calibration were fitted on the validation split, apart for the image, the "
    "report and both."
)


def write_report(results: Mapping[str, Any]) -> str:
    """Return the whole report of what `training.evaluation.measure.measure` returned."""
    parts = [
        "# Evaluation\n",
        _write_warnings(results),
        _describe(results),
        write_classification(results),
        _write_micro(results),
        _write_labels(results),
        write_abstention(results),
        _write_prompt_scores(results),
        _write_subgroups(results),
        write_retrieval(results),
        _write_pairs(results),
        write_as_published(results),
        _write_plots(""),
    ]
    return "\n".join(part for part in parts if part)


def write_summary(results: Mapping[str, Any], folder: str) -> str:
    """Return the part that belongs on a model card; `folder` holds the plots."""
    parts = (
        _write_warnings(results),
        write_classification(results),
        write_retrieval(results, brief=True),
        _write_plots(f"{folder}/"),
    )
    return "\n".join(part for part in parts if part)


def _write_warnings(results: Mapping[str, Any]) -> str:
    return "".join(f"**{sentence}**\n" for sentence in warn_of_training(results["trained_on"]))


def write_classification(results: Mapping[str, Any]) -> str:
    """Return the table of ways and controls, macro averages with intervals."""
    rows = results["classification"]
    lines = [
        [
            f"{row['title']}{' *(control)*' if row['kind'] == 'control' else ''}",
            str(row["studies"]),
            *(_cell(row["macro"].get(name)) for name in TITLES),
        ]
        for row in rows
    ]
    head = ["read", "studies", *TITLES.values()]
    return (
        "## Findings\n\n"
        f"Means over the labels with at least 5 positive and 5 negative test studies ({_name_averaged(rows)}), with "
        f"95 % intervals from drawing patients anew. {_FORMULAS} A report nearly states its own labels: read its "
        "rows beside the masked ones, the image alone, and the controls.\n\n" + _table(head, lines)
    )


def write_retrieval(results: Mapping[str, Any], *, brief: bool = False) -> str:
    """Return the tables of search; `brief` keeps one gallery and leaves the intervals out."""
    parts = []
    for gallery, title in GALLERIES.items():
        if gallery not in results["retrieval"] or (brief and gallery == "test_to_test"):
            continue
        for block, note in BLOCKS.items():
            rows = results["retrieval"][gallery][block]
            names = [name for name in RETRIEVAL if any(name in row["values"] for row in rows)]
            lines = [
                [row["title"], *(_cell(row["values"].get(name), not brief) for name in names)] for row in rows
            ]
            counts = f"{rows[0]['queries']} queries, {rows[0]['gallery']} studies to find"
            parts.append(f"### {title}, {note}\n\n{counts}.\n\n" + _table(["ranked by", *names], lines))
    return (
        "## Similar cases\n\n"
        "Two studies are similar when they share a label; nDCG grades them by the share of labels in common "
        "(Jaccard) against the best possible order of the whole gallery. The query, and all of its patient, is "
        "taken out of the gallery; `map` looks at the whole order.\n\n" + "\n".join(parts)
    )


def write_as_published(results: Mapping[str, Any]) -> str:
    """Return the published metrics, with the reasons why they flatter."""
    block = results["as_published"]
    parts = []
    for gallery, title in GALLERIES.items():
        if gallery not in block:
            continue
        lines = [
            [row["title"], *(f"{row[name]:.3f}" for name in ("p@5", "map", "mrr", "ndcg@5"))]
            for row in block[gallery]
        ]
        parts.append(f"### {title}\n\n" + _table(["ranked by", "P@5", "mAP", "MRR", "nDCG@5"], lines))
    return (
        "## As published\n\n"
        "The definitions that the published model was measured with, only to lay figures side by side. They "
        f"flatter: {block['why_they_flatter']}. The row of the random order shows by how much.\n\n"
        + "\n".join(parts)
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
            f"Answers came from the served model. The same questions to PyTorch: largest difference of a "
            f"probability {served['probabilities']:.1e} (allowed {served['allowed']['probabilities']:.0e}), of an "
            f"embedding {served['embeddings']:.1e} in cosine (allowed {served['allowed']['embeddings']:.0e}), of a "
            f"macro average {served['macro']:.1e}, over {served['cases']:.0f} answers."
        )
    return "\n\n".join(lines) + "\n"


def _write_micro(results: Mapping[str, Any]) -> str:
    lines = [
        [row["title"], *(_cell(row["micro"].get(name)) for name in TITLES)]
        for row in results["classification"]
    ]
    return "### Micro averages\n\nAll answers of these labels as if they were one label.\n\n" + _table(
        ["read", *TITLES.values()], lines
    )


def _write_labels(results: Mapping[str, Any]) -> str:
    """Return one table per metric that people ask for: label by way."""
    rows = [
        row for row in results["classification"] if row["kind"] == "model" or row["key"].startswith("tfidf")
    ]
    wanted = _choose_ways(rows, results["text_mode"])
    keys = list(dict.fromkeys(key for row in wanted for key in row["labels"]))
    parts = []
    for name in ("auroc", "ap", "f1"):
        lines = []
        for key in keys:
            counts = [str(row["labels"][key]["positives"]) for row in wanted if key in row["labels"]]
            cells = (_cell(row["labels"].get(key, {}).get(name)) for row in wanted)
            lines.append([LABEL_NAMES[key], counts[0], *cells])
        head = ["label", "positive", *(row["title"] for row in wanted)]
        parts.append(f"### {TITLES[name]} per label\n\n" + _table(head, lines))
    return "\n".join(parts)


def _choose_ways(rows: Sequence[Mapping[str, Any]], mode: str) -> list[Mapping[str, Any]]:
    keys = ("image", f"image+{mode}", mode, f"tfidf/{mode}")
    return [row for key in keys for row in rows if row["key"] == key]


def write_abstention(results: Mapping[str, Any]) -> str:
    """Return the tables of `training.evaluation.abstention`; "" where it was not measured."""
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
        [row["title"], str(row["studies"]), *(_cell(row["macro"].get(name)) for name in names)]
        for row in rows
    ]
    bands = "" if _count_bands(rows) else "**This model has no bands: nothing is uncertain to it.** "
    return (
        "## Abstention\n\n"
        f'{bands}Means over labels, also those without limits. Inside the band of a label the answer is "uncertain"; '
        "coverage is the share of answers outside, of which the error outside is the share of wrong ones. Missed: "
        'studies with the finding that are told "absent"; false alarms: studies without it that are told "present". '
        "These two are what a band limits. The plain error may even be larger outside it, where a weak model may no "
        'longer say the "absent" that is right for most studies. AURC: area under the curve of risk by coverage, lower '
        "is better; its excess over a perfect order of refusal is the fault of the confidence.\n\n"
        + _table(["read", "studies", *names.values()], lines)
        + _write_bands(rows)
        + _write_sets(rows)
    )


def _count_bands(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(found["band"] is not None for row in rows for found in row["labels"].values())


def _write_bands(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return, way by way, what each label states, and how many of its cases were missed or raised a false alarm."""
    if not _count_bands(rows):
        return ""
    parts = []
    for row in rows:
        lines = [[LABEL_NAMES[key], *_tell_band(found)] for key, found in row["labels"].items()]
        head = ["label", "band", "missed, stated", "reached", "false alarms, stated", "reached", "coverage"]
        parts.append(f"#### {row['title']}\n\n" + _table(head, lines))
    return (
        "\n### Bands per label\n\n"
        "Limits as fitted on the validation split for each way of reading, and what was reached here.\n\n"
        + "\n".join(parts)
    )


def _tell_band(found: Mapping[str, Any]) -> list[str]:
    """Return the cells of one label: its band, each limit and what was reached, and the coverage."""
    band = "-" if found["band"] is None else "{:.3f} to {:.3f}".format(*found["band"])
    cells = [band]
    for name in ("missed", "false_alarms"):
        stated = found[f"stated_{name}"]
        cells += ["-" if stated is None else f"{stated:.2f}", _cell(found.get(name), whole=False)]
    return [*cells, _cell(found.get("coverage"), whole=False)]


def _write_sets(rows: Sequence[Mapping[str, Any]]) -> str:
    sets = [(row["title"], row["set"]) for row in rows if row["set"]]
    if not sets:
        return ""
    lines = [
        [
            title,
            f"{found['stated_recall']:.2f}",
            *(_cell(found[name]) for name in ("recall", "size", "labels")),
        ]
        for title, found in sets
    ]
    return (
        "\n### Conformal sets\n\n"
        "The set names every label that stays possible: on average it is stated to hold at least this share of a "
        "study's labels, in each way. The client names sets of up to 5 labels; a longer one narrows nothing down.\n\n"
        + _table(["read", "recall, stated", "recall, reached", "labels in the set", "labels it has"], lines)
    )


def _write_prompt_scores(results: Mapping[str, Any]) -> str:
    """Return the tables of `training.evaluation.prompt_scores`; "" where it was not measured."""
    rows = results.get("prompt_scores")
    if not rows:
        return ""
    metrics = ("auroc", "ap")
    averages = [
        [row["title"], str(row["studies"]), *(_cell(row["macro"].get(name)) for name in metrics)]
        for row in rows
    ]
    labels = [
        [LABEL_NAMES[key], str(found["positives"]), *(_cell(row["labels"][key]["auroc"]) for row in rows)]
        for key, found in rows[0]["labels"].items()
    ]
    return (
        "## Prompt scores\n\n"
        "Labels put into words: a study scores by how much nearer its embedding is to sentences that state the label "
        "than to sentences that deny it (Tiu et al. 2022). The scores sort studies and are no probabilities. They are "
        "no zero-shot figures: the model was trained on these labels. A report states its own findings: the row of "
        "the image alone is the one to read.\n\n"
        + _table(["read", "studies", *(TITLES[name] for name in metrics)], averages)
        + "\n### AUROC of the prompt scores per label\n\n"
        + _table(["label", "positive", *(row["title"] for row in rows)], labels)
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
            *(_cell(row["macro"].get(name)) for name in ("auroc", "ap", "f1", "ece")),
        ]
        for row in rows
    ]
    head = ["first image", "read", "studies", "labels", "AUROC", "AP", "F1", "ECE"]
    return (
        "## Subgroups\n\n"
        "Groups of at least 20 test studies by the header of the first image. Each row averages the labels that "
        "have enough cases in it: compare rows only with their intervals and label counts in mind.\n\n"
        + _table(head, lines)
    )


def _write_pairs(results: Mapping[str, Any]) -> str:
    if not results["pairs"]:
        return ""
    names = ("r@1", "r@5", "r@10", "median_rank")
    lines = []
    for row in results["pairs"]:
        lines.append([row["title"], str(row["studies"]), *(_cell(row["values"][name]) for name in names)])
        chance = [f"{row['chance'][name]:.3f}" for name in names[:3]]
        lines.append(
            [f"{row['title']}, by chance", str(row["studies"]), *chance, f"{row['studies'] / 2:.0f}"]
        )
    return (
        "## Images and their reports\n\n"
        "How often an image finds its own report (or one with the same words) among those of all test studies, and a "
        "report its image.\n\n" + _table(["search", "studies", "R@1", "R@5", "R@10", "median rank"], lines)
    )


def _write_plots(folder: str) -> str:
    images = "".join(f"![{title}]({folder}{name}.png)\n\n" for name, title in PLOTS.items())
    return f"## Plots\n\n{images}".rstrip() + "\n"


def _name_averaged(rows: Sequence[Mapping[str, Any]]) -> str:
    widest = max((row["averaged"] for row in rows), key=len)
    return f"{len(widest)}: {', '.join(f'`{key}`' for key in widest)}"


def _cell(interval: Mapping[str, float] | None, whole: bool = True) -> str:
    if interval is None:
        return "-"
    digits = 1 if interval["high"] > 10 else 3
    value = f"{interval['value']:.{digits}f}"
    return f"{value} ({interval['low']:.{digits}f}-{interval['high']:.{digits}f})" if whole else value


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))
