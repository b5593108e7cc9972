"""The table of `cxr bench retrieval`, with a verdict for each row."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.report.machine import describe_command, describe_machine
from bench.retrieval.approximate import measure_kind
from bench.retrieval.searches import QUERIES, measure_searches, open_raw
from bench.retrieval.sidecar import fill_store, run_sidecar
from bench.retrieval.vectors import STRUCTURES, Structure, draw_vectors
from bench.retrieval.writes import measure_restart, measure_upserts
from bench.targets.table import show_rows, write_table
from bench.targets.target import Measurement, TargetRow, merge_runs
from contract.errors import ConfigError
from retrieval.kinds import parse_kind

PARTS: Final = (*STRUCTURES, "writes", "kinds")
KINDS: Final = ("rabitq",)
_UPSERTED: Final = 51_200  # cases
_RESTART_S: Final = 15.0  # with `_RESTART_CASES`
_RESTART_CASES: Final = 1_000_000


def measure_retrieval(
    console: Console,
    out: Path,
    *,
    cases: int,
    seconds: float,
    runs: int,
    only: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
) -> dict[str, Any]:
    """Measure all rows and write them after each part.

    Args:
        console: Console for the progress.
        out: Directory for table.json and table.md. The stores are beside them while it runs: 3 KB for each case.
        cases: Number of stored cases.
        seconds: Seconds of each load.
        runs: How often each row is measured, each time with a new server.
        only: Some of `PARTS`; empty for all.
        kinds: Approximate kinds of the part "kinds", as `--index` takes them.

    Raises:
        ConfigError: A part or a kind is unknown.
    """
    for kind in kinds:
        parse_kind(kind)
    if unknown := sorted(set(only) - set(PARTS)):
        raise ConfigError(f"There is no part {unknown[0]}. Choose from {', '.join(PARTS)}.")
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "command": describe_command(),
        "machine": describe_machine(),
        "vectors": {name: text for name, text in STRUCTURES.items() if not only or name in only},
        "seconds": seconds,
        "runs": runs,
        "rows": [],
    }
    for part in PARTS:
        if only and part not in only:
            continue
        work = Path(tempfile.mkdtemp(prefix="stores-", dir=out))
        try:
            with console.status(f"Preparing: {part}"):
                measure = _prepare(part, work, cases, seconds, kinds)
            measured = [
                show_rows(console, f"{part}, run {run + 1} of {runs}", measure()) for run in range(runs)
            ]
        finally:
            shutil.rmtree(work)
        report["rows"] += [row.to_dict() for row in merge_runs(measured)]
        write_table(report, out)
    return report


def _prepare(part: str, work: Path, cases: int, seconds: float, kinds: Sequence[str]) -> Measurement:
    """Fill what a part searches; return the function that measures it."""
    structure: Structure = "mixture" if part in ("mixture", "kinds") else "random"
    vectors = draw_vectors(structure, cases, QUERIES, seed=1)
    store = work / "store"
    fill_store(store, vectors.stored)
    if part == "writes":
        return lambda: _measure_writes(work, store, cases)
    if part == "kinds":
        copy = work / "copy"
        shutil.copytree(store, copy)
        return lambda: [
            row for kind in kinds for row in measure_kind((store, copy), vectors, kind, seconds, work)
        ]
    raw = open_raw(vectors)

    def measure() -> list[TargetRow]:
        with run_sidecar(store) as sidecar:
            return measure_searches(sidecar, vectors, raw, seconds, work)

    return measure


def _measure_writes(work: Path, store: Path, cases: int) -> list[TargetRow]:
    drawn = draw_vectors("random", min(cases, _UPSERTED), 1, seed=2)
    limit = _RESTART_S if cases >= _RESTART_CASES else None
    return [
        measure_upserts(work, drawn.stored),
        measure_restart(store, drawn.queries[0], cases, limit),
    ]
