"""Durable upserts against the disk's own fsync rate, and the restart of a filled store."""

import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from bench.retrieval.sidecar import MODEL, make_record, make_request, run_sidecar
from bench.targets.target import TargetRow
from contract.address import CHANNEL_OPTIONS
from contract.proto import retrieval_pb2, retrieval_pb2_grpc

_BATCH: Final = 256
_SENDERS: Final = 2
_PAGE: Final = 4096  # bytes; more than SQLite writes for a case of 512 values
_TIMEOUT_S: Final = 60.0


def measure_upserts(work: Path, vectors: NDArray[np.float32], options: tuple[str, ...] = ()) -> TargetRow:
    """Add every vector as a case in batches of 256, from two senders; compare with writing as much to the disk."""
    requests = [_make_batch(vectors, start) for start in range(0, len(vectors) - _BATCH + 1, _BATCH)]
    with (
        tempfile.TemporaryDirectory(dir=work) as place,
        run_sidecar(Path(place) / "store", *options) as sidecar,
    ):
        before = measure_syncs(work)
        sidecar.stub.AddCases(requests[0], timeout=_TIMEOUT_S)
        began = time.perf_counter()
        threads = [
            threading.Thread(target=_send, args=(sidecar.address, requests[first::_SENDERS]))
            for first in range(_SENDERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = len(requests) * _BATCH / (time.perf_counter() - began)
        after = measure_syncs(work)
        stored = sidecar.stub.GetInfo(retrieval_pb2.GetInfoRequest()).case_count
    syncs = statistics.median((before, after))
    share = rate / (_BATCH * syncs)
    return TargetRow(
        f"durable upserts, batches of {_BATCH}, {_SENDERS} senders",
        "at least",
        20_000,
        rate,
        unit="cases/s",
        detail=f"the disk writes and syncs {_BATCH} pages of {_PAGE} bytes {syncs:.0f} times a second, which would be "
        f"{_BATCH * syncs:,.0f} cases/s: fsync {'is' if share > 0.5 else 'is not'} the limit",
        conditions={"every case is stored": stored == len(requests) * _BATCH},
    )


def measure_syncs(directory: Path, seconds: float = 1.0) -> float:
    """Return how often a second the disk takes a batch of pages and has it durable."""
    data, count, began = os.urandom(_BATCH * _PAGE), 0, time.perf_counter()
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        while (spent := time.perf_counter() - began) < seconds:
            file.seek(0)
            file.write(data)
            os.fsync(file.fileno())
            count += 1
    return count / spent


def measure_restart(store: Path, query: NDArray[np.float32], count: int, limit_s: float | None) -> TargetRow:
    """Start a sidecar on a filled store and search at once."""
    began = time.perf_counter()
    with run_sidecar(store) as sidecar:
        sidecar.stub.Search(make_request(query, 10), timeout=_TIMEOUT_S)
        spent = time.perf_counter() - began
        started_s = sidecar.started_s
    return TargetRow(
        f"restart with {count:,} cases to the first answer",
        "at most",
        limit_s,
        spent,
        unit="s",
        detail=f"ready after {started_s:.1f} s; the file was in the page cache",
    )


def _make_batch(vectors: NDArray[np.float32], start: int) -> Any:
    request = retrieval_pb2.AddCasesRequest(fingerprint=MODEL)
    for place, vector in enumerate(vectors[start : start + _BATCH]):
        record = make_record(start + place)
        request.cases.add(
            id=record.id,
            study_id=record.study_id,
            embedding=vector.tolist(),
            labels=record.labels,
            report=record.report,
            image_ref=record.image_ref,
            view=record.view,
            embedding_kind=record.kind,
        )
    return request


def _send(address: str, requests: list[Any]) -> None:
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = retrieval_pb2_grpc.RetrievalStub(channel)
        for request in requests:
            stub.AddCases(request, timeout=_TIMEOUT_S)
