"""`cxr certs`: what it makes, what it says, and that it never replaces or shows a key."""

import contextlib
import datetime
import json
import ssl
import stat
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from cli.app import app
from contract.access import Role, hash_token, read_tokens
from contract.connection import TLS
from contract.errors import ConfigError
from contract.protection import Protection, read_server_name
from serving.certificates import make_certificates


def run(*arguments):
    return CliRunner().invoke(app, ["certs", *map(str, arguments)])


def read(path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def get(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind).value


def test_a_folder_for_the_servers_and_their_clients(tmp_path):
    folder = tmp_path / "tls"
    result = run(folder, "--host", "triton.lab", "--host", "10.0.0.5", "--client", "ward-7", "--days", "90")
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = {"ca", "server", "health", "ward-7"}
    assert {path.name for path in folder.iterdir()} == {f"{n}.{e}" for n in names for e in ("crt", "key")}
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text() not in result.output
    ends = f"{read(folder / 'server.crt').not_valid_after_utc:%Y-%m-%d}"
    hosts = "localhost, 127.0.0.1, ::1, triton.lab, 10.0.0.5"
    assert f"server.crt: the servers' certificate, for {hosts} (until {ends})" in result.output
    assert "give it to every client (--tls-ca)" in result.output
    assert "keep it away from the servers" in result.output

    names = get(read(folder / "server.crt"), x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "triton.lab"]
    assert [str(x) for x in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "10.0.0.5"]
    for name, usage in (
        ("server", ExtendedKeyUsageOID.SERVER_AUTH),
        ("health", ExtendedKeyUsageOID.CLIENT_AUTH),
        ("ward-7", ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        certificate = read(folder / f"{name}.crt")
        assert list(get(certificate, x509.ExtendedKeyUsage)) == [usage]
        assert get(certificate, x509.BasicConstraints).ca is False
        days = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
        assert datetime.timedelta(89) < days < datetime.timedelta(90)
        certificate.verify_directly_issued_by(read(folder / "ca.crt"))
    authority = get(read(folder / "ca.crt"), x509.BasicConstraints)
    assert (authority.ca, authority.path_length) == (True, 0)
    Protection(folder, require_client=True).check("127.0.0.1")
    TLS(folder / "ca.crt", folder / "ward-7.crt", folder / "ward-7.key").make_credentials()
    assert read_server_name(folder / "server.crt") == "localhost"


def test_pythons_own_tls_trusts_it(certificates):
    """It is stricter than gRPC about extensions (VERIFY_X509_STRICT)."""
    folder = certificates / "good"
    server = Protection(folder).make_context()
    client = ssl.create_default_context(cafile=folder / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    own = client.wrap_bio(incoming, outgoing, server_hostname="triton.lab")
    other = server.wrap_bio(outgoing, incoming, server_side=True)
    for _ in range(4):
        for side in (own, other):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert own.getpeercert()["subjectAltName"][0] == ("DNS", "localhost")


def test_nothing_is_replaced_and_a_client_can_be_added(tmp_path):
    folder = tmp_path / "tls"
    assert run(folder, "--client", "a").exit_code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for arguments, words in (
        (("--client", "a"), "a.crt exists already"),
        (("--host", "new.lab"), "server.crt exists already"),
        (("--client", "b", "--client", "a"), "a.crt exists already"),
        ((), "is complete"),
    ):
        result = run(folder, *arguments)
        assert result.exit_code == 2, arguments
        assert words in " ".join(result.output.split())
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert run(folder, "--client", "b").exit_code == 0
    after = {path.name for path in folder.iterdir()} - set(before)
    assert after == {"b.crt", "b.key"}
    for name in ("server.crt", "server.key"):
        (folder / name).unlink()
    assert run(folder, "--host", "new.lab").exit_code == 0
    assert (folder / "ca.crt").read_bytes() == before["ca.crt"]
    Protection(folder, require_client=True).check("127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "a b"), "neither a host name nor an address"),
        (("--host", "../x"), "neither a host name nor an address"),
        (("--client", "../../x"), "cannot be used"),
        (("--client", "ca"), "cannot be used"),
        (("--client", "server"), "cannot be used"),
        (("--days", "0"), "days"),
    ],
)
def test_a_name_that_is_none_writes_nothing(tmp_path, arguments, words):
    result = run(tmp_path / "tls", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "tls").exists()


def test_a_folder_that_others_may_enter_is_refused(tmp_path):
    (tmp_path / "tls").mkdir(mode=0o755)
    result = run(tmp_path / "tls")
    assert result.exit_code == 2
    assert "chmod 700" in result.output
    assert not list((tmp_path / "tls").iterdir())


def test_the_key_of_another_authority_is_refused(tmp_path):
    for name in ("a", "b"):
        assert run(tmp_path / name).exit_code == 0
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    result = run(tmp_path / "a", "--client", "x")
    assert result.exit_code == 2
    assert "is not the key of" in " ".join(result.output.split())
    load_pem_private_key((tmp_path / "a" / "ca.key").read_bytes(), None)


def test_a_token_goes_into_a_file_of_its_owner_alone(tmp_path):
    path, out = tmp_path / "tokens.jsonl", tmp_path / "prometheus.token"
    options = ("token", "--name", "prometheus", "--role", "metrics", "--tokens", path, "--out", out)
    said = run(*options).stdout
    [entry] = read_tokens(path)
    assert (entry.role, entry.sha256) == (Role.METRICS, hash_token(out.read_text()))
    assert out.read_text() not in said
    assert out.stat().st_mode & 0o777 == 0o600
    again = run(*options)
    assert again.exit_code == 2
    assert "cannot be written: File exists" in again.output
    assert len(read_tokens(path)) == 1


def test_a_token_is_shown_once_and_stored_as_a_hash(tmp_path):
    path = tmp_path / "tokens.jsonl"
    shown = json.loads(run("token", "--name", "ward-7", "--role", "write", "--tokens", path, "--json").stdout)
    [entry] = read_tokens(path)
    assert (entry.name, entry.role, entry.sha256) == ("ward-7", Role.WRITE, hash_token(shown["token"]))
    assert shown["token"] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = run("token", "--name", "other").stdout
    [token] = [line for line in text.splitlines() if line.startswith("cxr_")]
    line = next(line for line in text.splitlines() if line.startswith("{"))
    assert json.loads(line) == {"name": "other", "role": "read", "sha256": hash_token(token)}
    again = run("token", "--name", "ward-7", "--tokens", path)
    assert again.exit_code == 2
    assert "cxr_" not in again.output


@pytest.mark.parametrize(
    ("host", "valid"),
    [
        ("triton", True),
        ("triton.lab", True),
        ("*.triton.lab.", True),
        ("a-b.c", True),
        ("a" * 40 + "_", False),  # took minutes with a pattern that tried every way to divide it
        ("-a", False),
        ("a..b", False),
        ("a" * 64, False),
    ],
)
def test_what_is_a_host_name_is_known_at_once(host, valid, tmp_path):
    started = time.process_time()
    if valid:
        make_certificates(tmp_path / "tls", [host], [])
    else:
        with pytest.raises(ConfigError, match="neither a host name nor an address"):
            make_certificates(tmp_path / "tls", [host], [])
    assert time.process_time() - started < 10
