"""The service over a real gRPC connection, in this process."""

import logging

import numpy as np
import pytest

from contract.errors import ArtifactError, CxrError, ParityError, ReportError, ServerError, UnavailableError
from contract.proto import retrieval_pb2
from retrieval.service import find_status_code

from .both_stores import on_both_stores, on_both_stores_slowly


def add_message(make, **fields):
    """A request to add one case, good but for the given fields."""
    case = {"id": "x", "study_id": "s", "embedding": make.vectors(1)[0].tolist(), **fields}
    return retrieval_pb2.AddCasesRequest(fingerprint=make.MODEL, cases=[retrieval_pb2.Case(**case)])


@on_both_stores
def test_a_stored_case_is_found_with_its_evidence(sidecar, make, store_kind):
    vectors = make.vectors(5)
    answer = sidecar.client.add(vectors, labels=["cardiac", "pleural"], report="Effusion.", image_ref="a.dcm")
    assert (answer.added, answer.replaced) == (5, 0)
    hit = sidecar.client.search([vectors[2]], k=1)[0].hits[0]
    assert (hit.case.id, hit.case.study_id, hit.case.report) == ("2", "study-2", "Effusion.")
    assert (list(hit.case.labels), hit.case.image_ref) == (["cardiac", "pleural"], "a.dcm")
    assert hit.score == pytest.approx(1.0, abs=1e-6)
    assert not hit.case.embedding
    assert sidecar.client.get("2") == hit.case
    info = sidecar.client.info()
    assert (info.fingerprint, info.case_count, info.dimension, info.index_kind) == (
        make.MODEL,
        5,
        make.D,
        {"files": "flat", "milvus": "flat, in Milvus"}[store_kind],
    )


@on_both_stores
def test_before_the_first_case(sidecar, make, expect_status):
    info = sidecar.client.info()
    assert (info.fingerprint, info.case_count, info.dimension) == ("", 0, 0)
    assert sidecar.client.find_ids(make.vectors(1)[0]) == []
    assert sidecar.client.delete(["unknown"]) == 0
    with expect_status("NOT_FOUND"):
        sidecar.client.get("unknown")


@on_both_stores_slowly
def test_results_are_in_the_order_of_the_queries(sidecar, make):
    vectors = make.vectors(40)
    sidecar.client.add(vectors)
    results = sidecar.client.search(vectors[::-1], k=4)
    scores = vectors[::-1] @ vectors.T
    for result, row in zip(results, scores, strict=True):
        assert [hit.case.id for hit in result.hits] == [str(number) for number in np.argsort(-row)[:4]]
        np.testing.assert_allclose([hit.score for hit in result.hits], np.sort(row)[::-1][:4], atol=1e-6)


@on_both_stores
def test_replacing_and_deleting(sidecar, make, expect_status):
    old, new = make.vectors(2)
    sidecar.client.add([old, new], ids=["a", "b"])
    answer = sidecar.client.add([new, old], ids=["a", "c"], report="new")
    assert (answer.added, answer.replaced) == (1, 1)
    assert sidecar.client.find_ids(new, k=2) == ["a", "b"]  # equal scores: by id
    assert sidecar.client.get("a").report == "new"
    assert sidecar.client.delete(["a", "unknown", "a"]) == 1
    assert sidecar.client.find_ids(new, k=9) == ["b", "c"]
    with expect_status("NOT_FOUND"):
        sidecar.client.get("a")


@on_both_stores_slowly
def test_excluded_studies_do_not_cost_hits(sidecar, make):
    vectors = make.vectors(30)
    sidecar.client.add(vectors[:20], study_id="own")
    sidecar.client.add(vectors[20:], ids=range(20, 30))
    assert len(sidecar.client.find_ids(vectors[0], k=10, exclude=["own"])) == 10
    assert "0" not in sidecar.client.find_ids(vectors[0], k=10, exclude=["own", "unknown"])
    assert len(sidecar.client.find_ids(vectors[0], k=1000)) == 30


@on_both_stores_slowly
def test_nearly_unit_embeddings_count_as_unit(sidecar, make):
    vectors = make.vectors(3)
    sidecar.client.add(vectors * np.float32(0.9993))
    hit = sidecar.client.search([vectors[1] * np.float32(0.9993)], k=1)[0].hits[0]
    assert hit.score == pytest.approx(1.0, abs=1e-6)


@on_both_stores_slowly
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": ""}, "id is empty"),
        ({"id": "é" * 257}, "257 characters"),
        ({"study_id": ""}, "study id is empty"),
        ({"study_id": "s" * 257}, "257 characters"),
        ({"labels": ["tuberculosis"]}, "22 categories"),
        ({"labels": ["normal", "normal"]}, "22 categories"),
        ({"report": "r" * 20_001}, "20001 characters"),
        ({"image_ref": "r" * 2049}, "2049 characters"),
        ({"embedding": []}, "0 values"),
        ({"embedding": [1.0]}, "1 values instead of 16"),
        ({"embedding": [0.0] * 16}, "length 0"),
        ({"embedding": [0.2502] + [0.25] * 14 + [0.2651]}, "length 1.0"),
        ({"embedding": [float("nan")] + [0.0] * 15}, "finite"),
        ({"embedding": [float("inf")] + [0.0] * 15}, "finite"),
        ({"embedding": [0.0] * 9000}, "1 to 8192"),
    ],
)
def test_a_bad_case_stores_nothing(sidecar, make, expect_status, fields, message):
    sidecar.client.add(make.vectors(1), ids=["good"])
    request = add_message(make, id="another")
    request.cases.append(add_message(make, **fields).cases[0])
    with expect_status("INVALID_ARGUMENT", message) as caught:
        sidecar.client.stub.AddCases(request, timeout=10)
    assert "Case 2" in caught.value.details()
    assert sidecar.client.info().case_count == 1


