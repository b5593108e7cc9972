"""The control on a made-up table."""

import json

import numpy as np
import pyarrow as pa
import pytest

from contract.errors import ConfigError
from contract.labels import LABEL_INDEX, LABELS
from training.data.openi import SCHEMA, write_table
from training.evaluation.control import (
    compare_probabilities,
    compare_texts,
    fit_control,
    run_table_control,
)
from training.evaluation.plan import select_studies

from .conftest import make_row

WORDS = {"cardiac": "enlarged heart", "pleural": "blunted angle", "air_leak": "collapsed lung"}
FILLER = ["the", "film", "shows", "bones", "soft", "tissue", "airway", "and", "hila", "of", "usual", "size"]
COUNT = 300


def write_studies(path, *, states_labels=True, **columns):
    """A table of 300 studies; the findings state the labels, the indication says nothing."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        labels = [key for key in WORDS if generator.random() < 0.3]
        words = [*generator.permutation(FILLER)[:6], *(WORDS[key] for key in labels if states_labels)]
        rows.append(
            {
                "study_id": f"CXR{number}",
                "patient_id": str(number),
                "image_ids": [],
                "image_paths": [],
                "views": [],
                "headers": [],
                "indication": " ".join(generator.permutation(FILLER)[:4]),
                "comparison": "",
                "findings": " ".join(words),
                "impression": "",
                "mesh_major": [],
                "mesh_automatic": [],
                "labels": labels,
                "labelled": True,
            }
            | {name: change(number) for name, change in columns.items()}
        )
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


@pytest.fixture
def split():
    ids = [f"CXR{number}" for number in range(COUNT)]
    return {"train": ids[:160], "validation": ids[160:220], "test": ids[220:]}


@pytest.fixture
def split_path(split, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(split))
    return path


# --- what it reaches -------------------------------------------------------------------------------------------


def test_control_reads_what_the_words_state(split_path, tmp_path):
    metrics = run_table_control(write_studies(tmp_path / "table"), split_path, "findings")
    assert metrics.studies == 80
    assert set(metrics.averaged) == set(WORDS)
    assert metrics.macro["auroc"].low > 0.95
    assert metrics.macro["f1"].value > 0.9
    assert run_table_control(tmp_path / "table", split_path, "findings") == metrics


def test_control_is_at_chance_where_the_words_state_nothing(split_path, tmp_path):
    silent = write_studies(tmp_path / "silent", states_labels=False)
    elsewhere = write_studies(tmp_path / "table")
    for metrics in (
        run_table_control(silent, split_path, "findings"),
        run_table_control(elsewhere, split_path, "indication"),
    ):
        assert 0.35 < metrics.macro["auroc"].value < 0.65


def test_studies_without_text_or_labels_do_not_count(split_path, tmp_path):
    table = write_studies(
        tmp_path / "table",
        labelled=lambda number: number % 4 != 0,
        findings=lambda number: "" if number % 4 == 1 else "an enlarged heart",
    )
    assert run_table_control(table, split_path, "findings").studies == 40


def test_the_intervals_are_those_of_the_test_patients(split_path, tmp_path):
    write_studies(tmp_path / "many", states_labels=False)
    write_studies(tmp_path / "one", states_labels=False, patient_id=lambda number: str(min(number, 220)))
    many, one = (
        run_table_control(tmp_path / name, split_path, "findings").macro["ap"] for name in ("many", "one")
    )
    assert many.low < many.high
    assert one.value == many.value
    assert (one.low, one.high) == pytest.approx((one.value, one.value), abs=1e-12)


def test_only_train_is_learnt_from():
    targets = np.zeros((4, len(LABELS)), dtype=bool)
    targets[:2, LABEL_INDEX["cardiac"]] = True
    targets[:, LABEL_INDEX["normal"]] = True  # of all: nothing tells them apart
    texts = {
        "train": ["big heart", "big heart today", "clear lungs", "clear lungs today"],
        "test": ["big heart", "clear lungs", "big heart rib", "rib"],
    }
    scores = fit_control(texts, targets)
    cardiac = scores["test"][:, LABEL_INDEX["cardiac"]]
    assert cardiac[0] > 0.8 > -0.8 > cardiac[1]
    assert cardiac[2] == cardiac[0]  # train lacks the third word
    assert scores["train"].shape == scores["test"].shape == (4, len(LABELS))
    others = np.delete(np.arange(len(LABELS)), LABEL_INDEX["cardiac"])
    assert (scores["test"][:, others] == -10).all()


# --- what it refuses -------------------------------------------------------------------------------------------


def test_split_of_another_table(split, split_path, tmp_path):
    split["validation"] += ["CXR9001", "CXR9002"]
    split_path.write_text(json.dumps(split))
    with pytest.raises(ConfigError, match="2 studies that the table does not hold"):
        run_table_control(write_studies(tmp_path / "table"), split_path, "findings")


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_part_without_a_labelled_report(part, split, split_path, tmp_path):
    table = write_studies(tmp_path / "table", labelled=lambda number: f"CXR{number}" not in split[part])
    with pytest.raises(ConfigError, match=f"The {part} split holds no labelled report"):
        run_table_control(table, split_path, "findings")


@pytest.mark.parametrize("findings", [lambda number: f"word{number}", lambda number: "a"])
def test_reports_without_a_shared_word(findings, split_path, tmp_path):
    with pytest.raises(ConfigError, match="have no common word"):
        run_table_control(write_studies(tmp_path / "table", findings=findings), split_path, "findings")


def test_the_fair_control_of_a_search_compares_what_the_labels_taught():
    """Words that say nothing make two studies alike to TF-IDF, and not to the probabilities."""
    said = ["heart enlarged", "effusion left", "lungs clear"]  # as the labels of `make_row` go round
    chatter = ["seen again today", "compared with before", "in two views", "portable film", "upright patient"]

    def make(numbers):
        rows = [
            make_row(number, findings=f"{said[number % 3]} {chatter[number % 5] * 3}", impression="")
            for number in numbers
        ]
        return select_studies(rows, [row["study_id"] for row in rows])

    train, validation, test = make(range(90)), make(range(90, 150)), make(range(150, 180))
    queries, gallery = test.texts["findings"], train.texts["findings"]
    [words] = compare_texts(gallery, queries, gallery)
    [found] = compare_probabilities(train, validation, "findings", queries, gallery)
    assert found.shape == words.shape == (30, 90)
    assert (np.abs(found) <= 1 + 1e-9).all()
    same = (test.targets @ train.targets.T) > 0
    assert np.where(same, found, 1).min() > np.where(same, 0, found).max()
    assert np.where(same, words, 1).min() < np.where(same, 0, words).max()
    with pytest.raises(ConfigError, match="labelled reports for training and validation"):
        compare_probabilities(train, validation.take(np.array([], np.int64)), "findings", queries, gallery)
