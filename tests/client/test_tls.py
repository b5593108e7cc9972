"""Clients and attackers at a real sidecar and a stand-in for Triton: one typed error, one sentence each."""

import datetime
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from concurrent import futures
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import grpc
import numpy as np
import pytest

from client import TLS, CxrClient
from client.channel import ChannelSettings
from client.retrieval import RetrievalTransport
from client.retrieval_core import StoredCase
from client.steps import run
from client.triton import TritonTransport
from contract.access import ROLES
from contract.connection import Connection
from contract.errors import ConfigError, InputError, ServerError, UnavailableError
from contract.protection import Protection
from contract.proto import retrieval_pb2, retrieval_pb2_grpc
from retrieval.indexes import CaseIndexes
from retrieval.listener import SidecarServer
from retrieval.service import RetrievalService

ROOT = Path(__file__).parents[2]
MODEL = "ab" * 32
VECTOR = np.eye(8, dtype=np.float32)[0]
CASE = StoredCase("a", "study-a", VECTOR, ("normal",), "Report.", "a.dcm")


@pytest.fixture
def open_sidecar(tmp_path):
    """A function: protection -> the address of a sidecar in this process with one case."""
    numbers = count()
    with ExitStack() as cleanup:

        def open_one(**protection) -> str:
            store = tmp_path / f"store{next(numbers)}"
            indexes = cleanup.enter_context(CaseIndexes(store, fingerprint=MODEL))
            server = SidecarServer(RetrievalService(indexes), "127.0.0.1:0", Protection(**protection))
            cleanup.callback(server.stop, 0.0)
            indexes.start().result(10)
            server.announce()
            return server.address

        yield open_one


@pytest.fixture
def open_transport():
    """A function: address, TLS, token -> a transport to the sidecar."""
    with ExitStack() as cleanup:

        def open_one(url: str, tls: TLS | None = None, token: str | None = None) -> RetrievalTransport:
            transport = RetrievalTransport(url, Connection(tls, token))
            cleanup.callback(transport.close)
            return transport

        yield open_one


def make_tls(folder: Path, name: str | None = "lab", **changes) -> TLS:
    own = {} if name is None else {"cert": folder / f"{name}.crt", "key": folder / f"{name}.key"}
    return TLS(**{"ca": folder / "ca.crt", **own, **changes})


@contextmanager
def refused(words: str, kind: type[Exception] = ConfigError):
    with pytest.raises(kind, match=words) as caught:
        yield
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert "BEGIN" not in str(caught.value)


def test_mutual_tls_and_a_token_do_all_that_the_role_allows(
    open_sidecar, open_transport, certificates, write_tokens
):
    path, tokens = write_tokens("read", "write")
    url = open_sidecar(tls_dir=certificates / "good", require_client=True, tokens=path)
    writer = open_transport(url, make_tls(certificates / "good"), tokens["write"])
    assert writer.add(MODEL, [CASE], 10).added == 1
    reader = open_transport(url, make_tls(certificates / "good"), tokens["read"])
    assert [case.id for case in reader.search(MODEL, VECTOR, 1, (), 10).cases] == ["a"]
    assert reader.read_info(10).case_count == 1
    wanted = r"wants another token \(--token-file, CXR_TOKEN\)"
    with refused(f"{wanted}: The token of read user has the role read, and this call needs write"):
        reader.delete(["a"], 10)
    with refused(f"{wanted}: The token of read user"):
        reader.add(MODEL, [CASE], 10)
    assert reader.read_info(10).case_count == 1  # nothing happened
    for token, words in (
        (None, "This call needs a token"),
        ("cxr_" + "w" * 40, "is not one of this server's"),
    ):
        stranger = open_transport(url, make_tls(certificates / "good"), token)
        for call in (
            lambda: stranger.search(MODEL, VECTOR, 1, (), 10),  # noqa: B023
            lambda: stranger.read_info(10),  # noqa: B023
            lambda: stranger.add(MODEL, [CASE], 10),  # noqa: B023
            lambda: stranger.delete(["a"], 10),  # noqa: B023
        ):
            with refused(f"{wanted}: .*{words}"):
                call()
    assert writer.delete(["a"], 10) == 1


