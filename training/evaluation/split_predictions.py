"""Get all predictions that an evaluation needs from a model, and compare the predictions of two models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from contract.embedding import take_joint
from contract.errors import ConfigError
from training.evaluation.bootstrap import RESAMPLES
from training.evaluation.plan import (
    Studies,
    Way,
    choose_complete,
    list_plain_ways,
    list_ways,
    make_cases,
    split_by_image,
)
from training.evaluation.predict import Answers, Predictor

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Images:
    """The single images of M studies, which the published metrics use.

    Attributes:
        owners: (N,), the study of each image.
        embeddings: Way -> (N, D), of each image alone or with the study's report; for the report alone, the same for
            all images of a study.
    """

    owners: NDArray[np.int64]
    embeddings: Mapping[Way, NDArray[np.float32]]


@dataclass(frozen=True)
class SplitPredictions:
    """The predictions of a model for the studies of a split.

    Attributes:
        test: M test studies that can be read in every way.
        gallery: G training studies that can be read in every way; none for an external test set.
        answers: Way -> answers (M,) for the test studies; NaN if a study was not predicted or refused.
        gallery_answers: Way -> answers (G,) for the training studies.
        images: Gallery ("test", "train") -> the readable images of its studies.
        unreadable: Number of test studies that were left out because of an unreadable image.
    """

    test: Studies
    gallery: Studies
    answers: Mapping[Way, Answers]
    gallery_answers: Mapping[Way, Answers]
    images: Mapping[str, Images] = field(default_factory=dict)
    unreadable: int = 0


@dataclass(frozen=True)
class Options:
    """The seed of every random draw, and the number of bootstrap resamples of the patients."""

    seed: int = 0
    resamples: int = RESAMPLES


def predict_split(
    parts: Mapping[str, Studies], predictor: Predictor, options: Options, progress: Progress | None = None
) -> SplitPredictions:
    """Predict the test studies in every way, and the training studies, if any, for the search.

    Raises:
        ConfigError: No study of a part can be read.
    """
    mode = predictor.text_mode
    test = choose_complete(parts["test"], mode)
    gallery = choose_complete(parts["train"], mode) if "train" in parts else test.take(np.array([], np.int64))
    ways, plain = list_ways(test, mode), list_plain_ways(test, mode)
    other_images = sum(max(0, len(row["image_paths"]) - 1) for part in (test, gallery) for row in part.rows)
    total = len(ways) * len(test) + len(plain) * len(gallery) + sum(way.image for way in plain) * other_images
    done = 0

    def ask(studies: Studies, way: Way) -> Answers:
        nonlocal done
        cases, rows = make_cases(studies, way, seed=options.seed)
        began = done
        report = (lambda count, _: progress(began + count, total)) if progress else None
        images = predictor.ask(cases, report)
        done = began + len(studies)
        answers = Answers.prepare(len(studies), images.embeddings.shape[1])
        answers.probabilities[rows], answers.embeddings[rows] = images.probabilities, images.embeddings
        return answers

    answers = {way: ask(test, way) for way in ways}
    width = answers[plain[0]].embeddings.shape[1]
    gallery_answers = {way: ask(gallery, way) if len(gallery) else Answers.prepare(0, width) for way in plain}
    predictions = _drop_refused(SplitPredictions(test, gallery, answers, gallery_answers), plain)
    images = {"test": _ask_images(predictions.test, {way: predictions.answers[way] for way in plain}, ask)}
    if len(predictions.gallery):
        images["train"] = _ask_images(predictions.gallery, predictions.gallery_answers, ask)
    if progress:
        progress(total, total)
    return replace(predictions, images=images)


def _ask_images(
    studies: Studies, answers: Mapping[Way, Answers], ask: Callable[[Studies, Way], Answers]
) -> Images:
    """Predict the images that are not part of the studies' answers: all except the first image of each study."""
    images, owners = split_by_image(studies)
    other_rows = np.flatnonzero(np.diff(owners, prepend=-1) == 0)
    embeddings = {}
    for way, answer in answers.items():
        embeddings[way] = answer.embeddings[owners]  # (N, D)
        if way.image and len(other_rows):
            embeddings[way][other_rows] = ask(images.take(other_rows), way).embeddings
    read = ~np.any([np.isnan(values).any(1) for values in embeddings.values()], axis=0)
    return Images(owners[read], {way: values[read] for way, values in embeddings.items()})


def _drop_refused(predictions: SplitPredictions, plain: Sequence[Way]) -> SplitPredictions:
    """Leave out the studies that a plain way refused, so that all rows are about the same studies."""

    def keep(
        studies: Studies, answers: Mapping[Way, Answers]
    ) -> tuple[Studies, dict[Way, Answers], NDArray[np.int64]]:
        rows = np.flatnonzero(np.all([answers[way].answered for way in plain], axis=0))
        if not len(rows):
            raise ConfigError(
                f"The model could read none of {len(studies)} studies (image files: {studies.get_image(0) or 'none'}, "
                "...). Check that the image files are at the paths in the table."
            )
        rest = {
            way: Answers(answer.probabilities[rows], answer.embeddings[rows])
            for way, answer in answers.items()
        }
        return studies.take(rows), rest, rows

    test, answers, rows = keep(predictions.test, predictions.answers)
    unreadable = len(predictions.test) - len(rows)
    if not len(predictions.gallery):
        return SplitPredictions(
            test, predictions.gallery, answers, predictions.gallery_answers, unreadable=unreadable
        )
    gallery, gallery_answers, _ = keep(predictions.gallery, predictions.gallery_answers)
    return SplitPredictions(test, gallery, answers, gallery_answers, unreadable=unreadable)


def compare_predictions(
    first: SplitPredictions, second: SplitPredictions, label_part: int
) -> dict[str, float]:
    """Return the largest differences between two models' predictions for the same studies.

    Args:
        first: The predictions of one model.
        second: The predictions of the other one.
        label_part: Length of the label part of their embeddings, which repeats the probabilities and is left out.

    Returns:
        "probabilities" (largest absolute difference), "embeddings" (largest cosine distance), "cases".

    Raises:
        ConfigError: The models did not predict the same studies in the same ways.
    """
    if first.test.study_ids != second.test.study_ids or first.gallery.study_ids != second.gallery.study_ids:
        raise ConfigError("The two models refused different studies.")
    probabilities, embeddings, cases = 0.0, 0.0, 0
    for first_answers, second_answers in (
        (first.answers, second.answers),
        (first.gallery_answers, second.gallery_answers),
    ):
        for way, answers in first_answers.items():
            rows = answers.answered
            if (rows != second_answers[way].answered).any():
                raise ConfigError(f"The two models refused different studies ({way.title}).")
            gap = np.abs(answers.probabilities[rows] - second_answers[way].probabilities[rows])
            pair = [x.embeddings[rows] for x in (answers, second_answers[way])]
            cosine = (take_joint(pair[0], label_part) * take_joint(pair[1], label_part)).sum(1)
            probabilities = max(probabilities, float(gap.max(initial=0)))
            embeddings = max(embeddings, float((1 - cosine).max(initial=0)))
            cases += int(rows.sum())
    return {"probabilities": probabilities, "embeddings": embeddings, "cases": float(cases)}
