"""The parts of `cxr bench table`. Each part returns its rows.

`fused` is the repository that `make bench` published with the fastest profile of this processor. Every row serves it.
`split` has the same graphs separately, and `fp32` has single precision graphs for ONNX Runtime. Both run in this
process, for comparison.
"""

import os
import shutil
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.load.generator import ClosedLoop, Phases
from bench.load.inputs import Arrays, join_cases
from bench.load.requests import Signature
from bench.report.machine import describe_machine
from bench.report.measure import Row, Subject, measure
from bench.run import answer_here, make_eager
from bench.targets.in_process import Ways
from bench.targets.model import (
    LENGTH,
    REPEATS,
    TENSORS,
    Model,
    compare,
    get_median,
    measure_side_by_side,
    prepare,
    say_ms,
    send,
)
from bench.targets.serving import measure_files, measure_latency, measure_swap, measure_throughput
from bench.targets.target import Measurement, TargetRow
from contract.bundle import Bundle
from contract.tensors import MODELS
from export.gates.measures import compute_cosines

if TYPE_CHECKING:
    from serving.inprocess import InProcess

PUBLISHED_LENGTH: Final = 512  # tokens to which the published model pads every text
_SIGNATURE: Final = Signature(
    TENSORS,
    {tensor.name: tensor.dtype for tensor in MODELS[TENSORS].inputs},
    tuple(tensor.name for tensor in MODELS[TENSORS].outputs),
)
_FEWEST: Final = 5  # requests of a turn, however slow the model is
_TURNS_OF_AGREEMENT: Final = 4  # turns per repeat
_FASTER_WITH_AMX: Final = 3.0
_FASTER_WITHOUT_AMX: Final = 2.8
_MIN_COSINE: Final = 0.9999
_MAX_FLIPS: Final = 0.001


def list_parts(root: Path, seconds: float) -> dict[str, Measurement]:
    """Return name -> function that measures that part of the table, in the order of the table."""
    phases = Phases(duration_s=seconds, warmup_max_s=10.0, at_least=_FEWEST)
    tiny, published = Model(root, "tiny"), Model(root, "published")
    return {
        "latency": lambda: measure_latency(tiny, phases),
        "throughput": lambda: measure_throughput(tiny, phases),
        "files": lambda: measure_files(tiny, phases),
        "precision": lambda: measure_precision(tiny, phases),
        "published": lambda: measure_published(published, phases),
        "perf_analyzer": lambda: measure_agreement(tiny, phases),
        "swap": lambda: measure_swap(tiny, phases),
    }


def measure_precision(model: Model, phases: Phases) -> list[TargetRow]:
    """Compare the best profile with single precision, in its faster order, and with eager PyTorch."""
    from serving.inprocess import InProcess

    best = InProcess(model.fused)
    fixed = prepare(best, TENSORS, model.read_cases(), length=LENGTH)
    fp32 = Ways({"split": model.fp32})
    single = fp32.find_fastest(TENSORS, fixed, phases)
    rows = measure_side_by_side(
        [
            Subject("best profile", answer_here(best, TENSORS, fixed), ClosedLoop(1)),
            single,
            Subject("torch eager fp32", make_eager(model.bundle.path, _SIGNATURE, fixed), ClosedLoop(1)),
        ],
        phases,
    )
    everything = prepare(best, TENSORS, model.read_cases(None))
    cosine, flips, decisions = compare_answers(fp32.first, best, everything, model.bundle)
    amx = "amx_bf16" in describe_machine()["flags"]
    return [
        TargetRow(
            f"best CPU profile / ONNX Runtime fp32, p50, times faster{'' if amx else ', without AMX'}",
            "at least",
            _FASTER_WITH_AMX if amx else _FASTER_WITHOUT_AMX,
            compare(rows[1], rows[0]),
            detail=f"{say_ms(rows[1])} ({single.target}) / {say_ms(rows[0])}; cosine at least {cosine:.6f}, "
            f"{flips} of {decisions} labels flip",
            conditions={
                f"cosine of every embedding >= {_MIN_COSINE}": cosine >= _MIN_COSINE,
                f"label flips <= {_MAX_FLIPS:.1%}": flips <= _MAX_FLIPS * decisions,
            },
        ),
        TargetRow(
            f"best CPU profile at Swin-T + BERT-base, {LENGTH} tokens / torch eager fp32, times faster",
            "at least",
            4.0,
            compare(rows[2], rows[0]),
            detail=f"{say_ms(rows[2])} / {say_ms(rows[0])}",
        ),
    ]


