"""`cxr index list`, `backup`, `restore` and `verify` at a sidecar in this process."""

import json
import sqlite3

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from client.retrieval import RetrievalTransport, StoredCase
from contract.protection import Protection
from retrieval.indexes import CaseIndexes
from retrieval.listener import SidecarServer
from retrieval.service import RetrievalService

MODEL = "ab" * 32
KEY = "cxr_" + "k" * 40


def make_case(name: str, row: int, label: str) -> StoredCase:
    embedding = np.eye(8, dtype=np.float32)[row]
    return StoredCase(name, f"study-{name}", embedding, (label,), f"Report {name}.", "x.dcm", "PA", "study")


@pytest.fixture
def sidecar(tmp_path):
    """Address of a sidecar with three cases, whose admin key is in the file `key`."""
    (tmp_path / "key").write_text(KEY)
    with CaseIndexes(tmp_path / "store") as indexes:
        protection = Protection(admin_key=tmp_path / "key")
        server = SidecarServer(RetrievalService(indexes), "127.0.0.1:0", protection)
        indexes.start().result(10)
        transport = RetrievalTransport(server.address)
        cases = [make_case("a", 0, "normal"), make_case("b", 1, "pleural"), make_case("c", 2, "normal")]
        transport.add(MODEL, cases, 10)
        yield server.address
        transport.close()
        server.stop(0.0)


def run(*arguments):
    return CliRunner().invoke(app, [str(word) for word in arguments])


def test_cases_are_listed_as_lines_and_as_json(sidecar):
    listed = run("index", "list", "--retrieval", sidecar)
    assert listed.exit_code == 0, listed.output
    assert listed.stdout.splitlines()[1] == "b\tstudy-b\tpleural\tPA\tstudy"
    assert listed.stdout.count("\n") == 3
    reports = run("index", "list", "--retrieval", sidecar, "--reports", "--with-any", "pleural").stdout
    assert reports == "b\tstudy-b\tpleural\tPA\tstudy\tReport b.\n"
    document = json.loads(run("index", "list", "--retrieval", sidecar, "--json", "--limit", 2).stdout)
    assert [case["id"] for case in document["cases"]] == ["a", "b"]
    assert document["cases"][0]["report"] == ""


def test_a_backup_is_made_checked_and_restored(sidecar, tmp_path):
    key, out = tmp_path / "key", tmp_path / "backup"
    refused = run("index", "backup", out, "--retrieval", sidecar)
    assert (refused.exit_code, "restricted to admins" in refused.stderr) == (2, True)
    made = run("index", "backup", out, "--retrieval", sidecar, "--token-file", key, "--json")
    assert made.exit_code == 0, made.output
    document = json.loads(made.stdout)
    assert (document["ok"], document["files"], document["stores"][0]["rows"]) == (True, ["cases.sqlite"], 3)
    again = run("index", "backup", out, "--retrieval", sidecar, "--token-file", key)
    assert (again.exit_code, "exists" in again.stderr) == (2, True)
    assert run("index", "verify", out).exit_code == 0
    assert json.loads(run("index", "verify", "--store", tmp_path / "store", "--json").stdout)["ok"]
    restored = run("index", "restore", out, "--store", tmp_path / "new")
    assert restored.exit_code == 0, restored.output
    assert "3 cases, model abababababab: ok" in restored.stdout
    twice = run("index", "restore", out, "--store", tmp_path / "new")
    assert (twice.exit_code, "--replace" in twice.stderr) == (2, True)
    assert run("index", "restore", out, "--store", tmp_path / "new", "--replace").exit_code == 0
    assert run("index", "restore", out, "--store", tmp_path / "store", "--replace").exit_code == 2  # in use


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "--store"], "has no files to verify: `cxr index migrate STORE DIRECTORY`"),
        (["restore", "backup", "--store"], "takes no backup: restore it into a directory"),
        (["tune"], "has no kinds of index to compare"),
    ],
)
def test_what_a_milvus_store_does_not_offer_is_refused(arguments, words):
    done = run("index", *arguments, "milvus://127.0.0.1:9/cases")
    assert (done.exit_code, words in " ".join(done.stderr.split())) == (2, True), done.stderr


def test_damage_has_exit_code_3(sidecar, tmp_path):
    out = tmp_path / "backup"
    run("index", "backup", out, "--retrieval", sidecar, "--token-file", tmp_path / "key")
    run("index", "restore", out, "--store", tmp_path / "new")
    connection = sqlite3.connect(tmp_path / "new" / "cases.sqlite")
    connection.execute("UPDATE cases SET report = '' WHERE id = 'b'")
    connection.commit()
    connection.close()
    (out / "cases.sqlite").write_bytes(b"")
    for folder in (("--store", tmp_path / "new"), (out,)):
        found = run("index", "verify", *folder)
        assert (found.exit_code, found.stderr.count("\n")) == (3, 1)
        document = run("index", "verify", *folder, "--json")
        assert (document.exit_code, json.loads(document.stdout)["ok"]) == (3, False)
    assert run("index", "restore", out, "--store", tmp_path / "other").exit_code == 3


def test_verify_wants_one_folder(tmp_path):
    for folders in ((), (tmp_path, "--store", tmp_path)):
        result = run("index", "verify", *folders)
        assert (result.exit_code, "Give either" in result.stderr) == (2, True)
    assert run("index", "verify", tmp_path).exit_code == 2
