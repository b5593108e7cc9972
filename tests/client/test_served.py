"""A server that switches models: the client reads every answer with the labels of the model that made it."""

import numpy as np
import pytest
from fake_triton import make_decisions, make_model

import client.served as served_module
from client import CaseInput
from contract.errors import ArtifactError, ConfigError, FingerprintError, TensorError, UnavailableError
from contract.labels import LABELS

MODELS_BY_VERSION = {
    version: make_model(fingerprint=letter * 64, decisions=make_decisions(threshold), vocabulary_size=120)
    for version, letter, threshold in (("0", "c", 0.1), ("1", "a", 0.2), ("2", "b", 0.8))
}


@pytest.fixture
def triton(triton):
    """Answers 0.5 for every label."""
    triton.models = dict(MODELS_BY_VERSION)
    triton.outputs["probabilities"] = lambda call: np.full((call.batch, len(LABELS)), 0.5)
    return triton


def check(prediction, version: str) -> None:
    model = MODELS_BY_VERSION[version]
    assert prediction.fingerprint == model.fingerprint
    assert {finding.threshold for finding in prediction.findings} == {
        model.decisions.of("study")[0].threshold
    }
    assert {finding.present for finding in prediction.findings} == {version == "1"}


def test_an_answer_is_read_with_the_labels_of_the_version_that_made_it(client, triton):
    check(client.predict(report="Clear."), "1")
    triton.version = "2"
    check(client.predict(report="Clear."), "2")
    check(client.predict(b"image", "Clear."), "2")
    triton.version = "1"  # rolled back
    check(client.predict(report="Clear."), "1")
    assert client.info() == MODELS_BY_VERSION["1"]


def test_a_model_is_not_asked_about_for_every_answer(client, triton):
    for _ in range(20):
        client.predict(report="Clear.")
    assert triton.reads == [("predict_study", ""), ("predict_text", "1")]


def test_another_model_under_the_same_number_is_noticed_after_a_restart(client, triton, monkeypatch):
    """Restarting a server takes longer than the client trusts what it has read."""
    now = [1000.0]
    monkeypatch.setattr(served_module.time, "monotonic", lambda: now[0])
    check(client.predict(report="Clear.", timeout_s=1e6), "1")
    triton.models["1"] = MODELS_BY_VERSION["2"]
    now[0] += 2.5
    assert client.predict(report="Clear.", timeout_s=1e6).fingerprint == MODELS_BY_VERSION["2"].fingerprint


def test_a_version_that_is_gone_before_it_was_asked_about_is_asked_again(client, triton):
    client.predict(report="Clear.")
    triton.version, triton.switches = "0", ["2"]
    check(client.predict(report="Clear."), "2")
    assert len(triton.calls) == 3


def test_a_server_that_never_comes_to_rest_is_given_up(client, triton):
    client.predict(report="Clear.")
    triton.version, triton.switches = "2", ["3", "4", "5"]
    triton.models |= dict.fromkeys(("3", "4", "5"), MODELS_BY_VERSION["2"])
    with pytest.raises(UnavailableError, match="switches"):
        client.predict(report="Clear.")
    assert len(triton.calls) == 4


def test_a_new_model_that_this_client_cannot_read_is_an_error(client, triton):
    client.predict(report="Clear.")
    triton.version, triton.read_error = "2", ArtifactError("other categories")
    with pytest.raises(ArtifactError, match="categories"):
        client.predict(report="Clear.")


def test_indexing_stops_when_the_model_changes_under_way(retrieval, client, triton):
    def read_cases():
        for number in range(80):
            if number == 70:
                triton.version = "2"
            yield CaseInput(str(number), str(number), report="Clear.")

    with pytest.raises(FingerprintError, match="aaaaaaaaaaaa"):
        client.index(read_cases())
    assert {fingerprint for fingerprint, _ in retrieval.added} <= {"a" * 64}


def test_findings_are_not_scored_by_another_model(client, triton, monkeypatch):
    prediction = client.predict(b"image")

    def score(_findings, _prediction, _model, infer):
        triton.version = "2"
        yield from infer("predict_text", {"report": np.array([[b"x"]], np.object_)}, ["embedding"])

    monkeypatch.setattr("client.core.score_findings", score)
    with pytest.raises(FingerprintError, match="bbbbbbbbbbbb"):
        client.score_findings(["effusion"], prediction)


