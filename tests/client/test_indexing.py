"""Index cases in a real sidecar: added cases, replaced cases, and cases that are refused."""

from contextlib import ExitStack

import numpy as np
import pytest
from fake_triton import in_steps

from cli.cases import make_cases as make_table_cases
from client import CaseInput, CxrClient
from client.prediction import Prediction
from client.retrieval import RetrievalTransport
from contract.errors import ImageError, InputError, ServerError, UnavailableError
from contract.labels import LABEL_KEYS
from retrieval.indexes import CaseIndexes
from retrieval.listener import SidecarServer
from retrieval.service import RetrievalService

MODEL = "ab" * 32


@pytest.fixture
def sidecar(tmp_path):
    with ExitStack() as cleanup:
        indexes = cleanup.enter_context(CaseIndexes(tmp_path / "store", fingerprint=MODEL))
        server = SidecarServer(RetrievalService(indexes), "127.0.0.1:0")
        cleanup.callback(server.stop, 0.0)
        indexes.start().result(10)
        server.announce()
        yield server, indexes.home.store


@pytest.fixture
def client(sidecar, monkeypatch):
    """A client with the real transport to the sidecar and with invented predictions."""
    server, _ = sidecar
    with CxrClient(retrieval_url=server.address) as client:
        model = type("Model", (), {"fingerprint": MODEL, "trained_on": "openi"})
        monkeypatch.setattr(client, "_info_in_steps", in_steps(lambda _limit: model))

        def predict(image, report, _deadline, _calls=None):
            from client.exchange import make_inputs

            make_inputs(image, report)
            if image == b"no image":
                raise ImageError("preprocess_image: no image")
            if image == b"end":
                raise ServerError("Triton failed")
            embedding = np.random.default_rng(abs(hash((image, report)))).normal(size=16)
            return Prediction("image", (), (embedding / np.linalg.norm(embedding)).astype(np.float32), MODEL)

        monkeypatch.setattr(client._predictor, "predict", in_steps(predict))
        yield client


def make_cases(ids, **fields):
    return [CaseInput(str(name), f"study-{name}", f"image {name}".encode(), **fields) for name in ids]


def test_added_and_replaced_are_told_apart(client):
    result = client.index(make_cases(range(130)))
    assert (result.added, result.replaced, result.indexed) == (130, 0, 130)
    result = client.index(make_cases([0, 1, 500]))
    assert (result.added, result.replaced, result.indexed) == (1, 2, 3)
    assert client.index_info().case_count == 131
    told = result.to_dict()
    assert (told["indexed"], told["added"], told["replaced"], told["refused"]) == (3, 1, 2, [])


def test_a_case_that_cannot_be_read_does_not_end_the_rest(client, tmp_path):
    cases = make_cases(range(139))
    there = tmp_path / "there.png"
    there.write_bytes(b"image")
    cases[3] = CaseInput("3", "3", tmp_path / "missing.png")
    cases[4] = CaseInput("4", "4", there)
    cases[64] = CaseInput("64", "64", tmp_path)
    cases[65] = CaseInput("65", "65", b"no image")
    cases[66] = CaseInput("66", "66", b"image", float("nan"))
    cases[67] = CaseInput("67", "67", b"image", tmp_path / "missing.txt")
    cases[138] = CaseInput("138", "138")
    done = []
    result = client.index(cases, progress=done.append)
    assert done == list(range(1, 140))
    assert [case_id for case_id, _ in result.refused] == ["3", "64", "65", "66", "67", "138"]
    assert "missing.png" in result.refused[0][1]
    assert "report is NaN" in result.refused[3][1]
    assert client.index_info().case_count == result.indexed == 133


def test_a_table_with_images_that_are_gone(client, tmp_path):
    there = tmp_path / "there.png"
    there.write_bytes(b"image")
    sections = dict.fromkeys(("indication", "comparison", "impression"))
    rows = [
        {
            "study_id": str(n),
            "image_paths": [str(path)],
            "labels": ["normal"],
            "findings": "Clear.",
            **sections,
        }
        for n, path in enumerate((there, tmp_path / "gone.png", there))
    ]
    result = client.index(make_table_cases(rows, "findings"))
    assert (result.added, [case_id for case_id, _ in result.refused]) == (2, ["1"])
    assert "gone.png" in result.refused[0][1]


def test_a_case_that_the_sidecar_refuses_does_not_end_the_rest(client):
    cases = make_cases(range(10))
    cases[2] = CaseInput("2", "2", b"image", labels=("no such label",))
    cases[5] = CaseInput("x" * 300, "5", b"image")
    cases[7] = CaseInput("7", "", b"image")
    result = client.index(cases)
    assert [case_id for case_id, _ in result.refused] == ["2", "x" * 300, "7"]
    assert "labels must be different keys" in result.refused[0][1]
    assert (result.added, result.replaced) == (7, 0)


def test_one_id_twice_is_added_and_replaced(client):
    result = client.index(make_cases([1, 2, 1]))
    assert (result.added, result.replaced, result.refused) == (2, 1, ())


def test_a_failing_server_ends_it_and_keeps_what_was_stored(client):
    cases = make_cases(range(80))
    cases[70] = CaseInput("70", "70", b"end")
    with pytest.raises(ServerError):
        client.index(cases)
    assert client.index_info().case_count == 64


def test_reports_of_files_are_stored_as_their_text(client, sidecar, tmp_path):
    report = tmp_path / "report.txt"
    report.write_bytes("\ufeffClear. Größe normal.".encode())
    cases = [CaseInput(str(n), "1", report=given) for n, given in enumerate((report, b"Clear.", "Clear."), 1)]
    client.index([*cases, CaseInput("4", "4", b"image", labels=[LABEL_KEYS[0]])])
    _, store = sidecar
    assert [store.get(str(n)).report for n in (1, 2, 3, 4)] == [
        "Clear. Größe normal.",
        "Clear.",
        "Clear.",
        "",
    ]
    assert store.get("4").labels == (LABEL_KEYS[0],)


def test_one_string_deletes_nothing(client, sidecar):
    client.index(make_cases([1, 2, 12]))
    with pytest.raises(InputError, match="one string"):
        sidecar[1].delete("12")
    with pytest.raises(InputError, match="one string"):
        client.delete("12")
    assert client.index_info().case_count == 3
    assert client.delete(["12"]) == 1


def test_an_index_that_goes_away_is_an_error_of_the_service(client, sidecar):
    server, _ = sidecar
    server.stop(0.0)
    with pytest.raises(UnavailableError, match="is `cxr serve` running there"):
        client.index(make_cases([1]))
    RetrievalTransport(server.address).close()
