"""`cxr bench profile`: the time of each graph and kind of operation of a published model, in this process."""

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.run import make_raw_cases
from bench.targets.model import prepare
from training.data.rows import read_rows

if TYPE_CHECKING:
    from serving.inprocess import InProcess


@dataclass(frozen=True)
class GraphTimes:
    """The mean milliseconds of one run of a graph, by kind of operation, largest first."""

    graph: str
    runtime: str
    operations: dict[str, float]

    @property
    def total(self) -> float:
        """Milliseconds of all operations."""
        return sum(self.operations.values())


@dataclass(frozen=True)
class ModelProfile:
    """The times of a model.

    `whole_ms` is the median wall-clock time of whole runs, with the overhead of the timing. Operations that run in
    parallel are all counted.
    """

    model: str
    runs: int
    whole_ms: float
    graphs: tuple[GraphTimes, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def profile_model(
    repository: Path, table: Path, *, model: str, length: int | None, cases: int, runs: int
) -> ModelProfile:
    """Run a model of a published repository on real cases and sum the times that its runtimes recorded.

    Args:
        repository: Repository written by `cxr export`.
        table: Studies table. Its first cases with image and report are run in turn.
        model: An ensemble that takes tensors or raw files.
        length: Number of tokens to pad texts to. None: the bucket of each text.
        cases: Number of cases.
        runs: Number of timed runs.

    Raises:
        ConfigError: The table or the model does not exist, or no case fits.
        ArtifactError: The repository is not a published one, or is damaged.
    """
    from serving.inprocess import InProcess

    timed = InProcess(repository, timed=True)
    text_mode = timed.read_parameter(model, "text_mode")
    requests = prepare(timed, model, make_raw_cases(iter(read_rows(table)), cases, text_mode), length=length)
    seconds = []
    for run in range(runs):
        began = time.perf_counter()
        timed.run(model, requests[run % len(requests)])
        seconds.append(time.perf_counter() - began)
    return ModelProfile(model, runs, statistics.median(seconds) * 1e3, _collect(timed, model, runs))


def _collect(timed: "InProcess", model: str, runs: int) -> tuple[GraphTimes, ...]:
    runtimes = timed.describe(model)
    found = []
    for graph, times in timed.read_times(model).items():
        order = sorted(times.items(), key=lambda item: -item[1])
        found.append(GraphTimes(graph, runtimes[graph], {kind: ms / runs for kind, ms in order}))
    return tuple(found)
