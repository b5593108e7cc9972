"""Full queues and disks, damage and changes under way, over a real gRPC connection in this process."""

import threading
from concurrent.futures import ThreadPoolExecutor

from contract.proto import retrieval_pb2

from .both_stores import on_both_stores_slowly


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
def test_searches_while_cases_are_added_replaced_and_deleted(sidecar, make):
    vectors = make.vectors(90)
    sidecar.client.add(vectors[:50])
    done = threading.Event()

    def change():
        try:
            for number in range(50, 90):
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
    expected = {str(number) for number in range(90) if number < 50 or number % 5} | {"replaced"}
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
