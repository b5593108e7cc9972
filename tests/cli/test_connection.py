"""The options of TLS and the token, which every command has that calls a server."""

import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.connection import TLS, Connection

TOKEN = "cxr_" + "t" * 40
COMMANDS = [
    ("predict",),
    ("search",),
    ("index",),
    ("index", "backup"),
    ("index", "list"),
    ("doctor",),
    ("evaluate",),
    ("export",),
    ("export", "rollback"),
    ("export", "retire"),
    ("export", "verify"),
    ("bench", "run"),
]


def run(*arguments, **environment):
    return CliRunner().invoke(app, [str(word) for word in arguments], env=environment)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_have_the_options(command):
    help_text = run(*command, "--help", COLUMNS="200").output
    for option in ("--tls-ca", "--tls-cert", "--tls-key", "--tls-server-name", "--token-file"):
        assert option in help_text
    assert "--connection" not in help_text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tls-ca", "none.crt"), "tls.ca (--tls-ca, CXR_TLS_CA): none.crt cannot be read"),
        (("--tls-cert", "a.crt"), "belong together"),
        (("--token-file", "none"), "The token file none (--token-file, CXR_TOKEN_FILE) cannot be read"),
        (("--token-file", "token", "--triton", "triton.lab:8001"), "not sent to triton.lab:8001"),
    ],
)
def test_a_wrong_setting_is_one_sentence(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text(TOKEN)
    result = run("predict", "--report", "Normal.", *options)
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert words in said
    assert TOKEN not in said


def test_the_options_reach_the_client_before_the_environment(monkeypatch, tmp_path):
    seen = {}

    class Client:
        def __init__(self, *_, **settings):
            seen.update(settings)
            raise KeyboardInterrupt

    monkeypatch.setattr("client.CxrClient", Client)
    (tmp_path / "token").write_text(TOKEN)
    environment = {"CXR_TLS_CA": "env.crt", "CXR_TOKEN": f"{TOKEN}2"}
    run("predict", "--report", "x", "--tls-ca", "own.crt", "--token-file", tmp_path / "token", **environment)
    assert Connection(seen["tls"], seen["token"]) == Connection(TLS("own.crt"), TOKEN)
    run("predict", "--report", "x", **environment)
    assert Connection(seen["tls"], seen["token"]) == Connection(TLS("env.crt"), f"{TOKEN}2")
    run("predict", "--report", "x", "--tls-ca", "system")
    assert (seen["tls"], seen["token"]) == (TLS(), "")
    run("predict", "--report", "x")
    assert (seen["tls"], seen["token"]) == (False, "")
