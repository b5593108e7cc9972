"""Run the same graphs without a server, in every layout and order that a repository allows, and take the fastest."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.load.generator import ClosedLoop, Phases
from bench.load.inputs import Arrays
from bench.report.measure import Subject, measure
from bench.run import BOTH_AT_ONCE, answer_here
from bench.targets.model import get_median, get_rate, join_batches

if TYPE_CHECKING:
    from serving.inprocess import InProcess

BATCHES: Final = (1, 4, 8, 16)
_TRIAL_S: Final = 2.0  # seconds for each way, to choose the fastest


class Ways:
    """Ways to run one model in this process, by name."""

    def __init__(self, repositories: Mapping[str, Path]) -> None:
        """Load published repositories: layout name -> directory. `split` is run in both orders."""
        from serving.inprocess import InProcess

        self._ways: dict[str, InProcess] = {}
        for layout, path in repositories.items():
            self._ways[f"in-process, {layout}"] = InProcess(path)
            if layout == "split":
                self._ways[BOTH_AT_ONCE] = InProcess(path, concurrent=True)

    @property
    def first(self) -> "InProcess":
        """One of them. All give the same answers."""
        return next(iter(self._ways.values()))

    def find_fastest(self, model: str, requests: Sequence[Arrays], phases: Phases) -> Subject:
        """Return the way with the lowest median latency."""
        tried = measure(self._list_subjects(model, {1: requests}), _shorten(phases), repeats=2)
        return min(tried, key=get_median).subject

    def find_fullest(self, model: str, requests: Sequence[Arrays], phases: Phases) -> Subject:
        """Return the way and batch size with the most cases per second."""
        batches = {size: join_batches(requests, size) for size in BATCHES}
        tried = measure(self._list_subjects(model, batches), _shorten(phases), repeats=2)
        return max(tried, key=get_rate).subject

    def _list_subjects(self, model: str, batches: Mapping[int, Sequence[Arrays]]) -> list[Subject]:
        return [
            Subject(name, answer_here(way, model, requests), ClosedLoop(1), batch=size)
            for name, way in self._ways.items()
            for size, requests in batches.items()
        ]


def _shorten(phases: Phases) -> Phases:
    return replace(phases, duration_s=min(_TRIAL_S, phases.duration_s), warmup_s=0.3, warmup_max_s=0.3)
