"""`cxr index migrate`: from files to files, to Milvus and back; interrupted, repeated, and refused."""

import json

import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.errors import ArtifactError, ConfigError
from retrieval import migrating
from retrieval.store import CaseStore

from .both_stores import on_both_stores, on_both_stores_slowly
from .store_files import change


def move(source, target, replace=False, progress=lambda done, total: None):
    return migrating.migrate(str(source), str(target), replace=replace, progress=progress)


def read_all(directory):
    """Everything that is stored of each of the 700 cases."""
    with CaseStore(directory) as store:
        records, embeddings = store.read_named([str(number) for number in range(700)])
        assert len(records) == store.count() == 700
    return {record: row.tobytes() for record, row in zip(records, embeddings, strict=True)}


@pytest.fixture
def source(tmp_path, make):
    """A directory with 700 cases of one model and three of another."""
    with CaseStore(tmp_path / "from") as store:
        store.put(make.MODEL, make.records(range(700)), make.vectors(700))
    with CaseStore(tmp_path / "from" / "models" / make.OTHER_MODEL, fingerprint=make.OTHER_MODEL) as store:
        store.put(make.OTHER_MODEL, make.records("abc"), make.vectors(3, dimension=8))
    return tmp_path / "from"


@pytest.fixture
def target(locate, tmp_path):
    return locate("target") or str(tmp_path / "target")


@on_both_stores
def test_every_case_arrives_and_comes_back(source, target, tmp_path, make):
    steps = []
    moved = move(source, target, progress=lambda *step: steps.append(step))
    assert [(each.cases, each.written, each.damaged) for each in moved] == [(700, 700, 0), (3, 3, 0)]
    assert steps[-1] == (1406, 1406)
    assert [(each.cases, each.written) for each in move(source, target)] == [(700, 0), (3, 0)]
    assert [each.cases for each in move(target, tmp_path / "back")] == [700, 3]
    assert read_all(source) == read_all(tmp_path / "back")


@on_both_stores_slowly
def test_an_interrupted_copy_goes_on(source, target):
    def stop(done, total):
        if done > 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        move(source, target, progress=stop)
    moved = move(source, target)
    assert [each.cases for each in moved] == [700, 3]
    assert 0 < moved[0].written < 700


@on_both_stores_slowly
def test_other_cases_in_the_target_are_found(source, target, make, monkeypatch):
    move(source, target)
    shelf = migrating.open_shelf(migrating.parse_store(target))
    shelf.write(make.MODEL, make.records(["extra"]), make.vectors(1))
    shelf.close()
    with pytest.raises(ArtifactError, match=r"TO holds 701 cases of model aaaaaaaaaaaa, and FROM 700"):
        move(source, target)
    shelf = migrating.open_shelf(migrating.parse_store(target))
    shelf.write(make.MODEL, make.records(["5"], study="other"), make.vectors(1))
    shelf.close()
    with pytest.raises(ArtifactError, match="the same id as one in FROM and another content"):
        move(source, target)
    with CaseStore(source) as store:
        store.put(make.MODEL, make.records(["extra"]), make.vectors(1))
    assert [each.written for each in move(source, target, replace=True)] == [1, 0]


def test_a_case_that_is_written_wrongly_is_found(source, tmp_path, monkeypatch):
    put = CaseStore.put

    def put_something_else(self, fingerprint, cases, embeddings):
        return put(self, fingerprint, cases, embeddings[::-1])

    monkeypatch.setattr(CaseStore, "put", put_something_else)
    with pytest.raises(ArtifactError, match="in TO differ from those in FROM"):
        move(source, tmp_path / "target")


def test_damaged_cases_are_left_out_and_told(source, tmp_path):
    change(source / "cases.sqlite", "UPDATE cases SET report = 'Other.' WHERE id IN ('3', '4')")
    target = tmp_path / "target"
    done = CliRunner().invoke(app, ["index", "migrate", str(source), str(target), "--json"])
    assert done.exit_code == 3
    assert "2 cases of FROM were left out" in done.stderr
    facts = json.loads(done.stdout)["models"]
    assert [(each["cases"], each["written"], each["damaged"]) for each in facts] == [(698, 698, 2), (3, 3, 0)]


def test_the_command_tells_what_it_copied(source, tmp_path):
    done = CliRunner().invoke(app, ["index", "migrate", str(source), str(tmp_path / "target")])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "model aaaaaaaaaaaa: 700 cases are in both stores, 700 of them new",
        "model bbbbbbbbbbbb: 3 cases are in both stores, 3 of them new",
    ]


def test_what_cannot_be_copied_is_refused(source, tmp_path, make):
    for other, words in ((source, "the same store"), (tmp_path / "nothing", "no case store at")):
        with pytest.raises(ConfigError, match=words):
            move(other, source)
    CaseStore(tmp_path / "empty").close()
    with pytest.raises(ConfigError, match="holds no cases"):
        move(tmp_path / "empty", source)
    with CaseStore(tmp_path / "target"), pytest.raises(ConfigError, match="in use by another server"):
        move(source, tmp_path / "target")
