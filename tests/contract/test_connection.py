"""Settings of a connection: where each comes from, and what is refused before anything is sent."""

import pytest

from contract.connection import TLS, Connection, is_local, resolve_addresses, resolve_connection
from contract.errors import ConfigError

TOKEN = "cxr_" + "t" * 40


@pytest.fixture
def home(tmp_path):
    """An environment whose config file names another authority and a token file."""
    (tmp_path / "cxr").mkdir()
    (tmp_path / "token").write_text(f"{TOKEN}3\n")
    (tmp_path / "cxr" / "client.ini").write_text(
        f"[client]\ntls_ca = {tmp_path}/file-ca\ntoken_file = {tmp_path}/token\n"
    )
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_argument_then_environment_then_file(home, tmp_path):
    from_file = resolve_connection(environment=home)
    assert from_file == Connection(TLS(tmp_path / "file-ca"), f"{TOKEN}3")
    environment = {**home, "CXR_TLS_CA": "env-ca", "CXR_TLS_SERVER_NAME": "lab", "CXR_TOKEN": f"{TOKEN}2"}
    from_environment = resolve_connection(environment=environment)
    assert from_environment == Connection(TLS("env-ca", server_name="lab"), f"{TOKEN}2")
    given = resolve_connection(TLS("own-ca"), TOKEN, environment)
    assert given == Connection(TLS("own-ca"), TOKEN)
    assert resolve_connection(False, "", environment) == Connection()
    assert resolve_connection(environment={}) == Connection()


def test_addresses_come_from_argument_environment_file(tmp_path):
    (tmp_path / "own.ini").write_text("[client]\ntriton = file1:1, file2:1\n")
    file = {"CXR_CONFIG": str(tmp_path / "own.ini")}
    environment = {**file, "CXR_TRITON": "env1:1,env2:1"}
    assert resolve_addresses(["own:1", "own:2"], "triton", environment) == ["own:1", "own:2"]
    assert resolve_addresses(None, "triton", environment) == ["env1:1", "env2:1"]
    assert resolve_addresses(None, "triton", file) == ["file1:1", "file2:1"]
    assert resolve_addresses(None, "retrieval", environment) == ["127.0.0.1:8005"]
    assert resolve_addresses(None, "triton", {}) == ["127.0.0.1:8001"]
    assert resolve_addresses("ipv4:10.0.0.1:8001,10.0.0.2:8001", "triton", {}) == [
        "ipv4:10.0.0.1:8001",
        "ipv4:10.0.0.2:8001",
    ]


def test_settings_of_tls_come_from_one_place(home):
    """Half of a pair from another place would be a puzzle for whoever has to find the mistake."""
    with pytest.raises(ConfigError, match=r"tls.cert .*CXR_TLS_CERT.*tls.key .*belong together"):
        resolve_connection(environment={**home, "CXR_TLS_CERT": "c"})


def test_public_authorities_and_token_files(tmp_path):
    assert resolve_connection(environment={"CXR_TLS_CA": "system"}).tls == TLS()
    (tmp_path / "t").write_text(f" {TOKEN}\n")
    assert resolve_connection(environment={"CXR_TOKEN_FILE": str(tmp_path / "t")}).token == TOKEN


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tls_ca = x\n", r"needs a section \[client\]"),
        ("[client]\ntoken = secret\n", "unknown setting token; the nearest known one is token_file"),
        ("[client]\nxyz = secret\n", "unknown setting xyz; the known ones are retrieval, tls_ca, "),
        ("[client\n", r"needs a section \[client\]"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path, text, words):
    (tmp_path / "own.ini").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        resolve_connection(environment={"CXR_CONFIG": str(tmp_path / "own.ini")})
    assert "secret" not in str(caught.value)


def test_a_missing_config_file_is_an_error_only_if_it_is_named(tmp_path):
    assert resolve_connection(environment={"HOME": str(tmp_path)}) == Connection()
    with pytest.raises(ConfigError, match="cannot be used: No such file"):
        resolve_connection(environment={"CXR_CONFIG": str(tmp_path / "none.ini")})


def test_a_token_never_shows():
    connection = Connection(token=TOKEN)
    assert TOKEN not in repr(connection)
    for wrong in (f"{TOKEN} and more", "short", f"{TOKEN}\n", "ü" * 20):
        with pytest.raises(ConfigError) as caught:
            Connection(token=wrong)
        assert wrong not in str(caught.value)


@pytest.mark.parametrize("url", ["triton.lab:8001", "10.0.0.5:8001", "[2001:db8::1]:8001", "dns:///x:1"])
def test_a_token_is_not_sent_as_plain_text_to_another_host(url):
    with pytest.raises(ConfigError, match=r"not sent to .* without TLS.*--tls-ca") as caught:
        Connection(token=TOKEN).require_private(url, "triton_url (--triton)")
    assert TOKEN not in str(caught.value)
    Connection(TLS(), TOKEN).require_private(url, "x")
    Connection().require_private(url, "x")
    assert not is_local(url)


@pytest.mark.parametrize("url", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/x"])
def test_this_host_gets_a_token_without_tls(url):
    Connection(token=TOKEN).require_private(url, "x")


def test_files_are_checked_before_gRPC_sees_them(certificates, tmp_path):
    good, other = certificates / "good", certificates / "other"
    TLS(good / "ca.crt", good / "lab.crt", good / "lab.key").make_credentials()
    (tmp_path / "empty").touch()
    for tls, words in (
        (TLS(tmp_path / "none"), r"tls.ca .*cannot be read \(No such file"),
        (TLS(tmp_path / "empty"), r"tls.ca .*holds no certificate"),
        (TLS(good / "ca.crt", good / "lab.crt", other / "lab.key"), "does not belong to the certificate"),
        (TLS(good / "ca.crt", good / "lab.crt", tmp_path / "none"), "none cannot be read"),
        (TLS(good / "ca.crt", good / "lab.crt", tmp_path / "empty"), "do not hold a certificate and a key"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            tls.make_credentials()
        assert "BEGIN" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["ca.crt", True, 1])
def test_a_setting_of_another_type_is_refused(wrong):
    with pytest.raises(ConfigError, match="tls must be a TLS"):
        resolve_connection(tls=wrong, environment={})
    with pytest.raises(ConfigError, match="token must be text"):
        resolve_connection(token=5, environment={})


def test_a_config_folder_that_this_user_may_not_enter_counts_as_absent(tmp_path, monkeypatch):
    """Until Python 3.13 `Path.is_file` raises this error."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("contract.connection.Path.is_file", refuse)
    assert resolve_connection(environment={"HOME": str(tmp_path)}) == Connection()
