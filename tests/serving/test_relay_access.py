"""The relay on a network: TLS, roles, and what nobody may smuggle past it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc")

from raw_http2 import send_raw  # noqa: E402
from relay_thread import READY, SECONDS, Running, wait  # noqa: E402

from contract.connection import quiet_grpc  # noqa: E402
from contract.protection import Protection  # noqa: E402
from serving.ports import Ports  # noqa: E402
from serving.relay import INFER, find_role, is_up  # noqa: E402

ROOT = Path(__file__).parents[2]
SERVICE = "/inference.GRPCInferenceService/"
RESTRICTED = [
    f"{SERVICE}{name}"
    for name in (
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "TraceSetting",
        "LogSettings",
        "CallOfANewerTriton",
    )
]
REGIONS = [
    f"{SERVICE}{kind}SharedMemory{does}" for kind in ("System", "Cuda") for does in ("Status", "Register")
]
ADMIN = "triton-grpc-protocol-cxr-admin-key"


def refuse(relay: Running, method: str, *metadata) -> "tuple[str, str]":
    with pytest.raises(grpc.RpcError) as caught:
        relay.call(method, b"x", metadata=metadata)
    return caught.value.code().name, caught.value.details()


def test_models_log_and_tracing_change_only_with_the_admin_key(triton, make_relay, tmp_path):
    (tmp_path / "key").write_text("the-admin-key")
    relay = make_relay(Protection(admin_key=tmp_path / "key"))
    for method in RESTRICTED:
        for sent in ((), ((ADMIN, "wrong"),), (("cxr-admin-key", "the-admin-key"),)):
            code, said = refuse(relay, method, *sent)
            assert code == "UNAUTHENTICATED"
            assert "restricted to admins" in said
        assert triton.seen == []
        for sent in ((ADMIN, "the-admin-key"), ("authorization", "Bearer the-admin-key")):
            assert relay.call(method, b"x", metadata=(sent,)) == b"answer to x"
        triton.seen.clear()
    assert relay.call(INFER, b"x") == b"answer to x"


@pytest.mark.parametrize("trick", ["{0}/", "/{0}", "{0}?", "{1}", "{0}%00", "/x/..{0}"])
def test_another_spelling_of_a_call_does_not_open_it(triton, make_relay, trick):
    """Triton knows a call by exactly one name. A smuggled one may pass, but then it is another call there."""
    method = RESTRICTED[1]
    name = trick.format(method, method.lower())
    assert name != method
    assert find_role(method) is not None
    relay = make_relay()
    with contextlib.suppress(grpc.RpcError, ValueError):
        relay.call(name, b"x")
    assert triton.methods.count(method) == 0


def test_no_secret_reaches_triton(triton, make_relay, write_tokens):
    path, tokens = write_tokens("admin")
    relay = make_relay(Protection(tokens=path))
    secret = (
        ("authorization", f"Bearer {tokens['admin']}"),
        (ADMIN, tokens["admin"]),
        ("cxr-admin-key", "x"),
    )
    assert relay.call(INFER, b"x", metadata=(*secret, ("tenant", "y"))) == b"answer to x"
    assert triton.metadata["tenant"] == "y"
    assert tokens["admin"] not in str(triton.metadata)
    assert not {name for name, _ in secret} & set(triton.metadata)


def test_roles_over_mutual_tls(triton, make_relay, certificates, write_tokens):
    path, tokens = write_tokens("read", "admin")
    relay = make_relay(Protection(certificates / "good", require_client=True, tokens=path))
    assert refuse(relay, INFER)[0] == "UNAUTHENTICATED"
    assert refuse(relay, READY)[0] == "UNAUTHENTICATED"
    assert refuse(relay, REGIONS[0])[0] == "UNAUTHENTICATED"
    reader = ("authorization", f"Bearer {tokens['read']}")
    for method in (INFER, READY, *REGIONS):
        assert relay.call(method, b"x", metadata=(reader,)) == b"answer to x"
    code, said = refuse(relay, RESTRICTED[0], reader)
    assert (code, said) == (
        "PERMISSION_DENIED",
        "The token of read user has the role read, and this call needs admin.",
    )
    admin = ("authorization", f"Bearer {tokens['admin']}")
    assert relay.call(RESTRICTED[0], b"x", metadata=(admin,)) == b"answer to x"
    assert not is_up(relay.url)  # plain text is not answered
    without = Protection(certificates / "good").make_connection()
    assert not is_up(relay.url, without)  # nor a client without a certificate
    assert is_up(relay.url, relay.connection)


def test_shared_memory_is_for_this_host(triton, make_relay, monkeypatch):
    relay = make_relay()
    assert relay.call(REGIONS[0], b"x") == b"answer to x"
    monkeypatch.setattr("serving.relay.is_local_host", lambda host: host != "127.0.0.1")
    for method in REGIONS:
        code, said = refuse(relay, method)
        assert code == "PERMISSION_DENIED"
        assert "restricted to clients on Triton's own host" in said
    assert relay.call(INFER, b"x") == b"answer to x"


def test_the_relay_itself_refuses_a_network_without_protection():
    done = subprocess.run(
        [sys.executable, "-m", "serving.relay", "--listen", "0.0.0.0:1", "--triton", "unix:/nowhere"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode != 0
    assert "--tls-dir and --tokens" in done.stderr


def test_failed_handshakes_do_not_fill_the_log(certificates):
    """Whoever reaches the port can make them. `serving.stack` starts the relay with this environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet_grpc(environment)
    port = Ports.free().grpc
    options = ["--tls-dir", str(certificates / "good"), "--tls-require-client"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "serving.relay",
            "--listen",
            f"127.0.0.1:{port}",
            "--triton",
            "unix:/nowhere",
            *options,
        ],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
    )
    connection = Protection(certificates / "good", require_client=True).make_connection()
    assert wait(lambda: is_up(f"127.0.0.1:{port}", connection))
    for number in range(200):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" if number % 2 else bytes(100))
            with contextlib.suppress(ConnectionError):
                stranger.recv(100)
    without = Protection(certificates / "good").make_connection()
    for _ in range(5):
        assert not is_up(f"127.0.0.1:{port}", without)
    assert is_up(f"127.0.0.1:{port}", connection)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert said.count(b"\n") < 5, said[-1000:]


