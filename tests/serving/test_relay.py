"""The relay in front of Triton, against a stand-in for Triton's gRPC service that notes what reaches it."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc")

from contract.protection import UNPROTECTED, Protection  # noqa: E402
from serving.ports import Ports  # noqa: E402
from serving.process import wait_until  # noqa: E402
from serving.relay import INFER, STREAM, Turns, find_role, is_up, serve  # noqa: E402

ROOT = Path(__file__).parents[2]
READY = "/inference.GRPCInferenceService/ServerReady"
SECONDS = 60.0
UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


class Triton(grpc.GenericRpcHandler):
    """Answers with the request behind "answer to "; holds requests that begin with "slow" until it is told to go on."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.methods: list[str] = []
        self.ended: list[bytes] = []
        self.given_up: list[bytes] = []
        self.limits: list[float | None] = []
        self.metadata: dict[str, str] = {}
        self.go_on = threading.Event()

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(details.method, request, context)
        )

    def _answer(self, method, request, context):
        self.seen.append(request)
        self.methods.append(method)
        self.limits.append(context.time_remaining())
        self.metadata = dict(context.invocation_metadata())
        context.add_callback(lambda: request in self.ended or self.given_up.append(request))
        if request.startswith(b"slow"):
            assert self.go_on.wait(SECONDS)
        self.ended.append(request)
        if request.startswith(b"bad"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "preprocess_image: not an image")
        return b"answer to " + request


def start_triton(handler: Triton, address: str) -> "grpc.Server":
    server = grpc.server(futures.ThreadPoolExecutor(64), handlers=(handler,), options=UNLIMITED)
    assert server.add_insecure_port(address)
    server.start()
    return server


@pytest.fixture
def triton(tmp_path) -> Iterator[Triton]:
    handler = Triton()
    server = start_triton(handler, f"unix:{tmp_path}/triton")
    yield handler
    handler.go_on.set()
    server.stop(0).wait()


class Running:
    """A relay in a thread of this process."""

    def __init__(self, triton: str, protection: Protection = UNPROTECTED, **room: int) -> None:
        self.protection, self.connection = protection, protection.make_connection()
        self.url = f"127.0.0.1:{Ports.free().grpc}"
        self.turns: Turns | None = None
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(triton, room))
        self._thread.start()
        deadline = time.monotonic() + SECONDS
        while not is_up(self.url, self.connection):
            assert wait_until(deadline)
        self.channel = self.connection.open_channel(self.url, UNLIMITED)

    def _run(self, triton: str, room: dict[str, int]) -> None:
        async def run() -> None:
            self.turns = Turns(**room)
            await serve(self.url, triton, self.turns, ended=self._ended, protection=self.protection)

        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(run())

    def call(self, method: str, request: bytes, timeout: float = SECONDS, **options):
        return self.channel.unary_unary(method)(request, timeout=timeout, **options)

    def start(self, request: bytes, timeout: float = SECONDS):
        return self.channel.unary_unary(INFER).future(request, timeout=timeout)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)

    def close(self) -> None:
        if self._thread.is_alive():
            self.end()
        self.channel.close()
        self._thread.join()
        self._loop.close()


@pytest.fixture
def make_relay(triton, tmp_path):
    made: list[Running] = []

    def make(protection: Protection = UNPROTECTED, **room: int) -> Running:
        made.append(Running(f"unix:{tmp_path}/triton", protection, **room))
        return made[-1]

    yield make
    triton.go_on.set()
    for relay in made:
        relay.close()


def wait(condition) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition() and wait_until(deadline):
        pass
    return bool(condition())


def test_bytes_metadata_and_errors_pass_as_they_are(triton, make_relay):
    relay = make_relay()
    blob = bytes(range(256)) * 100_000  # 25 MB, beyond gRPC's usual limit
    assert relay.call(INFER, blob) == b"answer to " + blob
    sent = {"tenant": "y", "traceparent": "z", "blob-bin": b"\0\xff"}
    assert relay.call(READY, b"", metadata=tuple(sent.items())) == b"answer to "
    assert triton.metadata.items() >= sent.items()
    with pytest.raises(grpc.RpcError) as caught:
        relay.call(INFER, b"bad file")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "preprocess_image: not an image"


@pytest.mark.parametrize("way", ["deadline", "cancellation", "lost connection"])
def test_triton_never_learns_that_a_client_gave_up(triton, make_relay, way):
    relay = make_relay()
    call = relay.start(b"slow one", timeout=0.3 if way == "deadline" else SECONDS)
    assert wait(lambda: triton.seen == [b"slow one"])
    if way == "cancellation":
        call.cancel()
    elif way == "lost connection":
        relay.channel.close()
        relay.channel = grpc.insecure_channel(relay.url, options=UNLIMITED)
    assert wait(call.done)
    time.sleep(0.3)
    assert triton.given_up == []
    assert triton.limits[0] is None or triton.limits[0] > 10**9  # no deadline
    assert relay.turns.calls == 1
    triton.go_on.set()
    assert wait(lambda: relay.turns.calls == 0 and relay.turns.held_bytes == 0)
    assert triton.ended == [b"slow one"]
    assert relay.call(INFER, b"next") == b"answer to next"
    assert triton.given_up == []