def test_a_server_certificate_is_checked(open_sidecar, open_transport, certificates):
    good = open_sidecar(tls_dir=certificates / "good")
    assert open_transport(good, make_tls(certificates / "good", None)).read_info(10).case_count == 0
    with refused(r"not signed by an authority in .*other/ca.crt: set tls.ca \(--tls-ca, CXR_TLS_CA\)"):
        open_transport(good, make_tls(certificates / "other", None)).read_info(5)
    with refused("not signed by an authority in the public list"):
        open_transport(good, TLS()).read_info(5)
    with refused(r"not for the name ward.lab: .*tls.server_name \(--tls-server-name"):
        open_transport(good, make_tls(certificates / "good", None, server_name="ward.lab")).read_info(5)
    named = make_tls(certificates / "good", None, server_name="triton.lab")
    assert open_transport(good, named).read_info(10).case_count == 0


def test_a_server_whose_name_is_another_is_told(open_sidecar, open_transport, certificates):
    url = open_sidecar(tls_dir=certificates / "elsewhere")
    with refused(r"not for the name 127.0.0.1.*`cxr certs --host`"):
        open_transport(url, make_tls(certificates / "elsewhere", None)).read_info(5)


def test_an_expired_server_does_not_start_and_is_told_to_clients(
    open_sidecar, open_transport, certificates, monkeypatch
):
    with refused(r"server.crt has expired on .*cxr certs"):
        open_sidecar(tls_dir=certificates / "expired")
    monkeypatch.setattr("contract.protection.read_end", lambda _: None)  # a server that has run for long
    url = open_sidecar(tls_dir=certificates / "expired")
    with refused("The certificate of the retrieval sidecar at .* has expired: give the server a new one"):
        open_transport(url, make_tls(certificates / "expired", None)).read_info(5)


def test_a_client_certificate_is_required_and_checked(open_sidecar, open_transport, certificates):
    url = open_sidecar(tls_dir=certificates / "good", require_client=True)
    assert open_transport(url, make_tls(certificates / "good")).read_info(10).case_count == 0
    with refused(r"requires a client certificate: set tls.cert and tls.key \(--tls-cert, --tls-key"):
        open_transport(url, make_tls(certificates / "good", None)).read_info(5)
    with refused(r"does not accept the client certificate .*other/lab.crt"):
        stranger = make_tls(certificates / "other", ca=certificates / "good" / "ca.crt")
        open_transport(url, stranger).read_info(5)
    with refused(r"The client certificate .*gone.crt has expired"):
        open_transport(url, make_tls(certificates / "good", "gone")).read_info(5)


def test_a_servers_certificate_is_no_clients(open_sidecar, open_transport, certificates):
    """Who steals a client's key cannot play the server; and the other way round."""
    url = open_sidecar(tls_dir=certificates / "good", require_client=True)
    with refused("does not accept the client certificate"):
        open_transport(url, make_tls(certificates / "good", "server")).read_info(5)


def test_plain_and_tls_do_not_mix(open_sidecar, open_transport, certificates, tmp_path):
    url = open_sidecar(tls_dir=certificates / "good", require_client=True)
    with refused(r"speaks TLS: set tls \(--tls-ca, CXR_TLS_CA\)"):
        open_transport(url).read_info(5)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        heard = b""
        try:
            while part := plain.recv(4096):
                heard += part
        except ConnectionError:
            pass
    assert b"HTTP" not in heard
    assert heard[3:4] != b"\x04"  # no settings frame: at most an alert of TLS


def test_a_tls_client_at_a_plain_port_is_told(open_sidecar, open_transport, certificates):
    url = open_sidecar()
    with refused(r"speaks plain text, not TLS: start it with --tls-dir, or unset tls"):
        open_transport(url, make_tls(certificates / "good", None)).read_info(5)


