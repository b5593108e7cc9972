"""Read the tables that `cxr predict --out` writes, and the files that they name."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.errors import ConfigError, FingerprintError, ReportError
from contract.files import read_state
from contract.labels import LABEL_KEYS
from contract.report.text import Report, parse_report, select_text
from training.evaluation.plan import Case
from training.evaluation.predict import Progress, TorchPredictor
from training.monitoring.inputs import ImageReader, ReportReader
from training.monitoring.sample import Sample, choose_rows, stack_inputs

MOST_CASES: Final = 5_000  # answers of each way that are compared
MOST_READ: Final = 1_000  # files of each way that are read again
_COLUMNS: Final = ("path", "report", "status", "kind", "fingerprint", "input_state")


@dataclass(frozen=True)
class Answer:
    """One predicted row of a table. `probabilities` is (K,); the rest is as in the table."""

    path: str
    report: str
    kind: str
    input_state: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Results:
    """The rows of one or several tables.

    Attributes:
        answers: Way of reading ("study", "image") -> the predicted rows.
        statuses: "predicted", "refused" or "failed" -> number of rows.
    """

    answers: Mapping[str, Sequence[Answer]]
    statuses: Mapping[str, int]


@dataclass(frozen=True)
class Current:
    """What is compared with the reference.

    Attributes:
        ways: Way of reading -> its cases.
        unread: Number of files that were to be read again and are gone, changed, or no longer readable.
    """

    ways: Mapping[str, Sample]
    unread: int = 0


def read_results(paths: Sequence[Path], fingerprint: str) -> Results:
    """Read tables of one model. The last row of an image and its report counts.

    Args:
        paths: .parquet, .csv or .jsonl files.
        fingerprint: Fingerprint of the model that must have answered.

    Raises:
        ConfigError: A file cannot be read, lacks a column, or holds a value that is not possible.
        FingerprintError: A row is of another model.
    """
    rows: dict[tuple[str, str], tuple[str, Answer]] = {}
    for path in paths:
        for number, record in enumerate(_read_records(path), start=1):
            found = str(record["fingerprint"])
            if found != fingerprint:
                raise FingerprintError(
                    f"{path} holds results of model {found[:12] or '(none)'}, but the reference is of model "
                    f"{fingerprint[:12]}. Answers of two models cannot be compared."
                )
            try:
                answer = _parse(record)
                rows[answer.path, answer.report] = str(record["status"]), answer
            except (TypeError, ValueError, KeyError) as error:
                raise ConfigError(f"Row {number} of {path} holds a value that is not possible.") from error
    answers: dict[str, list[Answer]] = {}
    for status, answer in rows.values():
        if status == "predicted":
            answers.setdefault(answer.kind, []).append(answer)
    return Results(answers, Counter(status for status, _ in rows.values()))


def _read_records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table, in JSON lines with the findings as columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    needed = (*_COLUMNS, *LABEL_KEYS)
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            _require(path, needed, table.column_names)
            yield from table.select(list(needed)).to_pylist()
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                _require(path, needed, reader.fieldnames or ())
                yield from reader
        elif path.suffix == ".jsonl":
            for line in path.read_bytes().splitlines():
                yield _flatten(path, json.loads(line))
        else:
            raise ConfigError(f"{path} must end in .parquet, .csv or .jsonl: a table of cxr predict --out.")
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read as a table of cxr predict --out.") from error


def _require(path: Path, needed: Sequence[str], found: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in found]:
        raise ConfigError(
            f"{path} lacks the columns {', '.join(missing)}: it is no table of cxr predict --out."
        )


def _flatten(path: Path, record: Any) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise ConfigError(f"{path} cannot be read as a table of cxr predict --out.")
    findings = record.get("findings") or {}
    _require(path, _COLUMNS, list(record))
    if record["status"] == "predicted":
        _require(path, LABEL_KEYS, list(findings))
    return {**record, **{key: entry["probability"] for key, entry in findings.items()}}


def _parse(record: Mapping[str, Any]) -> Answer:
    status, kind = record["status"], record["kind"]
    predicted = status == "predicted"
    values = tuple(float(record[key]) for key in LABEL_KEYS) if predicted else ()
    known = status in {"predicted", "refused", "failed"} and (kind in {"study", "image"} or not predicted)
    if not known or not all(0 <= value <= 1 for value in values):
        raise ValueError(status)
    return Answer(str(record["path"]), str(record["report"]), str(kind), str(record["input_state"]), values)


def take_answers(results: Results, *, seed: int = 0) -> Current:
    """Return the probabilities alone, of at most `MOST_CASES` answers of each way."""
    ways = {}
    for way, answers in results.answers.items():
        chosen = choose_rows(len(answers), MOST_CASES, seed)
        ways[way] = Sample(_stack(answers, chosen), np.zeros((0, 0), np.float16), {})
    return Current(ways)


def _stack(answers: Sequence[Answer], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.array([answers[row].probabilities for row in rows], np.float32)


def read_inputs(
    results: Results, bundle: Bundle, *, seed: int = 0, progress: Progress | None = None
) -> Current:
    """Read again the files that the tables name: their statistics, and their embeddings by the bundle's model.

    At most `MOST_READ` files of each way are read. A file that changed since it was predicted is left out.

    Args:
        results: The tables.
        bundle: The bundle of the model that answered.
        seed: Seed of the samples.
        progress: Is called with the number of files done, and their total.
    """
    images, reports = ImageReader(bundle.config["sizes"]["S"]), ReportReader(bundle)
    predictor = TorchPredictor(bundle, read_pixels=images)
    ways, unread = {}, 0
    current = take_answers(results, seed=seed)
    for way, answers in results.answers.items():
        cases, kept = [], []
        chosen = [answers[row] for row in choose_rows(len(answers), MOST_READ, seed)]
        for answer in chosen:
            state = read_state(Path(name) for name in (answer.path, answer.report) if name)
            report = _read_report(answer) if state == answer.input_state else None
            if report is None:
                continue
            text = _select(report, predictor) if answer.report else None
            if text != "":
                cases.append(Case("", answer.path, text))
                kept.append(report)
        found = predictor.ask(cases, progress)
        rows = np.flatnonzero(found.answered)
        described = []
        for row in rows:
            case = cases[row]
            words = reports.describe(kept[row], case.text) if case.text else {}
            described.append({**images.statistics[str(case.image)], **words})
        unread += len(chosen) - len(rows)
        embeddings = found.embeddings[rows].astype(np.float16)
        ways[way] = Sample(current.ways[way].probabilities, embeddings, stack_inputs(described))
    return Current(ways, unread)


def _read_report(answer: Answer) -> Report | None:
    """Return the report of a row, an empty one if it has none; None if it cannot be read."""
    if not answer.report:
        return Report()
    try:
        return parse_report(Path(answer.report).read_bytes())
    except (OSError, ReportError):
        return None


def _select(report: Report, predictor: TorchPredictor) -> str:
    try:
        return select_text(report, predictor.text_mode)
    except ReportError:
        return ""