def test_what_waits_when_its_client_gives_up_never_reaches_triton(triton, make_relay):
    relay = make_relay(running=1)
    first = relay.start(b"slow first")
    assert wait(lambda: triton.seen == [b"slow first"])
    late = relay.start(b"late", timeout=0.3)
    assert wait(lambda: relay.turns.calls == 2)
    third = relay.start(b"third")
    assert late.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    triton.go_on.set()
    assert (first.result(), third.result()) == (b"answer to slow first", b"answer to third")
    assert triton.seen == [b"slow first", b"third"]
    assert wait(lambda: relay.turns.calls == 0)


def test_turns_are_taken_in_order(triton, make_relay):
    relay = make_relay(running=1)
    calls = [relay.start(b"slow 0")]
    assert wait(lambda: triton.seen == [b"slow 0"])
    for number in range(1, 6):
        calls.append(relay.start(b"%d" % number))
        assert wait(lambda number=number: relay.turns.calls == number + 1)
    triton.go_on.set()
    for call in calls:
        call.result()
    assert triton.seen == [b"slow 0", b"1", b"2", b"3", b"4", b"5"]


def test_more_than_there_is_room_for_is_refused_at_once(triton, make_relay):
    relay = make_relay(running=1, waiting=1)
    held = [relay.start(b"slow 0"), relay.start(b"slow 1")]
    assert wait(lambda: relay.turns.calls == 2)
    with pytest.raises(grpc.RpcError) as caught:
        relay.call(INFER, b"one too many")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "The queue is full: 2 inferences" in caught.value.details()
    assert relay.call(READY, b"") == b"answer to "  # what is no inference needs no turn
    triton.go_on.set()
    assert all(call.result() for call in held)


def test_memory_is_bounded_and_one_large_file_is_not_refused(triton, make_relay):
    relay = make_relay(held_bytes=10_000_000)
    large = relay.start(b"slow" + bytes(12_000_000))
    assert wait(lambda: relay.turns.calls == 1)
    with pytest.raises(grpc.RpcError) as caught:
        relay.call(INFER, b"small")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    triton.go_on.set()
    assert len(large.result()) > 12_000_000
    assert wait(lambda: relay.turns.held_bytes == 0)
    assert relay.call(INFER, b"small") == b"answer to small"


def test_streams_are_refused_in_a_sentence(make_relay):
    relay = make_relay()
    with pytest.raises(grpc.RpcError) as caught:
        list(relay.channel.stream_stream(STREAM)(iter([b"x"]), timeout=SECONDS))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "Call ModelInfer" in caught.value.details()


def test_a_triton_that_is_away_is_said_and_found_again(tmp_path):
    address = f"unix:{tmp_path}/triton"
    relay = Running(address)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            relay.call(INFER, b"x")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "Triton is not running. It is being started."
        assert str(tmp_path) not in caught.value.details()
        server = start_triton(Triton(), address)
        began = time.monotonic()
        while True:
            try:
                assert relay.call(INFER, b"x") == b"answer to x"
                break
            except grpc.RpcError:
                assert time.monotonic() - began < SECONDS
                time.sleep(0.05)
        server.stop(0).wait()
    finally:
        relay.close()


def test_calls_under_way_are_answered_at_the_end(triton, tmp_path):
    relay = Running(f"unix:{tmp_path}/triton")
    call = relay.start(b"slow one")
    assert wait(lambda: triton.seen == [b"slow one"])
    relay.end()
    assert wait(lambda: not is_up(relay.url))  # nobody new is let in
    assert not call.done()
    triton.go_on.set()
    assert call.result() == b"answer to slow one"
    relay.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_in_order(number):
    url = f"127.0.0.1:{Ports.free().grpc}"
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.relay", "--listen", url, "--triton", "unix:/nowhere"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    assert wait(lambda: is_up(url))
    process.send_signal(number)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert said == b""


def test_a_port_that_is_taken_ends_the_process(tmp_path):
    held = start_triton(Triton(), url := f"127.0.0.1:{Ports.free().grpc}")
    done = subprocess.run(
        [sys.executable, "-m", "serving.relay", "--listen", url, "--triton", "unix:/nowhere"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=SECONDS,
    )
    held.stop(0).wait()
    assert done.returncode != 0
    assert url.encode() in done.stderr


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
    """Whoever reaches the port can make them."""
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
        env={**os.environ, "PYTHONPATH": str(ROOT)},
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
