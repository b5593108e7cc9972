"""Searches through the sidecar against raw FAISS in this process: one query at a time, 32 clients, a filter."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from bench.retrieval.clients import Clients, start_clients
from bench.retrieval.sidecar import Sidecar, make_request
from bench.retrieval.vectors import DIMENSION, Vectors
from bench.targets.target import TargetRow

K: Final = 10
CLIENTS: Final = 32
QUERIES: Final = 256
_BATCHES: Final = (32, 64, 128, 256)
_THRESHOLDS: Final = (16, 128_000)  # queries from which FAISS multiplies matrices; 128,000 is its own value
_TURNS: Final = 6
_CHECKED: Final = 16  # queries whose answers are compared with a full comparison
_GRPC_MS: Final = 0.3  # allowed beside the ratio


@dataclass(frozen=True)
class Raw:
    """Raw FAISS at its best for many queries."""

    index: Any
    queries: NDArray[np.float32]
    batch: int
    threshold: int

    def search(self, queries: NDArray[np.float32], threshold: int) -> float:
        """Search once; return the seconds."""
        faiss.cvar.distance_compute_blas_threshold = threshold
        began = time.perf_counter()
        self.index.search(queries, K)
        return time.perf_counter() - began

    def measure_rate(self, seconds: float) -> float:
        """Return queries per second in batches."""
        done, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            self.search(self.queries[: self.batch], self.threshold)
            done += self.batch
        return done / spent

    def measure_single(self, queries: NDArray[np.float32]) -> float:
        """Return the median milliseconds of one query, for which the threshold does not count."""
        return 1e3 * statistics.median(self.search(query[None], self.threshold) for query in queries)


def open_raw(vectors: Vectors) -> Raw:
    """Put the vectors into raw FAISS and find the fastest batch size and threshold."""
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(vectors.stored)
    found: dict[tuple[int, int], float] = {}
    for batch in _BATCHES:
        for threshold in _THRESHOLDS:
            raw = Raw(index, vectors.queries, batch, threshold)
            found[batch, threshold] = batch / min(
                raw.search(vectors.queries[:batch], threshold) for _ in range(2)
            )
    batch, threshold = max(found, key=lambda key: found[key])
    return Raw(index, vectors.queries, batch, threshold)


def measure_searches(
    sidecar: Sidecar, vectors: Vectors, raw: Raw, seconds: float, work: Path
) -> list[TargetRow]:
    """Measure all rows of one kind of vectors.

    Args:
        sidecar: Holds `vectors.stored`.
        vectors: The vectors.
        raw: The same vectors in raw FAISS.
        seconds: Seconds of each load, in turns.
        work: Directory for the messages of the clients.
    """
    turn = seconds / _TURNS
    plain = [make_request(query, K).SerializeToString() for query in vectors.queries]
    filtered = [make_request(query, K, filtered=True).SerializeToString() for query in vectors.queries]
    with (
        start_clients(sidecar.address, plain[:1], 1, work / "one") as one,
        start_clients(sidecar.address, plain, CLIENTS, work / "plain") as many,
        start_clients(sidecar.address, filtered, CLIENTS, work / "filtered") as few,
    ):
        for clients in (one, many, few):
            clients.send(turn)  # warms up
        return [
            _measure_single(sidecar, vectors, raw, turn),
            _measure_clients(vectors, raw, many, turn),
            _measure_filter(sidecar, vectors, many, few, turn),
        ]


def _measure_single(sidecar: Sidecar, vectors: Vectors, raw: Raw, turn: float) -> TargetRow:
    ratios, served_ms, raw_ms = [], [], []
    for _ in range(_TURNS):
        raw_ms.append(raw.measure_single(vectors.queries[:10]))
        served_ms.append(
            _time_calls(lambda query: sidecar.stub.Search(make_request(query, K)), vectors, turn)
        )
        ratios.append((served_ms[-1] - _GRPC_MS) / raw_ms[-1])
    exact = _count_exact(sidecar, vectors, filtered=False)
    return TargetRow(
        f"one query, {len(vectors.stored):,} x {DIMENSION} {vectors.structure}: (p50 through gRPC - {_GRPC_MS} ms) / "
        "raw FAISS flat in-process",
        "at most",
        0.35,
        statistics.median(ratios),
        detail=f"{statistics.median(served_ms):.2f} / {statistics.median(raw_ms):.2f} ms; {exact} of {_CHECKED} "
        "answers equal a full comparison",
        conditions={"every answer is exact": exact == _CHECKED},
    )


def _time_calls(call: Callable[[NDArray[np.float32]], Any], vectors: Vectors, seconds: float) -> float:
    """Return the median milliseconds of a call, message and answer in Python included."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        query = vectors.queries[len(times) % len(vectors.queries)]
        began = time.perf_counter()
        call(query)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def _measure_clients(vectors: Vectors, raw: Raw, clients: Clients, turn: float) -> TargetRow:
    pairs = [(raw.measure_rate(turn), clients.send(turn)) for _ in range(_TURNS)]
    loads = [load for _, load in pairs]
    return TargetRow(
        f"{CLIENTS} clients, {len(vectors.stored):,} x {DIMENSION} {vectors.structure}: queries per second / raw FAISS "
        "flat at its best batch size and threshold",
        "at least",
        0.90,
        statistics.median(load.rate / rate for rate, load in pairs),
        detail=f"{statistics.median(load.rate for load in loads):.0f} / "
        f"{statistics.median(rate for rate, _ in pairs):.0f} queries/s (batches of {raw.batch}, threshold "
        f"{raw.threshold}); p50 {statistics.median(load.p50_ms for load in loads):.1f} ms, "
        f"p99 {max(load.p99_ms for load in loads):.1f} ms",
    )


def _measure_filter(
    sidecar: Sidecar, vectors: Vectors, many: Clients, few: Clients, turn: float
) -> TargetRow:
    pairs = [(many.send(turn), few.send(turn)) for _ in range(_TURNS)]
    exact = _count_exact(sidecar, vectors, filtered=True)
    return TargetRow(
        f"the same with a label that 10 % of the cases have, {vectors.structure}: queries per second / unfiltered",
        "at least",
        0.5,
        statistics.median(filtered.rate / plain.rate for plain, filtered in pairs),
        detail=f"{statistics.median(filtered.rate for _, filtered in pairs):.0f} / "
        f"{statistics.median(plain.rate for plain, _ in pairs):.0f} queries/s; {exact} of {_CHECKED} answers equal a "
        "full comparison",
        conditions={"every answer is exact": exact == _CHECKED},
    )


def _count_exact(sidecar: Sidecar, vectors: Vectors, *, filtered: bool) -> int:
    """Return how many of `_CHECKED` answers hold the nearest cases, in order."""
    rows = np.arange(0, len(vectors.stored), 10 if filtered else 1)
    stored = vectors.stored[rows]
    exact = 0
    for query in vectors.queries[:_CHECKED]:
        scores = stored @ query
        near = rows[np.argpartition(-scores, min(4 * K, len(rows) - 1))[: 4 * K]]
        precise = (vectors.stored[near].astype(np.float64) * query.astype(np.float64)).sum(axis=1)
        order = sorted(zip(-precise.astype(np.float32), (f"case-{row}" for row in near), strict=True))
        hits = sidecar.stub.Search(make_request(query, K, filtered=filtered)).results[0].hits
        exact += [hit.case.id for hit in hits] == [name for _, name in order[:K]]
    return exact
