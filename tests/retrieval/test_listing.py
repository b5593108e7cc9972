"""`ListCases`: every case once, page after page."""

import pytest

import retrieval.listing
from client.retrieval import RetrievalTransport
from client.search_options import SearchOptions
from contract.errors import FingerprintError, InputError, ServerError
from contract.proto import retrieval_pb2
from retrieval.cases import CaseRecord
from retrieval.store import CaseStore

from .both_stores import on_both_stores, on_both_stores_slowly
from .store_files import change

KINDS = ("study", "image", "text")


def make_cases(count: int) -> list[CaseRecord]:
    return [
        CaseRecord(
            f"case-{number}",
            f"study-{number // 2}",
            ("pleural", "cardiac") if number % 5 == 0 else ("normal",),
            f"Report {number}.",
            f"{number}.dcm",
            "PA" if number % 2 else "LATERAL",
            KINDS[number % 3],
        )
        for number in range(count)
    ]


@pytest.fixture
def filled(open_sidecar, make):
    """A running sidecar with 700 cases."""
    sidecar = open_sidecar()
    sidecar.indexes.find_or_make(make.MODEL).add(make.MODEL, make_cases(700), make.vectors(700))
    return sidecar


@pytest.fixture
def transport(filled):
    transport = RetrievalTransport(filled.server.address)
    yield transport
    transport.close()


def ask(sidecar, **fields):
    return sidecar.client.stub.ListCases(retrieval_pb2.ListCasesRequest(**fields), timeout=10)


@on_both_stores
def test_every_case_comes_once_and_in_order(filled, transport, make, store_kind):
    """Files have the order in which the cases were stored, Milvus that of their ids."""
    cases = list(transport.list_cases(10))
    ids = [f"case-{number}" for number in range(700)]
    assert [case.id for case in cases] == (sorted(ids) if store_kind == "milvus" else ids)
    cases.sort(key=lambda case: int(case.id.removeprefix("case-")))
    assert (
        cases[5].study_id,
        cases[5].labels,
        cases[5].view,
        cases[5].embedding_kind,
        cases[5].image_ref,
    ) == (
        "study-2",
        ("pleural", "cardiac"),
        "PA",
        "text",
        "5.dcm",
    )
    assert {case.report for case in cases} == {""}
    assert next(transport.list_cases(10, reports=True)).report == "Report 0."
    first = ask(filled)
    assert (len(first.cases), first.fingerprint) == (100, make.MODEL)
    sizes = {len(ask(filled, page_size=size).cases) for size in (1, 2, 1000)}
    assert sizes == {1, 2, 700}


@on_both_stores_slowly
@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(labels_any=("pleural",)),
        SearchOptions(labels_all=("pleural", "cardiac"), views=("PA",)),
        SearchOptions(labels_none=("normal",), embedding_kinds=("study", "text")),
        SearchOptions(exclude_ids=("case-0", "case-9", "unknown")),
    ],
)
def test_a_filter_leaves_what_a_search_leaves(filled, transport, make, options):
    excluded = ("study-7", "study-8")
    found = transport.search(make.MODEL, make.vectors(1)[0], 1000, excluded, 10, options).cases
    listed = [case.id for case in transport.list_cases(10, exclude_studies=excluded, options=options)]
    assert sorted(case.id for case in found) == sorted(listed)
    assert 0 < len(listed) < 700


@on_both_stores_slowly
def test_pages_end_early_where_few_cases_count_or_they_are_long(filled, transport, monkeypatch, store_kind):
    monkeypatch.setattr(retrieval.listing, "_MAX_READ", 256)
    empty = ask(filled, filter=retrieval_pb2.Filter(labels_any=["msk_trauma"]))
    assert (len(empty.cases), bool(empty.next_page_token)) == (0, store_kind == "files")
    assert list(transport.list_cases(10, options=SearchOptions(labels_any=("msk_trauma",)))) == []
    monkeypatch.setattr(retrieval.listing, "_MAX_PAGE_BYTES", 10_000)
    assert len(ask(filled, page_size=1000, with_reports=True).cases) < 20
    assert len(list(transport.list_cases(10, reports=True))) == 700


@on_both_stores_slowly
def test_changes_while_pages_are_read(filled, transport, make, store_kind):
    """With files, a case that is replaced comes again at the end; with Milvus each id comes once."""
    cases = transport.list_cases(10)
    head = [next(cases).id for _ in range(3)]
    filled.client.delete(["case-650", "case-1"])
    filled.client.add(make.vectors(1), ids=["case-2"], study_id="new")
    rest = [(case.id, case.study_id) for case in cases]
    ids = head + [case_id for case_id, _ in rest]
    assert "case-650" not in ids
    if store_kind == "files":
        assert rest[-1] == ("case-2", "new")
    else:
        assert ids == sorted({*ids})
    assert sorted({*ids}) == sorted({f"case-{number}" for number in range(700)} - {"case-650"})


@on_both_stores_slowly
def test_models_have_their_own_lists(filled, transport, make):
    filled.client.add(make.vectors(2), ids="ab", fingerprint=make.OTHER_MODEL)
    assert [case.id for case in transport.list_cases(10, make.OTHER_MODEL)] == ["a", "b"]
    assert len(list(transport.list_cases(10))) == 700
    with pytest.raises(FingerprintError, match="Run `cxr index"):
        list(transport.list_cases(10, "c" * 64))


def test_damaged_rows_are_left_out(make, tmp_path, open_sidecar):
    with CaseStore(tmp_path / "store") as store:
        store.put(make.MODEL, make_cases(5), make.vectors(5))
    change(tmp_path / "store" / "cases.sqlite", "UPDATE cases SET labels = '[]' WHERE id = 'case-2'")
    ids = [case.id for case in ask(open_sidecar()).cases]
    assert ids == ["case-0", "case-1", "case-3", "case-4"]


@on_both_stores_slowly
def test_before_the_first_case(sidecar):
    answer = ask(sidecar)
    assert (len(answer.cases), answer.next_page_token, answer.fingerprint) == (0, "", "")


@on_both_stores_slowly
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"page_size": 1001}, "1 to 1000"),
        ({"page_token": "next"}, "page token"),
        ({"page_token": "-1"}, "page token"),
        ({"page_token": "9" * 20}, "page token"),
        ({"page_token": "9" * 19}, "page token"),
        ({"fingerprint": "abc"}, "64 hexadecimal"),
        ({"filter": retrieval_pb2.Filter(labels_any=["zebra"])}, "22 categories"),
        ({"exclude_study_ids": [""]}, "study id is empty"),
    ],
)
def test_bad_requests(sidecar, expect_status, fields, words):
    with expect_status("INVALID_ARGUMENT", words):
        ask(sidecar, **fields)


def test_the_client_refuses_what_needs_a_query_before_it_asks():
    transport = RetrievalTransport("127.0.0.1:9")
    for options in (
        SearchOptions(min_score=0.5),
        SearchOptions(diversity=0.5),
        SearchOptions(query_labels=("normal",)),
    ):
        with pytest.raises(InputError, match="need a query"):
            transport.list_cases(1, options=options)
    transport.close()


def test_an_older_sidecar_is_named(sidecar, monkeypatch):
    transport = RetrievalTransport(sidecar.server.address)
    transport._stub.ListCases = sidecar.client.channel.unary_unary(
        "/cxr.retrieval.v1.Retrieval/ListCasesOfTomorrow",
        request_serializer=retrieval_pb2.ListCasesRequest.SerializeToString,
    )
    with pytest.raises(ServerError, match="the sidecar is older than this client"):
        list(transport.list_cases(5))
    transport.close()
