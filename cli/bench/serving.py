"""What serving costs over the same graphs in this process, and what a hot swap does to who is being served."""

import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from cli.bench.model import (
    LENGTH,
    RAW,
    REPEATS,
    TENSORS,
    TIMEOUT_S,
    Model,
    compare,
    get_median,
    get_rate,
    join_batches,
    measure_side_by_side,
    prepare,
    say_ms,
    send,
)
from cli.bench.run import BOTH_AT_ONCE, answer_here
from cli.bench.target import TargetRow
from client.bench.load import ClosedLoop, Phases
from client.bench.measure import Row, Subject, measure
from client.bench.requests import make_client_request
from contract.tensors import MODELS

if TYPE_CHECKING:
    from serving.stack import Stack

_CONCURRENCY: Final = 8
_BATCHES: Final = (1, 4, 8, 16)


def measure_serving(model: Model, phases: Phases) -> list[TargetRow]:
    """Measure what serving costs over the same graphs in this process, in both layouts; the better one counts."""
    costs = {path.name: _measure_layout(model, path, phases) for path in (model.split, model.fused)}
    tensors, throughput, files = zip(*(cost.list_ratios() for cost in costs.values()), strict=True)
    return [
        _choose(
            "served predict_study_tensors, batch 1, p50 / the same graphs in-process, best order",
            costs,
            1.05,
            tensors,
        ),
        _choose(
            f"saturated throughput, concurrency {_CONCURRENCY} / in-process loop at its best batch size",
            costs,
            0.97,
            throughput,
            bound="at least",
        ),
        _choose(
            "raw DICOM in by the client, p50 / in-process load_pixels, tokens and graphs", costs, 1.10, files
        ),
        TargetRow(
            "server ready after start",
            "at most",
            10,
            max(cost.ready_s for cost in costs.values()),
            "s",
            "weights on disk, warmed up: "
            + ", ".join(f"{name} {x.ready_s:.1f} s" for name, x in costs.items()),
        ),
    ]


@dataclass(frozen=True)
class _LayoutCost:
    """What was measured of one layout: rows of the served model first, those of this process after it."""

    latency: list[Row]
    throughput: list[Row]
    files: list[Row]
    ready_s: float

    def list_ratios(self) -> list[tuple[float, str]]:
        """Return served / in-process, and both figures, of latency, throughput and latency from files."""
        best = min(self.latency[1:], key=get_median)
        fullest = max(self.throughput[1:], key=get_rate)
        rates = f"{get_rate(self.throughput[0]):.1f} / {get_rate(fullest):.1f} studies/s"
        rate = statistics.median(
            ours.throughput / (theirs.throughput * fullest.subject.batch)
            for ours, theirs in zip(self.throughput[0].samples, fullest.samples, strict=True)
        )
        return [
            (
                compare(self.latency[0], best),
                f"{say_ms(self.latency[0])} / {say_ms(best)} {best.subject.target}",
            ),
            (rate, f"{rates}, batch {fullest.subject.batch}"),
            (
                compare(self.files[0], self.files[1]),
                f"{say_ms(self.files[0])} / {say_ms(self.files[1])}",
            ),
        ]


def _choose(
    name: str,
    layouts: Iterable[str],
    limit: float,
    ratios: Sequence[tuple[float, str]],
    *,
    bound: Literal["at most", "at least"] = "at most",
) -> TargetRow:
    """Return a row with the better layout's ratio, and both layouts' in its detail."""
    best = (min if bound == "at most" else max)(ratio for ratio, _ in ratios)
    detail = "; ".join(
        f"{layout} {ratio:.3f} ({said})" for layout, (ratio, said) in zip(layouts, ratios, strict=True)
    )
    return TargetRow(name, bound, limit, best, detail=detail)


def _measure_layout(model: Model, repository: Path, phases: Phases) -> _LayoutCost:
    from client.triton import TritonTransport
    from serving.inprocess import InProcess

    with ExitStack() as open_now:
        stack, ready_s = open_now.enter_context(model.serve(repository))
        alone, together = InProcess(repository), InProcess(repository, concurrent=True)
        cases = model.read_cases()
        fixed = prepare(alone, TENSORS, cases, length=LENGTH)
        raw = prepare(alone, RAW, cases)
        served = open_now.enter_context(send(stack, TENSORS, fixed))
        latency = measure_side_by_side(
            [
                Subject("served", served, ClosedLoop(1)),
                Subject("in-process", answer_here(alone, TENSORS, fixed), ClosedLoop(1)),
                Subject(BOTH_AT_ONCE, answer_here(together, TENSORS, fixed), ClosedLoop(1)),
            ],
            phases,
        )
        throughput = measure(
            [Subject("served", served, ClosedLoop(_CONCURRENCY))]
            + [
                Subject(
                    "in-process",
                    answer_here(alone, TENSORS, join_batches(fixed, size)),
                    ClosedLoop(1),
                    batch=size,
                )
                for size in _BATCHES
            ],
            phases,
            repeats=REPEATS,
        )
        # As CxrClient sends files: by shared memory on one host.
        transport = TritonTransport(stack.triton_url)
        open_now.callback(transport.close)
        outputs = tuple(tensor.name for tensor in MODELS[RAW].outputs)
        files = measure_side_by_side(
            [
                Subject(
                    "served", make_client_request(transport, RAW, raw, outputs, TIMEOUT_S), ClosedLoop(1)
                ),
                Subject("in-process", answer_here(alone, RAW, raw), ClosedLoop(1)),
            ],
            phases,
        )
    return _LayoutCost(latency, throughput, files, ready_s)


def measure_swap(model: Model, phases: Phases) -> list[TargetRow]:
    """Publish a version and let the server take it while requests come in."""
    from serving.inprocess import InProcess

    with ExitStack() as open_now:
        scratch = Path(open_now.enter_context(tempfile.TemporaryDirectory(prefix="cxr-swap-")))
        repository = Path(shutil.copytree(model.split, scratch / "repository"))
        stack, _ = open_now.enter_context(model.serve(repository))
        fixed = prepare(InProcess(model.split), TENSORS, model.read_cases(), length=LENGTH)
        sender = open_now.enter_context(send(stack, TENSORS, fixed))
        steady = measure([Subject("served", sender, ClosedLoop(1))], phases, repeats=1)[0]
        swap = _Swap(lambda: _publish_again(model, repository, stack), phases.duration_s)
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
    """Swaps in the background from the beginning of the measured time on."""

    def __init__(self, swap: Callable[[], None], duration_s: float) -> None:
        self._swap, self._duration_s = swap, duration_s
        self.seconds = float("inf")
        self._error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether it was over before the measured time was."""
        return self.seconds <= self._duration_s

    def begin(self) -> None:
        """Start."""
        self._thread = threading.Thread(target=self._run, name="cxr-swap")
        self._thread.start()

    def end(self) -> dict[str, Any]:
        """Wait for the end."""
        self._thread.join()
        if self._error:
            raise self._error
        return {}

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._swap()
        except Exception as error:  # raised again where the load is measured
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
    graphs = {name: model.split / name / version / "model.onnx" for name in deployment.graphs}
    publish(model.bundle, graphs, repository, deployment)
    reload_models(stack.triton_url, repository, read_admin_key(stack.admin_key_path))
