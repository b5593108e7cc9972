"""Three times the load that a server can answer: how much it still answers, how fast it refuses, how it recovers."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Final

import numpy as np

from bench.faults.good_clients import draw_image
from bench.load.generator import ClosedLoop, OpenLoop, Phases, Request, run_load
from bench.load.histogram import Histogram
from bench.load.requests import BytesSender, read_signature, serialise
from bench.load.sample import Sample
from bench.targets.target import TargetRow
from contract.errors import BusyError, ServiceError
from contract.steps import pack
from contract.tensors import IMAGE_BYTES

OVERLOAD: Final = "overload of 3 times the capacity"
_TIMES: Final = 3.0
_MODEL: Final = "predict_image"
_SIDE: Final = 512  # pixels
_TIMEOUT_S: Final = 5.0
_WORKERS: Final = 32
_IN_FLIGHT: Final = 400  # more than the relay admits (`serving.turns`)
_CONNECTIONS: Final = 4  # gRPC sends at most 256 calls at once over one
_CAPACITY_S: Final = 4.0
_OVERLOAD_S: Final = 8.0
_WARM_UP_S: Final = 3.0
_CALM: Final = 10  # requests
_SLOWER: Final = 3.0  # an answer is calm again within so many calm latencies
_RECOVER_S: Final = 60.0
_GOODPUT: Final = 0.9
_REFUSAL_MS: Final = 50.0
_RECOVERY_S: Final = 5.0
_IN_A_ROW: Final = 3
_PAUSE_S: Final = 0.05
_EXPECTED: Final = {"BusyError", "DeadlineError"}


def measure_overload(triton_url: str) -> list[TargetRow]:
    """Return three rows: goodput, the time of a refusal, and recovery. The server must be undisturbed before.

    Args:
        triton_url: host:port of its gRPC service.

    Raises:
        ServiceError: It does not answer before or after the overload.
    """
    with _open_sender(triton_url) as send:
        calm_s = statistics.median(_measure(send) for _ in range(_CALM))
        capacity = run_load(send, ClosedLoop(_WORKERS), _make_phases(_CAPACITY_S)).throughput
        refusals_s: list[float] = []

        def request(number: int) -> None:
            began = time.perf_counter()
            try:
                send(number)
            except BusyError:
                refusals_s.append(time.perf_counter() - began)
                raise

        load = OpenLoop(_TIMES * capacity, in_flight=_IN_FLIGHT)
        sample = run_load(request, load, _make_phases(_OVERLOAD_S))
        recovery_s = _wait_calm(send, _SLOWER * calm_s)
    return [
        _make_goodput_row(sample, capacity, load.rate),
        _make_refusal_row(refusals_s),
        TargetRow(
            f"time until answers take at most {_SLOWER:g} times as long as before",
            "at most",
            _RECOVERY_S,
            recovery_s,
            unit="s",
            detail=f"from the end of the load; {1e3 * calm_s:.0f} ms before it",
        ),
    ]


def _make_goodput_row(sample: Sample, capacity: float, rate: float) -> TargetRow:
    errors = ", ".join(f"{kind} {count}" for kind, count in sorted(sample.failed.items())) or "none"
    return TargetRow(
        f"answers at {_TIMES:g} times the capacity",
        "at least",
        _GOODPUT,
        sample.throughput / capacity,
        detail=f"capacity {capacity:.0f}/s with {_WORKERS} clients; {rate:.0f}/s asked for, {sample.throughput:.0f}/s "
        f"answered within {_TIMEOUT_S:g} s; errors: {errors}; not sent in time: {sample.unsent}",
        conditions={"no errors but BusyError and DeadlineError": set(sample.failed) <= _EXPECTED},
    )


def _make_refusal_row(refusals_s: Sequence[float]) -> TargetRow:
    refusals = Histogram(refusals_s)
    detail = f"{len(refusals_s)} refusals, median {refusals.get_percentile(50):.1f} ms, with the generator's own waits"
    return TargetRow(
        "time of a refusal, p99",
        "at most",
        _REFUSAL_MS,
        refusals.get_percentile(99) if refusals_s else None,
        unit="ms",
        detail=detail if refusals_s else "no request was refused",
    )


@contextmanager
def _open_sender(triton_url: str) -> Iterator[Request]:
    """Yield what sends one image to the served model, over several connections in turn."""
    signature = read_signature(triton_url, _MODEL, _TIMEOUT_S)
    image = draw_image(_SIDE, np.random.default_rng(0))
    payload = serialise(signature, {IMAGE_BYTES.name: pack([image])})
    with ExitStack() as cleanup:
        senders = [
            cleanup.enter_context(closing(BytesSender(triton_url, [payload], _TIMEOUT_S)))
            for _ in range(_CONNECTIONS)
        ]
        yield lambda number: senders[number % _CONNECTIONS](number)


def _make_phases(seconds: float) -> Phases:
    return Phases(duration_s=seconds, warmup_s=_WARM_UP_S, warmup_max_s=_WARM_UP_S)


def _measure(send: Request) -> float:
    began = time.perf_counter()
    send(0)
    return time.perf_counter() - began


def _wait_calm(send: Request, limit_s: float) -> float:
    """Return the seconds until three answers in a row came within a limit; `_RECOVER_S` if they never did."""
    began, in_a_row, first = time.perf_counter(), 0, 0.0
    while in_a_row < _IN_A_ROW:
        sent = time.perf_counter()
        if sent - began > _RECOVER_S:
            return _RECOVER_S
        try:
            calm = _measure(send) <= limit_s
        except ServiceError:
            calm = False
            time.sleep(_PAUSE_S)
        first = sent if calm and in_a_row == 0 else first
        in_a_row = in_a_row + 1 if calm else 0
    return first - began
