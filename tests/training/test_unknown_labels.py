"""What a collection does not state counts nowhere: neither as a positive nor as a negative."""

from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from contract.bundle import load_bundle
from contract.decisions import ServedLabel
from contract.errors import ConfigError
from contract.labels import LABEL_KEYS, LABELS
from export.gates.measures import score_labels
from training.config.toml_file import load_config
from training.data.openi import SCHEMA, read_table, write_table
from training.data.split import follow_split
from training.data.studies import forget_undeniable, make_known
from training.evaluation.abstention import measure_decisions
from training.evaluation.calibrate import fit_platt
from training.evaluation.control import fit_control
from training.evaluation.labels import evaluate_labels, fit_thresholds
from training.evaluation.prompt_scores import evaluate_scores
from training.evaluation.ranking import compute_gains, find_unknown
from training.evaluation.selective import fit_selection
from training.evaluation.split_predictions import Options
from training.model.lexical import LexicalHead, fit_lexical
from training.train import train
from training.validate import score

from .conftest import SMALL

Studies = make_dataclass("Studies", ["targets", "known"], frozen=True)
M, K = 120, len(LABELS)
GROUPS = [str(number) for number in range(M)]
THRESHOLDS = np.full(K, 0.4)
SERVED = tuple(ServedLabel(label.key, label.name, 0.4) for label in LABELS)
WORDS = [f"word{number % 7} word{number % 5} word{number % 3}" for number in range(M)]


@pytest.fixture
def truth():
    """Targets (M, K), and which are known: of each label other studies, and none of the last label."""
    rng = np.random.default_rng(0)
    known = rng.random((M, K)) < 0.6
    known[:, -1] = False
    return rng.random((M, K)) < 0.3, known


def draw_probabilities(targets):
    noise = np.random.default_rng(1).random(targets.shape)
    return (0.6 * noise + 0.3 * targets).astype(np.float32)


def fit_words(targets, known):
    head = LexicalHead(20, 50, K)
    ids = torch.from_numpy(np.random.default_rng(2).integers(5, 20, (M, 6)))
    fit_lexical(
        head, ids, torch.ones_like(ids), torch.from_numpy(targets), mask_id=4, known=torch.from_numpy(known)
    )
    return [head.unigrams, head.bias]


def score_epoch(probabilities, targets, known):
    studies = SimpleNamespace(targets=targets, known=known)
    return score(studies, {"image": (probabilities, np.arange(M))})


