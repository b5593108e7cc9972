"""A model of phantoms that is asked about a real radiograph: every surface says what its answer is worth."""

import json

import pytest
from typer.testing import CliRunner

from cli.app import app
from client import CaseInput, CxrClient
from client.page import write_report_page
from contract.training_data import PHANTOM_WARNING


@pytest.fixture(scope="module")
def film(openi_directory):
    return sorted((openi_directory / "png").glob("*.png"))[0]


@pytest.fixture
def run(stack, client):
    """Run a command against the servers and return what it prints, each line whole."""

    def invoke(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in arguments], env={"COLUMNS": "240"})
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


def test_the_bundle_records_it_and_the_server_says_it(trained, client):
    assert trained.bundle.trained_on == "phantom"
    model = client.info()
    assert model.trained_on == "phantom"
    assert model.warnings == (PHANTOM_WARNING,)


def test_python(client, trained, film):
    image = film.read_bytes()
    prediction = client.predict(image)
    assert prediction.warnings == (PHANTOM_WARNING,)
    assert client.search(image, k=1).warnings == (PHANTOM_WARNING,)
    assert client.explain(trained.bundle, image=image, steps=1).warnings == (PHANTOM_WARNING,)
    assert client.score_findings(["effusion"], prediction)[0].warnings == (PHANTOM_WARNING,)
    try:
        result = client.index([CaseInput("film", "film", image)])
    finally:
        client.delete(["film"])
    assert result.warnings == (PHANTOM_WARNING,)
    assert result.warned == ()  # nothing is unusual about the image
    many = client.predict_many([CaseInput("film", "film", image)])
    assert [answer.warnings for _, answer in many] == [(PHANTOM_WARNING,)]
    assert client.health().trained_on == "phantom"


@pytest.mark.parametrize("command", ["predict", "search", "finding", "explain"])
def test_commands(run, stack, trained, film, tmp_path, command):
    triton = ("--triton", stack.triton_url)
    arguments = {
        "predict": ("predict", film, *triton),
        "finding": ("predict", film, "--finding", "effusion", *triton),
        "search": ("search", film, *triton, "--retrieval", stack.retrieval_url),
        "explain": (
            "explain",
            film,
            "--bundle",
            trained.bundle.path,
            "--out",
            tmp_path / "a.png",
            "--steps",
            4,
        ),
    }[command]
    shown = run(*arguments)
    assert shown.count(PHANTOM_WARNING) == 1
    assert f"Warning: {PHANTOM_WARNING}" in shown
    told = json.loads(run(*arguments, "--json"))
    assert told["trained_on"] == "phantom"
    assert told["warnings"] == [PHANTOM_WARNING]


def test_doctor(run, stack):
    servers = ("--triton", stack.triton_url, "--retrieval", stack.retrieval_url)
    shown = run("doctor", *servers)
    assert "trained on drawn phantoms" in shown
    assert f"Warning: {PHANTOM_WARNING}" in shown
    told = json.loads(run("doctor", *servers, "--json"))["servers"]
    assert told["trained_on"] == "phantom"
    assert told["warnings"] == [PHANTOM_WARNING]


def test_page(client: CxrClient, film, tmp_path):
    prediction = client.predict(film.read_bytes())
    write_report_page(
        tmp_path / "page.html",
        title="A film",
        data_note="From Open-i.",
        predictions={"image": prediction},
        searches={},
        explanation=None,
        truth=(),
    )
    assert f"<li>{PHANTOM_WARNING}</li>" in (tmp_path / "page.html").read_text(encoding="utf-8")
