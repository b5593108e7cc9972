"""`cxr index tune`: every kind of index on the same embeddings, with recall, latency and memory beside flat.

The embeddings are those of a store, of a file, or drawn ones. Latency is that of one query at a time in this process,
candidates and exact scores included.
"""

import io
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from bench.report.machine import describe_command, describe_machine
from bench.retrieval.vectors import STRUCTURES, draw_vectors
from contract.errors import ConfigError, InputError
from contract.files import write_file
from retrieval.cases import CaseVectors
from retrieval.index import FlatIndex, Query
from retrieval.kind_index import KindIndex
from retrieval.kinds import parse_kind
from retrieval.parts import train_part
from retrieval.recall import measure_recall
from retrieval.store import CaseStore

DEFAULT_KINDS: Final = (
    "ivf_flat",
    "sq8",
    "rabitq:bits=1",
    "rabitq:bits=2",
    "rabitq:bits=4",
    "hnsw",
    "ivf_pq",
)
LEAST_VECTORS: Final = 1000
_K: Final = 10
_SEED: Final = 1
_ADDED_AT_ONCE: Final = 4096
_UNIT: Final = 1e-3  # allowed difference of a length from 1


@dataclass(frozen=True)
class TunedKind:
    """What was measured of one kind.

    Attributes:
        kind: The kind with all parameters, as `--index` takes it.
        recall: Recall@10 without a filter, 0 to 1.
        recall_filtered: The smaller recall@10 among a tenth and among a hundredth of the cases.
        p50_ms: Median of one search.
        p99_ms: 99th percentile of one search.
        build_s: Seconds of training and adding.
        memory_bytes: Codes, lists and graph; for flat the embeddings.
        memory_share: `memory_bytes` divided by the bytes of the embeddings.
    """

    kind: str
    recall: float
    recall_filtered: float
    p50_ms: float
    p99_ms: float
    build_s: float
    memory_bytes: int
    memory_share: float

    @property
    def lowest_recall(self) -> float:
        """The smaller of the recalls, which the sidecar compares with its floor."""
        return min(self.recall, self.recall_filtered)


def read_embeddings(source: str, count: int) -> NDArray[np.float32]:
    """Return embeddings, (N, D) float32 of unit length.

    Args:
        source: Directory of a case store that no server has open; a .npy file of (N, D) numbers; "random" or "mixture".
        count: Number of drawn ones; of others, the first so many.

    Raises:
        ConfigError: There is no such source, or a server has the store open.
        InputError: The file is not such an array, or there are too few embeddings.
        ArtifactError: The store is damaged.
    """
    if source in STRUCTURES:
        vectors = draw_vectors(source, count, 0, seed=_SEED).stored
    elif Path(source).is_dir():
        with CaseStore(source) as store:
            parts = [part.embeddings for part in store.read_vectors()]
        vectors = np.concatenate(parts)[:count] if parts else np.zeros((0, 0), np.float32)
    elif Path(source).is_file():
        vectors = _read_array(Path(source))[:count]
    else:
        raise ConfigError(f"There is no store and no file {source}. Name one, or {' or '.join(STRUCTURES)}.")
    if len(vectors) < LEAST_VECTORS:
        raise InputError(f"{source} holds {len(vectors)} embeddings; at least {LEAST_VECTORS} are needed.")
    return vectors


def tune_kinds(
    vectors: NDArray[np.float32], kinds: Sequence[str], queries: int, say: Callable[[str], None]
) -> list[TunedKind]:
    """Measure flat and each kind.

    Args:
        vectors: (N, D) float32 of unit length.
        kinds: As `--index` takes them.
        queries: Number of timed searches of each kind.
        say: Called with the name of each kind before it is measured.

    Raises:
        ConfigError: A kind or a parameter is unknown.
    """
    choices = [parse_kind(text) for text in kinds]
    rows = np.sort(
        np.random.default_rng(_SEED).choice(len(vectors), min(queries, len(vectors)), replace=False)
    )
    with tempfile.TemporaryDirectory() as place:
        say("flat")
        index = KindIndex(Path(place))
        began = time.perf_counter()
        for part in _make_cases(vectors):
            index.put(part)
        built_s = time.perf_counter() - began
        facts = index.facts
        memory = facts.vector_bytes + facts.code_bytes
        found = [_describe("flat", 1.0, 1.0, _time(index, vectors[rows]), built_s, memory, vectors)]
        for choice in choices:
            if choice.is_flat:
                continue
            say(str(choice))
            snapshot = index.take_snapshot()
            began = time.perf_counter()
            part_of = train_part(faiss, choice, snapshot.vectors, len(vectors), lambda: None)
            built_s = time.perf_counter() - began
            recall = measure_recall(part_of, snapshot.vectors, snapshot.alive, lambda: None).by_share
            index.adopt(part_of)
            times = _time(index, vectors[rows])
            filtered = min(recall.get(0.1, 1.0), recall.get(0.01, 1.0))
            found.append(
                _describe(part_of.name, recall[1.0], filtered, times, built_s, part_of.byte_count, vectors)
            )
    return found


