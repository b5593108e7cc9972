"""What only the Milvus store has: its expressions, its collections, exact answers from its candidates, its refusals."""

import logging

import grpc
import numpy as np
import pytest

from contract.case_store import parse_store
from contract.errors import ArtifactError, ConfigError, FingerprintError
from contract.proto import retrieval_pb2
from retrieval.cases import CaseRecord
from retrieval.index import Query
from retrieval.milvus import candidates
from retrieval.milvus.expressions import quote, write_filter
from retrieval.rows import CaseFilter
from retrieval.server import parse_arguments
from retrieval.stores import maintain, open_backend

ODD_IDS = ('a"b', "a'b", "a\\", 'a\\"', "ü😀", "a\nb\r\tc", "{x}", '" or id != "', "a\x00\x7f\u2028", "%_*")
on_milvus = pytest.mark.parametrize("store_kind", ["milvus"], indirect=True)


def ask(sidecar, make, vector, **fields):
    query = retrieval_pb2.Query(embedding=vector.tolist())
    request = retrieval_pb2.SearchRequest(fingerprint=make.MODEL, queries=[query], **{"k": 1000, **fields})
    return sidecar.client.stub.Search(request, timeout=10).results[0].hits


def test_a_string_is_written_as_one_literal():
    assert quote("a\"b\\\n\r'{}ü") == '"a\\"b\\\\\\n\\r\'{}ü"'


def test_a_filter_is_one_expression():
    wanted = CaseFilter(
        frozenset("a"),
        frozenset("b"),
        frozenset("c"),
        frozenset("d"),
        frozenset("e"),
        frozenset("f"),
        frozenset("gh"),
    )
    assert write_filter(wanted, "sequence not in [1]") == (
        '(array_contains_any(labels, ["a"])) and (array_contains_all(labels, ["b"])) and '
        '(not array_contains_any(labels, ["c"])) and (view in ["d"]) and (kind in ["e"]) and (id not in ["f"]) and '
        '(study_id not in ["g", "h"]) and (sequence not in [1])'
    )
    assert write_filter(CaseFilter()) == ""


@on_milvus
def test_ids_with_any_character_name_only_themselves(sidecar, make, expect_status):
    vectors = make.vectors(len(ODD_IDS))
    sidecar.client.add(vectors, ids=ODD_IDS)
    for case_id, vector in zip(ODD_IDS, vectors, strict=True):
        assert sidecar.client.get(case_id).id == case_id
        others = [hit.case.id for hit in ask(sidecar, make, vector, exclude_study_ids=[f"study-{case_id}"])]
        wanted = retrieval_pb2.Filter(exclude_ids=[case_id])
        assert others == [hit.case.id for hit in ask(sidecar, make, vector, filter=wanted)]
        assert sorted([*others, case_id]) == sorted(ODD_IDS)
    seen, token = [], ""
    while token or not seen:
        page = sidecar.client.stub.ListCases(retrieval_pb2.ListCasesRequest(page_size=1, page_token=token))
        seen += [case.id for case in page.cases]
        token = page.next_page_token
    assert seen == sorted(ODD_IDS)
    assert sidecar.client.add(vectors[:3], ids=ODD_IDS[:3]).replaced == 3
    for count, case_id in enumerate(ODD_IDS, 1):
        assert sidecar.client.delete([case_id]) == 1
        assert sidecar.client.info().case_count == len(ODD_IDS) - count
    with expect_status("NOT_FOUND"):
        sidecar.client.get(ODD_IDS[7])


@on_milvus
def test_answers_are_those_of_the_flat_index(sidecar, make, tmp_path):
    """With equal embeddings, whose order is that of the ids, filters, a smallest score and diversity."""
    from retrieval.indexes import CaseIndexes

    vectors = np.repeat(make.vectors(60), 5, axis=0)
    labels = [("pleural",), ("cardiac", "pleural"), (), ("normal",)]
    views, kinds = ("PA", "AP", ""), ("study", "image", "text", "", "image")
    cases = [
        CaseRecord(
            f"c{number * 7919 % 300}",
            f"s{number % 50}",
            labels[number % 4],
            "R.",
            "",
            views[number % 3],
            kinds[number % 5],
        )
        for number in range(300)
    ]
    some = CaseFilter(labels_any=frozenset(["pleural"]), excluded_study_ids=frozenset(["s1", "s5"]))
    filters = [
        CaseFilter(labels_any=frozenset(["cardiac", "normal"])),
        CaseFilter(labels_all=frozenset(["cardiac", "pleural"])),
        CaseFilter(labels_none=frozenset(["pleural", "normal"])),
        CaseFilter(views=frozenset(["PA", "AP"]), kinds=frozenset(["text"])),
        CaseFilter(excluded_ids=frozenset(["c0", "c1", "unknown"]), views=frozenset(["PA"])),
    ]
    queries = [
        Query(vector, k, wanted, least, diversity)
        for vector in make.vectors(3)
        for k, wanted, least, diversity in (
            (7, CaseFilter(), -1.0, 0.0),
            (200, CaseFilter(), -1.0, 0.0),
            (9, some, 0.1, 0.0),
            (6, CaseFilter(), -1.0, 0.4),
            *((8, wanted, -1.0, 0.0) for wanted in filters),
        )
    ]
    with CaseIndexes(tmp_path / "flat") as flat:
        flat.start().result(10)
        answers = []
        for backend in (flat, sidecar.indexes):
            entry = backend.find_or_make(make.MODEL)
            entry.add(make.MODEL, cases, vectors)
            answers.append([[(each.record, each.score) for each in row] for row in entry.search(queries, 10)])
    assert answers[0] == answers[1]
    assert all(answers[0])


