"""The control: TF-IDF and logistic regression on the same split.

A report nearly states its own labels, so a figure of a text model means something only beside what counting
words reaches on the same studies.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.errors import ArtifactError, ConfigError
from contract.text import TextMode
from training.data import make_targets, read_texts
from training.evaluation.labels import LabelMetrics, evaluate_labels, fit_thresholds

_REGULARISATION = (
    10.0  # C of scikit-learn: the best of 1, 3, 10 and 30 on the validation split of the real reports
)
_FEATURES_PER_WORD = (1, 2)  # words and pairs of words


def run_table_control(table: Path, split_path: Path, mode: TextMode, *, seed: int = 0) -> LabelMetrics:
    """Train the control on the training studies of a split and measure it on its test studies.

    Args:
        table: Studies table.
        split_path: split.json of a bundle.
        mode: Part of the reports that is read.
        seed: Of the bootstrap.

    Raises:
        ArtifactError: `split_path` is no split of this table.
        ConfigError: A part of the split holds no labelled report, or the training reports share no word.
    """
    parts = _read_split(split_path)
    rows = {row["study_id"]: row for row in read_texts(table, mode)}
    texts: dict[str, list[str]] = {}
    targets: dict[str, NDArray[np.bool_]] = {}
    patients: list[str] = []
    for part, ids in parts.items():
        if unknown := [study_id for study_id in ids if study_id not in rows]:
            raise ArtifactError(f"{split_path} names {len(unknown)} studies that {table} does not hold.")
        chosen = [rows[study_id] for study_id in ids if rows[study_id]["text"] and rows[study_id]["labelled"]]
        if not chosen:
            raise ConfigError(f"The {part} split holds no labelled report.")
        texts[part] = [row["text"] for row in chosen]
        targets[part] = make_targets([row["labels"] for row in chosen])
        patients = [row["patient_id"] for row in chosen]  # of the last part, test
    scores = fit_control(texts, targets["train"])
    thresholds = fit_thresholds(scores["validation"], targets["validation"])
    return evaluate_labels(scores["test"], targets["test"], thresholds, groups=patients, seed=seed)


def fit_control(
    texts: dict[str, list[str]], train_targets: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """Fit one logistic regression per label on TF-IDF features.

    Args:
        texts: Part -> texts; the features and the regressions come from "train" alone.
        train_targets: (M_train, K).

    Returns:
        Part -> probabilities (M, K); a label that all or none of "train" have is 0 everywhere.

    Raises:
        ConfigError: No word stands in two texts of "train".
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=_FEATURES_PER_WORD, min_df=2, sublinear_tf=True)
    try:
        vectorizer.fit(texts["train"])
    except ValueError as error:
        raise ConfigError("The training reports are too few for the control: they share no word.") from error
    features = {part: vectorizer.transform(entries) for part, entries in texts.items()}
    scores = {part: np.zeros((len(entries), train_targets.shape[1])) for part, entries in texts.items()}
    for k in np.flatnonzero(train_targets.any(0) & ~train_targets.all(0)):
        model = LogisticRegression(C=_REGULARISATION, solver="liblinear", class_weight="balanced")
        model.fit(features["train"], train_targets[:, k])
        for part, matrix in features.items():
            scores[part][:, k] = model.predict_proba(matrix)[:, 1]
    return scores


def _read_split(path: Path) -> dict[str, list[str]]:
    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        parts = {
            part: [str(study_id) for study_id in split[part]] for part in ("train", "validation", "test")
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a split file.") from error
    ids = [study_id for names in parts.values() for study_id in names]
    if len(set(ids)) < len(ids):
        raise ArtifactError(f"{path} names {len(ids) - len(set(ids))} studies twice.")
    return parts
