"""`cxr evaluate`: evaluate a bundle's model, in this process or served, or only the controls."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from rich import box
from rich.console import Console

from cli.console import Table
from cli.progress import show_progress
from cli.show import print_warnings
from contract.bundle import MODEL_CARD, SPLIT, Bundle, amend_bundle, compute_sha256, write_json
from contract.errors import ConfigError, ParityError, ServerError
from contract.files import write_file
from contract.tensors import EMBEDDING, PROBABILITIES, TOLERANCES
from contract.training_data import warn_of_training

if TYPE_CHECKING:
    from client import CxrClient
    from client.cases import CaseInput
    from training.evaluation.plan import Case
    from training.evaluation.predict import Answers, Progress
    from training.evaluation.split_predictions import Options, SplitPredictions

FOLDER: Final = "evaluation"
ALLOWED: Final = {"probabilities": TOLERANCES[PROBABILITIES.name], "embeddings": TOLERANCES[EMBEDDING.name]}
EXTERNAL: Final = (
    "An external test set: every labelled study of the table, with the thresholds and the calibration of the bundle. "
    "Patients of the bundle's own training and validation studies are left out. So are the controls and the search "
    "among training studies, because they need training studies."
)
_ROUNDING: Final = 1e-6  # rounding of a float32 probability, which depends on the other cases of the batch


class ServedPredictor:
    """A served model that gets the same files and texts as the PyTorch model."""

    def __init__(self, client: "CxrClient") -> None:
        """Read which model is served; see `training.evaluation.predict.Predictor`."""
        model = client.info()
        self.fingerprint, self.text_mode, self.label_part = (
            model.fingerprint,
            model.text_mode,
            model.label_part,
        )
        self._client, self._size = client, model.embedding_size

    def ask(self, cases: "Sequence[Case]", progress: "Progress | None" = None) -> "Answers":
        """Predict cases and return the answers in their order. Several requests run at a time."""
        from client.prediction import Prediction
        from training.evaluation.predict import Answers

        answers = Answers.prepare(len(cases), self._size)
        for row, (_, outcome) in enumerate(self._client.predict_many(self._make_inputs(cases))):
            if isinstance(outcome, Prediction):
                answers.probabilities[row] = [finding.probability for finding in outcome.findings]
                answers.embeddings[row] = outcome.embedding
            if progress is not None:
                progress(row + 1, len(cases))
        return answers

    def _make_inputs(self, cases: "Sequence[Case]") -> "Iterator[CaseInput]":
        from client.cases import CaseInput
        from training.evaluation.predict import frame_text

        for case in cases:
            image = Path(case.image) if case.image else None
            text = frame_text(case.text, self.text_mode) if case.text else None  # type: ignore[arg-type]
            yield CaseInput(case.study_id, case.study_id, image=image, report=text)


def evaluate_bundle(
    console: Console,
    bundle: Bundle,
    table: Path,
    *,
    split_file: Path | None,
    options: "Options",
    external: bool = False,
    cache: Path | None = None,
    client: "CxrClient | None" = None,
) -> tuple["SplitPredictions", dict[str, Any]]:
    """Evaluate a bundle's model. With a client, query the served model too and return its results instead.

    With `external` every labelled study of the table is a test study, unless the model was trained or calibrated on its
    patient.

    Raises:
        ArtifactError: The split belongs to another table; another model is served (FingerprintError); served answers
            differ from PyTorch by more than `ALLOWED` (ParityError).
        ConfigError: A part of the split has no study that the model can read.
    """
    from contract.bundle import require_same_fingerprint
    from training.evaluation.measure import measure
    from training.evaluation.parts import measure_parts
    from training.evaluation.plan import read_external, read_parts
    from training.evaluation.predict import Predictor, TorchPredictor, read_from_cache
    from training.evaluation.prompt_scores import measure_prompt_scores
    from training.evaluation.sentences import measure_sentences
    from training.evaluation.split_predictions import predict_split
    from training.evaluation.view_head import measure_view_head
    from training.evaluation.zero_shot import hide_labels, measure_zero_shot
    from training.known_studies import list_known_ids, warn_of_known_studies

    read_pixels = read_from_cache(cache, bundle.config["sizes"]["S"]) if cache else None
    split = split_file or bundle.path / SPLIT
    if external:
        parts = read_external(table, list_known_ids(bundle, table, ("train", "validation")))
    else:
        parts = read_parts(table, split)
    parts = hide_labels(parts, bundle.held_out)
    with show_progress(console, "Predicting with PyTorch") as progress:
        torch_predictor = TorchPredictor(bundle, read_pixels=read_pixels)
        answers = predict_split(parts, torch_predictor, options, progress)
    predictor: Predictor = torch_predictor
    served = None
    if client is not None:
        predictor = cast("Predictor", ServedPredictor(client))
        require_same_fingerprint(
            bundle.fingerprint,
            predictor.fingerprint,
            expected_from=str(bundle.path),
            found_from="what is served",
        )
        with show_progress(console, "Predicting with the served model") as progress:
            served_answers = predict_split(parts, predictor, options, progress)
        served = compare(answers, served_answers, bundle)
        answers = served_answers
    with console.status("Measuring"):
        results = measure(answers, parts, bundle, torch_predictor.read_pixels, options)
    reads_text = "text" in bundle.trained_ways
    results["prompt_scores"] = measure_prompt_scores(answers, predictor, options) if reads_text else []
    held_out = bundle.held_out if reads_text else ()
    results["zero_shot"] = measure_zero_shot(answers, parts, predictor, held_out, options)
    results["held_out"] = list(bundle.held_out)
    results["sentences"] = measure_sentences(answers, parts, predictor, options) if reads_text else {}
    results["parts"] = measure_parts(answers, torch_predictor, options)
    results["view_head"] = measure_view_head(parts, torch_predictor)
    results["served"] = served
    results["external"] = EXTERNAL if external else None
    results["warnings"] = warn_of_known_studies(bundle, table, answers.test.study_ids)
    part = "all of it" if external else f"split {split.name}"
    results["data"] = f"Table {table.name} (SHA-256 {compute_sha256(table)[:12]}), {part}."
    return answers, results


def plan_external(
    bundle: Bundle, table: Path, *, external: bool, split_file: Path | None, out: Path | None
) -> bool:
    """Return whether a table is an external test set: by option, or because it holds no study of the bundle's split.

    Raises:
        ConfigError: The options contradict each other, or an external test set has no directory for its results.
    """
    if external and split_file:
        raise ConfigError("Give either --external or --split-file: an external test set has no split.")
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a directory. Give a directory for the results with --out.")
    if split_file:
        return False
    if not external and not _is_foreign(table, bundle):
        return False
    if out is None:
        raise ConfigError(
            f"{table} is an external test set. The bundle holds only the results of its own test split, so give a "
            "directory for these results with --out."
        )
    return True


def _is_foreign(table: Path, bundle: Bundle) -> bool:
    """Return whether a table is of another collection or has no study of a bundle's split.

    Raises:
        ConfigError: It has only some of these studies.
    """
    from training.data.openi import read_collection, read_table

    collections = {read_collection(table), bundle.manifest.get("data_source")}
    if None not in collections and len(collections) == 2:
        return True
    named = {study_id for ids in bundle.split.values() for study_id in ids}
    missing = len(named.difference(read_table(table, ["study_id"])["study_id"].to_pylist()))
    if 0 < missing < len(named):
        raise ConfigError(
            f"{table} lacks {missing:,} of the {len(named):,} studies of the bundle's split. Give the table that the "
            "model was trained on, or --external and --out for an external test set."
        )
    return missing == len(named)


def _keep_ties(ours: "SplitPredictions", theirs: "SplitPredictions") -> "SplitPredictions":
    """Return `theirs`, with the probability of `ours` wherever the two differ only by rounding."""
    answers = {}
    for way, answer in theirs.answers.items():
        expected = ours.answers[way].probabilities
        close = np.abs(answer.probabilities - expected) <= _ROUNDING
        answers[way] = replace(answer, probabilities=np.where(close, expected, answer.probabilities))
    return replace(theirs, answers=answers)


def compare(ours: "SplitPredictions", theirs: "SplitPredictions", bundle: Bundle) -> dict[str, Any]:
    """Compare the served answers, and their macro averages, with PyTorch.

    Studies with the same text have the same probability. If the last digit of one of them differs, AP jumps by
    hundredths, which says nothing about the served model. For the averages, probabilities that differ only by
    rounding therefore count as equal.

    Raises:
        ParityError: The answers differ by more than `ALLOWED`.
    """
    from training.evaluation.measure import measure_ways
    from training.evaluation.split_predictions import Options, compare_predictions

    try:
        gaps = compare_predictions(ours, theirs, bundle.label_part)
    except ConfigError as error:
        raise ServerError(str(error)) from error
    sides = (ours, _keep_ties(ours, theirs))
    rows = [measure_ways(predictions, bundle.decisions, Options(resamples=0)) for predictions in sides]
    differences = (
        abs(first["macro"][name]["value"] - second["macro"][name]["value"])
        for first, second in zip(*rows, strict=True)
        for name in first["macro"]
    )
    gaps["macro"] = max(differences, default=0.0)
    for name, allowed in ALLOWED.items():
        if gaps[name] > allowed:
            raise ParityError(
                f"The served model's {name} differ from PyTorch by {gaps[name]:.1e}; {allowed:.0e} is allowed."
            )
    return {**gaps, "allowed": ALLOWED}


def write_results(
    predictions: "SplitPredictions", results: Mapping[str, Any], bundle: Bundle, out: Path | None
) -> Path:
    """Write evaluation.json, evaluation.md and plots into `out`, or into the bundle and its model card.

    Returns:
        The directory that holds them.
    """
    from training.card.card import insert_evaluation
    from training.evaluation.report import write_summary

    if out is not None:
        _write_files(predictions, results, out)
        return out
    with amend_bundle(bundle, changed=(MODEL_CARD,)) as scratch:
        card = (scratch / MODEL_CARD).read_text(encoding="utf-8")
        (scratch / MODEL_CARD).write_text(
            insert_evaluation(card, write_summary(results, FOLDER)), encoding="utf-8"
        )
        shutil.rmtree(scratch / FOLDER, ignore_errors=True)
        (scratch / FOLDER).mkdir()
        _write_files(predictions, results, scratch / FOLDER)
    return bundle.path / FOLDER


def _write_files(predictions: "SplitPredictions", results: Mapping[str, Any], directory: Path) -> None:
    from training.evaluation.plots import draw_plots
    from training.evaluation.report import write_report

    write_json(directory / "evaluation.json", results)
    write_file(directory / "evaluation.md", write_report(results))
    draw_plots(predictions, results, results["text_mode"], directory)


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Print the main tables."""
    if note := results.get("external"):
        console.print(note, soft_wrap=True)
    print_warnings(console, [*warn_of_training(results["trained_on"]), *results.get("warnings", ())])
    table = _start_table(
        "Findings of n test studies: means over labels, 95 % intervals", ("input", "n", "AUROC", "AP", "F1")
    )
    for row in results["classification"]:
        cells = (_show(row["macro"].get(name)) for name in ("auroc", "ap", "f1"))
        table.add_row(
            row["title"], str(row["studies"]), *cells, style="dim" if row["kind"] == "control" else ""
        )
    console.print(table, "")
    for gallery, blocks in results["retrieval"].items():
        names = ("p@5", "map", "mrr", "ndcg@5")
        title = f"Similar cases, {gallery.replace('_', ' ')}, without normal"
        table = _start_table(title, ("ranked by", "queries", *names))
        for row in blocks["without_normal"]:
            cells = (_show(row["values"].get(name), whole=False) for name in names)
            table.add_row(row["title"], str(row["queries"]), *cells)
        console.print(table, "")
    if results["pairs"]:
        table = _start_table(
            "Search between images and their reports", ("search", "R@1", "R@5", "R@10", "median rank")
        )
        for row in results["pairs"]:
            cells = (_show(row["values"][name], whole=name == "median_rank") for name in row["values"])
            table.add_row(row["title"], *cells)
        console.print(table, "")
    if view_head := results.get("view_head"):
        from training.evaluation.view_scores import describe_score

        console.print(f"View head: {describe_score(view_head)}", highlight=False, soft_wrap=True)
    if served := results.get("served"):
        console.print(
            f"Served and PyTorch agree on {served['cases']:.0f} answers: probabilities within "
            f"{served['probabilities']:.1e}, embeddings within {served['embeddings']:.1e} (cosine).",
            highlight=False,
        )


