"""What `cxr bench table` measures, part by part; each part returns its rows.

`best` is the repository that `make bench` published with the fastest profile of this processor; `fp32` is the same
bundle on ONNX Runtime in single precision. Loads that are compared are measured in turn (`client.bench.measure`).
"""

import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cli.bench import answer_here, make_eager, make_raw_cases
from cli.bench_table import Measurement, TargetRow
from cli.cases import read_rows
from client.bench.inputs import Arrays, RawCase, join_cases, prepare_inputs
from client.bench.load import ClosedLoop, Phases, Request
from client.bench.machine import describe_machine
from client.bench.measure import Row, Subject, measure
from client.bench.requests import BytesSender, Signature, read_signature, serialise
from contract.bundle import Bundle, load_bundle
from contract.tensors import MODELS

if TYPE_CHECKING:
    from serving.inprocess import InProcess
    from serving.stack import Stack

TENSORS: Final = "predict_study_tensors"
RAW: Final = "predict_study"
LENGTH: Final = 128  # tokens, of the rows that fix it
PUBLISHED_LENGTH: Final = 512  # what the published model pads every text to
_SIGNATURE: Final = Signature(
    TENSORS,
    {tensor.name: tensor.dtype for tensor in MODELS[TENSORS].inputs},
    tuple(tensor.name for tensor in MODELS[TENSORS].outputs),
)
_CONCURRENCY: Final = 8
_BATCHES: Final = (1, 4, 8, 16)
_REPEATS: Final = 3
_CASES: Final = 24
_TIMEOUT_S: Final = 60.0
_MIN_COSINE: Final = 0.9999
_MAX_FLIPS: Final = 0.001


def list_parts(root: Path, seconds: float) -> dict[str, Measurement]:
    """Return name -> what measures that part of the table, in the order of the table."""
    phases = Phases(duration_s=seconds, warmup_max_s=10.0)
    tiny, base = Model(root, "tiny"), Model(root, "base")
    return {
        "serving": lambda: measure_serving(tiny, phases),
        "precision": lambda: measure_precision(tiny, phases),
        "base": lambda: measure_base(base, phases),
        "perf_analyzer": lambda: measure_agreement(tiny, phases),
        "swap": lambda: measure_swap(tiny, phases),
    }


@dataclass(frozen=True)
class Model:
    """One size of model as `make bench` left it: root/NAME/{bundle,fp32,best} and root/studies.parquet."""

    root: Path
    name: str

    @property
    def best(self) -> Path:
        """The repository of the fastest profile."""
        return self.root / self.name / "best"

    @property
    def fp32(self) -> Path:
        """The repository of single precision on ONNX Runtime."""
        return self.root / self.name / "fp32"

    @cached_property
    def bundle(self) -> Bundle:
        """The bundle of both."""
        return load_bundle(self.root / self.name / "bundle")

    def read_cases(self, count: int | None = _CASES) -> list[RawCase]:
        """Read studies that have a frontal image and words to read; None reads all of them.

        Raises:
            ConfigError: There is none.
        """
        rows = read_rows(self.root / "studies.parquet")
        return make_raw_cases(iter(rows), count or len(rows), self.bundle.config["text_mode"])

    @contextmanager
    def serve(self, repository: Path | None = None) -> Iterator[tuple["Stack", float]]:
        """Run Triton and the sidecar over a repository; yield them and how many seconds they took to be ready."""
        from serving.stack import Ports, Stack

        with tempfile.TemporaryDirectory(prefix="cxr-bench-") as scratch:
            ports, logs = Ports.free(), Path(scratch) / "logs"
            with Stack(repository or self.best, Path(scratch) / "store", ports=ports, log_dir=logs) as stack:
                began = time.monotonic()
                stack.wait_ready()
                yield stack, time.monotonic() - began