def test_a_command_says_one_sentence(open_sidecar, certificates, tmp_path):
    """Without the lines that gRPC writes about a failed handshake."""
    url = open_sidecar(tls_dir=certificates / "good")
    options = [
        "--triton",
        "127.0.0.1:9",
        "--retrieval",
        url,
        "--tls-ca",
        str(certificates / "other" / "ca.crt"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "cxr", "doctor", *options, "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 4
    assert "not signed by an authority" in json.loads(done.stdout)["servers"]["retrieval"]
    assert done.stderr == ""


def test_old_versions_of_tls_are_refused(open_sidecar, certificates):
    url = open_sidecar(tls_dir=certificates / "good")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain)


def test_nobody_at_the_address_is_no_question_of_tls(open_transport, certificates):
    began = time.monotonic()
    with refused("does not answer", UnavailableError):
        open_transport("127.0.0.1:9", make_tls(certificates / "good")).read_info(5)
    assert time.monotonic() - began < 5


def test_messages_that_are_too_large_or_no_messages(open_sidecar, certificates, write_tokens):
    path, tokens = write_tokens("write")
    url = open_sidecar(tls_dir=certificates / "good", tokens=path)
    connection = Connection(make_tls(certificates / "good", None), tokens["write"])
    with connection.open_channel(url, (("grpc.max_send_message_length", -1),)) as channel:
        call = channel.unary_unary("/cxr.retrieval.v1.Retrieval/AddCases")
        for data, code in ((b"\xff" * 100, "INVALID_ARGUMENT"), (bytes(65 * 2**20), "RESOURCE_EXHAUSTED")):
            with pytest.raises(grpc.RpcError) as caught:
                call(data, timeout=30, metadata=connection.metadata)
            assert caught.value.code().name == code
        for method in ("Shutdown", "../Search", "Search/../DeleteCases"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/cxr.retrieval.v1.Retrieval/{method}")(
                    b"", timeout=30, metadata=connection.metadata
                )
            assert caught.value.code().name == "UNIMPLEMENTED"
        stub = retrieval_pb2_grpc.RetrievalStub(channel)
        assert stub.GetInfo(retrieval_pb2.GetInfoRequest(), metadata=connection.metadata).case_count == 0


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\0b", "'; DROP TABLE cases; --", "%2e%2e/x"]
)
def test_an_id_is_a_name_and_no_path(open_sidecar, open_transport, tmp_path, name):
    before = sorted(path.name for path in tmp_path.iterdir())
    transport = open_transport(open_sidecar())
    case = StoredCase(name, name, VECTOR, ("normal",), "Report.", name)
    try:
        assert transport.add(MODEL, [case], 10).added == 1
    except InputError:
        return
    assert [found.id for found in transport.search(MODEL, VECTOR, 1, (), 10).cases] == [name]
    assert transport.delete([name], 10) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*before, "store0"})


def test_a_small_message_that_unpacks_to_a_large_one_ends_alone(open_sidecar):
    url = open_sidecar()
    with Connection().open_channel(url, (("grpc.max_send_message_length", -1),)) as channel:
        call = channel.unary_unary("/cxr.retrieval.v1.Retrieval/AddCases")
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(65 * 2**20), timeout=30, compression=grpc.Compression.Gzip)
        assert caught.value.code().name in ("RESOURCE_EXHAUSTED", "UNIMPLEMENTED")
        assert (
            retrieval_pb2_grpc.RetrievalStub(channel).GetInfo(retrieval_pb2.GetInfoRequest()).case_count == 0
        )


def test_each_call_has_its_role(open_sidecar, write_tokens):
    needed = {
        "AddCases": "write",
        "Backup": "admin",
        "DeleteCases": "write",
        "GetCase": "read",
        "GetInfo": "read",
        "ListCases": "read",
        "Search": "read",
    }
    service = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"]
    assert {method.name for method in service.methods} == set(needed)
    path, tokens = write_tokens(*ROLES)
    url = open_sidecar(tokens=path)
    for role in ROLES:
        connection = Connection(token=tokens[role])
        with connection.open_channel(url, ()) as channel:
            for name, least in needed.items():
                call = channel.unary_stream(f"/{service.full_name}/{name}")
                try:
                    code = list(call(b"", timeout=10, metadata=connection.metadata)) and "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                allowed = ROLES.index(role) >= ROLES.index(least)
                assert (code == "PERMISSION_DENIED") is not allowed, (role, name, code)


def test_a_new_call_is_closed_until_it_has_a_role(open_sidecar, write_tokens, monkeypatch):
    monkeypatch.setattr("retrieval.listener._ROLES", {})
    path, tokens = write_tokens("write", "admin")
    url = open_sidecar(tokens=path)
    for role, allowed in (("write", False), ("admin", True)):
        transport = RetrievalTransport(url, Connection(token=tokens[role]))
        if allowed:
            assert transport.read_info(5).case_count == 0
        else:
            with refused("needs admin"):
                transport.read_info(5)
        transport.close()


