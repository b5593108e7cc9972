"""`cxr sign` and `--require-signature` as a user types them."""

import json
import re
import stat
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.app import app
from cli.default_command import DefaultCommandGroup
from contract.bundle import MANIFEST, REQUIRED_FILES, load_bundle, seal_bundle, write_directory, write_labels
from contract.decisions import Decisions, ServedLabel
from contract.labels import LABELS
from contract.signatures import ENVIRONMENT, TrustedKeys
from export import signing_keys

pytest.importorskip("minisign")

REFUSED = "has no signature, but --require-signature asks for one"


def run(*arguments: object, given: str | None = None):
    return CliRunner().invoke(app, list(map(str, arguments)), input=given)


@pytest.fixture
def bundle(tmp_path) -> Path:
    path = tmp_path / "bundle"
    with write_directory(path) as scratch:
        for name in REQUIRED_FILES:
            (scratch / name).write_text("{}")
        labels = tuple(ServedLabel(label.key, label.name, 0.5, 1.0, 0.0) for label in LABELS)
        write_labels(scratch, Decisions.repeat(labels))
        seal_bundle(scratch, {})
    return path


def test_a_bundle_is_signed_with_a_password_from_a_prompt_or_a_file(tmp_path, bundle, monkeypatch):
    # Cheap passwords. tests/export/signing/test_keys.py opens a key at the full cost.
    monkeypatch.setattr(signing_keys, "_OPERATIONS", 2**15)
    monkeypatch.setattr(signing_keys, "_MEMORY", 2**20)
    made = run("sign", "key", "--out", tmp_path / "keys", "--json", given="open sesame\nopen sesame\n")
    assert made.exit_code == 0, made.output
    key = json.loads(made.stdout)
    assert stat.S_IMODE(Path(key["secret_key"]).stat().st_mode) == 0o600
    asked = run("sign", "bundle", bundle, "--key", key["secret_key"], given="open sesame\n")
    assert asked.exit_code == 0, asked.output
    assert key["key_id"] in asked.stdout
    assert "open sesame" not in made.output + asked.output
    trust = TrustedKeys.read([key["public_key"]])
    assert load_bundle(bundle, trust=trust)
    (bundle / f"{MANIFEST}.minisig").unlink()
    (tmp_path / "password").write_text("open sesame\n")
    words = ("sign", "bundle", bundle, "--key", key["secret_key"], "--password-file")
    assert run(*words, tmp_path / "password", "--json").exit_code == 0
    assert load_bundle(bundle, trust=trust)
    assert run(*words, tmp_path / "nowhere").exit_code == 2
    (tmp_path / "password").write_text("\n")
    assert "is empty" in (ended := run(*words, tmp_path / "password")).output
    assert ended.exit_code == 2


