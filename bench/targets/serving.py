"""Measure the cost of serving, compared with the same graphs in this process, and the effect of a hot swap.

All rows use one configuration, the repository `fused` of `make bench`.
"""

import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.load.generator import ClosedLoop, Phases, Request
from bench.load.inputs import Arrays
from bench.report.measure import Row, Subject, measure
from bench.targets.in_process import Ways
from bench.targets.model import (
    LENGTH,
    RAW,
    REPEATS,
    TENSORS,
    TIMEOUT_S,
    Model,
    compare,
    get_rate,
    measure_side_by_side,
    prepare,
    say_ms,
    send,
)
from bench.targets.target import TargetRow
from client.channel import Carrier
from contract.tensors import IMAGE_BYTES, REPORT

if TYPE_CHECKING:
    from serving.stack import Stack

_CONCURRENCY: Final = 8
_MANY: Final = 32  # clients, like those of two hosts
_SERVED: Final = "served"


def measure_latency(model: Model, phases: Phases) -> Iterator[TargetRow]:
    """Compare one client at a time, which sends tensors, with the fastest way to run the same weights here."""
    with _serve(model, phases) as load:
        yield TargetRow(
            "server ready after start", "at most", 10, load.ready_s, "s", "weights on disk, warmed up"
        )
        yield load.compare_latency(prepare(load.ways.first, TENSORS, model.read_cases(), length=LENGTH))


def measure_throughput(model: Model, phases: Phases) -> Iterator[TargetRow]:
    """Compare many clients at a time with a loop over batches here."""
    with _serve(model, phases) as load:
        cases = model.read_cases()
        fixed = prepare(load.ways.first, TENSORS, cases, length=LENGTH)
        yield from load.compare_throughput(fixed, f"{LENGTH} tokens", 0.97)
        mixed = prepare(load.ways.first, TENSORS, cases)
        yield from load.compare_throughput(mixed, "texts of mixed lengths", None)


def measure_files(model: Model, phases: Phases) -> Iterator[TargetRow]:
    """Compare one client at a time, which sends DICOM files, with reading and running them here."""
    with _serve(model, phases) as load:
        yield from load.compare_files(prepare(load.ways.first, RAW, model.read_cases()))


@contextmanager
def _serve(model: Model, phases: Phases) -> Iterator["_Load"]:
    with ExitStack() as open_now:
        stack, ready_s = open_now.enter_context(model.serve(model.fused))
        ways = Ways({"split": model.split, "fused": model.fused})
        yield _Load(open_now, stack, ready_s, ways, phases)


@dataclass(frozen=True)
class _Load:
    """A server, the seconds until it was ready, and its in-process baseline."""

    open_now: ExitStack
    stack: "Stack"
    ready_s: float
    ways: Ways
    phases: Phases

    def compare_latency(self, requests: Sequence[Arrays]) -> TargetRow:
        """Measure one client at a time with tensors."""
        fastest = self.ways.find_fastest(TENSORS, requests, self.phases)
        sender = self.open_now.enter_context(send(self.stack, TENSORS, requests))
        served, here = measure_side_by_side([Subject(_SERVED, sender, ClosedLoop(1)), fastest], self.phases)
        return TargetRow(
            "served predict_study_tensors, batch 1, p50 / in-process",
            "at most",
            1.05,
            compare(served, here),
            detail=_say_latency(served, here),
        )

    def compare_throughput(
        self, requests: Sequence[Arrays], what: str, limit: float | None
    ) -> list[TargetRow]:
        """Measure as many clients as fill the server, and many more."""
        fullest = self.ways.find_fullest(TENSORS, requests, self.phases)
        sender = self.open_now.enter_context(send(self.stack, TENSORS, requests))
        subjects = [Subject(_SERVED, sender, ClosedLoop(workers)) for workers in (_CONCURRENCY, _MANY)]
        *served, here = measure([*subjects, fullest], self.phases, repeats=REPEATS)
        return [
            TargetRow(
                f"throughput, {row.subject.load.senders} clients, {what} / in-process loop at its best batch size",
                "at least",
                limit if row is served[0] else None,
                _compare_rates(row, here),
                detail=f"{get_rate(row):.1f} / {get_rate(here):.1f} studies/s ({here.subject.target}, batch "
                f"{here.subject.batch}); p99 {row.histogram.get_percentile(99):.0f} ms",
            )
            for row in served
        ]

    def compare_files(self, requests: Sequence[Arrays]) -> list[TargetRow]:
        """Measure one client at a time with files: as the client sends them by default, and as whole files."""
        fastest = self.ways.find_fastest(RAW, requests, self.phases)
        settings: list[tuple[str, float | None, bool, Carrier]] = [
            ("raw DICOM in by the client", 1.10, True, "auto"),
            ("raw DICOM in by the client, over TCP", None, True, "grpc"),
            ("whole DICOM files, by shared memory", None, False, "auto"),
            ("whole DICOM files, over TCP", None, False, "grpc"),
        ]
        senders = [self._send_files(requests, carrier, shrink=shrink) for _, _, shrink, carrier in settings]
        subjects = [Subject(_SERVED, sender, ClosedLoop(1)) for sender in senders]
        *served, here = measure_side_by_side([*subjects, fastest], self.phases)
        return [
            TargetRow(
                f"{name}, p50 / in-process",
                "at most",
                limit,
                compare(row, here),
                detail=_say_latency(row, here),
            )
            for (name, limit, _, _), row in zip(settings, served, strict=True)
        ]

    def _send_files(self, requests: Sequence[Arrays], carrier: Carrier, *, shrink: bool) -> Request:
        from client import CxrClient

        address = self.stack.triton_url
        client = CxrClient(address, timeout_s=TIMEOUT_S, transport=carrier, shrink=shrink)
        self.open_now.callback(client.close)
        cases = [(bytes(x[IMAGE_BYTES.name][0, 0]), bytes(x[REPORT.name][0, 0])) for x in requests]

        def request(number: int) -> None:
            client.predict(*cases[number % len(cases)])

        return request


