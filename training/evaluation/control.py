"""The text controls: TF-IDF with logistic regression, and with nearest neighbours, on the same split.

A report nearly states its own labels. So the results of a text model must be compared with word counts on the same
studies.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from contract.report.text import TextMode
from training.evaluation.bootstrap import RESAMPLES
from training.evaluation.labels import LabelMetrics
from training.evaluation.plan import Studies, read_parts
from training.evaluation.regressions import (
    ControlAnswers,
    Truth,
    calibrate_logits,
    decide,
    evaluate_answers,
    fit_regressions,
)

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

# C of scikit-learn: the best of 1, 3, 10 and 30 on the validation split of the real reports
_REGULARISATION: Final = 10.0
_FEATURES_PER_WORD: Final = (1, 2)  # words and pairs of words


def run_table_control(
    table: Path, split_path: Path, mode: TextMode, *, seed: int = 0, resamples: int = RESAMPLES
) -> LabelMetrics:
    """Train the control on the training studies of a split and measure it on its test studies.

    Args:
        table: Studies table.
        split_path: split.json of a bundle.
        mode: Part of the reports to use.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.

    Raises:
        ConfigError: The split belongs to another table, a part of it has no labelled report, or the training reports
            have no common word.
    """
    return evaluate_control(read_parts(table, split_path), mode, seed=seed, resamples=resamples)


def evaluate_control(
    parts: Mapping[str, Studies], mode: TextMode, *, seed: int = 0, resamples: int = RESAMPLES
) -> LabelMetrics:
    """Evaluate the control on the test studies with a readable text; see `run_table_control`.

    Raises:
        ConfigError: A part of the split holds no labelled report, or the training reports share no word.
    """
    return evaluate_answers(run_control(parts, mode), parts["test"], seed=seed, resamples=resamples)


def run_control(parts: Mapping[str, Studies], mode: TextMode) -> ControlAnswers:
    """Fit on "train", calibrate and choose thresholds on "validation", predict "test".

    Raises:
        ConfigError: A part of the split holds no labelled report, or the training reports share no word.
    """
    rows = {part: np.flatnonzero(studies.has_text(mode)) for part, studies in parts.items()}
    for part, part_rows in rows.items():
        if not len(part_rows):
            raise ConfigError(f"The {part} split holds no labelled report.")
    texts = {part: [parts[part].texts[mode][row] for row in rows[part]] for part in parts}
    truth = {part: (parts[part].targets[rows[part]], parts[part].known[rows[part]]) for part in parts}
    probabilities = _fit_calibrated(texts, truth)
    return decide(rows["test"], probabilities, truth["validation"])


def _fit_calibrated(
    texts: Mapping[str, Sequence[str]], truth: Mapping[str, Truth]
) -> dict[str, NDArray[np.float32]]:
    """Fit on "train", calibrate on "validation"; return part -> probabilities (M, K) for every part of `texts`."""
    return calibrate_logits(fit_control(texts, *truth["train"]), truth["validation"])


def fit_control(
    texts: Mapping[str, Sequence[str]],
    train_targets: NDArray[np.bool_],
    train_known: NDArray[np.bool_] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Fit one logistic regression per label on TF-IDF features.

    Args:
        texts: Part -> texts. Features and regressions are fitted only on "train".
        train_targets: (M_train, K).
        train_known: (M_train, K), whether a target is known. Default: all.

    Returns:
        Part -> logits (M, K). They are constant for a label that all or none of the known "train" studies have.

    Raises:
        ConfigError: No word occurs in two texts of "train".
    """
    from sklearn.linear_model import LogisticRegression

    vectorizer = _fit_vectorizer(texts["train"])
    features = {part: vectorizer.transform(entries) for part, entries in texts.items()}
    return fit_regressions(
        features,
        train_targets,
        train_known,
        lambda: LogisticRegression(C=_REGULARISATION, solver="liblinear", class_weight="balanced"),
    )


def compare_texts(
    train: Sequence[str], queries: Sequence[str], *galleries: Sequence[str]
) -> list[NDArray[np.float64]]:
    """Return (Q, G) for each gallery, the cosine similarity of TF-IDF vectors whose weights come from `train`."""
    vectorizer = _fit_vectorizer(train)
    vectors = vectorizer.transform(queries)  # rows have unit length
    products = (vectors @ vectorizer.transform(gallery).T for gallery in galleries)
    return [np.asarray(product.toarray(), dtype=np.float64) for product in products]


def compare_probabilities(
    train: Studies, validation: Studies, mode: TextMode, queries: Sequence[str], *galleries: Sequence[str]
) -> list[NDArray[np.float64]]:
    """Return (Q, G) for each gallery, the cosine of the K probabilities that the regressions give to two texts.

    This is the fair control for a search with a trained model: like its embeddings, the probabilities of training
    studies come from a model that has seen their labels.

    Args:
        train: Studies to fit the regressions on.
        validation: Studies to calibrate them on.
        mode: Part of the reports to use.
        queries: Q texts.
        galleries: Texts to search.

    Raises:
        ConfigError: A part holds no labelled report, or the training reports share no word.
    """
    rows = {
        name: np.flatnonzero(part.has_text(mode))
        for name, part in (("train", train), ("validation", validation))
    }
    if not all(len(part_rows) for part_rows in rows.values()):
        raise ConfigError("The control needs labelled reports for training and validation.")
    parts = {"train": train.take(rows["train"]), "validation": validation.take(rows["validation"])}
    texts = {name: part.texts[mode] for name, part in parts.items()}
    searched = {"queries": queries} | {str(index): gallery for index, gallery in enumerate(galleries)}
    truth = {name: (part.targets, part.known) for name, part in parts.items()}
    probabilities = _fit_calibrated({**texts, **searched}, truth)
    unit = {name: _normalise(probabilities[name].astype(np.float64)) for name in searched}
    return [unit["queries"] @ unit[str(index)].T for index in range(len(galleries))]


def _normalise(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows at unit length. Rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def _fit_vectorizer(texts: Sequence[str]) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=_FEATURES_PER_WORD, min_df=2, sublinear_tf=True)
    try:
        return vectorizer.fit(texts)
    except ValueError as error:
        raise ConfigError(
            "There are too few training reports for the control: they have no common word."
        ) from error
