"""An approximate kind of index against the flat one, each in a sidecar of its own, in turns: recall, p99, memory."""

import statistics
import time
from pathlib import Path
from typing import Final

import numpy as np

from bench.retrieval.clients import start_clients
from bench.retrieval.sidecar import Sidecar, make_request, run_sidecar
from bench.retrieval.vectors import DIMENSION, Vectors
from bench.targets.target import TargetRow
from contract.errors import ServerError
from contract.proto import retrieval_pb2

K: Final = 10
_TURNS: Final = 6
_CHECKED: Final = 200  # queries
_BUILD_S: Final = 3600.0
_TIE: Final = 1e-6


def measure_kind(
    stores: tuple[Path, Path], vectors: Vectors, kind: str, seconds: float, work: Path
) -> list[TargetRow]:
    """Measure the rows of one kind.

    Args:
        stores: Two stores that hold `vectors.stored`.
        vectors: The vectors.
        kind: As `--index` takes it. It answers whatever its recall is.
        seconds: Seconds of each load, in turns.
        work: Directory for the messages of the clients.

    Raises:
        ServerError: The kind could not be built.
    """
    messages = [make_request(query, K).SerializeToString() for query in vectors.queries]
    with (
        run_sidecar(stores[0]) as flat,
        run_sidecar(stores[1], "--index", kind, "--recall-floor", "0") as fast,
    ):
        built_s = _wait_built(fast)
        with (
            start_clients(flat.address, messages, 1, work / "flat") as flat_client,
            start_clients(fast.address, messages, 1, work / "fast") as fast_client,
        ):
            for client in (flat_client, fast_client):
                client.send(seconds / _TURNS)  # warms up
            pairs = [
                (flat_client.send(seconds / _TURNS), fast_client.send(seconds / _TURNS))
                for _ in range(_TURNS)
            ]
        info = fast.stub.GetInfo(retrieval_pb2.GetInfoRequest())
        flat_info = flat.stub.GetInfo(retrieval_pb2.GetInfoRequest())
        memory = _read_memory(flat), _read_memory(fast)
        recall = _measure_recall(fast, vectors)
    name = f"{info.index_kind}, {len(vectors.stored):,} x {DIMENSION} {vectors.structure}"
    p99s = [[load.p99_ms for load in loads] for loads in zip(*pairs, strict=True)]
    p50s = [[load.p50_ms for load in loads] for loads in zip(*pairs, strict=True)]
    return [
        TargetRow(
            f"{name}: recall@10 of new queries",
            "at least",
            0.95,
            recall,
            detail=f"measured at build on stored cases: {info.recall:.3f}, among a tenth {info.recall_tenth:.3f}, "
            f"among a hundredth {info.recall_hundredth:.3f}; built in {built_s:.0f} s beside the flat index",
        ),
        TargetRow(
            f"{name}: p99 through gRPC / flat",
            "at most",
            1 / 20,
            statistics.median(fast / slow for slow, fast in zip(*p99s, strict=True)),
            detail=f"p99 {statistics.median(p99s[1]):.1f} / {statistics.median(p99s[0]):.1f} ms, p50 "
            f"{statistics.median(p50s[1]):.1f} / {statistics.median(p50s[0]):.1f} ms, one query at a time",
        ),
        TargetRow(
            f"{name}: memory of the index / embeddings of flat",
            "at most",
            1 / 4,
            (info.vector_bytes + info.code_bytes) / flat_info.vector_bytes,
            detail=f"{(info.vector_bytes + info.code_bytes) / 1e6:.0f} / {flat_info.vector_bytes / 1e6:.0f} MB (and "
            f"{flat_info.code_bytes / 1e6:.0f} MB of codes); whole process {memory[1] / 1e6:.0f} / "
            f"{memory[0] / 1e6:.0f} MB, without pages of files",
        ),
    ]


def _wait_built(sidecar: Sidecar) -> float:
    """Wait until the kind answers; return the seconds."""
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < _BUILD_S:
        info = sidecar.stub.GetInfo(retrieval_pb2.GetInfoRequest())
        if info.index_state == "ready":
            return spent
        if info.index_state != "building":
            raise ServerError(f"The index is {info.index_state}. {info.refusal}".strip())
        time.sleep(0.2)
    raise ServerError(f"The index was not built within {_BUILD_S:.0f} s.")


def _measure_recall(sidecar: Sidecar, vectors: Vectors) -> float:
    found: list[float] = []
    for query in vectors.queries[:_CHECKED]:
        scores = vectors.stored @ query
        least = np.partition(scores, len(scores) - K)[len(scores) - K]
        hits = sidecar.stub.Search(make_request(query, K)).results[0].hits
        found.append(sum(hit.score >= least - _TIE for hit in hits) / K)
    return float(statistics.mean(found))


def _read_memory(sidecar: Sidecar) -> int:
    """Return the bytes of a process without the pages of files that it maps."""
    for line in Path(f"/proc/{sidecar.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0
