"""Compare a series of models, each with its own split, with the image controls.

One test split of a small collection is not conclusive. Here each model, and the controls of its split, predict their
own test split, and the differences are averaged over models and labels. Each bootstrap resample of patients is used
for all of them, so a patient in two test splits is drawn for both or for neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import SPLIT, Bundle
from contract.errors import ConfigError
from contract.labels import LABEL_KEYS, LABEL_NAMES
from training.evaluation.bootstrap import Floats, summarise, summarise_difference, weigh_studies
from training.evaluation.image_control import TITLES, run_image_controls
from training.evaluation.labels import CENTRED, compute_ap, compute_auroc, find_usable
from training.evaluation.markdown import format_difference, format_interval, format_table
from training.evaluation.plan import Case, Studies, read_parts
from training.evaluation.predict import ReadPixels, TorchPredictor, read_from_cache
from training.evaluation.zero_shot import hide_labels

MODEL: Final = "model"
_METRICS: Final = {"auroc": compute_auroc, "ap": compute_ap}


@dataclass(frozen=True)
class Member:
    """One model of a series, with the predictions for its test split.

    Attributes:
        test: M studies with a readable image.
        answers: "model" and the names of the controls -> probabilities (M, K).
    """

    test: Studies
    answers: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Lead:
    """The differences between the models and one control, by metric; see `training.evaluation.bootstrap.Difference`."""

    control: str
    values: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Series:
    """The results of a series, with intervals as in `training.evaluation.bootstrap`.

    Attributes:
        models: Number of models.
        studies: Number of predictions. A study in two test splits counts twice.
        patients: Number of patients.
        macro: "model" and the controls -> metric -> mean over models and labels.
        leads: Models minus each control.
        labels: Label key -> "positives", "macro" and "leads" of that label alone.
    """

    models: int
    studies: int
    patients: int
    macro: Mapping[str, Mapping[str, Mapping[str, float]]]
    leads: tuple[Lead, ...]
    labels: Mapping[str, Mapping[str, Any]]


def ask_members(bundles: Sequence[Bundle], table: Path, *, cache: Path | None = None) -> list[Member]:
    """Predict the test split of each model with the model and with the controls fitted on its training split.

    Args:
        bundles: Verified bundles, trained on this table.
        table: Studies table.
        cache: Image cache of the table, to read instead of the image files.

    Raises:
        ConfigError: The split of a bundle belongs to another table, or a part of it has no readable image.
    """
    members = []
    for bundle in bundles:
        reader = read_from_cache(cache, bundle.config["sizes"]["S"]) if cache else None
        predictor = TorchPredictor(bundle, read_pixels=reader)
        parts = hide_labels(read_parts(table, bundle.path / SPLIT), bundle.held_out)
        members.append(_ask_member(parts, predictor, predictor.read_pixels))
    return members


def _ask_member(parts: Mapping[str, Studies], predictor: TorchPredictor, read_pixels: ReadPixels) -> Member:
    controls = run_image_controls(parts, read_pixels)
    rows = next(iter(controls.values())).rows
    test = parts["test"].take(rows)
    cases = [Case(test.study_ids[row], image=test.get_image(row)) for row in range(len(test))]
    probabilities = predictor.ask(cases).probabilities
    return Member(
        test, {MODEL: probabilities} | {name: control.probabilities for name, control in controls.items()}
    )


def measure_series(members: Sequence[Member], *, seed: int = 0, resamples: int = 1000) -> Series:
    """Average AUROC and average precision over models and labels, with bootstrap intervals.

    Args:
        members: Members from `ask_members`.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.

    Raises:
        ConfigError: In every test split, too few studies have or lack each label.
    """
    patients = sorted({patient for member in members for patient in member.test.patient_ids})
    drawn = weigh_studies(patients, seed, resamples)  # (1 + R, patients)
    columns = {patient: index for index, patient in enumerate(patients)}
    # Metric -> name -> label -> a row (1 + R,) for each model with enough positive and negative studies of the label.
    tables: dict[str, dict[str, dict[int, list[Floats]]]] = {}
    positives: dict[int, int] = {}
    for member in members:
        weights = drawn[:, [columns[patient] for patient in member.test.patient_ids]]
        for k in find_usable(member.test.targets, member.test.known):
            rows = member.test.known[:, k]
            truth = member.test.targets[rows, k]
            positives[k] = positives.get(k, 0) + int(truth.sum())
            for metric, compute in _METRICS.items():
                for name, answers in member.answers.items():
                    values = compute(answers[rows, k], truth, weights[:, rows])
                    tables.setdefault(metric, {}).setdefault(name, {}).setdefault(k, []).append(values)
    if not positives:
        raise ConfigError("No label has 5 test studies with it and 5 without it in any split.")
    labels = {
        LABEL_KEYS[k]: {"positives": positives[k], **_summarise(tables, (k,))} for k in sorted(positives)
    }
    whole = _summarise(tables, tuple(positives))
    studies = sum(len(member.test) for member in members)
    return Series(len(members), studies, len(patients), whole["macro"], whole["leads"], labels)


def _summarise(
    tables: Mapping[str, Mapping[str, Mapping[int, list[Floats]]]], labels: Sequence[int]
) -> dict[str, Any]:
    """Return "macro" and "leads" over some labels."""
    stacked = {
        metric: {name: np.stack([row for k in labels for row in rows[k]]) for name, rows in by_name.items()}
        for metric, by_name in tables.items()
    }
    names = list(next(iter(stacked.values())))
    macro = {
        name: {
            metric: summarise(by_name[name], centred=metric in CENTRED).to_dict()
            for metric, by_name in stacked.items()
        }
        for name in names
    }
    leads = tuple(
        Lead(
            name,
            {
                metric: summarise_difference(by_name[MODEL], by_name[name]).to_dict()
                for metric, by_name in stacked.items()
            },
        )
        for name in names
        if name != MODEL
    )
    return {"macro": macro, "leads": leads}


def format_series(series: Series) -> str:
    """Return the series as Markdown: all labels together, and each."""
    titles = {MODEL: "image", **TITLES}
    lines = [
        [titles[name], *(format_interval(values[metric]) for metric in _METRICS)]
        for name, values in series.macro.items()
    ]
    lines += [
        [f"image - {titles[lead.control]}", *(format_difference(lead.values[metric]) for metric in _METRICS)]
        for lead in series.leads
    ]
    rows = [
        [
            LABEL_NAMES[key],
            str(label["positives"]),
            *(format_interval(values["auroc"]) for values in label["macro"].values()),
            *(format_difference(lead.values["auroc"]) for lead in label["leads"]),
        ]
        for key, label in series.labels.items()
    ]
    controls = [titles[lead.control] for lead in series.leads]
    head = [
        "AUROC",
        "positive",
        *(titles[name] for name in series.macro),
        *(f"image - {name}" for name in controls),
    ]
    models = "1 model, on" if series.models == 1 else f"{series.models} models, each on"
    return (
        f"{models} the test side of its own split: {series.studies} answers about {series.patients} patients.\n\n"
        + format_table(["mean over models and labels", "AUROC", "AP"], lines)
        + "\n"
        + format_table(head, rows)
    )