def measure_serving(model: Model, phases: Phases) -> list[TargetRow]:
    """Measure what serving costs over the same graphs in this process."""
    from serving.inprocess import InProcess

    with ExitStack() as open_now:
        stack, ready_s = open_now.enter_context(model.serve())
        alone, together = InProcess(model.best), InProcess(model.best, concurrent=True)
        cases = model.read_cases()
        fixed = _prepare(alone, TENSORS, cases, length=LENGTH)
        raw = _prepare(alone, RAW, cases)
        served = open_now.enter_context(_send(stack, TENSORS, fixed))
        latency = measure(
            [
                Subject("served", served, ClosedLoop(1)),
                Subject("in-process", answer_here(alone, TENSORS, fixed), ClosedLoop(1)),
                Subject("in-process, encoders at once", answer_here(together, TENSORS, fixed), ClosedLoop(1)),
            ],
            phases,
            repeats=_REPEATS,
        )
        throughput = measure(
            [Subject("served", served, ClosedLoop(_CONCURRENCY))]
            + [
                Subject(
                    "in-process", answer_here(alone, TENSORS, _batch(fixed, size)), ClosedLoop(1), batch=size
                )
                for size in _BATCHES
            ],
            phases,
            repeats=_REPEATS,
        )
        served_raw = open_now.enter_context(_send(stack, RAW, raw))
        files = measure(
            [
                Subject("served", served_raw, ClosedLoop(1)),
                Subject("in-process", answer_here(alone, RAW, raw), ClosedLoop(1)),
            ],
            phases,
            repeats=_REPEATS,
        )
    best = min(latency[1:], key=_median)
    fullest = max(throughput[1:], key=_rate)
    return [
        TargetRow(
            "served predict_study_tensors, batch 1, p50 / the same graphs in-process, best order",
            "at most",
            1.05,
            _median(latency[0]) / _median(best),
            detail=f"{_say_ms(latency[0])} / {_say_ms(best)} ({best.subject.target})",
        ),
        TargetRow(
            f"saturated throughput, concurrency {_CONCURRENCY} / in-process loop at its best batch size",
            "at least",
            0.97,
            _rate(throughput[0]) / _rate(fullest),
            detail=f"{_rate(throughput[0]):.1f} / {_rate(fullest):.1f} studies/s (batch {fullest.subject.batch})",
        ),
        TargetRow(
            "raw DICOM in, p50 / in-process load_pixels, tokens and graphs",
            "at most",
            1.10,
            _median(files[0]) / _median(files[1]),
            detail=f"{_say_ms(files[0])} / {_say_ms(files[1])}",
        ),
        TargetRow("server ready after start", "at most", 10, ready_s, "s", "weights on disk, warmed up"),
    ]


def measure_precision(model: Model, phases: Phases) -> list[TargetRow]:
    """Measure the best profile against single precision and against eager PyTorch."""
    from serving.inprocess import InProcess

    fp32, best = InProcess(model.fp32), InProcess(model.best)
    fixed = _prepare(best, TENSORS, model.read_cases(), length=LENGTH)
    rows = measure(
        [
            Subject("best profile", answer_here(best, TENSORS, fixed), ClosedLoop(1)),
            Subject("ONNX Runtime fp32", answer_here(fp32, TENSORS, fixed), ClosedLoop(1)),
            Subject("torch eager fp32", make_eager(model.bundle.path, _SIGNATURE, fixed), ClosedLoop(1)),
        ],
        phases,
        repeats=_REPEATS,
    )
    everything = _prepare(best, TENSORS, model.read_cases(None))
    cosine, flips, decisions = compare_answers(fp32, best, everything, model.bundle)
    amx = "amx_bf16" in describe_machine()["flags"]
    speed = f"{_say_ms(rows[1])} / {_say_ms(rows[0])}; cosine at least {cosine:.6f}, {flips} of {decisions} labels flip"
    return [
        TargetRow(
            "best CPU profile / ONNX Runtime fp32, p50, times faster",
            "at least",
            3.0,
            _median(rows[1]) / _median(rows[0]),
            detail=speed + ("" if amx else "; this processor has no AMX, for which the limit is meant"),
            conditions={
                f"cosine of every embedding >= {_MIN_COSINE}": cosine >= _MIN_COSINE,
                f"label flips <= {_MAX_FLIPS:.1%}": flips <= _MAX_FLIPS * decisions,
            },
        ),
        TargetRow(
            f"best CPU profile at Swin-T + BERT-base, {LENGTH} tokens / torch eager fp32, times faster",
            "at least",
            4.0,
            _median(rows[2]) / _median(rows[0]),
            detail=f"{_say_ms(rows[2])} / {_say_ms(rows[0])}",
        ),
    ]


def measure_base(model: Model, phases: Phases) -> list[TargetRow]:
    """Measure the published size as served here against the published way to run it."""
    with ExitStack() as open_now:
        from serving.inprocess import InProcess

        stack, _ = open_now.enter_context(model.serve())
        cases = model.read_cases()
        ours = _prepare(InProcess(model.best), TENSORS, cases)
        padded = [join_cases([inputs], PUBLISHED_LENGTH) for inputs in ours]
        rows = measure(
            [
                Subject("served", open_now.enter_context(_send(stack, TENSORS, ours)), ClosedLoop(1)),
                Subject(
                    "torch eager fp32, padded",
                    make_eager(model.bundle.path, _SIGNATURE, padded),
                    ClosedLoop(1),
                ),
            ],
            phases,
            repeats=_REPEATS,
        )
    lengths = sorted({inputs["input_ids"].shape[1] for inputs in ours})
    return [
        TargetRow(
            f"served base (Swin-B, real length bucket) / the published way (text padded to {PUBLISHED_LENGTH}, "
            "torch eager fp32), times faster",
            "at least",
            8.0,
            _median(rows[1]) / _median(rows[0]),
            detail=f"{_say_ms(rows[1])} / {_say_ms(rows[0])}; buckets {', '.join(map(str, lengths))}",
        )
    ]


