"""Answers in, results out: one table of ways and controls, subgroups, retrieval, pairs, and the published metrics."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.errors import ConfigError
from contract.labels import LABEL_INDEX
from contract.text import TextMode
from training.evaluation.ask import Asked, Options
from training.evaluation.control import compare_texts, run_control
from training.evaluation.labels import LabelMetrics, evaluate_labels
from training.evaluation.plan import MODE_TITLES, Studies, Way
from training.evaluation.published import REASONS, evaluate_as_published
from training.evaluation.ranking import (
    RankingMetrics,
    compute_gains,
    evaluate_pairs,
    evaluate_random,
    evaluate_ranking,
    find_same,
    rank_cases,
)

MIN_SUBGROUP: Final = 20  # studies; fewer say nothing
NORMAL: Final = LABEL_INDEX["normal"]


def measure(asked: Asked, parts: Mapping[str, Studies], bundle: Bundle, options: Options) -> dict[str, Any]:
    """Return what evaluation.json holds; see the functions below for each of its blocks."""
    thresholds = np.array([label.threshold for label in bundle.labels])
    mode: TextMode = bundle.config["text_mode"]
    return {
        "fingerprint": bundle.fingerprint,
        "text_mode": mode,
        "studies": {
            "test": len(asked.test),
            "gallery": len(asked.gallery),
            "labelled": {part: len(studies) for part, studies in parts.items()},
            "unreadable": asked.unreadable,
        },
        "classification": [
            *measure_ways(asked, thresholds, options),
            *measure_controls(asked.test, parts, options),
        ],
        "subgroups": measure_subgroups(asked, mode, thresholds, options),
        "retrieval": measure_retrieval(asked, mode, options),
        "pairs": measure_pairs(asked, mode, options),
        "as_published": {"why_they_flatter": REASONS, **measure_as_published(asked, options)},
        "options": {"seed": options.seed, "resamples": options.resamples},
    }


def measure_ways(asked: Asked, thresholds: NDArray[np.float64], options: Options) -> list[dict[str, Any]]:
    """Return a row for each way to ask the model."""
    rows = []
    for way, answers in asked.answers.items():
        answered = np.flatnonzero(answers.answered)
        metrics = _evaluate(asked.test, answers.probabilities, answered, thresholds, options)
        kind = "control" if way.swapped else "model"
        rows.append({"key": way.key, "title": way.title, "kind": kind, **metrics.to_dict()})
    return rows


def measure_controls(test: Studies, parts: Mapping[str, Studies], options: Options) -> list[dict[str, Any]]:
    """Return a row of TF-IDF with logistic regression for each part of the report, on the same test studies."""
    rows: list[dict[str, Any]] = []
    for mode, title in MODE_TITLES.items():
        try:
            answers = run_control({**parts, "test": test}, mode)  # type: ignore[arg-type]
        except ConfigError:  # too few words in this part of the reports
            continue
        studies = test.take(answers.rows)
        metrics = _evaluate(
            studies, answers.probabilities, np.arange(len(studies)), answers.thresholds, options
        )
        rows.append(
            {
                "key": f"tfidf/{mode}",
                "title": f"TF-IDF, {title}",
                "kind": "control",
                **metrics.to_dict(),
            }
        )
    return rows


def measure_subgroups(
    asked: Asked, mode: TextMode, thresholds: NDArray[np.float64], options: Options
) -> list[dict[str, Any]]:
    """Return rows for groups of test studies by their first image's header, of image alone and of the study."""
    if not asked.test.has_image().any():
        return []
    groups: dict[tuple[str, str], list[int]] = {}
    for row, study in enumerate(asked.test.rows):
        for name, value in describe_image(study).items():
            groups.setdefault((name, value), []).append(row)
    rows = []
    for (name, value), members in sorted(groups.items()):
        if len(members) < MIN_SUBGROUP or len(members) == len(asked.test):
            continue
        for way in (Way(True, None), Way(True, mode)):
            answers = asked.answers[way].probabilities
            metrics = _evaluate(asked.test, answers, np.array(members), thresholds, options)
            rows.append({"group": name, "value": value, "way": way.key, **metrics.to_dict()})
    return rows


def describe_image(study: Mapping[str, Any]) -> dict[str, str]:
    """Return the group of a study by each property of its first image's header."""
    header = study["headers"][0]
    window = "VOI LUT" if header["voi_lut"] else "window" if header["window"] else "neither"
    return {
        "view": study["views"][0],
        "photometric": header["photometric"] or "not stated",
        "brings": window,
        "bits": str(header["bits"] or "not stated"),
    }


