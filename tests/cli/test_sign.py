"""`cxr sign` and `--require-signature` as a user types them."""

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.bundle import MANIFEST, REQUIRED_FILES, load_bundle, seal_bundle, write_directory, write_labels
from contract.decisions import Decisions, ServedLabel
from contract.labels import LABELS
from contract.signatures import ENVIRONMENT, TrustedKeys
from export import signing

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
    # Cheap passwords. tests/export/test_signing.py opens a key at the full cost.
    monkeypatch.setattr(signing, "_OPERATIONS", 2**15)
    monkeypatch.setattr(signing, "_MEMORY", 2**20)
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
    assert not (tmp_path / "bundle-hub").exists()


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
