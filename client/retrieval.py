"""Blocking requests to the retrieval sidecar over gRPC. Each has a deadline and raises errors of this project."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from client.backup import Backup, write_backup
from client.cases import ListedCase
from client.retrieval_core import (
    CHANNEL,
    NO_OPTIONS,
    Found,
    IndexInfo,
    RetrievalCore,
    Stored,
    StoredCase,
    iterate_pages,
    make_list_request,
    make_stub,
)
from client.search_options import SearchOptions
from client.steps import run
from contract.connection import PLAIN, Connection
from contract.proto import retrieval_pb2


class RetrievalTransport(RetrievalCore):
    """A connection to one sidecar. Several threads may use it at once."""

    def __init__(self, url: str, connection: Connection = PLAIN) -> None:
        """See `client.retrieval_core.RetrievalCore`."""
        super().__init__(url, connection)
        self._lock = threading.Lock()
        self._open_stub()

    def add(self, fingerprint: str, cases: Sequence[StoredCase], timeout_s: float) -> Stored:
        """Store all cases, or none. A case replaces a stored case with the same id.

        Args:
            fingerprint: Fingerprint of the model that made the embeddings.
            cases: The cases.
            timeout_s: Deadline in seconds.

        Raises:
            FingerprintError: The store already holds the cases of too many models.
            InputError: The sidecar refuses a case.
            ServiceError: The sidecar is down, busy, slow, or failed; see `client.status`.
        """
        return run(self._add_in_steps(fingerprint, cases, timeout_s))

    def search(
        self,
        fingerprint: str,
        embedding: NDArray[np.float32],
        k: int,
        exclude_studies: Sequence[str],
        timeout_s: float,
        options: SearchOptions = NO_OPTIONS,
        text: str = "",
    ) -> Found:
        """Return the stored cases that are most similar to an embedding.

        Args:
            fingerprint: Fingerprint of the model that made the embedding.
            embedding: (D,) float32 of unit length.
            k: Largest number of cases, 1 to 1000.
            exclude_studies: Ids of studies that the search leaves out.
            timeout_s: Deadline in seconds.
            options: Which cases count.
            text: Report of the query, for the excerpts of the results.

        Raises:
            FingerprintError: The store holds only cases of other models.
            InputError: `k`, the embedding or a study id is not valid.
            ServerError: The sidecar is too old to know `options`.
            ServiceError: As in `add`.
        """
        return run(
            self._search_in_steps(fingerprint, embedding, k, exclude_studies, timeout_s, options, text)
        )

    def delete(self, ids: Sequence[str], timeout_s: float) -> int:
        """Delete stored cases; return how many there were. InputError: `ids` is empty or not a list of strings."""
        return run(self._delete_in_steps(ids, timeout_s))

    def read_info(self, timeout_s: float, fingerprint: str = "") -> IndexInfo:
        """Return facts about the index of a model. Without such an index: about the default index of the sidecar."""
        return run(self._read_info_in_steps(timeout_s, fingerprint))

    def list_page(self, request: retrieval_pb2.ListCasesRequest, timeout_s: float) -> list[ListedCase]:
        """Return the next page of stored cases; see `CxrClient.list_cases`.

        Args:
            request: A request of `client.retrieval_core.make_list_request`. After an answer it asks for the next page;
                its `page_token` is "" after the last one. After an error it is as before.
            timeout_s: Deadline in seconds.

        Raises:
            FingerprintError: The store holds only cases of other models.
            ServiceError: As in `add`.
        """
        return run(self._list_page_in_steps(request, timeout_s))

    def list_cases(
        self,
        timeout_s: float,
        fingerprint: str = "",
        exclude_studies: Sequence[str] = (),
        options: SearchOptions = NO_OPTIONS,
        *,
        reports: bool = False,
    ) -> Iterator[ListedCase]:
        """Return an iterator over all pages. `timeout_s` is for each page; see `CxrClient.list_cases` for the rest."""
        request = make_list_request(fingerprint, exclude_studies, options, reports=reports)
        return iterate_pages(lambda: self.list_page(request, timeout_s), request)

    def back_up(self, out: Path, timeout_s: float) -> Backup:
        """Write a copy of the whole store into a new folder; see `CxrClient.back_up`."""
        end, stub = time.monotonic() + timeout_s, self._open_stub()
        parts = stub.Backup(
            retrieval_pb2.BackupRequest(), timeout=timeout_s, metadata=self._connection.metadata
        )
        try:
            return write_backup(parts, out)
        except grpc.RpcError as error:
            raise run(self._explain(error, timeout_s, end, is_new=True)) from error
        finally:
            parts.cancel()

    def close(self) -> None:
        """Close all connections, which cancels the running requests. A later request is a CancelledError."""
        with self._lock:
            self._closed = True
        self._forget_stub()
        for stub in list(self._forgotten):
            stub.channel.close()

    def _open_stub(self) -> Any:
        with self._lock:
            self._require_open()
            stub = self._stub
            if stub is None:
                stub = self._stub = make_stub(self._connection.open_channel(self.url, CHANNEL))
            return stub

    def _forget_stub(self) -> None:
        with self._lock:
            super()._forget_stub()
