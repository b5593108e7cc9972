"""Evaluate only the controls, over several splits of a table, as a baseline for every model."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from contract.errors import ConfigError
from training.data.openi import read_table
from training.data.split import split_studies
from training.data.studies import read_wordings
from training.evaluation.control import compare_probabilities, compare_texts
from training.evaluation.image_control import TITLES as IMAGE_TITLES
from training.evaluation.labels import LabelMetrics
from training.evaluation.measure import evaluate_search, run_controls
from training.evaluation.plan import MODE_TITLES, Studies, choose_complete, select_studies
from training.evaluation.predict import ReadPixels, read_from_files
from training.evaluation.regressions import evaluate_answers
from training.evaluation.split_predictions import Options

Progress = Callable[[int, int], None]
_IMAGE_SIZE: Final = 224  # side of the square images for the image controls, in pixels
_FINDINGS = ("auroc", "ap", "f1")
_RETRIEVAL = ("p@5", "map", "mrr", "ndcg@5")


def measure_splits(
    table: Path,
    splits: int,
    options: Options,
    *,
    keep_duplicates: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate logistic regression on words and images, TF-IDF neighbours and a random order on splits of a table.

    Args:
        table: Studies table.
        splits: Number of splits; their seeds are `options.seed`, `options.seed` + 1, ...
        options: The seed. There is no bootstrap.
        keep_duplicates: Split only by patient. Nearly equal reports can then be in two parts, which improves the
            results.
        progress: Called with the number of measured splits and their total.

    Returns:
        "splits", "studies" (mean number in test), "findings" (rows by input) and "retrieval" (test against train,
        rows by order, with and without `normal`; empty without reports). Each figure has mean, lowest and highest.

    Raises:
        ConfigError: The table is too small, its reports have no common word, or it has neither reports nor images.
    """
    rows = read_table(table).to_pylist()
    texts = () if keep_duplicates else read_wordings(rows)
    results: list[dict[str, Any]] = []
    read_pixels = cache(read_from_files(_IMAGE_SIZE))
    for number in range(splits):
        parts = _split(rows, texts, options.seed + number)
        results.append(_measure_split(parts, read_pixels, options))
        if progress is not None:
            progress(number + 1, splits)
    return {
        "splits": splits,
        "keep_duplicates": keep_duplicates,
        "studies": float(np.mean([len(result["test"]) for result in results])),
        "findings": _join([result["findings"] for result in results]),
        "retrieval": {
            block: _join([result["retrieval"][block] for result in results])
            for block in results[0]["retrieval"]
        },
    }


def _split(
    rows: Sequence[Mapping[str, Any]], texts: Sequence[Sequence[str]], seed: int
) -> dict[str, Studies]:
    parts = split_studies(
        [row["patient_id"] for row in rows], [row["labels"] for row in rows], seed, texts=texts
    )
    return {
        part: select_studies(rows, [rows[row]["study_id"] for row in places])
        for part, places in parts.items()
    }


def _measure_split(parts: Mapping[str, Studies], read_pixels: ReadPixels, options: Options) -> dict[str, Any]:
    controls = run_controls(parts["test"], parts, read_pixels)
    answers = {IMAGE_TITLES[name]: answer for name, answer in controls.images.items()}
    answers |= {MODE_TITLES[mode]: answer for mode, answer in controls.texts.items()}
    findings = {
        title: _take_means(evaluate_answers(answer, parts["test"], resamples=0))
        for title, answer in answers.items()
    }
    if not findings:
        raise ConfigError(
            "The controls have no training data: the reports have no common word, and a part of the split has "
            "no readable image."
        )
    retrieval = _measure_search(parts, options) if controls.texts else {}
    return {"test": parts["test"], "findings": findings, "retrieval": retrieval}


def _take_means(metrics: LabelMetrics) -> dict[str, float]:
    return {"labels": float(len(metrics.averaged))} | {
        name: interval.value for name, interval in metrics.macro.items() if name in _FINDINGS
    }


def _measure_search(parts: Mapping[str, Studies], options: Options) -> dict[str, dict[str, dict[str, float]]]:
    """Return block -> order -> metric -> value: test studies search training studies by their whole report."""
    test, gallery = (choose_complete(parts[part], "full") for part in ("test", "train"))
    texts = test.texts["full"], gallery.texts["full"]
    [words] = compare_texts(gallery.texts["full"], *texts)
    [probabilities] = compare_probabilities(gallery, parts["validation"], "full", *texts)
    results = evaluate_search(
        test,
        gallery,
        {"TF-IDF, full report": words, "TF-IDF + LR, full report": probabilities},
        Options(options.seed, resamples=0),
    )
    return {
        block: {
            title: {name: metrics.values[name].value for name in _RETRIEVAL if name in metrics.values}
            for title, metrics in rows.items()
        }
        for block, rows in results.items()
    }


def _join(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return row -> metric -> mean, lowest and highest over the splits that have it."""
    joined: dict[str, dict[str, dict[str, float]]] = {}
    for title in dict.fromkeys(title for table in tables for title in table):
        rows = [table[title] for table in tables if title in table]
        joined[title] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row[name] for row in rows if name in row]
            joined[title][name] = {
                "value": round(float(np.mean(values)), 4),
                "low": round(min(values), 4),
                "high": round(max(values), 4),
            }
    return joined