def test_a_call_whose_path_is_no_text_harms_no_other_call(triton, make_relay, caplog):
    relay = make_relay()
    port = int(relay.url.rpartition(":")[2])
    running = relay.start(b"slow one")
    assert wait(lambda: triton.seen == [b"slow one"])
    for _ in range(3):
        send_raw(port, (b":path", b"/a\xff"))
        assert is_up(relay.url)
    triton.go_on.set()
    assert running.result() == b"answer to slow one"
    assert relay.call(INFER, b"x") == b"answer to x"
    assert caplog.records == []


def test_a_header_that_is_no_text_is_not_sent_on(triton, make_relay):
    relay = make_relay()
    send_raw(int(relay.url.rpartition(":")[2]), (b":path", INFER.encode()), (b"x-a", b"\x01"))
    assert relay.call(INFER, b"x") == b"answer to x"
    assert "x-a" not in triton.metadata


def test_a_refused_call_and_a_question_about_health_read_no_message(triton, make_relay, tmp_path):
    (tmp_path / "tokens").write_text("")
    (tmp_path / "tokens").chmod(0o600)
    relay = make_relay(Protection(tokens=tmp_path / "tokens"))
    large = b"0" * 2**24
    with pytest.raises(grpc.RpcError, match="needs a token"):
        relay.call(INFER, large)
    assert relay.call("/grpc.health.v1.Health/Check", large) == b"answer to "
    assert triton.seen == [b""]
