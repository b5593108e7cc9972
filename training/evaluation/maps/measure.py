"""Measure the maps of a bundle for one way to read a study; every figure has an interval by patient."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.labels import LABEL_KEYS
from training.evaluation.bootstrap import summarise, summarise_difference, weigh_studies
from training.evaluation.maps.agreement import METRICS as AGREEMENTS
from training.evaluation.maps.agreement import compare_maps
from training.evaluation.maps.controls import DRAWS, draw_centre, draw_random
from training.evaluation.maps.faithful import measure_curves, measure_infidelity, measure_sensitivity
from training.evaluation.maps.gate import pass_gate
from training.evaluation.maps.localise import METRICS as PLACES
from training.evaluation.maps.localise import localise
from training.evaluation.maps.sanity import cascade, compare_findings, compare_inputs
from training.evaluation.maps.subject import CENTRE, RANDOM, Array, MakeMap, Map, MethodFacts, Subject

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]
ATTENTION: Final = "attention"
ATTRIBUTION: Final = "integrated_gradients"
LEAST_OF_LABEL: Final = 5  # findings; a label with fewer has no row


@dataclass(frozen=True)
class Sizes:
    """How many findings are used for what needs many passes, and how the intervals are drawn.

    Attributes:
        faithful: Findings for deletion, insertion and infidelity.
        sensitive: Findings for sensitivity.
        randomised: Findings for random weights.
        twins: Findings for padding and for inverted storage.
        resamples: Resamples of the patients.
        seed: Seed of the random maps, the weights and the resamples.
    """

    faithful: int = 64
    sensitive: int = 8
    randomised: int = 12
    twins: int = 8
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Task:
    """What is measured.

    Attributes:
        model: The model.
        subjects: M findings with boxes.
        methods: The methods, in the order in which they are preferred.
        make_map: Makes the maps.
        make_quick_map: Makes them with fewer steps, where maps are only compared with each other.
        probe: Model, case, label -> the function from pixels (B, 1, S, S) to logits (B,).
        read_twin: A subject -> the same case read from the MONOCHROME1 twin of its file; None if it has none.
        lengthen: A case -> the same case with more padding; None for a case without a report.
        hits: For each subject, the top hit of a search with its finding; None if it has none.
    """

    model: Any
    subjects: Sequence[Subject]
    methods: Sequence[MethodFacts]
    make_map: MakeMap
    make_quick_map: MakeMap
    probe: Callable[[Any, Any, int], Callable[[Any], Any]]
    read_twin: Callable[[Subject], Any]
    lengthen: Callable[[Any], Any]
    hits: Sequence[Any] = ()


def measure_maps(task: Task, sizes: Sizes, progress: Progress | None = None) -> dict[str, Any]:
    """Return all results for one way to read a study; see docs/explanations.md for what each of them says.

    Args:
        task: What is measured; at least one subject.
        sizes: How much of it.
        progress: Called with the number of finished steps and their total.
    """
    bar = _Bar(progress, len(task.subjects) + 4 * len(task.methods))
    maps = _make_all(task, bar)
    patients = [subject.patient_id for subject in task.subjects]
    weights = weigh_studies(patients, sizes.seed, sizes.resamples)  # (1 + R, M)
    places, curves = _measure_places(task, maps, sizes), _measure_curves(task, maps, sizes, bar)
    results: dict[str, Any] = {
        "findings": len(task.subjects),
        "studies": len({subject.study_id for subject in task.subjects}),
        "seconds": {key: float(np.median([found.seconds for found in rows])) for key, rows in maps.items()},
        "localisation": _summarise_all(places, weights),
        "leads": _compare_all(places, weights, (CENTRE, RANDOM)),
        "labels": _measure_labels(task, places, curves, weights),
        "faithfulness": _summarise_all(curves, weights, signed=True),
        "faithfulness_leads": _compare_all(curves, weights, (CENTRE, RANDOM)),
        "infidelity": _measure_infidelity(task, maps, sizes, weights, bar),
        "sensitivity": _measure_sensitivity(task, sizes, weights, bar),
        "agreement": _measure_agreement(task, maps, weights),
    }
    cascades, results["sanity"] = _measure_sanity(task, maps, sizes, bar)
    results["cascades"] = cascades
    keys = [method.key for method in task.methods]
    results["gate"] = pass_gate(keys, results, len(task.subjects))
    return results


class _Bar:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _make_all(task: Task, bar: _Bar) -> dict[str, list[Map]]:
    maps: dict[str, list[Map]] = {method.key: [] for method in task.methods}
    for subject in task.subjects:
        for method in task.methods:
            maps[method.key].append(task.make_map(task.model, subject.inputs, subject.label, method.key))
        bar.step()
    return maps


def _draw_randoms(subject: Subject, place: int, sizes: Sizes) -> list[Array]:
    generator = np.random.default_rng([sizes.seed, place])
    return [draw_random(subject.frame, generator) for _ in range(DRAWS)]


def _measure_places(
    task: Task, maps: Mapping[str, Sequence[Map]], sizes: Sizes
) -> dict[str, dict[str, Floats]]:
    """Return method or control -> metric -> (M,)."""
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for place, subject in enumerate(task.subjects):
        box = subject.draw_boxes()
        for key, found in maps.items():
            rows[key].append(localise(found[place].strength, box))
        rows[CENTRE].append(localise(draw_centre(subject.frame), box))
        drawn = [localise(strength, box) for strength in _draw_randoms(subject, place, sizes)]
        rows[RANDOM].append({name: float(np.mean([one[name] for one in drawn])) for name in PLACES})
    return _stack(rows)


def _measure_curves(
    task: Task, maps: Mapping[str, Sequence[Map]], sizes: Sizes, bar: _Bar
) -> dict[str, dict[str, Floats]]:
    """Return method or control -> "deletion", "insertion" -> (M,), NaN for a finding that was left out."""
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    chosen = set(_spread(len(task.subjects), sizes.faithful))
    nothing = {"deletion": np.nan, "insertion": np.nan}
    for place, subject in enumerate(task.subjects):
        if place not in chosen:
            for key in (*maps, CENTRE, RANDOM):
                rows[key].append(nothing)
            continue
        compute = task.probe(task.model, subject.inputs, subject.label)
        for key, found in maps.items():
            rows[key].append(measure_curves(compute, subject, found[place].shown))
        rows[CENTRE].append(measure_curves(compute, subject, draw_centre(subject.frame)))
        drawn = [
            measure_curves(compute, subject, strength)
            for strength in _draw_randoms(subject, place, sizes)[: DRAWS // 2]
        ]
        rows[RANDOM].append({name: float(np.mean([one[name] for one in drawn])) for name in nothing})
    for _ in task.methods:
        bar.step()
    return _stack(rows)


def _measure_infidelity(
    task: Task, maps: Mapping[str, Sequence[Map]], sizes: Sizes, weights: Floats, bar: _Bar
) -> dict[str, Any]:
    chosen = _spread(len(task.subjects), sizes.faithful)
    found = {}
    for method in task.methods:
        values = np.full(len(task.subjects), np.nan)
        for place in chosen:
            subject = task.subjects[place]
            compute = task.probe(task.model, subject.inputs, subject.label)
            values[place] = measure_infidelity(compute, subject, maps[method.key][place])
        found[method.key] = _summarise_one(values, weights)
        bar.step()
    return found


def _measure_sensitivity(task: Task, sizes: Sizes, weights: Floats, bar: _Bar) -> dict[str, Any]:
    found = {}
    for method in task.methods:
        bar.step()
        if method.is_slow:
            continue
        values = np.full(len(task.subjects), np.nan)
        for place in _spread(len(task.subjects), sizes.sensitive):
            values[place] = measure_sensitivity(
                task.model, task.subjects[place], task.make_quick_map, method.key
            )
        found[method.key] = _summarise_one(values, weights)
    return found


def _measure_agreement(
    task: Task, maps: Mapping[str, Sequence[Map]], weights: Floats
) -> dict[str, dict[str, Any]]:
    """Return "same_case" and "top_hit" -> metric -> interval; {} unless both maps were made."""
    if ATTENTION not in maps or ATTRIBUTION not in maps:
        return {}
    attention = [found.strength for found in maps[ATTENTION]]
    rows = [compare_maps(one, two.strength) for one, two in zip(attention, maps[ATTRIBUTION], strict=True)]
    agreement = {"same_case": _summarise_table(rows, weights)}
    hits = [
        compare_maps(one, task.make_map(task.model, hit, subject.label, ATTENTION).strength)
        if hit is not None
        else dict.fromkeys(AGREEMENTS, np.nan)
        for one, subject, hit in zip(
            attention, task.subjects, task.hits or [None] * len(attention), strict=True
        )
    ]
    agreement["top_hit"] = _summarise_table(hits, weights)
    return agreement


def _measure_sanity(
    task: Task, maps: Mapping[str, Sequence[Map]], sizes: Sizes, bar: _Bar
) -> tuple[dict[str, Any], dict[str, dict[str, float | None]]]:
    """Return the SSIM after each randomised part, and the checks of each method."""
    cascades: dict[str, Any] = {}
    checks: dict[str, dict[str, float | None]] = {}
    for method in task.methods:
        few = sizes.randomised // 4 if method.is_slow else sizes.randomised
        chosen = [task.subjects[place] for place in _spread(len(task.subjects), max(few, 1))]
        names, table = cascade(task.model, chosen, task.make_quick_map, method.key, seed=sizes.seed)
        cascades[method.key] = {"parts": names, "ssim": [round(float(x), 4) for x in table.mean(0)]}
        checks[method.key] = {
            "randomised": round(float(table[:, -1].mean()), 4),
            "alike": _measure_alike(task, maps[method.key]),
            **_measure_forms(task, method, sizes),
            "missing": _measure_missing(maps[method.key]),
        }
        bar.step()
    return cascades, checks


def _measure_alike(task: Task, maps: Sequence[Map]) -> float | None:
    by_study: dict[str, dict[int, Array]] = defaultdict(dict)
    for subject, found in zip(task.subjects, maps, strict=True):
        by_study[subject.study_id][subject.label] = found.shown[subject.frame.cut(subject.frame.size)]
    values = [compare_findings(list(rows.values())) for rows in by_study.values()]
    several = [value for value in values if value is not None]
    return round(float(np.mean(several)), 4) if several else None


def _measure_forms(task: Task, method: MethodFacts, sizes: Sizes) -> dict[str, float | None]:
    """Return the largest change by padding and by inverted storage; None where there is no such form."""
    changes: dict[str, list[float]] = {"padding": [], "inverted": []}
    few = 1 if method.is_slow else sizes.twins
    for place in _spread(len(task.subjects), few):
        subject = task.subjects[place]
        forms = {"padding": task.lengthen(subject.inputs), "inverted": task.read_twin(subject)}
        for name, other in forms.items():
            if other is not None:
                changes[name].append(
                    compare_inputs(task.model, subject, task.make_quick_map, method.key, other)
                )
    return {name: round(max(values), 6) if values else None for name, values in changes.items()}


def _measure_missing(maps: Sequence[Map]) -> float | None:
    deltas = [found.delta for found in maps if found.delta is not None]
    return round(float(np.median(deltas)), 6) if deltas else None


def _measure_labels(
    task: Task,
    places: Mapping[str, Mapping[str, Floats]],
    curves: Mapping[str, Mapping[str, Floats]],
    weights: Floats,
) -> dict[str, dict[str, Any]]:
    """Return, for each label with enough findings, its results.

    These are the pointing game of each method and control, and the paired differences of deletion and insertion to a
    random map ({} where too few findings of the label were measured).
    """
    labels = np.array([subject.label for subject in task.subjects])
    found = {}
    for label in sorted(set(labels.tolist())):
        rows = labels == label
        if rows.sum() < LEAST_OF_LABEL:
            continue
        found[LABEL_KEYS[label]] = {
            "findings": int(rows.sum()),
            "pointing": {
                key: _summarise_one(metrics["pointing"][rows], weights[:, rows])
                for key, metrics in places.items()
            },
            "faithfulness_leads": _compare_label(curves, rows, weights),
        }
    return found


def _compare_label(
    curves: Mapping[str, Mapping[str, Floats]], rows: NDArray[np.bool_], weights: Floats
) -> dict[str, dict[str, Any]]:
    """Return method -> "deletion", "insertion" -> paired difference to a random map, on the findings of one label."""
    measured = rows & ~np.isnan(curves[RANDOM]["deletion"])
    if measured.sum() < LEAST_OF_LABEL:
        return {}
    chosen = {
        key: {name: values[measured] for name, values in metrics.items()}
        for key, metrics in curves.items()
        if key != CENTRE
    }
    compared = _compare_all(chosen, weights[:, measured], (RANDOM,))
    return {key: controls[RANDOM] for key, controls in compared.items()}


def _spread(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of `count` rows, evenly spread."""
    if wanted >= count:
        return list(range(count))
    return sorted({int(place) for place in np.linspace(0, count - 1, max(wanted, 1))})


