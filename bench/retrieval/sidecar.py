"""A store of drawn cases, and the real sidecar process on it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from contract.address import CHANNEL_OPTIONS
from contract.errors import ServerError
from contract.proto import retrieval_pb2, retrieval_pb2_grpc
from retrieval.cases import CaseRecord
from retrieval.store import CaseStore

MODEL: Final = "a" * 64
FILTER_LABEL: Final = "pleural"  # every tenth case has it
SEARCH: Final = "/cxr.retrieval.v1.Retrieval/Search"
_BATCH: Final = 4096
_REPORT: Final = (
    "The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax. Case {}."
)


@dataclass(frozen=True)
class Sidecar:
    """A running sidecar.

    Attributes:
        address: host:port.
        stub: Client stub of its service.
        started_s: Seconds from the start of the process until it reported that it is ready.
        pid: Id of the process.
    """

    address: str
    stub: Any
    started_s: float
    pid: int


def make_record(number: int) -> CaseRecord:
    """Return a drawn case."""
    label = FILTER_LABEL if number % 10 == 0 else "normal"
    return CaseRecord(
        f"case-{number}", f"study-{number}", (label,), _REPORT.format(number), f"{number}.dcm", "PA", "study"
    )


def fill_store(directory: Path, vectors: NDArray[np.float32]) -> None:
    """Write a case for each vector into a new store."""
    with CaseStore(directory) as store:
        for start in range(0, len(vectors), _BATCH):
            part = vectors[start : start + _BATCH]
            store.put(MODEL, [make_record(start + place) for place in range(len(part))], part)


@contextmanager
def run_sidecar(directory: Path, *options: str) -> Iterator[Sidecar]:
    """Start the sidecar on a directory, and end it when the block ends.

    Raises:
        ServerError: It ended before it was ready.
    """
    command = [sys.executable, "-m", "retrieval.server", "--store", str(directory)]
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, "--address", "127.0.0.1:0", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise ServerError(f"The sidecar ended with code {process.wait()} before it was ready.")
            address = line.split(": ")[0].removeprefix("Ready on ")
            started_s = time.perf_counter() - began
            with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
                yield Sidecar(address, retrieval_pb2_grpc.RetrievalStub(channel), started_s, process.pid)
        finally:
            process.terminate()


def make_request(query: NDArray[np.float32], k: int, *, filtered: bool = False) -> Any:
    """Return a search for the k nearest cases, of those with the label `FILTER_LABEL` if it is filtered."""
    request = retrieval_pb2.SearchRequest(
        fingerprint=MODEL, queries=[retrieval_pb2.Query(embedding=query.tolist())], k=k
    )
    if filtered:
        request.filter.labels_any.append(FILTER_LABEL)
    return request