def test_a_query_whose_last_candidate_may_tie_is_asked_again(make, monkeypatch):
    vector = make.vectors(1)[0]
    asked = []

    def propose(embeddings, size, wanted):
        asked.append(size)
        count = min(size, 100)
        ids = [f"{99 - place:02}" for place in range(count)]  # the wrong order of equal scores
        scores = np.ones(count, np.float32)
        vectors = np.repeat(vector[None], count, axis=0)
        return [candidates.Candidates(ids, list(range(count)), scores, vectors)] * len(embeddings)

    found = candidates.find_nearest(propose, [Query(vector, 3)])
    assert asked == [11, 44, 176]
    assert [version.id for version in found[0]] == ["00", "01", "02"]


@on_milvus
def test_a_row_that_differs_is_left_out(sidecar, make, expect_status, caplog):
    vectors = make.vectors(4)
    sidecar.client.add(vectors)
    collection = sidecar.indexes.default._collection
    row = sidecar.indexes._client.query(collection.name, filter='id == "1"', output_fields=["*"])[0]
    sidecar.indexes._client.upsert(collection.name, [{**row, "report": "Other."}])
    assert "1" not in sidecar.client.find_ids(vectors[1], k=4)
    assert "differs from what was written" in caplog.text
    with expect_status("INTERNAL", "differs from what was written"):
        sidecar.client.get("1")
    info = sidecar.client.info()
    assert (info.case_count, info.damaged_count) == (3, 1)
    assert [case.id for case in sidecar.client.stub.ListCases(retrieval_pb2.ListCasesRequest()).cases] == [
        *"023"
    ]
    assert any("`cxr index`" in line for line in sidecar.indexes.describe())
    sidecar.client.add(vectors[1:2], ids=["1"])  # indexed again
    assert sidecar.client.find_ids(vectors[1], k=1) == ["1"]


@on_milvus
def test_a_case_that_changes_during_a_search_is_searched_again(sidecar, make, monkeypatch):
    vectors = make.vectors(2)
    sidecar.client.add(vectors)
    collection = sidecar.indexes.default._collection
    read, calls = collection.read, []

    def change_then_read(ids):
        if not calls:
            calls.append(sidecar.client.add(vectors[1:], ids=["0"], report="new"))
        return read(ids)

    monkeypatch.setattr(collection, "read", change_then_read)
    hits = sidecar.client.search(vectors[:1], k=2)[0].hits
    assert [(hit.case.id, hit.case.report) for hit in hits] == [("0", "new"), ("1", "")]
    assert hits[0].score == hits[1].score


@on_milvus
def test_a_report_that_milvus_cannot_hold_is_refused(sidecar, make, expect_status):
    with expect_status("INVALID_ARGUMENT", "Case 1: its report has 80000 bytes"):
        sidecar.client.add(make.vectors(1), report="😀" * 20_000)
    assert sidecar.client.add(make.vectors(1), report="r" * 20_000, image_ref="😀" * 2048).added == 1


@on_milvus
def test_what_a_collection_states_must_be_true(open_sidecar, make):
    sidecar = open_sidecar()
    sidecar.client.add(make.vectors(1))
    client, name = sidecar.indexes._client, sidecar.indexes.default._collection.name
    for key, value, error, words in (
        ("cxr.fingerprint", make.OTHER_MODEL, FingerprintError, "bbbbbbbbbbbb"),
        ("cxr.dimension", "8", ArtifactError, "states embeddings of 8 values and has 16"),
        ("cxr.format", "2", ArtifactError, "has format 2, and this version reads 1"),
    ):
        before = client.describe_collection(name)["properties"][key]
        client.alter_collection_properties(name, {key: value})
        with pytest.raises(error, match=words):
            open_sidecar()
        client.alter_collection_properties(name, {key: before})
    assert open_sidecar().client.info().case_count == 1