def _stack(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Floats]]:
    return {
        key: {name: np.array([one[name] for one in found], np.float64) for name in found[0]}
        for key, found in rows.items()
    }


def _draw_means(values: Floats, weights: Floats) -> Floats:
    """Return the means (1, 1 + R) of values (M,) without those that are NaN."""
    measured = ~np.isnan(values)
    drawn = weights[:, measured]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((drawn @ values[measured]) / drawn.sum(1))[None]


def _summarise_one(values: Floats, weights: Floats) -> dict[str, float] | None:
    """Return the mean with its interval; None if nothing was measured. Values may be below 0."""
    if np.isnan(values).all():
        return None
    means = _draw_means(values, weights)
    return summarise_difference(means, np.zeros_like(means)).to_dict()


def _summarise_table(rows: Sequence[Mapping[str, float]], weights: Floats) -> dict[str, Any]:
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
    return {name: _summarise_one(values, weights) for name, values in columns.items()}


def _summarise_all(
    table: Mapping[str, Mapping[str, Floats]], weights: Floats, *, signed: bool = False
) -> dict[str, dict[str, Any]]:
    if signed:
        return {
            key: {name: _summarise_one(values, weights) for name, values in metrics.items()}
            for key, metrics in table.items()
        }
    return {
        key: {name: summarise(_draw_means(values, weights)).to_dict() for name, values in metrics.items()}
        for key, metrics in table.items()
    }


def _compare_all(
    table: Mapping[str, Mapping[str, Floats]], weights: Floats, controls: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return method -> control -> metric -> paired difference on the same findings."""
    return {
        key: {
            control: {
                name: summarise_difference(
                    _draw_means(values, weights), _draw_means(table[control][name], weights)
                ).to_dict()
                for name, values in metrics.items()
            }
            for control in controls
        }
        for key, metrics in table.items()
        if key not in controls
    }
