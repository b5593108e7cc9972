"""`cxr bench tls`: what mutual TLS costs a call, on loopback.

One Triton has two relays: one for plain text, and one that requires a client certificate. Both get the same serialised
requests in turns of half a second, so that a busy machine slows both alike. A figure is the median over the turns.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from contract.connection import PLAIN, TLS, Connection
from contract.errors import ServerError

if TYPE_CHECKING:
    from bench.load.generator import Request
    from bench.report.measure import Row
    from serving.stack import Stack

MODEL: Final = "predict_study_tensors"
LIMIT_MS: Final = 0.3
_LENGTH: Final = 128  # tokens
_CASES: Final = 16
_TURN_S: Final = 0.5
_LEAST_TURNS: Final = 4
_READY_S: Final = 30.0
_TIMEOUT_S: Final = 30.0
_CLIENT: Final = "bench"


def measure_tls(console: Console, repository: Path, *, seconds: float) -> dict[str, Any]:
    """Serve a repository and return the median latency of a study's tensors, plain and over mutual TLS.

    Args:
        console: Shows the progress.
        repository: A published repository.
        seconds: Duration of the measurement of each of the two, in seconds.

    Returns:
        The report: `plain_ms` and `tls_ms` are medians over the turns of the turns' median latency, `difference_ms`
        the median of the differences of the two loads of one turn, `lowest_ms` and `highest_ms` the ends of its
        quartiles, `limit_ms`, `passed`, `turns`, and the machine.

    Raises:
        ArtifactError: The repository is damaged.
        ConfigError, ServiceError: The servers do not start, or a request fails.
    """
    from bench.load.generator import ClosedLoop, Phases
    from bench.report.machine import describe_machine
    from bench.report.measure import Subject, measure

    turns = max(_LEAST_TURNS, round(seconds / _TURN_S))
    with (
        tempfile.TemporaryDirectory(prefix="cxr-bench-") as scratch,
        console.status("Starting the servers") as status,
        _serve(repository, Path(scratch)) as (stack, url, connection),
        _send(stack.triton_url, PLAIN) as plain,
        _send(url, connection) as secure,
    ):
        subjects = [Subject("plain", plain, ClosedLoop(1)), Subject("mutual TLS", secure, ClosedLoop(1))]
        rows = measure(
            subjects,
            Phases(duration_s=seconds, window_s=_TURN_S / 5),
            repeats=turns,
            progress=lambda done, total, name: status.update(f"{done}/{total} {name}"),
        )
    return {
        "model": MODEL,
        "repository": repository.name,
        "turns": turns,
        "requests": [sum(sample.requests for sample in row.samples) for row in rows],
        **compare_turns(*rows),
        "machine": describe_machine(),
    }


def compare_turns(plain: "Row", secure: "Row") -> dict[str, Any]:
    """Return the figures of two rows whose samples ran in turns; see `measure_tls`.

    Raises:
        ServerError: A request of either failed.
    """
    for row in (plain, secure):
        if lost := sum(sample.lost for sample in row.samples):
            raise ServerError(f"{lost} requests to the server failed ({row.subject.target}).")
    pairs = [
        (first.get_percentile(50), second.get_percentile(50))
        for first, second in zip(plain.samples, secure.samples, strict=True)
    ]
    differences = [second - first for first, second in pairs]
    lowest, middle, highest = statistics.quantiles(differences, n=4)
    return {
        "plain_ms": statistics.median(first for first, _ in pairs),
        "tls_ms": statistics.median(second for _, second in pairs),
        "difference_ms": middle,
        "lowest_ms": lowest,
        "highest_ms": highest,
        "limit_ms": LIMIT_MS,
        "passed": middle <= LIMIT_MS,
    }


@contextmanager
def _serve(repository: Path, scratch: Path) -> "Iterator[tuple[Stack, str, Connection]]":
    """Run Triton with its plain relay and a relay for mutual TLS; yield the stack, the second address, its settings."""
    from contract.protection import Protection
    from serving.certificates import make_certificates
    from serving.ports import LOOPBACK, Ports, join_address
    from serving.process import wait_until
    from serving.relay import is_up
    from serving.servers import build_python
    from serving.stack import Stack

    folder = scratch / "tls"
    make_certificates(folder, clients=[_CLIENT])
    protection = Protection(folder, require_client=True)
    connection = Connection(
        TLS(folder / "ca.crt", folder / f"{_CLIENT}.crt", folder / f"{_CLIENT}.key", "localhost")
    )
    with Stack(repository, scratch / "store", ports=Ports.free(), log_dir=scratch / "logs") as stack:
        stack.wait_ready()
        url = join_address(LOOPBACK, Ports.free().grpc)
        options = ["--listen", url, "--triton", stack.own_url, *protection.to_arguments()]
        relay = build_python(stack, "relay for TLS", "serving.relay", options, "tls.log")
        relay.start()
        try:
            end = time.monotonic() + _READY_S
            while not is_up(url, connection):
                if not relay.running or not wait_until(end):
                    raise ServerError(f"The relay for TLS did not start: {' '.join(relay.read_tail(3))}")
            yield stack, url, connection
        finally:
            relay.stop()


@contextmanager
def _send(url: str, connection: Connection) -> "Iterator[Request]":
    """Yield a function that sends drawn requests, serialised beforehand."""
    from bench.load.inputs import draw_inputs
    from bench.load.requests import BytesSender, read_signature, serialise
    from client.channel import ChannelSettings
    from client.triton import TritonTransport

    with closing(TritonTransport(url, ChannelSettings("grpc", connection=connection))) as transport:
        model = transport.read_model(_TIMEOUT_S)
    signature = read_signature(url, MODEL, _TIMEOUT_S, connection)
    length = min(_LENGTH, model.max_length)
    requests = draw_inputs(
        tuple(signature.inputs), image_size=model.image_size, length=length, batch=1, count=_CASES
    )
    payloads = [serialise(signature, request) for request in requests]
    with closing(BytesSender(url, payloads, _TIMEOUT_S, connection)) as sender:
        yield sender
