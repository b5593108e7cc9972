"""Rank studies by sentences that state a label, compared with the model's embeddings of the studies.

The sentences are not training data, but this is not a zero-shot test: the model was trained on these labels, and its
embeddings reflect them. The relevant row is the image alone, because a report states its own findings. (CheXzero, Tiu
et al. 2022, uses the same measure for a model that never saw a label.)
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.embedding import take_joint
from contract.errors import ConfigError
from contract.labels import LABEL_KEYS
from contract.prompts import Prompts, average_prompts, compute_scores, make_prompts
from training.evaluation.bootstrap import Floats, summarise, weigh_studies
from training.evaluation.labels import CENTRED, compute_ap, compute_auroc, find_usable
from training.evaluation.plan import Case, list_plain_ways
from training.evaluation.predict import Predictor
from training.evaluation.split_predictions import Options, SplitPredictions

# Label key -> its names in reports: the commonest MeSH headings of `training.data.mesh`, as prose.
LABEL_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "general_radiographic": ("opacity", "low lung volumes", "prominent lung markings"),
    "general_disease": ("cystic fibrosis", "hypovolemia"),
    "atelectasis": ("atelectasis", "volume loss"),
    "infection": ("pneumonia", "airspace disease", "consolidation", "infiltrate"),
    "fibrosis_ild": ("scarring", "pulmonary fibrosis", "interstitial lung disease"),
    "copd_emphysema": ("emphysema", "hyperinflation", "chronic obstructive pulmonary disease"),
    "cardiac": ("cardiomegaly", "an enlarged heart", "pulmonary edema"),
    "aortic_vascular": ("a tortuous aorta", "atherosclerosis of the aorta"),
    "pulmonary_vascular": ("pulmonary vascular congestion", "pulmonary arterial hypertension"),
    "malignancy": ("a mass", "malignancy"),
    "nodule_cyst": ("a nodule", "a pulmonary nodule"),
    "granulomatous": ("a calcified granuloma", "granulomatous disease"),
    "lymphadenopathy": ("lymphadenopathy", "enlarged lymph nodes"),
    "pleural": ("pleural effusion", "pleural thickening", "blunting of the costophrenic angle"),
    "air_leak": ("pneumothorax", "subcutaneous emphysema"),
    "msk_trauma": ("rib fracture", "fracture", "a wedge deformity", "vertebral wedging"),
    "msk_degenerative": ("degenerative changes of the spine", "osteophytes", "spondylosis"),
    "msk_other": ("scoliosis", "kyphosis", "osteopenia"),
    "hernia_diaphragm": ("hiatal hernia", "an elevated hemidiaphragm", "eventration of the diaphragm"),
    "abdominal_gi": ("free air under the diaphragm", "gallstones"),
    "miscellaneous": ("a catheter", "a pacemaker", "surgical clips"),
}
# No template fits a study without findings.
NORMAL_PROMPTS: Final = Prompts(
    present=(
        "Normal chest.",
        "The lungs are clear.",
        "No acute cardiopulmonary abnormality.",
        "The heart and lungs are normal.",
    ),
    absent=(
        "Abnormal chest.",
        "The lungs are abnormal.",
        "There is an acute cardiopulmonary abnormality.",
        "The heart and lungs are abnormal.",
    ),
)
MASKED_MODE: Final = "findings_masked"
_METRICS: Final = {"auroc": compute_auroc, "ap": compute_ap}


def make_label_prompts() -> tuple[Prompts, ...]:
    """Return the sentences of the K labels, in the order of the logits."""
    return tuple(
        NORMAL_PROMPTS if key == "normal" else make_prompts(*LABEL_PHRASES[key]) for key in LABEL_KEYS
    )


def measure_prompt_scores(
    predictions: SplitPredictions, predictor: Predictor, options: Options
) -> list[dict[str, Any]]:
    """Return a row for the image, the report and both: AUROC and average precision of the prompt scores.

    Args:
        predictions: The model's predictions for the test studies, whose embeddings are compared with the sentences.
        predictor: The same model, to embed the sentences.
        options: Options of the bootstrap.

    Returns:
        Rows as in `training.evaluation.measure`, the image first. There are none for a model that reads masked
        findings, because it never sees the words of the sentences.

    Raises:
        ConfigError: The model refused a sentence.
    """
    if predictor.text_mode == MASKED_MODE:
        return []
    sides = embed_prompts(make_label_prompts(), predictor, predictor.label_part)
    ways = sorted(list_plain_ways(predictions.test, predictor.text_mode), key=lambda way: bool(way.text))
    rows = []
    for way in ways:
        scores = score_labels(take_joint(predictions.answers[way].embeddings, predictor.label_part), sides)
        metrics = evaluate_scores(
            scores,
            predictions.test.targets,
            groups=predictions.test.patient_ids,
            options=options,
            known=predictions.test.known,
        )
        rows.append({"key": way.key, "title": way.title, "studies": len(predictions.test), **metrics})
    return rows


def embed_prompts(
    prompts: Sequence[Prompts], predictor: Predictor, label_part: int = 0
) -> NDArray[np.float64]:
    """Return the average embeddings (K, 2, J) of the sentences that state, and that deny, each label.

    Args:
        prompts: The sentences of each label.
        predictor: The model.
        label_part: Length of the label part of the embeddings, to leave it out. 0 keeps whole embeddings.
    """
    sentences = [sentence for both in prompts for side in (both.present, both.absent) for sentence in side]
    answers = predictor.ask([Case(f"prompt-{row}", text=text) for row, text in enumerate(sentences)])
    if not answers.answered.all():
        raise ConfigError("The model refused a sentence of the prompts.")
    ends = np.cumsum([len(side) for both in prompts for side in (both.present, both.absent)])[:-1]
    joint = take_joint(answers.embeddings, label_part)
    averages = [average_prompts(part) for part in np.split(joint, ends)]
    return np.stack(averages).reshape(len(prompts), 2, -1)


def score_labels(embeddings: NDArray[np.floating[Any]], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return scores (M, K), 0 to 1, of studies (M, J) against sentences (K, 2, J), all in the joint space."""
    similarity = np.einsum("md,ksd->mks", embeddings.astype(np.float64), sides)
    return compute_scores(
        similarity[..., 0], similarity[..., 1], temperature=1.0
    )  # any temperature gives the same order


