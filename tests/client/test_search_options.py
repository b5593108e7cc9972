"""A search with options reaches a real sidecar, and what the sidecar tells of each case reaches the caller."""

import math
from contextlib import ExitStack

import numpy as np
import pytest
from fake_triton import in_steps

from client import CaseInput, CxrClient, SearchOptions
from client.images import ReadImage
from client.prediction import Prediction
from contract.errors import InputError, ServerError
from contract.notes import ImageNotes
from retrieval import diversity
from retrieval.indexes import CaseIndexes
from retrieval.listener import SidecarServer
from retrieval.service import RetrievalService

MODEL = "ab" * 32
REPORTS = {"1": "The heart is enlarged.", "2": "Heart is normal. Right pleural effusion.", "3": None}
LABELS = {"1": ("cardiac",), "2": ("pleural", "cardiac"), "3": ("normal",)}


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A client with invented predictions and the real transport to a sidecar, which holds three cases."""
    with ExitStack() as cleanup:
        indexes = cleanup.enter_context(CaseIndexes(tmp_path / "store", fingerprint=MODEL))
        server = SidecarServer(RetrievalService(indexes), "127.0.0.1:0")
        cleanup.callback(server.stop, 0.0)
        indexes.start().result(10)
        server.announce()
        client = cleanup.enter_context(CxrClient(retrieval_url=server.address))
        model = type("Model", (), {"fingerprint": MODEL, "trained_on": "openi"})
        monkeypatch.setattr(client, "_info_in_steps", in_steps(lambda _limit: model))

        def predict(image, report, _deadline, _calls=None):
            number = 1 if image is None else int(image)
            embedding = np.random.default_rng(number).normal(size=16)
            kind = "text" if image is None else "image" if report is None else "study"
            images = () if image is None else (ReadImage(ImageNotes("LATERAL" if number == 3 else "PA")),)
            unit = (embedding / np.linalg.norm(embedding)).astype(np.float32)
            return Prediction(kind, (), unit, MODEL, images=images)

        monkeypatch.setattr(client._predictor, "predict", in_steps(predict))
        cases = [
            CaseInput(name, f"study-{name}", name.encode(), text, LABELS[name])
            for name, text in REPORTS.items()
        ]
        assert client.index(cases).indexed == 3
        yield client


def test_a_case_comes_back_with_its_evidence(client):
    options = SearchOptions(query_labels=["pleural", "normal"])
    found = {case.id: case for case in client.search(report="Pleural EFFUSION.", options=options)}
    assert {name: (case.excerpt, case.shared_labels) for name, case in found.items()} == {
        "1": ("", ()),
        "2": ("Right pleural effusion.", ("pleural",)),
        "3": ("", ("normal",)),
    }
    assert {name: (case.view, case.embedding_kind) for name, case in found.items()} == {
        "1": ("PA", "study"),
        "2": ("PA", "study"),
        "3": ("LATERAL", "image"),
    }
    assert found["2"].to_dict()["shared_labels"] == ["pleural"]
    result = client.search(report="Effusion.")
    assert (result.exact, result.to_dict()["exact"]) == (True, True)
    assert not any(case.excerpt for case in client.search(b"1"))


@pytest.mark.parametrize("report", ["path", "bytes"])
def test_the_text_of_a_file_gives_excerpts_too(client, report, tmp_path):
    path = tmp_path / "report.txt"
    path.write_text("effusion", encoding="utf-8-sig")
    found = client.search(report=path if report == "path" else path.read_bytes())
    assert [case.excerpt for case in found if case.id == "2"] == ["Right pleural effusion."]


def test_text_that_no_message_can_hold_is_searched_all_the_same(client):
    assert len(client.search(report="effusion \udcff")) == 3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"labels_any": ["cardiac"]}, "12"),
        ({"labels_all": ("cardiac", "pleural")}, "2"),
        ({"labels_none": ["cardiac"]}, "3"),
        ({"views": ["LATERAL"]}, "3"),
        ({"embedding_kinds": ["study"]}, "12"),
        ({"exclude_ids": ["1", "3"]}, "2"),
        ({"min_score": 0.999}, "1"),
        ({"diversity": 0.5}, "123"),
    ],
)
def test_each_option_reaches_the_sidecar(client, fields, expected):
    options = SearchOptions(**fields)
    query = client.predict(b"1")
    for found in (
        client.search(b"1", options=options),
        client.search_embedding(query.embedding, fingerprint=MODEL, options=options),
    ):
        assert sorted(case.id for case in found) == list(expected)


def test_info_names_kinds_and_memory(client):
    info = client.index_info()
    assert info.cases_by_kind == {"study": 2, "image": 1}
    assert (info.index_kind, info.vector_bytes, info.code_bytes) == ("flat", 3 * 16 * 4, 0)
    assert info.store_bytes > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels_any": "pleural"}, "must be a list of strings"),
        ({"labels_all": ["zebra"]}, "labels_all names 'zebra'"),
        ({"query_labels": [1]}, "must be text"),
        ({"views": ["pa"]}, "Choose from PA, AP"),
        ({"embedding_kinds": ["views"]}, "Choose from study, image, text"),
        ({"exclude_ids": ["\udcff"]}, "not valid text"),
        ({"min_score": 1.1}, "min_score must be a number from -1 to 1"),
        ({"min_score": "0.5"}, "not of type str"),
        ({"diversity": math.nan}, "diversity must be a number from 0 to 1"),
        ({"diversity": True}, "not of type bool"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_sent(fields, message):
    with pytest.raises(InputError, match=message):
        SearchOptions(**fields)


def test_many_different_cases_are_refused(client):
    assert diversity.MAX_DIVERSE_K == 100
    with pytest.raises(InputError, match="at most 100 with a diversity, not 101"):
        client.search(report="x", k=101, options=SearchOptions(diversity=0.1))
    assert len(client.search(report="x", k=100, options=SearchOptions(diversity=0.1))) == 3


def test_an_older_sidecar_that_ignores_options_is_refused(client, monkeypatch):
    from contract.proto import retrieval_pb2
    from retrieval import service

    build = service._build_answer
    monkeypatch.setattr(
        service,
        "_build_answer",
        lambda *given: retrieval_pb2.SearchResponse(results=build(*given).results),
    )
    assert len(client.search(report="x", options=SearchOptions(query_labels=["normal"]))) == 3
    for options in (
        SearchOptions(labels_any=["cardiac"]),
        SearchOptions(min_score=0.0),
        SearchOptions(diversity=0.5),
    ):
        with pytest.raises(ServerError, match="The sidecar is older than this client"):
            client.search(report="x", options=options)
