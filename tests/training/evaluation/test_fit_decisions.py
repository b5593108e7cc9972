"""Thresholds and bands are those of each way to read a study, and of those ways alone that were trained."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from contract.decisions import check_decisions
from contract.labels import LABELS
from training.config.settings import ModelConfig
from training.evaluation.calibrate import apply_platt
from training.evaluation.decisions import fit_decisions, refit_decisions
from training.evaluation.labels import fit_thresholds
from training.model.fusion import Fusion
from training.validate import calibrate, count_studies

K = len(LABELS)
STUDIES = 400


@pytest.fixture
def targets():
    targets = np.zeros((STUDIES, K), bool)
    targets[::5, 0] = True  # 80 studies
    targets[:4, 1] = True
    return targets


def draw_logits(targets, strength, seed=0):
    noise = np.random.default_rng(seed).normal(0, 1, targets.shape)
    return (strength * (2 * targets - 1) + noise).astype(np.float32)


def make_examined(targets, *, image=True, text=True):
    def has(kind):
        return np.full(STUDIES, {"image": image, "text": text, "study": image and text}[kind])

    known = np.ones_like(targets)
    studies = SimpleNamespace(targets=targets, known=known, labelled=known[:, 0], has=has)
    return SimpleNamespace(studies=studies, split={"train": np.arange(STUDIES)})


def make_model():
    return SimpleNamespace(fusion=Fusion(ModelConfig()).requires_grad_(False))


def test_each_way_has_its_own_thresholds_bands_and_sets(targets):
    rows = np.arange(STUDIES)
    ways = {"text": draw_logits(targets, 3), "image": draw_logits(targets, 0.5)}
    model = make_model()
    decisions = calibrate(make_examined(targets), model, {way: (ways[way], rows) for way in ways})
    check_decisions(decisions, source="here")
    assert set(decisions.ways) == {"image", "text"}  # no validation study was read as a study
    for way, logits in ways.items():
        labels = decisions.of(way)
        scale, bias = (getattr(model.fusion, f"{name}_{way}").numpy() for name in ("scale", "bias"))
        assert (labels[0].scale, labels[0].bias) == pytest.approx((scale[0], bias[0]))
        probabilities = apply_platt(logits, scale, bias)
        assert decisions.get_thresholds(way) == pytest.approx(fit_thresholds(probabilities, targets))
        decided = np.array([labels[0].decide(value) for value in probabilities[:, 0].tolist()])
        assert (decided[targets[:, 0]] == "absent").mean() <= 0.1
        assert (decided[~targets[:, 0]] == "present").mean() <= 0.05
    image, text = (decisions.of(way)[0] for way in ("image", "text"))
    assert image.uncertain_high - image.uncertain_low > 0.1 > text.uncertain_high - text.uncertain_low
    assert image.include < text.include


def test_a_way_by_itself_says_what_it_says_beside_others(targets):
    rows = np.arange(STUDIES)
    image = (draw_logits(targets, 0.5), rows)
    alone = calibrate(make_examined(targets), make_model(), {"image": image})
    beside = calibrate(
        make_examined(targets), make_model(), {"image": image, "text": (draw_logits(targets, 3), rows)}
    )
    assert alone.of("image") == beside.of("image")


def test_rows_of_other_ways_do_not_make_enough_cases(targets):
    """4 positive studies stay 4, in however many ways they are read."""
    rows = np.arange(STUDIES)
    found = {
        way: (draw_logits(targets, 3, seed), rows) for seed, way in enumerate(("study", "image", "text"))
    }
    decisions = calibrate(make_examined(targets), make_model(), found)
    for labels in decisions.ways.values():
        assert (labels[1].threshold, labels[1].stated_missed) == (0.5, None)
        assert labels[0].stated_missed == 0.1


def test_a_way_that_was_not_trained_decides_nothing(targets):
    rows = np.arange(STUDIES)
    found = {"image": (draw_logits(targets, 1), rows), "text": (draw_logits(targets, 3), rows)}
    of_reports = make_examined(targets, image=False)
    assert count_studies(of_reports)["train"]["image"] == 0
    assert set(calibrate(of_reports, make_model(), found).ways) == {"text"}


def test_nothing_to_fit_on(targets):
    assert calibrate(make_examined(targets), make_model(), {}).ways == {}
    logits = draw_logits(targets, 1)
    fitted = fit_decisions(logits[:0], targets[:0], np.ones(K, np.float32), np.zeros(K, np.float32))
    assert fitted == tuple(
        replace(label, uncertain_low=None, include=None, threshold=0.5) for label in fitted
    )


def test_a_label_that_nothing_was_learned_of_is_uncertain_in_every_way(targets):
    examined, model = make_examined(targets), make_model()
    examined.studies.known[:, 3] = False
    rows = np.arange(STUDIES)
    decisions = calibrate(examined, model, {"text": (draw_logits(targets, 3), rows)})
    check_decisions(decisions, source="here")
    unlearned, learned = decisions.of("text")[3], decisions.of("text")[0]
    assert {unlearned.decide(value) for value in (0.0, 0.5, 0.999)} == {"uncertain"}
    assert (unlearned.scale, unlearned.bias) == (0, 0)  # the probability is 0.5 whatever is read
    assert learned.decide(0.0) == "absent"


def test_a_label_that_was_never_learned_does_not_move_the_shared_cut_of_a_new_fit(targets):
    """It is in no set, so studies that have only this label would lower the cut for the other labels, in vain."""
    targets[:200, 3] = True
    known = np.ones_like(targets)
    logits = draw_logits(targets, 0.5)
    scale, bias = np.ones(K, np.float32), np.zeros(K, np.float32)
    scale[3] = 0
    learned = scale != 0
    old = fit_decisions(logits, targets & learned, scale, bias, known=known & learned, learned=learned)
    labels, kept = refit_decisions(logits, targets, old, scale, bias, known=known)
    without, _ = refit_decisions(logits, targets & learned, old, scale, bias, known=known & learned)
    assert labels == without
    assert labels[3].include == 1 == old[3].include
    assert labels[3].key in kept
