"""The thread that owns the search index, and its request queue.

Two threads may not use FAISS on GPU at once, not even for reading. So requests wait in a queue. The thread takes all
waiting searches up to the next change, and runs them in one FAISS search.
"""

import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Final

from contract.errors import (
    ConfigError,
    InputError,
    UnavailableError,
)
from retrieval.backend import make_busy_error, make_late_error
from retrieval.builder import Built, IndexPlan, KindBuilder, KindState
from retrieval.cases import CaseVectors
from retrieval.index import Device, FlatIndex, IndexFacts, Matches, Query
from retrieval.jobs import Change, Job, Search, explain, fail
from retrieval.kind_index import KindIndex
from retrieval.metrics import SidecarMetrics

FLAT_PLAN: Final = IndexPlan()
MAX_WAITING: Final = 32  # search requests
_MAX_BATCH_QUERIES: Final = 256
_STOPS: Final = "The search index is stopping."
_logger = logging.getLogger(__name__)


class IndexThread:
    """A search index in its own thread. Thread-safe."""

    def __init__(
        self,
        read_vectors: Callable[[], Iterator[CaseVectors]],
        *,
        device: Device = "cpu",
        threads: int | None = None,
        max_waiting: int = MAX_WAITING,
        codes: bool = True,
        metrics: SidecarMetrics | None = None,
        plan: IndexPlan = FLAT_PLAN,
        directory: Path | None = None,
    ) -> None:
        """Set up the index; `start` starts the thread.

        Args:
            read_vectors: Yields all stored cases, to build the index from.
            device: Where FAISS searches.
            threads: OpenMP threads of FAISS on CPU; None leaves it to OpenMP (one per core).
            max_waiting: Largest number of waiting search requests.
            codes: As in `FlatIndex`.
            metrics: Where searches and builds are measured.
            plan: The kind of index that should answer.
            directory: Where a kind that is not flat keeps its embeddings. None: where temporary files are.

        Raises:
            ConfigError: A kind that is not flat was asked for on GPU.
        """
        if not plan.choice.is_flat and device == "gpu":
            raise ConfigError(
                f"The index {plan.choice.kind.name} works on the CPU only. Choose --device cpu."
            )
        self._metrics = metrics or SidecarMetrics()
        self._read_vectors = read_vectors
        self._device: Device = device
        self._threads = threads
        self._max_waiting = max_waiting
        self._codes = codes
        self._directory = directory or Path(tempfile.gettempdir())
        self._builder = None if plan.choice.is_flat else KindBuilder(plan, threads, self._bring)
        self._condition = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._closing = False
        self._index: FlatIndex | None = None  # None: built from the store before the next use
        self._facts = IndexFacts()
        self._built: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether the index is built and accepts requests."""
        return self._built.done() and self._built.exception() is None and not self._closing

    @property
    def facts(self) -> IndexFacts:
        """What the index held after the last change."""
        return self._facts

    @property
    def waiting(self) -> int:
        """Number of searches and changes that wait for their turn."""
        return len(self._waiting)

    @property
    def kind_state(self) -> KindState:
        """What became of the kind that was asked for."""
        return KindState() if self._builder is None else self._builder.state

    def start(self) -> "Future[None]":
        """Start building the index.

        Returns:
            A future that is done when the index is built. It holds ArtifactError if the store is damaged, or
            ConfigError if FAISS or its GPU is missing.
        """
        self._thread.start()
        return self._built

    def search(self, queries: Sequence[Query], timeout_s: float) -> list[Matches]:
        """Return the nearest cases of each query, best first.

        Raises:
            BusyError: Too many requests are waiting.
            DeadlineError: There was no answer in time. The request is dropped.
            UnavailableError: The index is not built yet, or is stopping.
            InputError: A query has another dimension than the stored cases.
            ServerError: FAISS failed.
        """
        job = Search(queries)
        with self._condition:
            if sum(isinstance(waiting, Search) for waiting in self._waiting) >= self._max_waiting:
                raise make_busy_error(self._max_waiting)
            self._enqueue(job)
        try:
            return job.future.result(timeout_s)
        except FutureTimeoutError as error:
            job.future.cancel()
            raise make_late_error(timeout_s) from error

    def change(
        self,
        *,
        removed: Sequence[str] = (),
        added: CaseVectors | None = None,
        damaged: Collection[int] = (),
    ) -> None:
        """Apply a change that the store already holds. Later searches see it.

        Args:
            removed: Ids of deleted cases.
            added: Added cases.
            damaged: Sequence numbers of rows that are damaged, which are left out.

        Raises:
            UnavailableError: The index is not built yet, or is stopping.
            ServerError: The change failed, and rebuilding the index failed too.
        """
        self.submit(removed=removed, added=added, damaged=damaged).result()

    def submit(
        self,
        *,
        removed: Sequence[str] = (),
        added: CaseVectors | None = None,
        damaged: Collection[int] = (),
    ) -> "Future[None]":
        """Put a change into the queue; see `change`. Searches that are asked for from now on see it.

        Returns:
            A future that is done when the change is applied, or holds the error.

        Raises:
            UnavailableError: As in `change`.
        """
        job = Change(removed, added, damaged)
        with self._condition:
            self._enqueue(job)
        return job.future

    def close(self) -> None:
        """Stop the thread. Waiting requests fail with UnavailableError. May be called repeatedly."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        if self._builder is not None:
            self._builder.close()

    def _bring(self, built: Built) -> None:
        """Bring what the building thread made to the thread that owns the index."""
        with self._condition:
            self._waiting.append(built)
            self._condition.notify_all()

    def _enqueue(self, job: Search | Change) -> None:
        if not self.ready:
            raise UnavailableError(_STOPS if self._closing else "The search index is not built yet.")
        self._waiting.append(job)
        self._condition.notify_all()

    def _run(self) -> None:
        try:
            self._limit_threads()
            self._build()
        except BaseException as error:  # passed to the future of `start`
            self._built.set_exception(error)
            return
        self._built.set_result(None)
        while self._work():
            pass
        self._index = None

    def _work(self) -> bool:
        """Do what comes next. Return False when closing. What was done is not kept: it may hold much memory."""
        jobs = self._take()
        if not jobs:
            return False
        if isinstance(jobs[0], Change):
            self._apply(jobs[0])
        elif isinstance(jobs[0], Built):
            if not self._settle(jobs):
                self._build_flat_again()
        else:
            self._answer([job for job in jobs if isinstance(job, Search)])
        return True

    def _take(self) -> list[Job]:
        """Wait for work; return one change, a part, or all searches before the next of these; [] when closing."""
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._closing)
            if self._closing:
                for job in self._waiting:
                    fail(job, UnavailableError(_STOPS))
                self._waiting.clear()
                return []
            taken = [self._waiting.popleft()]
            count = len(taken[0].queries) if isinstance(taken[0], Search) else 0
            while count and self._waiting and isinstance(following := self._waiting[0], Search):
                count += len(following.queries)
                if count > _MAX_BATCH_QUERIES:
                    break
                taken.append(self._waiting.popleft())
            return taken

    def _apply(self, job: Change) -> None:
        try:
            if not self._change_index(job):
                self._build()
        except Exception as error:  # passed to the request
            fail(job, explain(error, "The change is stored, but the search index could not be updated"))
        else:
            job.future.set_result(None)

    def _change_index(self, job: Change) -> bool:
        """Change the index. Return False if it must be built from the store, after any error or with many dead rows.

        The caller builds it: here, this call and an error would keep the old index in memory.
        """
        try:
            index = self._use_index()
            index.remove(job.removed)
            index.remove_versions(job.damaged)
            if job.added is not None:
                index.put(job.added)
            self._facts = index.facts
            if index.is_wasteful:
                return False
            self._consider()
        except Exception as error:  # the store has the change
            _logger.warning("rebuilding the index after %s", type(error).__name__)
            return False
        return True

    def _settle(self, jobs: list[Job]) -> bool:
        """Take a new part out of a list and let it answer, if it may. Return False if the index must become flat again.

        After an error the next request builds the index anew.
        """
        built = jobs.pop()
        assert isinstance(built, Built)
        assert self._builder is not None
        try:
            index = self._use_index()
            if not isinstance(index, KindIndex):  # the disk failed meanwhile
                self._builder.drop()
                return True
            if not self._builder.settle(index, built):
                return False
            self._facts = index.facts
        except Exception as error:  # the part does not fit into memory, or the disk failed
            _logger.warning("swapping the index failed (%s)", type(error).__name__)
            self._index = None
        return True

    def _build_flat_again(self) -> None:
        try:
            self._build()
        except Exception as error:  # the flat index does not fit into memory; the next request tries again
            _logger.warning("building the flat index failed (%s)", type(error).__name__)

    def _consider(self) -> None:
        if self._builder is not None and isinstance(self._index, KindIndex):
            self._builder.consider(self._index)

    def _answer(self, jobs: list[Search]) -> None:
        # A caller whose deadline has passed has cancelled its request.
        live = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if not live:
            return
        try:
            index = self._use_index()
            fitting = [job for job in live if _fits(job, index.dimension)]
            matches = iter(self._search(index, fitting))
            answers = [[next(matches) for _ in job.queries] for job in fitting]
        except Exception as error:  # passed to the requests
            self._index = None
            for job in live:
                fail(job, explain(error, "The search failed"))
            return
        for job, answer in zip(fitting, answers, strict=True):
            job.future.set_result(answer)

    def _search(self, index: FlatIndex, jobs: list[Search]) -> list[Matches]:
        queries, began = [query for job in jobs for query in job.queries], time.monotonic()
        for job in jobs:
            self._metrics.queue.observe(began - job.began)
        matches = index.search(queries)
        self._metrics.search.observe(time.monotonic() - began)
        self._metrics.batch.observe(len(queries))
        return matches

    def _use_index(self) -> FlatIndex:
        if self._index is None:
            self._build()
        assert self._index is not None
        return self._index

    def _build(self) -> None:
        began = time.monotonic()
        self._index = None  # free the old index first, because two may not fit into memory
        if self._builder is None:
            self._fill(FlatIndex(self._device, codes=self._codes))
        elif error := self._fill_kind():
            self._builder.give_up(f"Its file of embeddings cannot be written ({error}).")
            self._fill(FlatIndex(self._device, codes=self._codes))
        self._metrics.build.observe(time.monotonic() - began)
        self._consider()

    def _fill_kind(self) -> str:
        """Build an index with a file of embeddings. Return why the disk refused it, or "". The index is freed then."""
        try:
            self._fill(KindIndex(self._directory, codes=self._codes))
        except OSError as error:
            return error.strerror or type(error).__name__
        return ""

    def _fill(self, index: FlatIndex) -> None:
        """Put all stored cases into an empty index, which then answers."""
        for vectors in self._read_vectors():
            if self._closing:
                raise UnavailableError(_STOPS)
            index.put(vectors)
        self._index, self._facts = index, index.facts

    def _limit_threads(self) -> None:
        if self._threads is not None:
            FlatIndex.limit_threads(self._threads)  # OpenMP keeps this number per calling thread


def _fits(job: Search, dimension: int) -> bool:
    if not dimension or all(len(query.embedding) == dimension for query in job.queries):
        return True
    fail(job, InputError(f"A query must have {dimension} values, like the stored cases."))
    return False
