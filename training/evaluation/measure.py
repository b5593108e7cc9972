"""Compute the results from predictions: ways and controls, subgroups, retrieval, pairs, published metrics."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.decisions import Decisions
from contract.errors import ConfigError
from contract.labels import LABEL_INDEX, LABEL_KEYS
from contract.report.text import TextMode
from training.evaluation.abstention import measure_abstention
from training.evaluation.control import compare_probabilities, compare_texts, run_control
from training.evaluation.image_control import TITLES as IMAGE_CONTROLS
from training.evaluation.image_control import run_image_controls
from training.evaluation.labels import LabelMetrics, evaluate_labels
from training.evaluation.paired import MODEL, Controls, compare_search, compare_ways
from training.evaluation.plan import MODE_TITLES, Studies, Way
from training.evaluation.predict import ReadPixels
from training.evaluation.published import REASONS, evaluate_as_published
from training.evaluation.ranking import (
    RankingMetrics,
    compute_chance,
    compute_gains,
    evaluate_pairs,
    evaluate_random,
    evaluate_ranking,
    find_unknown,
    judge_gallery,
    rank_cases,
)
from training.evaluation.regressions import ControlAnswers, evaluate_answers
from training.evaluation.split_predictions import Options, SplitPredictions

MIN_SUBGROUP: Final = 20  # studies; smaller subgroups are left out
NORMAL: Final = LABEL_INDEX["normal"]
BLOCKS: Final[dict[str, tuple[int, ...]]] = {
    "with_normal": (),
    "without_normal": (NORMAL,),
}  # labels left out

Similarities = dict[str, NDArray[Any]]  # title -> (Q, G)


def measure(
    predictions: SplitPredictions,
    parts: Mapping[str, Studies],
    bundle: Bundle,
    read_pixels: ReadPixels,
    options: Options,
) -> dict[str, Any]:
    """Return the content of evaluation.json; see the functions below for each of its blocks.

    `read_pixels` reads, for the controls, the same images as for the model.
    """
    mode: TextMode = bundle.config["text_mode"]
    controls = run_controls(predictions.test, parts, read_pixels) if "train" in parts else Controls({}, {})
    similarities = compare_cases(predictions, parts, mode)
    return {
        "fingerprint": bundle.fingerprint,
        "text_mode": mode,
        "trained_on": bundle.trained_on,
        "studies": {
            "test": len(predictions.test),
            "gallery": len(predictions.gallery),
            "labelled": {part: len(studies) for part, studies in parts.items()},
            "unreadable": predictions.unreadable,
        },
        "unstated": [LABEL_KEYS[k] for k in np.flatnonzero(~predictions.test.known.any(0))],
        "classification": [
            *measure_ways(predictions, bundle.decisions, options),
            *measure_controls(predictions.test, controls, options),
        ],
        "paired": {
            "classification": compare_ways(predictions, controls, bundle.decisions, options),
            "retrieval": measure_leads(predictions, similarities, options),
        },
        "abstention": measure_abstention(predictions, bundle.decisions, options),
        "subgroups": measure_subgroups(predictions, mode, bundle.decisions, options),
        "retrieval": measure_retrieval(predictions, similarities, options),
        "pairs": measure_pairs(predictions, mode, options),
        "as_published": {"why_they_flatter": REASONS, **measure_as_published(predictions, options)},
        "options": {"seed": options.seed, "resamples": options.resamples},
    }


def measure_ways(
    predictions: SplitPredictions, decisions: Decisions, options: Options
) -> list[dict[str, Any]]:
    """Return a row for each way, with the thresholds of that way."""
    rows = []
    for way, answers in predictions.answers.items():
        answered = np.flatnonzero(answers.answered)
        thresholds = decisions.get_thresholds(way.kind)
        metrics = _evaluate(predictions.test, answers.probabilities, answered, thresholds, options)
        kind = "control" if way.swapped else "model"
        rows.append({"key": way.key, "title": way.title, "kind": kind, **metrics.to_dict()})
    return rows


def run_controls(test: Studies, parts: Mapping[str, Studies], read_pixels: ReadPixels) -> Controls:
    """Return the controls' predictions for the test studies, for the first image and each part of the report."""
    parts = {**parts, "test": test}
    texts = {mode: answers for mode in MODE_TITLES if (answers := _try_control(parts, mode)) is not None}
    try:
        return Controls(texts, run_image_controls(parts, read_pixels) if test.has_image().any() else {})
    except ConfigError:  # a part of the split holds no image
        return Controls(texts, {})