def test_a_network_needs_tls_and_tokens(open_sidecar, certificates, write_tokens, monkeypatch):
    path, _ = write_tokens("read")
    folder = certificates / "good"
    for given, missing in (
        ({}, "--tls-dir and --tokens"),
        ({"tls_dir": folder}, "give --tokens too"),
        ({"tls_dir": folder, "require_client": True}, "give --tokens too"),
        ({"tokens": path}, "give --tls-dir too"),
    ):
        for host in ("0.0.0.0", "::", "10.0.0.5", "triton.lab", ""):
            with refused(f"A network can reach .*{missing}.*--insecure"):
                Protection(**given).check(host)
        Protection(**given, insecure=True).check("0.0.0.0")
        Protection(**given).check("127.0.0.1")
    Protection(folder, tokens=path).check("0.0.0.0")


def test_the_transport_to_triton_sends_the_token_and_tells_the_same_errors(certificates):
    seen: list[dict[str, str]] = []

    class Triton(grpc.GenericRpcHandler):
        def service(self, details):
            def answer(_request, context):
                seen.append(dict(context.invocation_metadata()))
                return b"\x08\x01"  # ready

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(Triton(),))
    credentials = Protection(certificates / "good", require_client=True).make_credentials()
    url = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    server.start()
    token = "cxr_" + "t" * 40

    def ask(tls: TLS | None) -> str | None:
        transport = TritonTransport(url, ChannelSettings(connection=Connection(tls, token)))
        try:
            return transport.check_ready(5)
        finally:
            transport.close()

    try:
        assert ask(make_tls(certificates / "good")) is None
        assert seen[0]["authorization"] == f"Bearer {token}"
        assert "requires a client certificate" in ask(make_tls(certificates / "good", None))
        assert "not signed by an authority" in ask(make_tls(certificates / "other"))
        assert "speaks TLS" in ask(None)
    finally:
        server.stop(None)
    assert len(seen) == 1  # the token went to nobody else


def test_a_client_takes_its_settings_from_the_environment(
    open_sidecar, certificates, write_tokens, monkeypatch, tmp_path
):
    path, tokens = write_tokens("read")
    url = open_sidecar(tls_dir=certificates / "good", require_client=True, tokens=path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CA", "CERT", "KEY"):
        file = "ca.crt" if name == "CA" else f"lab.{'crt' if name == 'CERT' else 'key'}"
        monkeypatch.setenv(f"CXR_TLS_{name}", str(certificates / "good" / file))
    monkeypatch.setenv("CXR_TOKEN", tokens["read"])
    with CxrClient(retrieval_url=url) as client:
        assert client.index_info(timeout_s=10).case_count == 0
        assert tokens["read"] not in repr(client)
    with CxrClient(retrieval_url=url, tls=False, token="") as client, refused("speaks TLS"):
        client.index_info(timeout_s=5)
    with refused(r"not sent to triton.lab:8001 \(triton_url \(--triton\)\) without TLS"):
        CxrClient("triton.lab:8001", url, tls=False)


def test_an_operator_is_warned_in_time(certificates, tmp_path, monkeypatch):
    folder = certificates / "good"
    assert Protection(folder, require_client=True).find_warnings() == []
    assert Protection().find_warnings() == []
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=3)
    monkeypatch.setattr("contract.protection.read_end", lambda _: soon)
    [warning] = Protection(folder).find_warnings()
    assert f"server.crt ends on {soon:%Y-%m-%d}" in warning


def test_a_server_error_stays_a_server_error(open_sidecar, open_transport, certificates):
    transport = open_transport(open_sidecar(tls_dir=certificates / "good"), make_tls(certificates / "good"))
    with pytest.raises(ServerError):
        run(transport._request("GetCase", retrieval_pb2.GetCaseRequest(id="none"), 5))


def test_the_sidecar_itself_refuses_a_network_without_protection():
    with refused("A network can reach 0.0.0.0.*--tls-dir and --tokens"):
        SidecarServer(None, "0.0.0.0:0", Protection())
