"""The service over a real gRPC connection, in this process."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

import retrieval.service
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
        client.add(make.vectors(3500, dimension=5000))
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
def test_a_search_for_a_model_without_cases_says_what_to_do(sidecar, make, expect_status):
    vectors = make.vectors(1)
    assert not sidecar.client.search(vectors, fingerprint=make.OTHER_MODEL)[0].hits  # nobody has a case yet
    sidecar.client.add(vectors)
    with expect_status("FAILED_PRECONDITION", "Run `cxr index TABLE`") as caught:
        sidecar.client.search(vectors, fingerprint=make.OTHER_MODEL)
    assert "a" * 12 in caught.value.details()
    assert "b" * 12 in caught.value.details()
    for call in (sidecar.client.add, sidecar.client.search):
        for wrong in ("", "A" * 64, "a" * 63):
            with expect_status("INVALID_ARGUMENT", "64 hexadecimal digits"):
                call(vectors, fingerprint=wrong)


@on_both_stores
def test_models_have_their_cases_side_by_side(open_sidecar, make):
    """Of other dimension, too; each is found by its own model only, and again after a restart."""
    client = open_sidecar().client
    old, new = make.vectors(3), make.vectors(3, dimension=8)
    client.add(old, report="old")
    client.add(new, fingerprint=make.OTHER_MODEL, report="new")
    client.add(old[:1], ids=["only"], report="old")
    again = open_sidecar(name="again", fingerprint=make.OTHER_MODEL).client
    again.add(old)
    again.add(new, fingerprint=make.OTHER_MODEL)
    assert again.info().fingerprint == make.OTHER_MODEL  # the served one's
    for asked, model, count in ((make.MODEL, make.MODEL, 4), (make.OTHER_MODEL, make.OTHER_MODEL, 3)):
        info = client.info(asked)
        assert (info.fingerprint, info.case_count) == (model, count)
        assert sorted(info.fingerprints) == [make.MODEL, make.OTHER_MODEL]
    assert client.info("c" * 64).fingerprint == make.MODEL
    for vectors, model, words in ((old, make.MODEL, "old"), (new, make.OTHER_MODEL, "new")):
        hits = client.search(vectors[1:2], k=9, fingerprint=model)[0].hits
        assert hits[0].case.id == "1"
        assert {hit.case.report for hit in hits} == {words}
    assert client.get("only").report == "old"


@on_both_stores
def test_a_deleted_case_is_gone_from_every_model(sidecar, make, expect_status):
    sidecar.client.add(make.vectors(3))
    sidecar.client.add(make.vectors(2), fingerprint=make.OTHER_MODEL)
    assert sidecar.client.delete(["0", "2"]) == 2
    for model in (make.MODEL, make.OTHER_MODEL):
        hits = sidecar.client.search(make.vectors(1), k=9, fingerprint=model)[0].hits
        assert [hit.case.id for hit in hits] == ["1"]
    with expect_status("NOT_FOUND"):
        sidecar.client.get("0")


@on_both_stores_slowly
def test_there_is_a_limit_to_models(sidecar, make, expect_status):
    models = [f"{number:064x}" for number in range(9)]
    for model in models[:8]:
        sidecar.client.add(make.vectors(1), fingerprint=model)
    with expect_status("FAILED_PRECONDITION", "--forget FINGERPRINT"):
        sidecar.client.add(make.vectors(1), fingerprint=models[8])
    sidecar.client.add(make.vectors(2), fingerprint=models[7])


@on_both_stores_slowly
def test_first_cases_of_two_models_at_once(open_sidecar, make):
    for attempt in range(5):
        sidecar = open_sidecar(name=f"store-{attempt}")

        def add(model, client=sidecar.client):
            return client.add(make.vectors(2), fingerprint=model).added

        with ThreadPoolExecutor(4) as pool:
            models = [make.MODEL, make.OTHER_MODEL]
            assert list(pool.map(add, models * 2)).count(2) >= 2
        for model in models:
            assert sidecar.client.info(model).case_count == 2


def test_damage_in_the_cases_of_another_model_leaves_the_served_ones(
    open_sidecar, make, expect_status, tmp_path
):
    first = open_sidecar()
    first.client.add(make.vectors(2))
    first.client.add(make.vectors(2), fingerprint=make.OTHER_MODEL)
    first.stop()
    path = tmp_path / "store" / "models" / make.OTHER_MODEL / "cases.sqlite"
    intact = path.read_bytes()
    path.write_bytes(intact[:8192] + bytes(len(intact) - 8192))
    sidecar = open_sidecar(fingerprint=make.MODEL)
    assert len(sidecar.client.search(make.vectors(1))[0].hits) == 2
    for call in (sidecar.client.add, sidecar.client.search):
        with expect_status("INTERNAL", "damaged"):
            call(make.vectors(1), fingerprint=make.OTHER_MODEL)
    with expect_status("INTERNAL", "damaged"):  # it may still be there
        sidecar.client.delete(["0"])
    assert any("damaged" in line for line in sidecar.indexes.describe())
    sidecar.stop()
    with pytest.raises(ArtifactError, match="damaged"):
        open_sidecar(fingerprint=make.OTHER_MODEL)
    path.write_bytes(intact)
    assert len(open_sidecar().client.search(make.vectors(1), fingerprint=make.OTHER_MODEL)[0].hits) == 2


@on_both_stores_slowly
def test_first_requests_of_different_dimension_do_not_mix(sidecar, make):
    """Both find an empty store; only one may decide."""
    barrier = threading.Barrier(2)
    parse = retrieval.service.parse_cases

    def parse_together(*arguments):
        result = parse(*arguments)
        barrier.wait(10)
        return result

    def add(dimension):
        try:
            return sidecar.client.add(make.vectors(1, dimension=dimension), ids=[str(dimension)]).added
        except grpc.RpcError as error:
            return error.code().name

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(retrieval.service, "parse_cases", parse_together)
        assert sorted(map(str, pool.map(add, [8, 16]))) == ["1", "INVALID_ARGUMENT"]
    assert sidecar.client.info().case_count == 1


@on_both_stores_slowly
def test_not_ready_before_the_index_is_built(open_sidecar, make, expect_status):
    sidecar = open_sidecar(start=False)
    assert sidecar.client.health() == sidecar.client.health("cxr.retrieval.v1.Retrieval") == "NOT_SERVING"
    for call in (sidecar.client.add, sidecar.client.search):
        with expect_status("UNAVAILABLE", "not built yet"):
            call(make.vectors(1))
    with expect_status("UNAVAILABLE"):
        sidecar.client.delete(["a"])
    sidecar.start()
    assert sidecar.client.health() == sidecar.client.health("cxr.retrieval.v1.Retrieval") == "SERVING"
    assert sidecar.client.health("another.Service") == "SERVING"  # Check reads no message, and so no name
    sidecar.client.add(make.vectors(1))


def test_a_full_queue_and_a_deadline_have_their_codes(open_sidecar, make, expect_status):
    sidecar = open_sidecar(max_waiting=0)
    with expect_status("RESOURCE_EXHAUSTED", "waiting already"):
        sidecar.client.search(make.vectors(1))
    sidecar = open_sidecar("other")
    sidecar.index._take = lambda: []  # after the next request the thread ends, and answers nothing
    sidecar.client.delete(["unknown"])
    with expect_status("DEADLINE_EXCEEDED"):
        sidecar.client.search(make.vectors(1), timeout=0.2)


def test_a_full_disk_stores_nothing_and_the_server_goes_on(sidecar, make, expect_status):
    vectors = make.vectors(3)
    sidecar.client.add(vectors)
    writer = sidecar.store._writer
    writer.execute(f"PRAGMA max_page_count = {writer.execute('PRAGMA page_count').fetchone()[0]}")
    with expect_status("INTERNAL", "full"):
        sidecar.client.add(make.vectors(500, seed=2), report="r" * 500)
    assert sidecar.client.info().case_count == 3
    assert sidecar.client.find_ids(vectors[1], k=1000)[0] == "1"
    assert len(sidecar.client.find_ids(vectors[1], k=1000)) == 3
    writer.execute("PRAGMA max_page_count = 1000000")
    assert sidecar.client.add(make.vectors(500, seed=2), report="r" * 500).replaced == 3


def test_a_disk_that_becomes_read_only_stores_nothing_and_searches_go_on(sidecar, make, expect_status):
    vectors = make.vectors(3)
    sidecar.client.add(vectors)
    sidecar.store._writer.execute("PRAGMA query_only = ON")
    with expect_status("INTERNAL", "cannot be written: attempt to write a readonly database"):
        sidecar.client.add(make.vectors(5, seed=1))
    with expect_status("INTERNAL", "cannot be written"):
        sidecar.client.delete(["1"])
    assert sidecar.client.find_ids(vectors[1])[0] == "1"
    assert len(sidecar.client.stub.ListCases(retrieval_pb2.ListCasesRequest(), timeout=10).cases) == 3
    sidecar.store._writer.execute("PRAGMA query_only = OFF")
    assert sidecar.client.add(make.vectors(5, seed=1)).replaced == 3


def test_a_row_that_is_damaged_while_it_is_served_is_left_out(sidecar, make, caplog, expect_status):
    vectors = make.vectors(6)
    sidecar.client.add(vectors)
    sidecar.store._writer.execute("UPDATE cases SET report = 'Other.' WHERE id IN ('1', '4')")
    found = sidecar.client.search(vectors, k=3)
    for number, result in enumerate(found):
        ids = [hit.case.id for hit in result.hits]
        assert len(ids) == 3
        assert not {"1", "4"} & {*ids}
        assert number in (1, 4) or ids[0] == str(number)
    assert "differs from what was written" in caplog.text
    info = sidecar.client.info()
    assert (info.case_count, info.damaged_count) == (4, 2)
    with expect_status("INTERNAL", "differs from what was written"):
        sidecar.client.get("4")
    sidecar.client.add(vectors[1:2], ids=["1"])  # indexed again
    assert sidecar.client.find_ids(vectors[1], k=1) == ["1"]
    assert sidecar.client.info().damaged_count == 1


@on_both_stores_slowly
def test_an_answer_that_is_too_large_is_refused(sidecar, make, expect_status):
    vectors = make.vectors(1000)
    for start in range(0, 1000, 250):
        ids = range(start, start + 250)
        sidecar.client.add(vectors[ids], ids=ids, report="r" * 20_000)
    assert len(sidecar.client.find_ids(vectors[0], k=1000)) == 1000
    with expect_status("INVALID_ARGUMENT", "64 MiB"):
        sidecar.client.search(vectors[:4], k=1000)


@on_both_stores_slowly
def test_searches_while_cases_are_added_replaced_and_deleted(sidecar, make):
    vectors = make.vectors(200)
    sidecar.client.add(vectors[:50])
    done = threading.Event()

    def change():
        try:
            for number in range(50, 200):
                sidecar.client.add(vectors[number : number + 1], ids=[number])
                sidecar.client.add(vectors[:1], ids=["replaced"], report=str(number))
                if number % 5 == 0:
                    sidecar.client.delete([str(number)])
        finally:
            done.set()

    def search(number):
        count = 0
        while not done.is_set():
            hits = sidecar.client.search([vectors[number]], k=1000)[0].hits
            scores = [hit.score for hit in hits]
            assert hits[0].case.id == str(number)
            assert scores == sorted(scores, reverse=True)
            assert len(hits) >= 50
            assert len({hit.case.id for hit in hits}) == len(hits)
            count += 1
        return count

    with ThreadPoolExecutor(5) as pool:
        changes = pool.submit(change)
        searches = [pool.submit(search, number) for number in range(4)]
        changes.result()
        assert all(each.result() > 0 for each in searches)
    expected = {str(number) for number in range(200) if number < 50 or number % 5} | {"replaced"}
    assert set(sidecar.client.find_ids(vectors[0], k=1000)) == expected


def test_a_hit_that_changes_between_index_and_store_is_searched_again(sidecar, make, monkeypatch):
    vectors = make.vectors(2)
    sidecar.client.add(vectors)
    search = sidecar.index.search
    calls = []

    def search_then_change(*arguments):
        found = search(*arguments)
        if not calls:
            sidecar.client.add(vectors[1:], ids=["0"], report="new")
        calls.append(found)
        return found

    monkeypatch.setattr(sidecar.index, "search", search_then_change)
    hits = sidecar.client.search(vectors[:1], k=2)[0].hits
    assert len(calls) == 2
    assert [hit.case.id for hit in hits] == ["0", "1"]
    assert hits[0].score == hits[1].score
    assert hits[0].case.report == "new"


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
