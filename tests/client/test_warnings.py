"""The warnings of the served model reach the Python client, the commands and the index."""

import io
import json

import pytest
from fake_triton import FakeTritonClient
from rich.console import Console
from typer.testing import CliRunner

from cli.app import app
from cli.show import print_indexed
from client import CaseInput
from client.cases import IndexResult, SimilarCase
from client.triton import TritonTransport
from contract.errors import ArtifactError, InputError
from contract.notes import ImageNotes, ReadPart, ReportNotes
from contract.tensors import MODELS

LATERAL = ImageNotes("LATERAL", "L", "CR", ("The image is a lateral view [of sorts].",))
FRONTAL = ImageNotes("PA", "", "DX")
CUT = ReportNotes(64, True, ("The report is longer than 64 tokens: its end was not read.",))
WHOLE = ReportNotes(9, parts=(ReadPart("history", "indication", 1), ReadPart("findings", "findings", 2)))


@pytest.fixture
def triton(triton):
    """An image b"lateral" and a report b"long" come back with a warning, an image b"bad" is refused."""

    def refuse(call) -> None:
        if call.images == [b"bad"]:
            raise InputError("preprocess_image: no image")

    triton.refuse = refuse
    triton.outputs = {
        "image_notes": lambda call: [[(LATERAL if call.images == [b"lateral"] else FRONTAL).to_json()]],
        "lateral": lambda call: [[call.images == [b"lateral"]]],  # the view head agrees with the header
        "report_notes": lambda call: [[(CUT if call.reports == [b"long"] else WHOLE).to_json()]],
    }
    return triton


@pytest.fixture
def client(retrieval, client):
    """A client whose searches return one case."""
    retrieval.cases = [SimilarCase("case-1", "study-1", 0.5, ("pleural",), "A report.", "")]
    return client


def test_a_result_of_an_approximate_index_says_so(retrieval, client):
    retrieval.exact = False
    result = client.search(b"frontal")
    assert (result.exact, result.to_dict()["exact"]) == (False, False)


@pytest.mark.parametrize(
    ("image", "report", "notes", "warnings"),
    [
        (b"frontal", "short", (FRONTAL, WHOLE), ()),
        (b"lateral", "short", (LATERAL, WHOLE), LATERAL.warnings),
        (b"lateral", "long", (LATERAL, CUT), (*LATERAL.warnings, *CUT.warnings)),
        (b"lateral", None, (LATERAL, None), LATERAL.warnings),
        (None, "long", (None, CUT), CUT.warnings),
    ],
)
def test_prediction_and_search_carry_the_warnings(client, image, report, notes, warnings):
    prediction = client.predict(image, report)
    assert (prediction.image_notes, prediction.report_notes) == notes
    assert prediction.warnings == warnings
    told = json.loads(json.dumps(prediction.to_dict()))
    assert told["warnings"] == list(warnings)
    assert told["image_notes"] == (None if notes[0] is None else notes[0].to_dict())
    assert told["report_notes"] == (None if notes[1] is None else notes[1].to_dict())
    assert client.search(image, report).warnings == warnings


def test_search_result_is_a_sequence_of_its_cases(client):
    found = client.search(b"lateral")
    assert len(found) == 1
    assert [case.id for case in found] == ["case-1"]
    assert found[0] is found.cases[0]
    assert found[:1] == found.cases
    assert found[0] in found
    assert set(found.to_dict()) == {"cases", "exact", "trained_on", "warnings"}


def test_index_tells_which_cases_have_a_warning(client):
    images = {"a": b"frontal", "b": b"lateral", "c": b"bad", "d": b"frontal"}
    reports = {"a": "short", "b": "long", "c": None, "d": "long"}
    result = client.index([CaseInput(key, key, image, reports[key]) for key, image in images.items()])
    assert result.indexed == 3
    assert [case_id for case_id, _ in result.refused] == ["c"]
    assert result.warned == (("b", (*LATERAL.warnings, *CUT.warnings)), ("d", CUT.warnings))
    assert json.loads(json.dumps(result.to_dict()))["warned"][1] == {"id": "d", "warnings": [*CUT.warnings]}


@pytest.mark.parametrize("damage", [b"{}", b"\xff", WHOLE.to_json()])
def test_notes_that_are_none_are_an_error(client, triton, damage):
    triton.outputs["image_notes"] = [[damage]]
    with pytest.raises(ArtifactError, match="notes"):
        client.predict(b"frontal")


def run(*arguments: str):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("command", ["predict", "search"])
def test_commands_print_the_warnings(client, command, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"lateral")
    shown = run(command, str(image), "--report", "long")
    for sentence in (*LATERAL.warnings, *CUT.warnings):
        assert f"Warning: {sentence}" in shown.splitlines()
    told = json.loads(run(command, str(image), "--report", "long", "--json"))
    assert told["warnings"] == [*LATERAL.warnings, *CUT.warnings]
    image.write_bytes(b"frontal")
    assert "Warning" not in run(command, str(image), "--report", "short")


def test_search_says_that_an_index_is_approximate(client, retrieval):
    said = "The index is approximate: a similar case may be missing. Each similarity is exact."
    assert said not in run("search", "--report", "short").splitlines()
    retrieval.exact = False
    assert said in run("search", "--report", "short").splitlines()
    assert json.loads(run("search", "--report", "short", "--json"))["exact"] is False


def test_predict_says_how_the_image_was_taken(client, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"lateral")
    taken = "Image: view LATERAL, laterality L, modality CR, lateral with probability 1.00 by the model"
    assert taken in run("predict", str(image)).splitlines()
    assert "Image:" not in run("predict", "--report", "short")


def test_predict_says_what_the_report_was_read_as(client):
    said = 'Report: read as indication 1 sentence ("history"), findings 2 sentences'
    assert said in run("predict", "--report", "short").splitlines()
    parts = json.loads(run("predict", "--report", "short", "--json"))["report_notes"]["parts"]
    assert parts[0] == {"heading": "history", "section": "indication", "sentences": 1}


def test_index_command_names_the_first_cases_with_a_warning():
    console = Console(record=True, width=200, file=io.StringIO())
    warned = tuple((f"case-{number}", LATERAL.warnings) for number in range(12))
    print_indexed(console, IndexResult(27, 3, (("bad", "no image"),), warned))
    shown = console.export_text().splitlines()
    assert shown[0] == "30 cases indexed (27 added, 3 replaced), 12 of them with a warning, 1 refused"
    assert f"  case-9: {LATERAL.warnings[0]}" in shown
    assert len(shown) == 1 + 1 + 10 + 1
    assert "2 more" in shown[-1]


def test_a_repository_of_an_older_version_is_refused_at_once(monkeypatch):
    outputs = [tensor.name for tensor in MODELS["predict_study"].outputs]
    transport = TritonTransport("localhost:1")
    monkeypatch.setattr(transport, "_client", FakeTritonClient)
    assert transport.read_model(1).fingerprint == "ab" * 32
    older = [name for name in outputs if not name.endswith("_notes")]
    monkeypatch.setattr(transport, "_client", lambda: FakeTritonClient(outputs=older))
    with pytest.raises(ArtifactError, match=r"image_notes, report_notes.*cxr export"):
        transport.read_model(1)
