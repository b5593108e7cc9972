"""The config file of `cxr serve`: the order of the places, and what is wrong with a file, in one sentence."""

from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli.app import app
from contract.errors import ConfigError

SERVE = get_command(app).get_command(None, "serve")
LEAST = "repository = models\nstore = cases\n"


def write(folder: Path, text: str) -> str:
    path = folder / "serve.ini"
    path.write_text(f"[serve]\n{text}")
    return str(path)


def read(*arguments: str) -> dict:
    # As in `cli.app`: make_context takes the command's own settings.
    return SERVE.make_context("serve", list(arguments)).params


def test_the_order_is_argument_environment_file_default(tmp_path, monkeypatch):
    file = write(tmp_path, LEAST + "http_port = 1\ngrpc_port = 1\nmetrics_port = 1\n")
    monkeypatch.setenv("CXR_SERVE_HTTP_PORT", "2")
    monkeypatch.setenv("CXR_SERVE_GRPC_PORT", "2")
    options = read("--config", file, "--http-port", "3")
    ports = ("http_port", "grpc_port", "metrics_port", "retrieval_port")
    assert [options[name] for name in ports] == [3, 2, 1, 8005]
    assert (options["repository"], options["store"]) == (Path("models"), "cases")


def test_the_variables_with_their_own_names_come_before_the_file(tmp_path, monkeypatch):
    file = write(tmp_path, LEAST + "tls_dir = a\nrequire_signature = a b\n")
    options = read("--config", file)
    assert (options["tls_dir"], list(options["require_signature"])) == (Path("a"), ["a", "b"])
    monkeypatch.setenv("CXR_TLS_DIR", "c")
    monkeypatch.setenv("CXR_REQUIRE_SIGNATURE", "c d")
    monkeypatch.setenv("CXR_SERVE_CONFIG", file)
    options = read()
    assert (options["tls_dir"], list(options["require_signature"])) == (Path("c"), ["c", "d"])


def test_each_option_can_be_set(tmp_path):
    names = {option.name for option in SERVE.params} - {"config", "as_json", "help"}
    changed = {
        "repository": "r",
        "store": "s",
        "logs": "l",
        "http_port": "1",
        "grpc_port": "2",
        "metrics_port": "3",
        "retrieval_port": "4",
        "relay_metrics_port": "5",
        "retrieval_metrics_port": "6",
        "metrics_host": "::1",
        "http_inference": "yes",
        "host": "::1",
        "tls_dir": "t",
        "tls_require_client": "on",
        "tokens": "k",
        "log_format": "json",
        "log_calls": "7",
        "otlp": "http://a",
        "triton_otlp": "http://b",
        "insecure": "true",
        "index": "hnsw",
        "recall_floor": "0.5",
        "require_signature": "p",
    }
    assert set(changed) == names
    options = read(
        "--config", write(tmp_path, "".join(f"{name} = {text}\n" for name, text in changed.items()))
    )
    default = read("--repository", "x", "--store", "x")
    assert all(options[name] != default[name] for name in names)
    assert (options["insecure"], options["recall_floor"]) == (True, 0.5)


def test_an_empty_value_is_none(tmp_path):
    assert read("--config", write(tmp_path, LEAST + "tls_dir =\n"))["tls_dir"] is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grpc_prot = 1", "has the unknown setting grpc_prot; the nearest known one is grpc_port."),
        ("config = x", "has the unknown setting config; "),
        ("xyz = 1", "has the unknown setting xyz; the known ones are grpc_port, host, "),
        ("grpc_port = many", "sets grpc_port to 'many', which is not valid: "),
        ("insecure = perhaps", "sets insecure to 'perhaps', which is not valid: "),
        ("log_format = xml", "sets log_format to 'xml', which is not valid: "),
        ("recall_floor = 2", "sets recall_floor to '2', which is not valid: "),
        ("no equals sign", "cannot be used: it needs a section [serve] with name = value."),
    ],
)
def test_a_wrong_file_is_one_sentence(text, words, tmp_path):
    file = write(tmp_path, f"{LEAST}{text}\n")
    with pytest.raises(ConfigError) as caught:
        read("--config", file)
    assert str(caught.value).startswith(f"The config file {file} (--config, CXR_SERVE_CONFIG) {words}")


def test_the_command_tells_of_a_file_that_is_not_there(tmp_path):
    result = CliRunner().invoke(app, ["serve", "--config", str(tmp_path / "none.ini")])
    assert result.exit_code == 2
    assert "cannot be used: No such file or directory." in " ".join(result.output.split())