COMMANDS = [
    ["export", "{}", "--hub-folder", "{}-hub"],
    ["explain", "--bundle", "{}", "--report", "text"],
    ["train", "table.parquet", "--out", "{}-new", "--from", "{}"],
    ["train", "table", "{}"],
    ["export", "tensorrt", "{}", "--out", "{}-plans"],
    pytest.param(["calibrate", "{}", "table.parquet", "--out", "{}-new"], marks=pytest.mark.slow),
    pytest.param(["train", "series", "table.parquet", "{}"], marks=pytest.mark.slow),
    pytest.param(["data", "order", "table.parquet", "{}", "--out", "{}.parquet"], marks=pytest.mark.slow),
    pytest.param(["monitor", "reference", "{}", "table.parquet"], marks=pytest.mark.slow),
    pytest.param(["monitor", "report", "{}", "results.csv"], marks=pytest.mark.slow),
    pytest.param(["evaluate", "table.parquet", "--bundle", "{}"], marks=pytest.mark.slow),
    pytest.param(
        ["evaluate", "explain", "table.parquet", "--bundle", "{}", "--boxes", "boxes.csv"],
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("words", COMMANDS)
def test_no_command_loads_a_bundle_without_the_signature(words, bundle, tmp_path, monkeypatch):
    key = json.loads(run("sign", "key", "--out", tmp_path, "--no-password", "--json").stdout)
    filled = [word.format(bundle) for word in words]
    ended = run(*filled, "--require-signature", key["public_key"])
    assert (ended.exit_code, REFUSED in ended.output) == (3, True), ended.output
    monkeypatch.setenv(ENVIRONMENT, key["public_key"])
    assert REFUSED in run(*filled).output
    assert not list(tmp_path.glob("bundle-*"))


REPOSITORY_COMMANDS = [
    ["bench", "run", "--baseline", "--repository", "{}", "--count", "1"],
    ["bench", "profile", "{}", "--table", "table.parquet"],
    ["export", "tensorrt", "{}", "--out", "{}-plans"],
]


@pytest.mark.parametrize("words", REPOSITORY_COMMANDS)
def test_no_command_reads_a_repository_without_the_signature(words, tmp_path):
    key = json.loads(run("sign", "key", "--out", tmp_path, "--no-password", "--json").stdout)
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / ".published.json").write_text("this is not read as JSON")
    filled = [word.format(repository) for word in words]
    ended = run(*filled, "--require-signature", key["public_key"])
    assert (ended.exit_code, REFUSED in ended.output) == (3, True), ended.output


NO_SIGNATURE_NEEDED = {
    "cxr data audit": "reads split.json, a list of ids",
    "cxr export retire": "changes a repository and signs the change (--sign)",
    "cxr export rollback": "changes a repository and signs the change (--sign)",
    "cxr index": "reads split.json, a list of ids",
    "cxr sign bundle": "makes the signature",
    "cxr sign repository": "makes the signature",
    "cxr train compare": "shows numbers out of JSON files and loads no model",
}


def list_commands(command, words=("cxr",)):
    """Yield each command of a group with its name, those of its groups too."""
    for name, child in getattr(command, "commands", {}).items():
        unnamed = isinstance(command, DefaultCommandGroup) and name == DefaultCommandGroup.default
        known = words if unnamed else (*words, name)
        yield from list_commands(child, known)
    if not hasattr(command, "commands"):
        yield " ".join(words), command


def reads_model(command) -> bool:
    """Whether the name or the help of an option speaks of a bundle or a model repository that the command may read."""
    written = ("out", "require_signature", "load", "admin_key", "sign", "password_file")
    texts = [
        f"{parameter.name} {getattr(parameter, 'help', '') or ''}"
        for parameter in command.params
        if parameter.name not in written
    ]
    return any(re.search(r"\b(bundles?|repository)\b", text, re.IGNORECASE) for text in texts)


def test_every_command_that_reads_a_model_can_require_a_signature():
    commands = dict(list_commands(typer.main.get_command(app)))
    readers = {name for name, command in commands.items() if reads_model(command)}
    able = {
        name
        for name, command in commands.items()
        if any("--require-signature" in parameter.opts for parameter in command.params)
    }
    assert {
        "cxr export",
        "cxr serve",
        "cxr bench run",
        "cxr bench soak",
        "cxr calibrate",
        "cxr train",
    } <= readers
    assert readers - able - set(NO_SIGNATURE_NEEDED) == set()
    assert able & set(NO_SIGNATURE_NEEDED) == set()


def test_serve_reads_nothing_of_an_unsigned_repository(tmp_path):
    """An interrupted change is undone only after the signature was checked."""
    key = json.loads(run("sign", "key", "--out", tmp_path, "--no-password", "--json").stdout)
    (tmp_path / ".published.json").write_text("this is not read as JSON")
    words = ("serve", "--repository", tmp_path, "--store", tmp_path / "store", "--logs", tmp_path / "logs")
    ended = run(*words, "--require-signature", key["public_key"])
    assert (ended.exit_code, REFUSED in ended.output) == (3, True), ended.output
    assert not (tmp_path / "logs").exists()
    assert "is damaged" in run(*words).output


def test_a_hub_folder_keeps_the_signature(bundle, tmp_path):
    pytest.importorskip("huggingface_hub")
    key = json.loads(run("sign", "key", "--out", tmp_path, "--no-password", "--json").stdout)
    assert run("sign", "bundle", bundle, "--key", key["secret_key"]).exit_code == 0
    words = ("export", bundle, "--hub-folder", tmp_path / "hub", "--require-signature", key["public_key"])
    assert run(*words).exit_code == 0
    assert load_bundle(tmp_path / "hub", trust=TrustedKeys.read([key["public_key"]]))


def test_a_repository_that_is_none_is_not_signed(tmp_path):
    key = json.loads(run("sign", "key", "--out", tmp_path, "--no-password", "--json").stdout)
    ended = run("sign", "repository", tmp_path / "nowhere", "--key", key["secret_key"])
    assert (ended.exit_code, "was not published by cxr" in ended.output) == (3, True)
    twice = run("sign", "key", "--out", tmp_path / "x", "--no-password", "--password-file", tmp_path / "p")
    assert (twice.exit_code, "not both" in twice.output) == (2, True)
    alone = run("export", "rollback", tmp_path, "--password-file", tmp_path / "p")
    assert "give --sign KEY too" in alone.output