def evaluate_scores(
    scores: NDArray[np.float64],
    targets: NDArray[np.bool_],
    *,
    groups: Sequence[str],
    options: Options,
    known: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Evaluate scores (M, K) that rank studies but are not probabilities.

    Args:
        scores: (M, K).
        targets: (M, K).
        groups: M patient ids; the bootstrap draws patients.
        options: Options of the bootstrap.
        known: (M, K), whether a target is known. Default: all.

    Returns:
        "averaged" (keys of the labels with enough studies), "macro" (metric -> interval) and "labels" (key ->
        metric -> interval, and "positives").
    """
    known = np.ones_like(targets) if known is None else known
    usable = find_usable(targets, known)
    weights = weigh_studies(groups, options.seed, options.resamples)  # (1+R, M)
    tables: Mapping[str, list[Floats]] = {
        name: [
            compute(scores[rows, k], targets[rows, k], weights[:, rows])
            for k, rows in ((k, known[:, k]) for k in usable)
        ]
        for name, compute in _METRICS.items()
    }
    labels = {
        LABEL_KEYS[k]: {
            **{
                name: summarise(table[index][None], centred=name in CENTRED).to_dict()
                for name, table in tables.items()
            },
            "positives": int((targets & known)[:, k].sum()),
        }
        for index, k in enumerate(usable)
    }
    macro = {
        name: summarise(np.stack(table), centred=name in CENTRED).to_dict()
        for name, table in tables.items()
        if table
    }
    return {"averaged": list(labels), "macro": macro, "labels": labels}


def draw_ap(
    scores: NDArray[np.floating[Any]],
    targets: NDArray[np.bool_],
    *,
    groups: Sequence[str],
    options: Options,
    known: NDArray[np.bool_] | None = None,
) -> Floats:
    """Return (labels, 1 + R): the average precision of the labels with enough studies; see `evaluate_scores`."""
    known = np.ones_like(targets) if known is None else known
    weights = weigh_studies(groups, options.seed, options.resamples)
    precisions = [
        compute_ap(scores[rows, k], targets[rows, k], weights[:, rows])
        for k, rows in ((k, known[:, k]) for k in find_usable(targets, known))
    ]
    return np.stack(precisions) if precisions else np.zeros((0, len(weights)))