def recommend(found: Sequence[TunedKind], floor: float, memory_share: float) -> TunedKind:
    """Return the fastest kind by p99 whose recalls reach the floor and whose memory is within the share; else flat."""
    fitting = [row for row in found[1:] if row.lowest_recall >= floor and row.memory_share <= memory_share]
    best = min(fitting, key=lambda row: row.p99_ms, default=found[0])
    return best if best.p99_ms < found[0].p99_ms else found[0]


def make_report(
    found: Sequence[TunedKind], chosen: TunedKind, source: str, shape: tuple[int, ...], rule: str
) -> dict[str, Any]:
    """Return what was measured, for JSON."""
    return {
        "command": describe_command(),
        "machine": describe_machine(),
        "source": source,
        "cases": shape[0],
        "dimension": shape[1],
        "k": _K,
        "rule": rule,
        "recommended": chosen.kind,
        "kinds": [asdict(row) for row in found],
    }


def draw_plot(found: Sequence[TunedKind], floor: float, file: Path) -> None:
    """Draw p99 against the lowest recall into a PNG file; the area of a point is its memory.

    Raises:
        ConfigError: The path is a directory.
        ArtifactError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="tight")
    axes = figure.add_subplot()
    for row in found:
        axes.scatter(row.lowest_recall, row.p99_ms, s=30 + 300 * row.memory_share, alpha=0.6)
        axes.annotate(row.kind.split(":")[0] + _short(row.kind), (row.lowest_recall, row.p99_ms), fontsize=8)
    axes.axvline(floor, color="grey", linestyle=":", label=f"floor {floor:g}")
    axes.set_yscale("log")
    axes.set_xlabel("smallest recall@10, without and with filters")
    axes.set_ylabel("p99 of one search, ms")
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_file(file, picture.getvalue())


def _short(kind: str) -> str:
    bits = [part for part in kind.partition(":")[2].split(",") if part.startswith("bits=")]
    return f" {bits[0]}" if bits else ""


def _describe(
    kind: str,
    recall: float,
    filtered: float,
    times_ms: NDArray[np.float64],
    build_s: float,
    memory: int,
    vectors: NDArray[np.float32],
) -> TunedKind:
    p50, p99 = np.percentile(times_ms, (50, 99)).tolist()
    return TunedKind(kind, recall, filtered, p50, p99, build_s, memory, memory / vectors.nbytes)


def _time(index: FlatIndex, queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the milliseconds of each search, one at a time, after some that warm up."""
    for query in queries[:8]:
        index.search([Query(query, _K)])
    times = []
    for query in queries:
        began = time.perf_counter()
        index.search([Query(query, _K)])
        times.append(1e3 * (time.perf_counter() - began))
    return np.array(times)


def _make_cases(vectors: NDArray[np.float32]) -> Iterable[CaseVectors]:
    for start in range(0, len(vectors), _ADDED_AT_ONCE):
        numbers = range(start, min(start + _ADDED_AT_ONCE, len(vectors)))
        names = [str(number) for number in numbers]
        yield CaseVectors(numbers, names, names, vectors[numbers.start : numbers.stop])


def _read_array(file: Path) -> NDArray[np.float32]:
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not a .npy file of numbers.") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f" or not values.size:
        raise InputError(f"{file} must hold an array of N rows of D numbers with a point.")
    vectors = np.asarray(values, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.all(np.abs(lengths - 1) <= _UNIT):
        raise InputError(f"The rows of {file} must have length 1.")
    return vectors