@on_both_stores_slowly
def test_bad_batches(sidecar, make, expect_status):
    client = sidecar.client
    with expect_status("INVALID_ARGUMENT", "0 cases"):
        client.add([])
    with expect_status("INVALID_ARGUMENT", "same id"):
        client.add(make.vectors(2), ids=["a", "a"])
    with expect_status("INVALID_ARGUMENT", "4097 cases"):
        client.add(make.vectors(4097, dimension=2))
    with expect_status("INVALID_ARGUMENT", "0 ids"):
        client.delete([])
    with expect_status("INVALID_ARGUMENT", "is empty"):
        client.delete([""])
    with expect_status("INVALID_ARGUMENT", "4097 ids"):
        client.delete(["a"] * 4097)
    with expect_status("INVALID_ARGUMENT", "is empty"):
        client.get("")
    with expect_status("RESOURCE_EXHAUSTED", "larger than max"):  # gRPC's own limit, 64 MiB
        client.add(make.vectors(3500), report="r" * 20_000)
    assert client.info().dimension == 0


@on_both_stores_slowly
def test_bad_searches(sidecar, make, expect_status):
    vectors = make.vectors(300)
    sidecar.client.add(vectors)
    search = sidecar.client.search
    for k in (0, 1001, 2**32 - 1):
        with expect_status("INVALID_ARGUMENT", f"k is {k}"):
            search(vectors[:1], k=k)
    with expect_status("INVALID_ARGUMENT", "0 queries"):
        search([])
    with expect_status("INVALID_ARGUMENT", "257 queries"):
        search(vectors[:257], k=1)
    with expect_status("INVALID_ARGUMENT", "20000 hits"):
        search(vectors[:21], k=1000)
    with expect_status("INVALID_ARGUMENT", "excludes more than 1000"):
        search(vectors[:1], exclude=["s"] * 1001)
    with expect_status("INVALID_ARGUMENT", "excluded study id is empty"):
        search(vectors[:1], exclude=[""])
    with expect_status("INVALID_ARGUMENT", "Query 2: its embedding has 5 values instead of 16"):
        search([vectors[0], make.vectors(1, dimension=5)[0]])
    with expect_status("INVALID_ARGUMENT", "length 2"):
        search([vectors[0] * 2])
    with expect_status("INVALID_ARGUMENT", "finite"):
        search([vectors[0] * np.float32("nan")])


@on_both_stores_slowly
def test_an_answer_that_is_too_large_is_refused(sidecar, make, expect_status):
    vectors = make.vectors(1000)
    for start in range(0, 1000, 250):
        ids = range(start, start + 250)
        sidecar.client.add(vectors[ids], ids=ids, report="r" * 20_000)
    assert len(sidecar.client.find_ids(vectors[0], k=1000)) == 1000
    with expect_status("INVALID_ARGUMENT", "64 MiB"):
        sidecar.client.search(vectors[:4], k=1000)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ReportError(), "INVALID_ARGUMENT"),
        (UnavailableError(), "UNAVAILABLE"),
        (ServerError(), "INTERNAL"),
        (ArtifactError(), "INTERNAL"),
        (ParityError(), "INTERNAL"),
        (CxrError(), "INTERNAL"),
        (KeyError(), "INTERNAL"),
    ],
)
def test_status_codes(error, code):
    assert find_status_code(error).name == code


def test_errors_and_logs_hold_nothing_of_a_case(sidecar, make, expect_status, monkeypatch, caplog):
    secrets = {"id": "id-zebra", "study_id": "study-zebra", "report": "Report zebra.", "image_ref": "zebra"}
    bad = [
        {"labels": ["zebra"]},
        {"embedding": [1.0]},
        {"report": "zebra" * 5000},
        {"id": "zebra" * 60},
    ]
    sidecar.client.add(make.vectors(1))
    with caplog.at_level(logging.DEBUG):
        for fields in bad:
            with expect_status("INVALID_ARGUMENT") as caught:
                sidecar.client.stub.AddCases(add_message(make, **{**secrets, **fields}), timeout=10)
            assert "zebra" not in caught.value.details()
        with expect_status("NOT_FOUND") as caught:
            sidecar.client.get("zebra")

        def fail(*arguments):
            raise ValueError("Report zebra.")

        monkeypatch.setattr(sidecar.store, "put", fail)
        with expect_status("INTERNAL", "ValueError") as caught:
            sidecar.client.stub.AddCases(add_message(make, **secrets), timeout=10)
        assert "zebra" not in caught.value.details()
    records = [record for record in caplog.records if record.name.startswith("retrieval")]
    assert len(records) == len(bad) + 2
    assert "test_service.py" in records[-1].getMessage()  # where a bug is
    assert "zebra" not in caplog.text