def _try_control(parts: Mapping[str, Studies], mode: str) -> ControlAnswers | None:
    try:
        return run_control(parts, mode)  # type: ignore[arg-type]
    except ConfigError:  # too few words in this part of the reports
        return None


def measure_controls(test: Studies, controls: Controls, options: Options) -> list[dict[str, Any]]:
    """Return a row of logistic regression for each kind of features and part of the report, on the same studies."""
    rows = [(name, IMAGE_CONTROLS[name], answers) for name, answers in controls.images.items()]
    rows += [
        (f"tfidf/{mode}", f"TF-IDF, {MODE_TITLES[mode]}", answers) for mode, answers in controls.texts.items()
    ]
    return [
        {
            "key": key,
            "title": title,
            "kind": "control",
            **evaluate_answers(answers, test, seed=options.seed, resamples=options.resamples).to_dict(),
        }
        for key, title, answers in rows
    ]


def measure_subgroups(
    predictions: SplitPredictions, mode: TextMode, decisions: Decisions, options: Options
) -> list[dict[str, Any]]:
    """Return rows for groups of test studies by their first image's header, of image alone and of the study."""
    if not predictions.test.has_image().any():
        return []
    groups: dict[tuple[str, str], list[int]] = {}
    for row, study in enumerate(predictions.test.rows):
        for name, value in describe_image(study).items():
            groups.setdefault((name, value), []).append(row)
    rows = []
    for (name, value), members in sorted(groups.items()):
        if len(members) < MIN_SUBGROUP or len(members) == len(predictions.test):
            continue
        for way in (way for way in (Way(True, None), Way(True, mode)) if way in predictions.answers):
            answers = predictions.answers[way].probabilities
            thresholds = decisions.get_thresholds(way.kind)
            metrics = _evaluate(predictions.test, answers, np.array(members), thresholds, options)
            rows.append({"group": name, "value": value, "way": way.key, **metrics.to_dict()})
    return rows


def describe_image(study: Mapping[str, Any]) -> dict[str, str]:
    """Return the group of a study by each property of its first image's header, where the table has it."""
    if not study["headers"] or not study["views"]:
        return {}
    header = study["headers"][0]
    window = "VOI LUT" if header["voi_lut"] else "window" if header["window"] else "neither"
    return {
        "view": study["views"][0],
        "photometric": header["photometric"] or "not stated",
        "brings": window,
        "bits": str(header["bits"] or "not stated"),
    }


def compare_cases(
    predictions: SplitPredictions, parts: Mapping[str, Studies], mode: TextMode
) -> dict[str, Similarities]:
    """Return, for each gallery, how similar test studies are to it by each embedding and by each control."""
    similarities = compare_embeddings(predictions)
    # The controls learn from training studies.
    for text in dict.fromkeys((mode, "full")) if len(predictions.gallery) else ():
        train, test = predictions.gallery.texts[text], predictions.test.texts[text]
        if not any(test):
            continue
        try:
            compared = {
                "TF-IDF": compare_texts(train, test, test, train),
                "TF-IDF + LR": compare_probabilities(
                    predictions.gallery, parts["validation"], text, test, test, train
                ),
            }
        except ConfigError:  # too few words
            continue
        for name, tables in compared.items():
            for gallery_similarities, values in zip(similarities.values(), tables, strict=True):
                gallery_similarities[f"{name}, {MODE_TITLES[text]}"] = values
    return similarities


def measure_retrieval(
    predictions: SplitPredictions, similarities: Mapping[str, Similarities], options: Options
) -> dict[str, Any]:
    """Return, for each gallery and with and without `normal`, a row for each kind of embedding and control."""
    return {
        f"test_to_{name}": {
            block: [{"title": title, **metrics.to_dict()} for title, metrics in rows.items()]
            for block, rows in evaluate_search(predictions.test, gallery, similarities[name], options).items()
        }
        for name, gallery in list_galleries(predictions).items()
    }


def measure_leads(
    predictions: SplitPredictions, similarities: Mapping[str, Similarities], options: Options
) -> dict[str, Any]:
    """Return, for the search among training studies, with and without `normal`, model minus control."""
    if not len(predictions.gallery):
        return {}
    ways = {f"{MODEL}{way.title}": way for way in predictions.gallery_answers}
    return {
        block: compare_search(
            predictions.test,
            predictions.gallery,
            similarities["train"],
            ways,
            without=without,
            options=options,
        )
        for block, without in BLOCKS.items()
    }