def measure_retrieval(asked: Asked, mode: TextMode, options: Options) -> dict[str, Any]:
    """Return, for each gallery and with and without `normal`, a row for each kind of embedding and control."""
    galleries = {
        "test": (asked.test, asked.answers),
        "train": (asked.gallery, asked.gallery_answers),
    }
    found: dict[str, Any] = {}
    for name, (gallery, answers) in galleries.items():
        same = find_same(asked.test.patient_ids, gallery.patient_ids)
        similarities = {
            f"model, {way.title}": asked.answers[way].embeddings @ answers[way].embeddings.T
            for way in asked.gallery_answers
        }
        for text in dict.fromkeys((mode, "full")):
            compared = _compare_texts(asked, gallery, text)
            if compared is not None:
                similarities[f"TF-IDF, {MODE_TITLES[text]}"] = compared
        orders = {title: rank_cases(values, same, options.seed) for title, values in similarities.items()}
        found[f"test_to_{name}"] = {
            block: _measure_gallery(asked.test, gallery, same, orders, without, options)
            for block, without in (("with_normal", ()), ("without_normal", (NORMAL,)))
        }
    return found


def _compare_texts(asked: Asked, gallery: Studies, mode: TextMode) -> NDArray[np.float64] | None:
    try:
        return compare_texts(asked.gallery.texts[mode], asked.test.texts[mode], gallery.texts[mode])
    except ConfigError:  # too few words
        return None


def _measure_gallery(
    test: Studies,
    gallery: Studies,
    same: NDArray[np.bool_],
    orders: Mapping[str, NDArray[np.int64]],
    without: tuple[int, ...],
    options: Options,
) -> list[dict[str, Any]]:
    gains = compute_gains(test.targets, gallery.targets, without=without)
    chosen = {"groups": test.patient_ids, "seed": options.seed, "resamples": options.resamples}
    rows: dict[str, RankingMetrics] = {
        title: evaluate_ranking(order, gains, same, **chosen)  # type: ignore[arg-type]
        for title, order in orders.items()
    }
    rows["random order"] = evaluate_random(gains, same, **chosen)  # type: ignore[arg-type]
    return [{"title": title, **metrics.to_dict()} for title, metrics in rows.items()]


def measure_pairs(asked: Asked, mode: TextMode, options: Options) -> list[dict[str, Any]]:
    """Return how well images find their reports among those of the test studies, and reports their images."""
    image, text = Way(True, None), Way(False, mode)
    if image not in asked.answers:
        return []
    texts = np.asarray(asked.test.texts[mode], np.str_)
    matches = texts[:, None] == texts[None]  # equal reports cannot be told apart
    similarity = asked.answers[image].embeddings @ asked.answers[text].embeddings.T
    rows = []
    for title, values in (("image → report", similarity), ("report → image", similarity.T)):
        found = evaluate_pairs(
            values,
            matches,
            groups=asked.test.patient_ids,
            seed=options.seed,
            resamples=options.resamples,
        )
        chance = {f"r@{k}": min(1.0, k * float(matches.mean())) for k in (1, 5, 10)}
        values_found = {name: interval.to_dict() for name, interval in found.items()}
        rows.append({"title": title, "studies": len(texts), "values": values_found, "chance": chance})
    return rows


def measure_as_published(asked: Asked, options: Options) -> dict[str, list[dict[str, Any]]]:
    """Return the published retrieval metrics of the model and of a random order."""
    galleries = {
        "test_to_test": (asked.test, asked.answers),
        "test_to_train": (asked.gallery, asked.gallery_answers),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (gallery, answers) in galleries.items():
        relevant = compute_gains(asked.test.targets, gallery.targets) > 0
        nothing = np.zeros_like(relevant)
        noise = np.random.default_rng(options.seed).random(relevant.shape)
        similarities: dict[str, NDArray[Any]] = {
            f"model, {way.title}": asked.answers[way].embeddings @ answers[way].embeddings.T
            for way in asked.gallery_answers
        }
        found[name] = [
            {
                "title": title,
                **{
                    metric: round(value, 4)
                    for metric, value in evaluate_as_published(
                        rank_cases(values, nothing, options.seed), relevant
                    ).items()
                },
            }
            for title, values in {**similarities, "random order": noise}.items()
        ]
    return found


def _evaluate(
    studies: Studies,
    probabilities: NDArray[np.float32],
    rows: NDArray[np.int64],
    thresholds: NDArray[np.float64],
    options: Options,
) -> LabelMetrics:
    return evaluate_labels(
        probabilities[rows],
        studies.targets[rows],
        thresholds,
        groups=[studies.patient_ids[row] for row in rows],
        seed=options.seed,
        resamples=options.resamples,
    )
