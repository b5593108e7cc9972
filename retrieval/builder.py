"""Build the kind of index that was asked for beside the live one, and decide whether it may answer.

    flat answers ──> enough cases ──> train and measure in a thread ──> recall reaches the floor ──> the kind answers
                                                                   └──> it does not ──> flat answers, `refused`

After the number of rows has grown by a share, a new part is trained in the same way. If that fails or its recall is
below the floor, the index becomes flat again: the old part was not measured on the cases of today.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from retrieval.index import load_faiss
from retrieval.kind_index import KindIndex, Snapshot
from retrieval.kinds import FLAT, GROWTH, RECALL_FLOOR, KindChoice, parse_kind
from retrieval.parts import Part, train_part
from retrieval.recall import Recall, measure_recall

State = Literal["ready", "waiting", "building", "refused"]
LEAST_CASES: Final = 4096  # with fewer, the flat index takes less than half a millisecond
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexPlan:
    """The kind of index that an operator asked for, and when it may answer.

    Attributes:
        choice: The kind and its parameters.
        recall_floor: Smallest recall@10, 0 to 1, with which it answers.
        growth: Share of new rows, above 0, after which it is trained anew.
        least_cases: Number of cases from which on it is built.
    """

    choice: KindChoice = field(default_factory=lambda: parse_kind(FLAT))
    recall_floor: float = RECALL_FLOOR
    growth: float = GROWTH
    least_cases: int = LEAST_CASES


@dataclass(frozen=True)
class KindState:
    """What became of the kind that was asked for.

    Attributes:
        asked: The kind with the parameters that were chosen.
        state: "ready": it answers; "waiting": there are too few cases; "building"; "refused".
        reason: Why it is refused, in one sentence.
        recall: Of the last part that was measured; None before that.
        recall_floor: As in `IndexPlan`.
    """

    asked: str = FLAT
    state: State = "ready"
    reason: str = ""
    recall: Recall | None = None
    recall_floor: float = RECALL_FLOOR


@dataclass(frozen=True)
class Built:
    """What the building thread made of a snapshot: a part with its recall, or an error."""

    snapshot: Snapshot
    part: Part | None = None
    recall: Recall | None = None
    seconds: float = 0.0
    error: Exception | None = None


class _StopBuildingError(Exception):
    """The index is closing, or was built anew."""


class KindBuilder:
    """Starts the building threads of one index. The thread that owns the index calls all methods but `state`."""

    def __init__(self, plan: IndexPlan, threads: int | None, done: Callable[[Built], None]) -> None:
        """Take the plan.

        Args:
            plan: What to build.
            threads: OpenMP threads of the searches; building has half as many, so that searches go on.
            done: Called in the building thread when it is done; it must bring the result to `settle`.
        """
        self._plan = plan
        self._threads = max(1, (threads or os.cpu_count() or 1) // 2)
        self._done = done
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._refused_rows = 0  # of the index whose part was refused
        self.state = KindState(
            str(plan.choice), "ready" if plan.choice.is_flat else "waiting", recall_floor=plan.recall_floor
        )

    def consider(self, index: KindIndex) -> None:
        """Start building if it is time, and if no building thread runs."""
        if self._thread is not None:
            return
        part, rows = index.part, index.row_count
        if part is None and rows < self._plan.least_cases:
            self.state = replace(self.state, state="waiting", reason="")
            return
        last = max(self._refused_rows, 0 if part is None else part.trained_count)
        if last and rows < (1 + self._plan.growth) * last:
            return
        self.state = replace(self.state, state="building", reason="")
        self._thread = threading.Thread(
            target=self._build, args=(index.take_snapshot(),), name="building", daemon=True
        )
        self._thread.start()

    def settle(self, index: KindIndex, built: Built) -> bool:
        """Let a new part answer, or refuse it. Return False if the index must become flat again."""
        self._thread = None
        if not index.holds(built.snapshot):  # it was built anew meanwhile
            self.consider(index)
            return True
        if built.part is None or built.recall is None:
            reason = f"It could not be built ({type(built.error).__name__})."
            self._refuse(index, reason, self.state.recall)
            return index.part is None
        if built.recall.lowest < self._plan.recall_floor:
            reason = f"Its recall@10 is {built.recall}; {self._plan.recall_floor:g} is the floor."
            self._refuse(index, reason, built.recall)
            return index.part is None
        index.adopt(built.part)
        self._refused_rows = 0
        self.state = replace(self.state, state="ready", reason="", recall=built.recall)
        _logger.info(
            "the index %s answers after %.1f s; recall@10 %s", built.part.name, built.seconds, built.recall
        )
        self.consider(index)
        return True

    def drop(self) -> None:
        """Drop what was built: the index has no file any more."""
        self._thread = None

    def give_up(self, reason: str) -> None:
        """Say why the index is flat, until it is built anew."""
        self.state = replace(self.state, state="refused", reason=reason)
        _logger.warning("the index %s is refused: %s", self.state.asked, reason)

    def close(self) -> None:
        """End the building thread, at the latest after its present step."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _refuse(self, index: KindIndex, reason: str, recall: Recall | None) -> None:
        self._refused_rows = index.row_count
        self.state = replace(self.state, recall=recall)
        self.give_up(reason)

    def _build(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        try:
            faiss, _ = load_faiss("cpu")
            faiss.omp_set_num_threads(self._threads)  # of this thread alone
            part = train_part(faiss, self._plan.choice, snapshot.vectors, len(snapshot.alive), self._check)
            recall = measure_recall(part, snapshot.vectors, snapshot.alive, self._check)
            built = Built(snapshot, part, recall, time.monotonic() - began)
        except _StopBuildingError:
            return
        except Exception as error:  # passed to the thread that owns the index
            _logger.warning("building the index failed: %s", error)
            built = Built(snapshot, error=error)
        self._done(built)

    def _check(self) -> None:
        if self._stop.is_set():
            raise _StopBuildingError
