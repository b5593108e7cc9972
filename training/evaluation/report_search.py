"""The search of an evaluation as Markdown: similar cases, sentences, pairs, and the published metrics."""

from collections.abc import Mapping
from typing import Any, Final

from training.evaluation.markdown import format_difference, format_interval, format_table

RETRIEVAL: Final = ("p@1", "p@5", "p@10", "r@10", "map", "mrr", "ndcg@5", "ndcg@10")
GALLERIES: Final = {"test_to_test": "test → test", "test_to_train": "test → train"}
BLOCKS: Final = {
    "with_normal": "`normal` counts as a label",
    "without_normal": "without `normal`: studies with a finding only",
}
LEADS: Final = ("p@5", "map", "ndcg@5")  # metrics with a paired test in the report


def write_retrieval(results: Mapping[str, Any], *, brief: bool = False) -> str:
    """Return the tables of the search. `brief`: only one gallery, without intervals."""
    parts = []
    for gallery, title in GALLERIES.items():
        if gallery not in results["retrieval"] or (brief and gallery == "test_to_test"):
            continue
        for block, note in BLOCKS.items():
            rows = results["retrieval"][gallery][block]
            names = [name for name in RETRIEVAL if any(name in row["values"] for row in rows)]
            lines = [
                [row["title"], *(format_interval(row["values"].get(name), not brief) for name in names)]
                for row in rows
            ]
            counts = f"{rows[0]['queries']} queries, {rows[0]['gallery']} studies to find"
            parts.append(f"### {title}, {note}\n\n{counts}.\n\n" + format_table(["ranked by", *names], lines))
    return (
        "## Similar cases\n\n"
        "Two studies are similar if they share a label. nDCG grades them by the share of labels in common (Jaccard), "
        "relative to the best possible order of the whole gallery. The studies of the query's patient are left out of "
        "the gallery. `map` judges the whole order.\n\n" + "\n".join(parts)
    )


def write_leads(results: Mapping[str, Any]) -> str:
    """Return the paired tests of the search among training studies; "" if it was not measured."""
    parts = []
    for block, note in BLOCKS.items():
        rows = (results.get("paired") or {}).get("retrieval", {}).get(block, ())
        lines = [
            [row["title"], *(format_difference(row["values"].get(name)) for name in LEADS)] for row in rows
        ]
        if lines:
            parts.append(
                f"### Test → train, {note}: model minus control\n\n" + format_table(["", *LEADS], lines)
            )
    if not parts:
        return ""
    return (
        "The difference on the same queries, with the same resamples of patients for both. TF-IDF + LR compares the 22 "
        "probabilities of logistic regression. Like the model, it has seen the labels of the training studies that are "
        "searched. TF-IDF alone has not.\n\n" + "\n".join(parts)
    )


def write_sentences(results: Mapping[str, Any]) -> str:
    """Return the tables of `training.evaluation.sentences`; "" if it was not measured."""
    sentences = results.get("sentences")
    if not sentences or not sentences["rows"]:
        return ""
    lines = [
        [
            row["title"],
            str(row["studies"]),
            *(format_interval(row["macro"].get(name)) for name in ("ap", "auroc")),
        ]
        for row in sentences["rows"]
    ]
    leads = [[row["title"], format_difference(row["values"]["ap"])] for row in sentences["paired"]]
    return (
        "## Search by a sentence\n\n"
        "For each label there are sentences that state it. The test studies are ranked by their mean similarity to "
        "these. The figures are means over the labels with enough studies.\n\n"
        + format_table(["ranked by", "studies", "AP", "AUROC"], lines)
        + ("\n" + format_table(["model minus control", "AP"], leads) if leads else "")
    )


def write_pairs(results: Mapping[str, Any]) -> str:
    """Return the table of the search between images and their reports."""
    if not results["pairs"]:
        return ""
    names = ("r@1", "r@5", "r@10", "median_rank")
    lines = []
    for row in results["pairs"]:
        lines.append(
            [row["title"], str(row["studies"]), *(format_interval(row["values"][name]) for name in names)]
        )
        chance = [f"{row['chance'][name]:.3f}" for name in names[:3]]
        median = f"{row['chance']['median_rank']:.0f}"
        lines.append([f"{row['title']}, by chance", str(row["studies"]), *chance, median])
    return (
        "## Images and their reports\n\n"
        "How often an image finds its own report, or one with the same words, among those of all test studies, and the "
        "other way round. By chance: the mean over random orders.\n\n"
        + format_table(["search", "studies", "R@1", "R@5", "R@10", "median rank"], lines)
    )


def write_as_published(results: Mapping[str, Any]) -> str:
    """Return the published metrics, with the reasons why they are too optimistic."""
    block = results["as_published"]
    parts = []
    for gallery, title in GALLERIES.items():
        if gallery not in block:
            continue
        lines = [
            [row["title"], *(f"{row[name]:.3f}" for name in ("p@5", "map", "mrr", "ndcg@5"))]
            for row in block[gallery]
        ]
        parts.append(f"### {title}\n\n" + format_table(["ranked by", "P@5", "mAP", "MRR", "nDCG@5"], lines))
    return (
        "## As published\n\n"
        "The protocol of the published model, only for comparison with its figures. Each image is a query and a case. "
        "The gallery of test → test holds the query, and finding it is a miss. Five cases are returned. The figures "
        f"are too high: {block['why_they_flatter']}. The row of the random order shows by how much.\n\n"
        + "\n".join(parts)
    )