def measure_published(model: Model, phases: Phases) -> list[TargetRow]:
    """Compare the published size, served here, with the published way to run it, and measure each step in between."""
    from serving.inprocess import InProcess

    with ExitStack() as open_now:
        stack, _ = open_now.enter_context(model.serve(model.fused))
        best = InProcess(model.fused)
        real_length = prepare(best, TENSORS, model.read_cases())
        padded = [join_cases([inputs], PUBLISHED_LENGTH) for inputs in real_length]
        steps = {
            "torch eager fp32, padded": make_eager(model.bundle.path, _SIGNATURE, padded),
            "torch eager fp32": make_eager(model.bundle.path, _SIGNATURE, real_length),
            "ONNX Runtime fp32": answer_here(InProcess(model.fp32), TENSORS, real_length),
            "best profile": answer_here(best, TENSORS, real_length),
            "served": open_now.enter_context(send(stack, TENSORS, real_length)),
        }
        subjects = [Subject(name, request, ClosedLoop(1)) for name, request in steps.items()]
        rows = measure(subjects, phases, repeats=REPEATS)
    lengths = sorted({inputs["input_ids"].shape[1] for inputs in real_length})
    whole = TargetRow(
        f"served published size (Swin-B, real length bucket) / the published way (text padded to {PUBLISHED_LENGTH}, "
        "torch eager fp32), times faster",
        "at least",
        8.0,
        compare(rows[0], rows[-1]),
        detail=f"{say_ms(rows[0])} / {say_ms(rows[-1])}; buckets {', '.join(map(str, lengths))}",
    )
    factors = ("text not padded", "ONNX Runtime for PyTorch", "precision", "serving")
    return [whole, *(_say_factor(*pair) for pair in zip(factors, rows, rows[1:], strict=True))]


def _say_factor(name: str, before: Row, after: Row) -> TargetRow:
    """Return one of the factors of the row before."""
    return TargetRow(
        f"of that by: {name}",
        "at least",
        None,
        compare(before, after),
        detail=f"{say_ms(before)} ({before.subject.target}) / {say_ms(after)} ({after.subject.target})",
    )


def measure_agreement(model: Model, phases: Phases) -> list[TargetRow]:
    """Compare the load generator with perf_analyzer, if it is on PATH or at $PERF_ANALYZER."""
    name = "our load generator / perf_analyzer, p50, difference"
    program = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    if not program:
        return [
            TargetRow(
                name,
                "at most",
                5.0,
                None,
                "%",
                "no perf_analyzer on PATH or at $PERF_ANALYZER; docs/benchmarks.md says where to get it",
            )
        ]
    from bench.load.perf_analyzer import run_perf_analyzer
    from serving.inprocess import InProcess

    with ExitStack() as open_now:
        stack, _ = open_now.enter_context(model.serve(model.fused))
        fixed = prepare(InProcess(model.fused), TENSORS, model.read_cases(), length=LENGTH)
        sender = open_now.enter_context(send(stack, TENSORS, fixed))
        subject = Subject("served", sender, ClosedLoop(1))
        own_ms: list[float] = []
        perf_analyzer_ms: list[float] = []
        turn = replace(
            phases, duration_s=phases.duration_s / _TURNS_OF_AGREEMENT, warmup_s=0.5, warmup_max_s=0.5
        )
        for _ in range(REPEATS * _TURNS_OF_AGREEMENT):
            own_ms.append(get_median(measure([subject], turn, repeats=1)[0]))
            perf_analyzer_ms.append(
                run_perf_analyzer(program, stack.triton_url, TENSORS, fixed, seconds=turn.duration_s)
            )
    ratio = statistics.median(
        own / reference for own, reference in zip(own_ms, perf_analyzer_ms, strict=True)
    )
    detail = f"{statistics.median(own_ms):.1f} ms / {statistics.median(perf_analyzer_ms):.1f} ms, ratio {ratio:.3f}"
    return [TargetRow(name, "at most", 5.0, 100 * abs(ratio - 1), "%", detail)]


def compare_answers(
    reference: "InProcess", other: "InProcess", requests: Sequence[Arrays], bundle: Bundle
) -> tuple[float, int, int]:
    """Return the lowest cosine in the joint space of a case's embeddings, the number of label flips, and of labels."""
    labels = bundle.decisions.of("study")
    thresholds = np.array([label.threshold for label in labels], np.float64)
    lowest, flips, decisions = 1.0, 0, 0
    for inputs in requests:
        first, second = (session.run(TENSORS, inputs) for session in (reference, other))
        cosines = compute_cosines(first["embedding"], second["embedding"], bundle.label_part)
        lowest = min(lowest, float(cosines.min()))
        decided = [answer["probabilities"] >= thresholds for answer in (first, second)]
        flips += int((decided[0] != decided[1]).sum())
        decisions += decided[0].size
    return lowest, flips, decisions