@on_milvus
def test_two_sidecars_serve_one_database(open_sidecar, make):
    first, second = open_sidecar(), open_sidecar()
    vectors = make.vectors(3)
    first.client.add(vectors)
    assert second.client.find_ids(vectors[1], k=1) == ["1"]
    second.client.add(vectors[:1], ids=["1"])
    assert first.client.find_ids(vectors[0], k=2) == ["0", "1"]
    first.client.delete(["0"])
    assert second.client.find_ids(vectors[0], k=3) == ["1", "2"]
    second.client.add(vectors, fingerprint=make.OTHER_MODEL)
    assert first.client.get("0").id == "0"
    assert first.client.delete(["0", "1"]) == 2
    assert (second.client.info().case_count, second.client.info(make.OTHER_MODEL).case_count) == (1, 1)


@on_milvus
def test_a_backup_is_refused_in_a_sentence(sidecar, make, expect_status):
    metadata = [("authorization", f"Bearer {make.ADMIN_TOKEN}")]
    with expect_status("INVALID_ARGUMENT", "`cxr index migrate`"):
        list(sidecar.client.stub.Backup(retrieval_pb2.BackupRequest(), timeout=10, metadata=metadata))


@on_milvus
def test_a_full_queue_has_its_code(open_sidecar, make, expect_status):
    sidecar = open_sidecar(max_waiting=0)
    sidecar.client.add(make.vectors(1))
    with expect_status("RESOURCE_EXHAUSTED", "waiting already"):
        sidecar.client.search(make.vectors(1))


@on_milvus
def test_errors_and_logs_of_milvus_hold_nothing_of_a_case(sidecar, make, monkeypatch, caplog, expect_status):
    sidecar.client.add(make.vectors(1))
    monkeypatch.setattr("retrieval.milvus.collection.name_ids", lambda ids: f"zebra {list(ids)}")
    with caplog.at_level(logging.DEBUG), expect_status("INTERNAL", "failed in Milvus") as caught:
        sidecar.client.get("patient-zebra")
    assert "zebra" not in caught.value.details() + caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--index", "hnsw"], "compares every case"),
        (["--device", "gpu"], "compares every case"),
        (["--remove-damaged"], "`cxr index TABLE` replaces"),
        (["--compact"], "compacts its files itself"),
    ],
)
def test_what_milvus_does_not_offer_is_refused(options, words):
    parsed = parse_arguments(["--store", "milvus://127.0.0.1:9/cases", *options])
    act = maintain if options[0] in ("--remove-damaged", "--compact") else open_backend
    with pytest.raises(ConfigError, match=words):
        act(parsed)


def test_milvus_lite_keeps_its_file_and_forgets_a_model(tmp_path, make):
    pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed (the extra milvus-lite)")
    name = f"milvus-lite:{tmp_path / 'new' / 'cases.db'}"
    options = parse_arguments(["--store", name])
    for round_ in range(2):
        backend = open_backend(options)
        backend.start().result(10)
        assert backend.default.count() == 5 * round_
        backend.find_or_make(make.MODEL).add(make.MODEL, make.records("abcde"), make.vectors(5))
        backend.close()
    with pytest.raises(ConfigError, match=r"holds no index of model bbbbbbbbbbbb\. It holds aaaaaaaaaaaa"):
        maintain(parse_arguments(["--store", name, "--forget", make.OTHER_MODEL]))
    done = maintain(parse_arguments(["--store", name, "--forget", make.MODEL[:8]]))
    assert done == ["Removed the index of model aaaaaaaa: 5 cases."]


def test_a_milvus_that_does_not_answer_is_named(make):
    pytest.importorskip("pymilvus", reason="pymilvus is not installed (the extra milvus)")
    from retrieval.milvus import connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "_CONNECT_S", 0.3)
        with pytest.raises(ConfigError, match=r"Nothing usable answers at milvus://127\.0\.0\.1:9/cases"):
            open_backend(parse_arguments(["--store", "milvus://127.0.0.1:9/cases"]))


def test_pymilvus_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pymilvus", None)
    with pytest.raises(ConfigError, match=r"pip install 'cxr-serving\[retrieval,milvus\]'"):
        open_backend(parse_arguments(["--store", "milvus://127.0.0.1:9/cases"]))


@pytest.mark.parametrize(
    ("code", "status"),
    [(grpc.StatusCode.UNAVAILABLE, "UnavailableError"), (grpc.StatusCode.DEADLINE_EXCEEDED, "DeadlineError")],
)
def test_errors_of_milvus_become_ours(code, status):
    from retrieval.milvus.connection import translate

    class Failure(Exception):
        """As pymilvus raises it: with the code of gRPC."""

        def __init__(self):
            super().__init__("patient zebra")
            self.code = code

    with pytest.raises(Exception, match="Milvus") as caught, translate("The search"):
        raise Failure
    assert (type(caught.value).__name__, "zebra" in str(caught.value)) == (status, False)


def test_the_exposure_of_a_network_is_told_at_the_start():
    assert parse_store("milvus://milvus.lab:19530").describe_exposure()