def measure_agreement(model: Model, phases: Phases) -> list[TargetRow]:
    """Hold the load generator against perf_analyzer, where there is one (on PATH or at $PERF_ANALYZER)."""
    name = "our load generator / perf_analyzer, p50, difference"
    program = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    if not program:
        return [TargetRow(name, "at most", 5.0, None, "%", "no perf_analyzer on PATH or at $PERF_ANALYZER")]
    from client.bench.perf_analyzer import run_perf_analyzer
    from serving.inprocess import InProcess

    with ExitStack() as open_now:
        stack, _ = open_now.enter_context(model.serve())
        fixed = _prepare(InProcess(model.best), TENSORS, model.read_cases(), length=LENGTH)
        sender = open_now.enter_context(_send(stack, TENSORS, fixed))
        subject = Subject("served", sender, ClosedLoop(1))
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(_REPEATS):
            ours.append(_median(measure([subject], phases, repeats=1)[0]))
            theirs.append(
                run_perf_analyzer(program, stack.triton_url, TENSORS, fixed, seconds=phases.duration_s)
            )
    mine, other = statistics.median(ours), statistics.median(theirs)
    detail = f"{mine:.1f} ms / {other:.1f} ms"
    return [TargetRow(name, "at most", 5.0, 100 * abs(mine / other - 1), "%", detail)]


def measure_swap(model: Model, phases: Phases) -> list[TargetRow]:
    """Publish a version and let the server take it while requests come in."""
    from serving.inprocess import InProcess

    with ExitStack() as open_now:
        scratch = Path(open_now.enter_context(tempfile.TemporaryDirectory(prefix="cxr-swap-")))
        repository = Path(shutil.copytree(model.best, scratch / "repository"))
        stack, _ = open_now.enter_context(model.serve(repository))
        fixed = _prepare(InProcess(model.best), TENSORS, model.read_cases(), length=LENGTH)
        sender = open_now.enter_context(_send(stack, TENSORS, fixed))
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


def compare_answers(
    reference: "InProcess", other: "InProcess", requests: Sequence[Arrays], bundle: Bundle
) -> tuple[float, int, int]:
    """Return the lowest cosine of two embeddings of a case, how many labels change sides, and of how many."""
    thresholds = np.array([label.threshold for label in bundle.labels])
    lowest, flips, decisions = 1.0, 0, 0
    for inputs in requests:
        one, two = (each.run(TENSORS, inputs) for each in (reference, other))
        lowest = min(lowest, float((one["embedding"] * two["embedding"]).sum(-1).min()))
        decided = [answer["probabilities"] >= thresholds for answer in (one, two)]
        flips += int((decided[0] != decided[1]).sum())
        decisions += decided[0].size
    return lowest, flips, decisions


def _publish_again(model: Model, repository: Path, stack: "Stack") -> None:
    from export.pipeline import make_deployment
    from export.profiles import load_profile
    from export.publish import publish
    from export.versions import read_published
    from serving.reload import reload_models
    from serving.triton import read_admin_key

    published = read_published(repository)
    entry = published.to_dict()
    profile = load_profile(entry["profile"])
    deployment = make_deployment(profile, entry["target"], entry["variant"], entry["layout"])
    version = str(published.version)
    graphs = {name: model.best / name / version / "model.onnx" for name in deployment.graphs}
    publish(model.bundle, graphs, repository, deployment)
    reload_models(stack.triton_url, repository, read_admin_key(stack.admin_key_path))


def _prepare(
    model: "InProcess", name: str, cases: Sequence[RawCase], *, length: int | None = None
) -> list[Arrays]:
    def ask(step: str, inputs: Any, outputs: Sequence[str]) -> Arrays:
        answer = model.run(step, inputs)
        return {output: answer[output] for output in outputs}

    return prepare_inputs(ask, [x.name for x in MODELS[name].inputs], cases, length=length)


@contextmanager
def _send(stack: "Stack", name: str, requests: Sequence[Arrays]) -> Iterator[Request]:
    signature = read_signature(stack.triton_url, name, _TIMEOUT_S)
    payloads = [serialise(signature, inputs) for inputs in requests]
    sender = BytesSender(stack.triton_url, payloads, _TIMEOUT_S)
    try:
        yield sender
    finally:
        sender.close()


def _batch(requests: Sequence[Arrays], size: int) -> list[Arrays]:
    places = range(len(requests))
    return [
        join_cases([requests[(start + step) % len(requests)] for step in range(size)]) for start in places
    ]


def _median(row: Row) -> float:
    return statistics.median(sample.get_percentile(50) for sample in row.samples)


def _rate(row: Row) -> float:
    return statistics.fmean(sample.throughput for sample in row.samples) * row.subject.batch


def _say_ms(row: Row) -> str:
    return f"{_median(row):.1f} ms"
