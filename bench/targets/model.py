"""Shared helpers of `cxr bench table`: the models of `make bench`, requests, fair comparison.

Loads to be compared are measured in turn (`bench.report.measure`).
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.load.generator import Phases, Request
from bench.load.inputs import Arrays, RawCase, join_cases, prepare_inputs
from bench.load.requests import BytesSender, read_signature, serialise
from bench.report.measure import Row, Subject, measure
from bench.run import make_raw_cases
from contract.bundle import Bundle, load_bundle
from contract.tensors import MODELS
from training.data.rows import read_rows

if TYPE_CHECKING:
    from serving.inprocess import InProcess
    from serving.stack import Stack

TENSORS: Final = "predict_study_tensors"
RAW: Final = "predict_study"
LENGTH: Final = 128  # tokens, for rows with a fixed length
REPEATS: Final = 7
TIMEOUT_S: Final = 60.0
_TURN_S: Final = 0.5
_CASES: Final = 24


@dataclass(frozen=True)
class Model:
    """One model size, made by `make bench`: root/NAME/{bundle,fp32,split,fused} and root/studies.parquet."""

    root: Path
    name: str

    @property
    def split(self) -> Path:
        """The repository of the fastest profile, with separate encoders and fusion."""
        return self.root / self.name / "split"

    @property
    def fused(self) -> Path:
        """The same, with one graph for each kind of input."""
        return self.root / self.name / "fused"

    @property
    def fp32(self) -> Path:
        """The repository of single precision on ONNX Runtime."""
        return self.root / self.name / "fp32"

    @cached_property
    def bundle(self) -> Bundle:
        """The bundle of the repositories."""
        return load_bundle(self.root / self.name / "bundle")

    def read_cases(self, count: int | None = _CASES) -> list[RawCase]:
        """Read studies with a frontal image and a readable text; None reads all of them.

        Raises:
            ConfigError: There is no such study.
        """
        rows = read_rows(self.root / "studies.parquet")
        return make_raw_cases(iter(rows), count or len(rows), self.bundle.config["text_mode"])

    @contextmanager
    def serve(self, repository: Path) -> Iterator[tuple["Stack", float]]:
        """Run Triton and the sidecar with a repository; yield them and the seconds until they were ready."""
        from serving.stack import Ports, Stack

        with tempfile.TemporaryDirectory(prefix="cxr-bench-") as scratch:
            ports, logs = Ports.free(), Path(scratch) / "logs"
            with Stack(repository, Path(scratch) / "store", ports=ports, log_dir=logs) as stack:
                began = time.monotonic()
                stack.wait_ready()
                yield stack, time.monotonic() - began


def prepare(
    model: "InProcess", name: str, cases: Sequence[RawCase], *, length: int | None = None
) -> list[Arrays]:
    """Return one request to a model per case, with the text padded to `length` tokens if given."""

    def ask(step: str, inputs: Any, outputs: Sequence[str]) -> Arrays:
        answer = model.run(step, inputs)
        return {output: answer[output] for output in outputs}

    return prepare_inputs(ask, [x.name for x in MODELS[name].inputs], cases, length=length)


@contextmanager
def send(stack: "Stack", name: str, requests: Sequence[Arrays]) -> Iterator[Request]:
    """Yield a function that sends these requests, serialised beforehand, to a served model."""
    signature = read_signature(stack.triton_url, name, TIMEOUT_S)
    payloads = [serialise(signature, inputs) for inputs in requests]
    sender = BytesSender(stack.triton_url, payloads, TIMEOUT_S)
    try:
        yield sender
    finally:
        sender.close()


def join_batches(requests: Sequence[Arrays], size: int) -> list[Arrays]:
    """Return the same number of requests, with `size` cases each."""
    indices = range(len(requests))
    return [
        join_cases([requests[(start + step) % len(requests)] for step in range(size)]) for start in indices
    ]


def measure_side_by_side(subjects: Sequence[Subject], phases: Phases) -> list[Row]:
    """Measure in turn, half a second each; see `compare`."""
    repeats = max(REPEATS, round(phases.duration_s / _TURN_S))
    return measure(subjects, replace(phases, window_s=_TURN_S / 5), repeats=repeats)


def compare(above: Row, below: Row) -> float:
    """Return the ratio of the median latencies of two rows: the median over repeats, which ran side by side.

    A shared machine is sometimes a third slower for seconds. Both sides of a repeat are affected equally.
    """
    return statistics.median(
        first.get_percentile(50) / second.get_percentile(50)
        for first, second in zip(above.samples, below.samples, strict=True)
    )


def get_median(row: Row) -> float:
    """Return the median over the repeats of the median latency, in milliseconds."""
    return statistics.median(sample.get_percentile(50) for sample in row.samples)


def get_rate(row: Row) -> float:
    """Return the mean throughput, in cases per second."""
    return statistics.fmean(sample.throughput for sample in row.samples) * row.subject.batch


def say_ms(row: Row) -> str:
    """Return the median latency as text."""
    return f"{get_median(row):.1f} ms"