def _say_latency(served: Row, here: Row) -> str:
    return f"{say_ms(served)} / {say_ms(here)} ({here.subject.target})"


def _compare_rates(served: Row, here: Row) -> float:
    """Return the ratio of cases per second, served / here: the median over repeats, which ran side by side."""
    return statistics.median(
        served_sample.throughput * served.subject.batch / (here_sample.throughput * here.subject.batch)
        for served_sample, here_sample in zip(served.samples, here.samples, strict=True)
    )


def measure_swap(model: Model, phases: Phases) -> list[TargetRow]:
    """Publish a version and let the server load it under traffic."""
    from serving.inprocess import InProcess

    with ExitStack() as open_now:
        scratch = Path(open_now.enter_context(tempfile.TemporaryDirectory(prefix="cxr-swap-")))
        repository = Path(shutil.copytree(model.fused, scratch / "repository"))
        stack, _ = open_now.enter_context(model.serve(repository))
        fixed = prepare(InProcess(model.fused), TENSORS, model.read_cases(), length=LENGTH)
        sender = open_now.enter_context(send(stack, TENSORS, fixed))
        steady = measure([Subject("served", sender, ClosedLoop(1))], phases, repeats=1)[0]
        swap = _Swap(lambda: _publish_again(model, repository, stack))
        swapped = measure([Subject("served", sender, ClosedLoop(1), observer=swap)], phases, repeats=1)[0]
    p99, before = (row.samples[0].get_percentile(99) for row in (swapped, steady))
    failed = sum(swapped.samples[0].failed.values())
    return [
        TargetRow(
            "hot swap under load, p99 / steady p99",
            "at most",
            2.0,
            p99 / before,
            detail=f"{p99:.1f} ms / {before:.1f} ms, {swapped.samples[0].requests} requests, {failed} failed, "
            f"swapped in {swap.seconds:.1f} s",
            conditions={"no request failed": failed == 0, "the swap ended in the measured time": swap.ended},
        )
    ]


class _Swap:
    """Swaps in the background, from the start of the measurement."""

    def __init__(self, swap: Callable[[], None]) -> None:
        self._swap = swap
        self.seconds = float("inf")
        self.ended = False  # whether the swap ended before the measurement
        self._error: Exception | None = None

    def begin(self) -> None:
        """Start."""
        self._thread = threading.Thread(target=self._run, name="cxr-swap")
        self._thread.start()

    def end(self) -> dict[str, Any]:
        """Wait for the end."""
        self.ended = not self._thread.is_alive()
        self._thread.join()
        if self._error:
            raise self._error
        return {}

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._swap()
        except Exception as error:  # raised again in `end`
            self._error = error
        self.seconds = time.monotonic() - began


def _publish_again(model: Model, repository: Path, stack: "Stack") -> None:
    from contract.repository import read_published
    from export.pipeline import make_deployment
    from export.profiles import load_profile
    from export.publish import publish
    from serving.reload import reload_models
    from serving.triton import read_admin_key

    published = read_published(repository)
    entry = published.to_dict()
    profile = load_profile(entry["profile"])
    deployment = make_deployment(profile, entry["target"], entry["variant"], entry["layout"])
    version = str(published.version)
    graphs = {name: model.fused / name / version / "model.onnx" for name in deployment.graphs}
    publish(model.bundle, graphs, repository, deployment)
    reload_models(stack.triton_url, repository, read_admin_key(stack.admin_key_path))
