"""What `--store` may name."""

from pathlib import Path

import pytest

from contract.case_store import TOKEN_FILE, is_milvus, parse_store, refuse_milvus
from contract.errors import ConfigError


def test_a_directory_is_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_store("store") == parse_store(Path("store")) == tmp_path / "store"


@pytest.mark.parametrize(
    ("text", "uri", "database"),
    [
        ("milvus://127.0.0.1:19530/cases", "http://127.0.0.1:19530", "cases"),
        ("milvus://127.0.0.1:19530", "http://127.0.0.1:19530", "default"),
        ("milvus+tls://milvus.lab:19530/a_1", "https://milvus.lab:19530", "a_1"),
    ],
)
def test_a_server(text, uri, database):
    store = parse_store(text)
    assert (store.uri, store.database, store.token, store.lite, str(store)) == (uri, database, "", None, text)


def test_milvus_lite_has_an_absolute_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = parse_store("milvus-lite:a.db")
    assert (store.lite, str(store)) == (tmp_path / "a.db", f"milvus-lite:{tmp_path / 'a.db'}")
    assert store.describe_exposure() == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("milvus://127.0.0.1/cases", "--store must be host:port of Milvus"),
        ("milvus://127.0.0.1:19530/a/b", "such as milvus://127.0.0.1:19530/cases"),
        ("milvus://127.0.0.1:19530/a-b", "such as milvus://127.0.0.1:19530/cases"),
        ("milvus:/127.0.0.1:19530/a", "such as milvus://127.0.0.1:19530/cases"),  # a path was made of it
        ("milvus-lite:a.sqlite", "must name a file that ends with .db"),
    ],
)
def test_what_is_none_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_store(text)


def test_a_token_is_read_and_does_not_travel_as_plain_text(tmp_path, monkeypatch):
    path = tmp_path / "token"
    monkeypatch.setenv(TOKEN_FILE, str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_store("milvus://127.0.0.1:19530")
    for wrong in ("", "two words"):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="USER:PASSWORD"):
            parse_store("milvus://127.0.0.1:19530")
    path.write_text("root:secret\n")
    store = parse_store("milvus+tls://milvus.lab:19530")
    assert (store.token, "secret" in repr(store)) == ("root:secret", False)
    with pytest.raises(ConfigError, match=r"plain text\. Use milvus\+tls"):
        parse_store("milvus://milvus.lab:19530")


def test_plain_text_on_a_network_is_told():
    assert "plain text" in parse_store("milvus://milvus.lab:19530").describe_exposure()
    for quiet in ("milvus+tls://milvus.lab:19530", "milvus://localhost:19530"):
        assert parse_store(quiet).describe_exposure() == ""


def test_a_command_for_files_refuses_milvus():
    refuse_milvus(None, "No.")
    refuse_milvus("store", "No.")
    with pytest.raises(ConfigError, match="No"):
        refuse_milvus(Path("milvus://127.0.0.1:19530/a"), "No.")
    assert not is_milvus("milvus")
