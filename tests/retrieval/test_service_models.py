"""Cases of several models in one store, over a real gRPC connection in this process."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

import retrieval.service
from contract.errors import ArtifactError

from .both_stores import on_both_stores, on_both_stores_slowly


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