def test_health_tells_of_the_model_served_now(retrieval, client, triton):
    client.predict(report="Clear.")
    triton.version = "2"
    assert client.health().fingerprint == "b" * 64


def make_tensors(batch: int = 3, length: int = 32) -> dict:
    ids = np.ones((batch, length), np.int64)
    return {"pixels": np.zeros((batch, 1, 56, 56), np.uint8), "input_ids": ids, "attention_mask": ids}


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("pixels", "input_ids", "attention_mask"), "study"),
        (("pixels",), "image"),
        (("input_ids", "attention_mask"), "text"),
    ],
)
def test_preprocessed_cases_are_predicted_as_a_batch(client, names, kind):
    tensors = make_tensors()
    batch = client.predict_tensors(**{name: tensors[name] for name in names})
    assert batch.kind == kind
    assert batch.fingerprint == "a" * 64
    assert batch.labels[0].threshold == 0.2
    assert batch.probabilities.shape == (3, 22)
    assert batch.embedding.shape == (3, 16)
    assert (batch.image_attention is None) == (kind == "text")
    assert (batch.text_attention is None) == (kind == "image")


REFUSED = {
    "nothing": ({}, (), ConfigError, "Give pixels"),
    "ids without a mask": ({}, ("input_ids",), ConfigError, "together"),
    "a mask alone": ({}, ("attention_mask",), ConfigError, "together"),
    "float pixels": ({"pixels": np.zeros((1, 1, 56, 56), np.float32)}, ("pixels",), TensorError, "UINT8"),
    "another size": ({"pixels": np.zeros((1, 1, 64, 64), np.uint8)}, ("pixels",), TensorError, "56, 56"),
    "no batch": ({"pixels": np.zeros((1, 56, 56), np.uint8)}, ("pixels",), TensorError, "shape"),
    "an empty batch": ({"pixels": np.zeros((0, 1, 56, 56), np.uint8)}, ("pixels",), TensorError, "not 0"),
    "33 cases": ({"pixels": np.zeros((33, 1, 56, 56), np.uint8)}, ("pixels",), TensorError, "1 to 32"),
    "unequal batches": (
        {"pixels": np.zeros((2, 1, 56, 56), np.uint8)},
        ("pixels", "input_ids", "attention_mask"),
        TensorError,
        "not 2 and 3",
    ),
    "unequal lengths": (
        {"input_ids": np.ones((3, 64), np.int64)},
        ("input_ids", "attention_mask"),
        TensorError,
        "one shape",
    ),
    "no token": (
        {"input_ids": np.ones((3, 0), np.int64), "attention_mask": np.ones((3, 0), np.int64)},
        ("input_ids", "attention_mask"),
        TensorError,
        "1 to 64 tokens",
    ),
    "65 tokens": (
        {"input_ids": np.ones((3, 65), np.int64), "attention_mask": np.ones((3, 65), np.int64)},
        ("input_ids", "attention_mask"),
        TensorError,
        "1 to 64 tokens",
    ),
    "a negative id": (
        {"input_ids": np.full((3, 32), -1, np.int64)},
        ("input_ids", "attention_mask"),
        TensorError,
        "ids from 0 to 119",
    ),
    "an id beyond the vocabulary": (
        {"input_ids": np.full((3, 32), 120, np.int64)},
        ("input_ids", "attention_mask"),
        TensorError,
        "ids from 0 to 119",
    ),
    "a mask of sevens": (
        {"attention_mask": np.full((3, 32), 7, np.int64)},
        ("input_ids", "attention_mask"),
        TensorError,
        "attention_mask must be 1",
    ),
    "an empty mask": (
        {"attention_mask": np.zeros((3, 32), np.int64)},
        ("input_ids", "attention_mask"),
        TensorError,
        "attention_mask must be 1",
    ),
    "int32 ids": (
        {"input_ids": np.ones((3, 32), np.int32)},
        ("input_ids", "attention_mask"),
        TensorError,
        "INT64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_that_do_not_fit_are_refused_before_they_are_sent(client, triton, name):
    changes, names, kind, words = REFUSED[name]
    tensors = {**make_tensors(), **changes}
    with pytest.raises(kind, match=words):
        client.predict_tensors(**{name: tensors[name] for name in names})
    assert not triton.calls