def evaluate_controls(
    console: Console, table: Path, *, splits: int, keep_duplicates: bool, options: "Options"
) -> dict[str, Any]:
    """Evaluate only the controls, over several splits of a table; see `training.evaluation.splits`."""
    from training.evaluation.splits import measure_splits

    with show_progress(console, "Fitting controls") as progress:
        return measure_splits(table, splits, options, keep_duplicates=keep_duplicates, progress=progress)


def print_controls(console: Console, controls: Mapping[str, Any]) -> None:
    """Print the controls' results: mean over the splits, lowest and highest."""
    title = f"Logistic regression: mean of {controls['splits']} splits (lowest-highest)"
    table = _start_table(title, ("input", "labels", "AUROC", "AP", "F1"))
    for way, row in controls["findings"].items():
        table.add_row(
            way, f"{row['labels']['value']:.0f}", *(_show(row.get(name)) for name in ("auroc", "ap", "f1"))
        )
    console.print(table, "")
    split = "patient and text"
    if not controls["retrieval"]:
        split = "patient"
    elif controls["keep_duplicates"]:
        split = "patient only (nearly equal reports can be on both sides)"
    console.print(f"Split by {split}; about {controls['studies']:.0f} test studies.", highlight=False)
    names = ("p@5", "map", "mrr", "ndcg@5")
    for block, rows in controls["retrieval"].items():
        table = _start_table(
            f"Similar cases, test to train, {block.replace('_', ' ')}", ("ranked by", *names)
        )
        for order, row in rows.items():
            table.add_row(order, *(_show(row.get(name), whole=False) for name in names))
        console.print(table, "")


def _start_table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _show(interval: Mapping[str, float] | None, *, whole: bool = True) -> str:
    """Return ".879 (.82-.92)", short enough for a row to fit into a terminal."""
    if interval is None:
        return "-"
    digits, short = (1, 0) if interval["high"] > 10 else (3, 2)
    value = f"{interval['value']:.{digits}f}"
    if whole:
        low, high = (_shorten(f"{interval[name]:.{short}f}") for name in ("low", "high"))
        return f"{value.removeprefix('0')} ({low}-{high})"
    return value.removeprefix("0")


def _shorten(number: str) -> str:
    """Return ".92" for "0.92" and "1" for "1.00"."""
    return number.removeprefix("0") if "." in number and float(number) < 1 else number.removesuffix(".00")
