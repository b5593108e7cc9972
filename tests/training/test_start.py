"""A run that starts from a bundle, and a bundle that is calibrated on other studies."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from contract.bundle import Bundle, load_bundle
from contract.decisions import UNDECIDED, Decisions
from contract.errors import ArtifactError, ConfigError
from contract.labels import LABEL_KEYS
from training.config.toml_file import change_config, load_config
from training.data.openi import build_table, write_table
from training.evaluation.decisions import refit_decisions
from training.evaluation.labels import MIN_POSITIVES
from training.evaluation.plan import read_external
from training.known_studies import find_known, list_known_ids, warn_of_known_studies
from training.phantom import draw_dataset
from training.recalibrate import recalibrate
from training.start import describe_start, fit_config, read_start_config
from training.train import train
from training.watch import Silent

from .conftest import SMALL


class Listener(Silent):
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def table(phantom_table) -> Path:
    return phantom_table


@pytest.fixture(scope="module")
def bundle(phantom_bundle) -> Bundle:
    return phantom_bundle


def read_card(bundle: Bundle) -> str:
    return (bundle.path / "MODEL_CARD.md").read_text(encoding="utf-8")


def relabel(bundle: Bundle, collection: str) -> Bundle:
    """Return the bundle as if it came from another collection, whose studies have the same names by chance."""
    return replace(bundle, manifest={**bundle.manifest, "data_source": collection})


# --- cxr train --from --------------------------------------------------------------------------------------------


def test_a_run_starts_from_the_weights_and_the_vocabulary_of_a_bundle(bundle, table, tmp_path):
    listener = Listener()
    frozen = change_config(
        read_start_config(bundle), {"weights.freeze": ["image", "text"], "optimizer.learning_rate": 1e-9}
    )
    again = load_bundle(train(frozen, table, tmp_path / "again", start=bundle, watcher=listener).bundle)
    assert (again.path / "tokenizer.json").read_bytes() == (bundle.path / "tokenizer.json").read_bytes()
    old, new = (load_file(each.path / "model.safetensors") for each in (bundle, again))
    for name in old:
        if "backbone" in name or "bert" in name:
            assert torch.equal(old[name], new[name]), name
    assert torch.allclose(old["fusion.pooling.queries"], new["fusion.pooling.queries"], atol=1e-6)
    assert any(note.startswith(f"weights and vocabulary from {bundle.path}") for note in listener.notes)
    started = again.manifest["started_from"]
    assert started["fingerprint"] == bundle.fingerprint
    assert started["data_source"] == "phantom"
    assert f"Started from the weights and vocabulary of model `{bundle.fingerprint[:12]}`" in read_card(again)
    assert "license: mit" in read_card(again)  # phantoms both times
    assert again.fingerprint != bundle.fingerprint
    assert describe_start(again)["started_from"] == started


def test_what_the_earlier_model_learned_from_decides_the_licence(bundle, table, tmp_path):
    earlier = relabel(bundle, "openi")
    card = read_card(
        load_bundle(train(read_start_config(bundle), table, tmp_path / "new", start=earlier).bundle)
    )
    assert "license: other" in card
    assert "with data or weights of: Open-i (Indiana University chest X-ray collection)" in card


def test_what_cannot_fit_is_refused_in_one_sentence(bundle, table, tmp_path):
    with pytest.raises(
        ConfigError, match=r"another architecture: its model.width is 128, this run's is 64\.$"
    ):
        train(load_config("demo", {**SMALL, "model.width": 64}), table, tmp_path / "new", start=bundle)
    with pytest.raises(ConfigError, match="from a bundle or from pretrained weights"):
        fit_config(load_config("demo", {**SMALL, "weights.text": "some/bert"}), bundle)
    dropout = fit_config(load_config("demo", {**SMALL, "model.dropout": 0.3}), bundle)
    assert dropout.model.vocabulary_size == bundle.config["model"]["vocabulary_size"]
    with pytest.raises(ConfigError, match="does not record how the model was trained"):
        read_start_config(replace(bundle, config={"model": {}}))
    assert not list(tmp_path.iterdir())


def test_a_bundle_of_an_older_version_is_started_from_unless_it_was_trained_otherwise(bundle):
    def change(section, **settings):
        training = bundle.config["training"]
        changed = {**training, section: {**training.get(section, {}), **settings}}
        return replace(bundle, config={**bundle.config, "training": changed})

    plain = read_start_config(bundle)
    assert read_start_config(change("loss", labels="bce_focal", asymmetric_clip=0.05)) == plain
    assert read_start_config(change("pretraining", epochs=3)) == plain  # its weights hold what that brought
    with pytest.raises(ConfigError, match=r"was trained with loss\.labels, which .* --config\.$"):
        read_start_config(change("loss", labels="asymmetric"))


def test_studies_that_the_bundle_was_trained_on_are_not_tested_with(bundle, table, tmp_path):
    config = change_config(read_start_config(bundle), {"seed": 9})
    with pytest.raises(ConfigError, match=r"trained on \d+ of the \d+ validation studies.*--split-file"):
        train(config, table, tmp_path / "new", start=bundle)
    split = bundle.path / "split.json"
    train(config, table, tmp_path / "same", start=bundle, split_file=split)
    train(config, table, tmp_path / "other", start=relabel(bundle, "Our hospital"))


def test_a_run_goes_on_from_the_bundle_that_it_started_from_alone(bundle, table, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    config = read_start_config(bundle)
    with monkeypatch.context() as patch:
        patch.setattr("training.train.calibrate", fail)
        with pytest.raises(KeyboardInterrupt):
            train(config, table, tmp_path / "new", start=bundle)
    with pytest.raises(ConfigError, match="another start"):
        train(config, table, tmp_path / "new", start=replace(bundle, fingerprint="f" * 64), resume=True)
    train(config, table, tmp_path / "new", start=bundle, resume=True)


# --- cxr calibrate -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_table(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("own")
    draw_dataset(root / "phantom", studies=40, seed=77, scale=0.05, workers=1)
    write_table(build_table(root / "phantom", root / "phantom"), root / "studies.parquet")
    return root / "studies.parquet"


def test_a_bundle_is_calibrated_on_other_studies(bundle, own_table, tmp_path):
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir() if path.is_file()}
    steps = []
    source = relabel(
        bundle, "openi"
    )  # or the phantoms of this table would be taken for those of the bundle's
    found = recalibrate(source, own_table, tmp_path / "new", progress=lambda *step: steps.append(step))
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir() if path.is_file()} == before
    new = load_bundle(tmp_path / "new")
    assert (found.fingerprint, found.source, found.left_out) == (new.fingerprint, bundle.fingerprint, 0)
    assert new.fingerprint != bundle.fingerprint
    assert steps[-1][0] == steps[-1][1] == len(read_external(own_table)["test"])
    old_weights, new_weights = (load_file(each.path / "model.safetensors") for each in (bundle, new))
    changed = {name for name in old_weights if not torch.equal(old_weights[name], new_weights[name])}
    assert changed <= {f"fusion.{name}_{way}" for name in ("scale", "bias") for way in found.ways}
    assert set(found.ways) == {"study", "image", "text"}
    for way, refitted in found.ways.items():
        assert 0 < len(refitted.kept) < len(LABEL_KEYS)
        for label, earlier in zip(new.decisions.of(way), bundle.decisions.of(way), strict=True):
            kept = label.key in refitted.kept
            assert ((label.threshold, label.scale) == (earlier.threshold, earlier.scale)) == kept
            place = LABEL_KEYS.index(label.key)
            assert new_weights[f"fusion.scale_{way}"][place].item() == pytest.approx(label.scale)
    metrics = json.loads((new.path / "metrics.json").read_text())
    assert "f1" not in metrics["test"]["image"]["macro"]
    assert new.trained_ways == bundle.trained_ways
    card = read_card(new)
    assert f"**Calibrated again**: this is model `{bundle.fingerprint[:12]}` with" in card
    assert "so their values are unchanged" in card
    assert "Not run yet" in card
    assert new.manifest["calibration"]["from"] == bundle.fingerprint


def test_studies_that_the_model_knows_are_left_out(bundle, table, tmp_path):
    split = json.loads((bundle.path / "split.json").read_text())
    with pytest.raises(ConfigError, match="too few labelled studies to calibrate on"):
        recalibrate(bundle, table, tmp_path / "few")  # the validation studies are left
    whole = replace(bundle, path=tmp_path / "copy")
    shutil.copytree(bundle.path, whole.path)
    split["train"] += split.pop("validation")
    (whole.path / "split.json").write_text(json.dumps(split))
    with pytest.raises(ConfigError, match=r"only labelled studies from the training or test data of"):
        recalibrate(whole, table, tmp_path / "none")
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_other_studies_of_patients_that_the_model_knows_are_known_too(bundle, table):
    ids = list_known_ids(bundle, table, ("train", "test"))
    assert ids == {*bundle.split["train"], *bundle.split["test"]}
    assert not list_known_ids(relabel(bundle, "openi"), table, ("train", "test"))  # of equal names by chance
    known = find_known({"a", "x"}, ["a", "b", "c", "d"], ["1", "2", "1", "3"])
    assert known.tolist() == [True, False, True, False]


def test_an_external_test_set_holds_no_patient_that_the_model_was_fitted_on(bundle, table):
    known_ids = list_known_ids(bundle, table, ("train", "validation"))
    test = read_external(table, known_ids)["test"]
    assert 0 < len(test) < len(read_external(table)["test"])
    assert known_ids.isdisjoint(test.study_ids)
    with pytest.raises(ConfigError, match="no labelled study beside those that the model was trained"):
        read_external(table, read_external(table)["test"].study_ids)


def test_figures_that_are_too_good_come_with_a_warning(bundle, table):
    warn = partial(warn_of_known_studies, bundle, table)
    assert warn(bundle.split["test"]) == []
    [sentence] = warn([*bundle.split["test"], *bundle.split["train"][:2]])
    assert sentence.startswith(
        f"The model was trained on 2 of the {len(bundle.split['test']) + 2} test studies"
    )
    earlier = {"fingerprint": "ab" * 32, "data_source": "phantom"}
    chain = {"fingerprint": "cd" * 32, "data_source": "openi", "started_from": earlier}
    later = replace(bundle, manifest={**bundle.manifest, "data_source": "openi", "started_from": chain})
    [sentence] = warn_of_known_studies(later, table, bundle.split["train"])
    assert "started from model abababababab, which was trained on studies of this collection" in sentence


def test_a_table_without_labels_is_no_table_of_known_studies(bundle, write_rows, tmp_path):
    unlabelled = write_rows([{"findings": "Clear.", "labelled": False}] * 3)
    with pytest.raises(ConfigError, match="holds no labelled study to calibrate on"):
        recalibrate(bundle, unlabelled, tmp_path / "new")


def test_an_existing_directory_and_a_bundle_without_a_record_are_refused(bundle, own_table, tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        recalibrate(bundle, own_table, tmp_path / "new")
    with pytest.raises(ConfigError, match="does not record"):
        recalibrate(replace(bundle, config={"model": {}}), own_table, tmp_path / "other")


def test_a_bundle_of_an_older_version_is_read_to_be_calibrated(bundle, own_table, tmp_path):
    from contract.bundle import LABELS_FILE, MANIFEST, seal_bundle, write_json

    old = tmp_path / "old"
    shutil.copytree(bundle.path, old)
    labels = bundle.decisions.to_dict()["text"]
    write_json(old / LABELS_FILE, {"labels": labels})
    (old / MANIFEST).unlink()
    seal_bundle(old, {**bundle.manifest, "data_source": "openi"})
    with pytest.raises(ArtifactError, match="cxr calibrate"):
        load_bundle(old)
    converted = load_bundle(old, convert=True)
    assert converted.decisions == Decisions.repeat(bundle.decisions.of("text"))
    recalibrate(converted, own_table, tmp_path / "new")
    assert set(load_bundle(tmp_path / "new").decisions.ways) == {"study", "image", "text"}


def test_labels_with_too_few_studies_keep_their_old_values():
    generator = np.random.default_rng(0)
    targets = np.zeros((40, len(LABEL_KEYS)), bool)
    targets[:MIN_POSITIVES, 0] = True
    targets[: MIN_POSITIVES - 1, 1] = True
    targets[MIN_POSITIVES - 1 :, 2] = True  # nearly all have it
    logits = (3 * targets + generator.normal(0, 1, targets.shape)).astype(np.float32)
    old = tuple(
        replace(
            label, threshold=0.123, uncertain_low=0.1, uncertain_high=0.2, include=0.07, stated_recall=0.9
        )
        for label in UNDECIDED
    )
    scale, bias = np.full(len(old), 2.5, np.float32), np.full(len(old), -0.5, np.float32)
    labels, kept = refit_decisions(logits, targets, old, scale, bias, known=np.ones_like(targets))
    assert kept == LABEL_KEYS[1:]
    assert labels[0].threshold != 0.123
    assert labels[0].scale != 2.5
    for label in labels[1:]:
        assert (label.threshold, label.uncertain_low, label.scale, label.bias) == (0.123, 0.1, 2.5, -0.5)
    assert len({label.include for label in labels}) == 1
    assert labels[0].include != 0.07
    few, _ = refit_decisions(
        logits[30:], targets[30:] & False, old, scale, bias, known=np.ones_like(targets[30:])
    )
    assert {label.include for label in few} == {0.07}
    undecided, _ = refit_decisions(logits, targets, UNDECIDED, scale, bias, known=np.ones_like(targets))
    assert [undecided[place].threshold for place in (1, *range(3, len(old)))] == [0.5] * 20