def list_galleries(predictions: SplitPredictions) -> dict[str, Studies]:
    """Return the studies that are searched in: the test studies, and those of training where there are any."""
    return {"test": predictions.test} | ({"train": predictions.gallery} if len(predictions.gallery) else {})


def compare_embeddings(predictions: SplitPredictions) -> dict[str, Similarities]:
    """Return, for each gallery of `list_galleries`, how similar test studies are to it by each embedding."""
    answers = {"test": predictions.answers, "train": predictions.gallery_answers}
    galleries = {name: answers[name] for name in list_galleries(predictions)}
    return {
        name: {
            f"{MODEL}{way.title}": predictions.answers[way].embeddings @ answers[way].embeddings.T
            for way in predictions.gallery_answers
        }
        for name, answers in galleries.items()
    }


def evaluate_search(
    test: Studies, gallery: Studies, similarities: Similarities, options: Options
) -> dict[str, dict[str, RankingMetrics]]:
    """Measure rankings of a gallery, beside a random order.

    Studies that `judge_gallery` excludes are left out.

    Args:
        test: Q queries.
        gallery: G studies.
        similarities: Title -> (Q, G).
        options: Of the bootstrap and the random order.

    Returns:
        "with_normal" and "without_normal" -> title -> metrics.
    """
    chosen: dict[str, Any] = {
        "groups": test.patient_ids,
        "seed": options.seed,
        "resamples": options.resamples,
    }
    metrics = {}
    for block, without in BLOCKS.items():
        gains, excluded = judge_gallery(test, gallery, without=without)
        metrics[block] = {
            title: evaluate_ranking(rank_cases(values, excluded, options.seed), gains, excluded, **chosen)
            for title, values in similarities.items()
        } | {"random order": evaluate_random(gains, excluded, **chosen)}
    return metrics


def measure_pairs(predictions: SplitPredictions, mode: TextMode, options: Options) -> list[dict[str, Any]]:
    """Return the metrics of finding an image's report among those of the test studies, and the other way round."""
    image, text = Way(True, None), Way(False, mode)
    if image not in predictions.answers or text not in predictions.answers:
        return []
    texts = np.asarray(predictions.test.texts[mode], np.str_)
    matches = texts[:, None] == texts[None]  # equal reports are counterparts of each other
    similarity = predictions.answers[image].embeddings @ predictions.answers[text].embeddings.T
    rows = []
    for title, values in (("image → report", similarity), ("report → image", similarity.T)):
        metrics = evaluate_pairs(
            values,
            matches,
            groups=predictions.test.patient_ids,
            seed=options.seed,
            resamples=options.resamples,
        )
        rows.append(
            {
                "title": title,
                "studies": len(texts),
                "values": {name: interval.to_dict() for name, interval in metrics.items()},
                "chance": compute_chance(matches),
            }
        )
    return rows


def measure_as_published(predictions: SplitPredictions, options: Options) -> dict[str, list[dict[str, Any]]]:
    """Return the published retrieval metrics of the model and of a random order: image against image.

    Images whose similarity to the query is unknown come last.
    """
    queries = predictions.images["test"]
    targets = predictions.test.targets[queries.owners]
    results: dict[str, list[dict[str, Any]]] = {}
    for name, gallery in list_galleries(predictions).items():
        images = predictions.images[name]
        theirs = gallery.targets[images.owners]
        known = (predictions.test.known[queries.owners], gallery.known[images.owners])
        relevant = compute_gains(targets, theirs, known=known) > 0
        unknown = find_unknown(targets, theirs, known)
        if name == "test":
            np.fill_diagonal(relevant, val=False)
        noise = np.random.default_rng(options.seed).random(relevant.shape)
        similarities = {
            f"{MODEL}{way.title}": values @ images.embeddings[way].T
            for way, values in queries.embeddings.items()
        }
        results[f"test_to_{name}"] = [
            {
                "title": title,
                **{
                    metric: round(value, 4)
                    for metric, value in evaluate_as_published(
                        rank_cases(values, unknown, options.seed), relevant
                    ).items()
                },
            }
            for title, values in {**similarities, "random order": noise}.items()
        ]
    return results


def _evaluate(
    studies: Studies,
    probabilities: NDArray[np.float32],
    rows: NDArray[np.int64],
    thresholds: NDArray[np.float64] | None,
    options: Options,
) -> LabelMetrics:
    return evaluate_labels(
        probabilities[rows],
        studies.targets[rows],
        thresholds,
        groups=[studies.patient_ids[row] for row in rows],
        known=studies.known[rows],
        seed=options.seed,
        resamples=options.resamples,
    )
