"""The health of both servers: real cases for Triton, and an index of Triton's model."""

import pytest
from fake_triton import FINGERPRINT

from client.retrieval_core import IndexInfo
from contract.errors import BusyError, ServerError, UnavailableError

OTHER = "cd" * 32


def test_two_ready_servers(retrieval, client, triton):
    retrieval.info = IndexInfo(FINGERPRINT, 7, 16, "flat")
    health = client.health()
    assert health.ready
    assert (health.fingerprint, health.cases, health.trained_on) == (FINGERPRINT, 7, "unknown")
    assert [call.model for call in triton.calls] == ["predict_study", "predict_image", "predict_text"]


@pytest.mark.parametrize(
    ("info", "words", "cases"),
    [
        (
            IndexInfo(OTHER, 7, 16, "flat"),
            "belongs to model cdcdcdcdcdcd, but Triton serves model abababababab",
            7,
        ),
        (IndexInfo(FINGERPRINT, 5, 16, "flat", 2), "2 cases of the index are damaged", 5),
        (UnavailableError("The sidecar is away."), "The sidecar is away.", None),
    ],
    ids=["another model", "damaged", "away"],
)
def test_a_sidecar_that_is_not_ready(retrieval, client, info, words, cases):
    retrieval.info = info
    health = client.health()
    assert health.triton is None
    assert words in health.retrieval
    assert health.cases == cases
    assert not health.ready


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "flat, exact"),
        ({"asked_kind": "hnsw", "state": "building"}, "flat, exact; hnsw is being built"),
        ({"asked_kind": "hnsw", "state": "waiting"}, "flat, exact; hnsw waits for more cases"),
        (
            {"asked_kind": "hnsw", "state": "refused", "refusal": "Too low."},
            "flat, exact; hnsw is refused. Too low.",
        ),
        (
            {"asked_kind": "hnsw", "approximate_count": 5, "recall": 0.99, "recall_tenth": 0.9712},
            "flat, recall@10 at least 0.971",
        ),
    ],
)
def test_what_became_of_the_kind_that_was_asked_for(retrieval, client, facts, words):
    retrieval.info = IndexInfo(FINGERPRINT, 7, 16, "flat", **facts)
    assert client.health().index == words


def test_a_triton_that_starts_is_not_sent_any_case(retrieval, client, triton):
    triton.trouble = "Triton is starting."
    health = client.health()
    assert (health.triton, health.retrieval, health.fingerprint) == ("Triton is starting.", None, None)
    assert not triton.calls
    assert not triton.reads


def test_a_loaded_model_that_cannot_infer(retrieval, client, triton):
    def refuse(call) -> None:
        if call.model == "predict_text":
            raise ServerError("predict_text failed")

    triton.refuse = refuse
    health = client.health()
    assert health.triton == "predict_text failed"
    assert health.fingerprint == FINGERPRINT


def test_a_full_queue_is_ready(retrieval, client, triton):
    def refuse(_call) -> None:
        raise BusyError("The queue is full.")

    triton.refuse = refuse
    assert client.health().ready