def flatten(value):
    """Return arrays, tensors and what holds them as lists, which can be compared."""
    if isinstance(value, dict):
        return {key: flatten(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [flatten(entry) for entry in value]
    return str(value.tolist()) if isinstance(value, np.ndarray | torch.Tensor) else str(value)


FUNCTIONS = {
    "calibration": fit_platt,
    "thresholds": fit_thresholds,
    "bands": lambda p, t, known: vars(fit_selection(p, t & known, THRESHOLDS, known=known)),
    "metrics": lambda p, t, known: evaluate_labels(
        p, t, THRESHOLDS, groups=GROUPS, known=known, resamples=5
    ).to_dict(),
    "prompt scores": lambda p, t, known: evaluate_scores(
        p, t, groups=GROUPS, options=Options(0, 5), known=known
    ),
    "decisions": lambda p, t, known: measure_decisions(p, t, SERVED, np.ones((1, M)), known=known),
    "epoch": score_epoch,
    "control": lambda p, t, known: fit_control({"train": WORDS, "test": WORDS[:9]}, t, known),
    "words": lambda p, t, known: fit_words(t, known),
    "export": lambda p, t, known: score_labels(t, p, known),
    "search": lambda p, t, known: (
        compute_gains(t[:40], t[40:], known=(known[:40], known[40:])),
        find_unknown(t[:40], t[40:], (known[:40], known[40:])),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_stands_at_an_unknown_place_does_not_matter(name, truth):
    targets, known = truth
    probabilities = draw_probabilities(targets)
    found = FUNCTIONS[name](probabilities, targets, known)
    turned = FUNCTIONS[name](probabilities, targets ^ ~known, known)
    assert flatten(found) == flatten(turned)
    everything = FUNCTIONS[name](probabilities, targets & known, np.ones_like(known))
    assert flatten(found) != flatten(everything)  # else unknown would be negative


def test_a_label_is_measured_on_the_studies_that_it_is_known_of(truth):
    targets, known = truth
    probabilities = draw_probabilities(targets)
    metrics = evaluate_labels(probabilities, targets, THRESHOLDS, groups=GROUPS, known=known, resamples=0)
    assert LABEL_KEYS[-1] not in metrics.averaged
    for k, key in enumerate(metrics.averaged):
        rows = known[:, k]
        alone = evaluate_labels(
            probabilities[rows], targets[rows], THRESHOLDS, groups=[""] * int(rows.sum()), resamples=0
        )
        assert metrics.labels[key] == alone.labels[key]
        assert metrics.known[key] == rows.sum()


def test_pairs_of_which_nobody_knows_whether_they_are_alike():
    targets = np.array([[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    known = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 1, 1]], bool)
    gains = compute_gains(targets, targets, known=(known, known))
    assert gains[0].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert gains[1].tolist() == [1.0, 1.0, 0.0, 0.0]
    unknown = find_unknown(targets, targets, (known, known))
    # The last study may have the first label; the first one may have the third.
    assert unknown.tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    everything = np.ones_like(known)
    assert not find_unknown(targets, targets, (everything, everything)).any()
    assert (
        compute_gains(targets, targets, known=(everything, everything)) == compute_gains(targets, targets)
    ).all()


def test_a_label_that_is_never_denied_is_forgotten(truth):
    targets, known = truth
    known[:, 3] &= targets[:, 3]  # held or not stated
    targets[:, 4] = known[:, 4] = True  # held and stated of everyone
    targets[:, 5] = False  # never held
    rows = np.arange(60)

    studies, keys = forget_undeniable(Studies(targets & known, known), rows)
    assert keys == (LABEL_KEYS[3],)
    assert not studies.known[:, 3].any()
    assert not studies.targets[:, 3].any()
    others = np.arange(K) != 3
    assert (studies.known[:, others] == known[:, others]).all()


def test_an_unlabelled_study_knows_nothing():
    rows = [
        {"labelled": True, "unknown_labels": ["cardiac"]},
        {"labelled": False, "unknown_labels": []},
    ]
    known = make_known(rows)
    assert known.sum(1).tolist() == [K - 1, 0]
    assert not known[0, LABEL_KEYS.index("cardiac")]


def test_a_published_split_is_followed_and_what_it_lacks_is_drawn():
    named = ["train"] * 40 + ["test"] * 10 + [None] * 5
    patients = [str(number // 2) for number in range(55)]
    labels = [["cardiac"] if number % 3 else ["normal"] for number in range(55)]
    parts = follow_split(named, patients, labels, 0)
    assert parts["test"] == list(range(40, 50))
    assert sorted(parts["train"] + parts["validation"]) == list(range(40))
    assert len(parts["validation"]) == pytest.approx(40 / 9, abs=2)
    assert not {patients[row] for row in parts["train"]} & {patients[row] for row in parts["validation"]}


def test_a_split_of_the_table_that_divides_a_patient_is_refused():
    """`cxr data table` refuses it too, but pandas can write any table."""
    named = ["train"] * 9 + ["validation"] * 2 + ["test"] * 3 + [None]
    patients = [str(number) for number in range(9)] + ["9", "10", "8", "11", "12", "8"]
    with pytest.raises(ConfigError, match="into different parts, for 1 of 13 patients"):
        follow_split(named, patients, [["normal"]] * 15, 0)


@pytest.fixture(scope="module")
def trained(phantom_table, tmp_path_factory):
    """A bundle of phantoms of which one label is never stated, one never denied, and the split is published."""
    root: Path = tmp_path_factory.mktemp("unknown")
    rows = read_table(phantom_table).to_pylist()
    for number, row in enumerate(rows):
        hidden = {"pleural", *({"cardiac"} - set(row["labels"]))}
        row["unknown_labels"] = sorted(hidden)
        row["labels"] = sorted(set(row["labels"]) - hidden)
        row["split"] = ("train", "train", "validation", "test")[number % 4]
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), root / "studies.parquet")
    result = train(load_config("demo", SMALL), root / "studies.parquet", root / "bundle")
    return rows, result, load_bundle(root / "bundle")


def test_labels_that_nothing_was_learned_of_are_uncertain(trained):
    _, result, bundle = trained
    labels = {label.key: label for label in bundle.decisions.of("text")}
    for key in ("pleural", "cardiac"):
        assert [labels[key].decide(value) for value in (0.0, 0.5, 0.999)] == ["uncertain"] * 3
        assert (labels[key].scale, labels[key].bias) == (0, 0)  # the probability is 0.5
        assert result.metrics["training_known"][key] == 0
        assert key not in result.metrics["test"]["text"]["averaged"]
    assert labels["normal"].decide(1.0) == "present"
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert "Never learned" in card
    assert "| Pleural Disease (Effusion / Thickening) | not stated |" in card


def test_the_published_split_is_used(trained):
    rows, result, _ = trained
    counts = {part: sum(row["split"] == part for row in rows) for part in ("train", "validation", "test")}
    assert {part: found["studies"] for part, found in result.metrics["studies"].items()} == counts
