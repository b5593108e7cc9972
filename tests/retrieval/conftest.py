"""Cases of no patient, the server in this process, and the real server process on loopback."""

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.case_store import parse_store
from contract.protection import Protection
from contract.proto import retrieval_pb2, retrieval_pb2_grpc
from retrieval.cases import CaseRecord
from retrieval.indexes import CaseIndexes
from retrieval.listener import SidecarServer
from retrieval.service import RetrievalService
from retrieval.store import CaseStore

ROOT = Path(__file__).parents[2]
MODEL = "a" * 64
OTHER_MODEL = "b" * 64
D = 16
ADMIN_TOKEN = "cxr_" + "a" * 40


def make_vectors(count: int, seed: int = 0, dimension: int = D) -> np.ndarray:
    """(count, dimension) float32 of unit length."""
    vectors = np.random.default_rng(seed).normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_records(ids, study: str | None = None) -> list[CaseRecord]:
    return [
        CaseRecord(str(name), study or f"study-{name}", ("normal",), f"Report {name}.", f"{name}.dcm")
        for name in ids
    ]


class Client:
    """The generated stub with short calls."""

    def __init__(self, address: str):
        size = [("grpc.max_receive_message_length", 2**26), ("grpc.max_send_message_length", 2**27)]
        self.channel = grpc.insecure_channel(address, options=[*size, ("grpc.enable_http_proxy", 0)])
        self.stub = retrieval_pb2_grpc.RetrievalStub(self.channel)

    def add(self, vectors, ids=None, fingerprint=MODEL, timeout=10, **fields):
        ids = list(range(len(vectors))) if ids is None else ids
        cases = [
            retrieval_pb2.Case(
                **{"id": str(name), "study_id": f"study-{name}", "embedding": vector.tolist(), **fields}
            )
            for name, vector in zip(ids, vectors, strict=True)
        ]
        request = retrieval_pb2.AddCasesRequest(fingerprint=fingerprint, cases=cases)
        return self.stub.AddCases(request, timeout=timeout)

    def search(self, vectors, k=3, exclude=(), fingerprint=MODEL, timeout=10):
        queries = [retrieval_pb2.Query(embedding=vector.tolist()) for vector in vectors]
        request = retrieval_pb2.SearchRequest(
            fingerprint=fingerprint, queries=queries, k=k, exclude_study_ids=exclude
        )
        return self.stub.Search(request, timeout=timeout).results

    def find_ids(self, vector, k=3, exclude=()):
        return [hit.case.id for hit in self.search([vector], k, exclude)[0].hits]

    def delete(self, ids):
        return self.stub.DeleteCases(retrieval_pb2.DeleteCasesRequest(ids=ids), timeout=10).deleted

    def get(self, name):
        return self.stub.GetCase(retrieval_pb2.GetCaseRequest(id=name), timeout=10)

    def info(self, fingerprint=""):
        return self.stub.GetInfo(retrieval_pb2.GetInfoRequest(fingerprint=fingerprint), timeout=10)

    def health(self, service="") -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        status = health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=10).status
        return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


class Sidecar:
    """All parts of the server, in this process."""

    def __init__(self, directory: Path, fingerprint: str | None = None, milvus: str | None = None, **options):
        if milvus is None:
            self.indexes = CaseIndexes(directory, fingerprint=fingerprint, **options)
            self.store, self.index = self.indexes.home.store, self.indexes.home.index
        else:
            from retrieval.milvus.database import MilvusDatabase

            self.indexes = MilvusDatabase(parse_store(milvus), fingerprint=fingerprint, **options)
        self.service = RetrievalService(self.indexes)
        key = directory.with_name(f"{directory.name}.key")
        key.write_text(ADMIN_TOKEN)
        self.server = SidecarServer(self.service, "127.0.0.1:0", Protection(admin_key=key))
        self.client = Client(self.server.address)

    def start(self) -> "Sidecar":
        self.indexes.start().result(10)
        self.server.announce()
        return self

    def stop(self) -> None:
        self.client.channel.close()
        self.server.stop(0.0)
        self.indexes.close()


@pytest.fixture
def filled(tmp_path, make) -> Path:
    """The file of a closed store with five cases."""
    with CaseStore(tmp_path / "store") as store:
        store.put(make.MODEL, make.records("abcde"), make.vectors(5))
    return tmp_path / "store" / "cases.sqlite"


@pytest.fixture(scope="session")
def milvus_port(tmp_path_factory):
    """Port of Milvus Lite on loopback."""
    pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed (the extra milvus-lite)")
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    from retrieval.milvus.connection import load_pymilvus

    load_pymilvus()
    server, database, port = start_server_in_thread(str(tmp_path_factory.mktemp("milvus") / "lite.db"))
    yield port
    server.stop(grace=0).wait()
    database.close()


@pytest.fixture
def store_kind(request) -> str:
    """The store of a test: "files", unless it is parametrised (`both_stores`)."""
    return getattr(request, "param", "files")


@pytest.fixture
def locate(request, store_kind, tmp_path):
    """A function that returns the address of a Milvus database of the test; None with files."""
    if store_kind == "files":
        return lambda name: None
    port, test = request.getfixturevalue("milvus_port"), "".join(filter(str.isalnum, tmp_path.name))
    return lambda name: f"milvus://127.0.0.1:{port}/t{test}_{name.replace('-', '_')}"


@pytest.fixture
def open_sidecar(tmp_path, locate):
    """A function that makes a sidecar in this process over a store of the test."""
    with ExitStack() as cleanup:

        def open_one(name="store", start=True, **options) -> Sidecar:
            sidecar = Sidecar(tmp_path / name, milvus=locate(name), **options)
            cleanup.callback(sidecar.stop)
            return sidecar.start() if start else sidecar

        yield open_one


@pytest.fixture
def sidecar(open_sidecar) -> Sidecar:
    return open_sidecar()


class ServerProcess:
    """`python -m retrieval.server`, as `serving.stack` starts it."""

    def __init__(self, directory: Path, *arguments: str, address: str = "127.0.0.1:0", wrap=()):
        command = [sys.executable, "-P", "-m", "retrieval.server", "--store", str(directory)]
        self.process = subprocess.Popen(
            [*wrap, *command, "--address", address, *arguments],
            cwd=directory.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.ready_line = ""
        self.client: Client | None = None

    def wait_ready(self) -> "ServerProcess":
        self.ready_line = self.process.stdout.readline()
        assert self.ready_line, self.process.stderr.read()
        self.address = self.ready_line.split(": ")[0].removeprefix("Ready on ")
        self.client = Client(self.address)
        return self

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; return the exit code and all of stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def close(self) -> None:
        if self.client:
            self.client.channel.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def run_server(tmp_path):
    """A function that starts the real server process."""
    with ExitStack() as cleanup:

        def run(*arguments, name="store", wait=True, **options) -> ServerProcess:
            server = ServerProcess(tmp_path / name, *arguments, **options)
            cleanup.callback(server.close)
            return server.wait_ready() if wait else server

        yield run


@contextmanager
def _expect_status(code: str, match: str = ""):
    with pytest.raises(grpc.RpcError) as caught:
        yield caught
    assert (caught.value.code().name, match in caught.value.details()) == (code, True), caught.value.details()


@pytest.fixture
def expect_status():
    """A context manager that holds a call to a status code and a part of its message."""
    return _expect_status


@pytest.fixture
def make():
    """The functions and names that tests make cases with."""

    class Make:
        vectors = staticmethod(make_vectors)
        records = staticmethod(make_records)
        MODEL, OTHER_MODEL, D, ADMIN_TOKEN = MODEL, OTHER_MODEL, D, ADMIN_TOKEN

    return Make
