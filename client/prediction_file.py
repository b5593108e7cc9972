"""One file with the results of many files, that a later run goes on with: JSON lines, CSV or Parquet.

    results.jsonl           each row is appended as soon as it is there
    results.csv, .parquet   each row is appended to results.csv.partial.jsonl, which becomes the table, in one step,
                            when the run ends, and stays where the run was killed

What a killed run wrote is read again: a last line that was cut off is dropped, and its file is asked again. A file that
something else wrote is refused, never changed.
"""

import csv
import fcntl
import io
import json
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

from client.case_files import CaseFile, to_text
from client.prediction_row import COLUMNS, PREDICTED, PredictionRow, parse_row
from contract.errors import ArtifactError, ConfigError, FingerprintError
from contract.files import write_file
from contract.labels import LABEL_KEYS
from contract.notes import NOTICE

_SYNC_S: Final = 1.0  # at most so much is lost when the power fails; a kill loses nothing
_LINE_START: Final = b'{"path": '
_BETWEEN: Final = " | "  # the warnings of a row in CSV
_FORMATS: Final = (".jsonl", ".csv", ".parquet")


class PredictionFile:
    """Results by path, on the disk; a context manager that has the file for itself."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Describe the file; nothing is opened yet.

        Args:
            path: Ends in .jsonl, .csv or .parquet.
            fingerprint: Of the model whose results the file holds.
        """
        self.path = path
        self._fingerprint = fingerprint
        self._suffix = path.suffix.lower()
        self._appended = self._suffix == ".jsonl"
        self._target = Path(os.path.realpath(path))  # a link stays, and what it leads to is written
        self._journal = self._target if self._appended else Path(f"{self._target}.partial.jsonl")
        self._rows: dict[str, PredictionRow] = {}
        self._handle = -1
        self._changed = False  # the rows differ from what lies on the disk as `path`
        self._synced_at = 0.0

    def __enter__(self) -> "PredictionFile":
        """Read what is there and cut off a last line that was not written to its end.

        Raises:
            ConfigError: The name has another ending, the file holds something else, or another run has it open.
            FingerprintError: It holds the results of another model.
            ArtifactError: The disk refuses, or the file is damaged.
        """
        check_format(self.path)
        with _Refusals(self.path):
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._handle = _open_locked(self._journal)
            try:
                self._read()
                self._require_model()
            except BaseException:
                self._release(keep=os.fstat(self._handle).st_size > 0)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the table, also where the run was interrupted."""
        with _Refusals(self.path):
            try:
                os.fsync(self._handle)
                if self._changed:
                    write_file(self._target, self._render())
            except BaseException:
                self._release(keep=True)
                raise
            self._release(keep=self._appended and bool(self._rows))

    def find(self, case: CaseFile) -> PredictionRow | None:
        """Return the row of a file that was answered and has not changed since; what was refused is asked again."""
        row = self._rows.get(case.name)
        if row is None or row.status != PREDICTED or not row.input_state:
            return None
        report = "" if case.report is None else to_text(case.report)
        return row if (row.report, row.input_state) == (report, case.read_state()) else None

    def add(self, row: PredictionRow) -> None:
        """Write a row; an earlier one of the same path goes."""
        if not self._appended or row.path in self._rows:
            self._changed = True
        self._rows[row.path] = row
        with _Refusals(self.path):
            _write_all(self._handle, row.to_json().encode())
            if time.monotonic() - self._synced_at >= _SYNC_S:
                os.fsync(self._handle)
                self._synced_at = time.monotonic()

    def _read(self) -> None:
        if not self._appended and self._target.exists():
            read = _read_csv if self._suffix == ".csv" else _read_parquet
            self._rows = {row.path: row for row in read(self._target)}
        data = _read_all(self._handle)
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_row(json.loads(line))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _refuse(self._journal, f"line {number}") from error
            self._changed |= not self._appended or row.path in self._rows
            self._rows[row.path] = row
        rest = data[whole:].rstrip(b"\0")  # a file system may leave zeros where the power failed
        if not (rest.startswith(_LINE_START) or _LINE_START.startswith(rest)):
            raise _refuse(self._journal, f"line {len(lines) + 1}")
        os.ftruncate(self._handle, whole)
        os.lseek(self._handle, 0, os.SEEK_END)

    def _require_model(self) -> None:
        for row in self._rows.values():
            if row.fingerprint != self._fingerprint:
                raise FingerprintError(
                    f"{self.path} holds results of model {row.fingerprint[:12]}, and the server runs model "
                    f"{self._fingerprint[:12]}: name another file with --out, or remove this one."
                )

    def _render(self) -> bytes:
        rows = self._rows.values()
        if self._suffix == ".jsonl":
            return b"".join(row.to_json().encode() for row in rows)
        return _render_csv(rows) if self._suffix == ".csv" else _render_parquet(rows, self._fingerprint)

    def _release(self, *, keep: bool) -> None:
        """Let the journal go: it is removed under its lock, so that no other run appends to a name that is gone."""
        if not keep:
            self._journal.unlink(missing_ok=True)
        os.close(self._handle)


class _Refusals:
    """Turns what the disk refuses into ArtifactError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise ArtifactError(f"Could not write {self._path}: {error.strerror or error}.") from error


def check_format(path: Path) -> None:
    """Raise ConfigError where results cannot be written to a path, before anything is predicted for it."""
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"{path} must end in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}.")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path} is no regular file; name another one with --out.")
    except (FileNotFoundError, NotADirectoryError):
        pass  # it will be made, or making it tells why not
    if path.suffix.lower() == ".parquet":
        _import_parquet()


def _open_locked(path: Path) -> int:
    """Open a file for reading and appending, and for this process alone."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ConfigError(f"Another `cxr predict` is writing {path}: wait for it, or stop it.") from error
        except OSError:
            pass  # a file system without locks
        try:
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # another run ended in between and took the name away


def _read_all(handle: int) -> bytes:
    os.lseek(handle, 0, os.SEEK_SET)
    with open(os.dup(handle), "rb") as file:
        return file.read()


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _refuse(path: Path, place: str) -> ConfigError:
    return ConfigError(
        f"{path} holds something else than results of `cxr predict` ({place}): name another --out."
    )


class _LineEnds:
    """Ends the rows of `csv.writer` with a line feed.

    Told to do so itself, it leaves a carriage return in a file's name without quotes, and no reader takes that.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + "\n")


def _render_csv(rows: Iterable[PredictionRow]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(_LineEnds(text))
    writer.writerow([*COLUMNS, "notice"])
    for row in rows:
        record = row.to_record() | {"warnings": _BETWEEN.join(row.warnings)}
        writer.writerow([*(record[name] for name in COLUMNS), NOTICE])
    return text.getvalue().encode()


def _read_csv(path: Path) -> list[PredictionRow]:
    with path.open(encoding="utf-8", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            if reader.fieldnames != [*COLUMNS, "notice"]:
                raise _refuse(path, "its columns")
            return [
                parse_row(
                    record | {"warnings": [part for part in record["warnings"].split(_BETWEEN) if part]}
                )
                for record in reader
            ]
        except (csv.Error, KeyError, TypeError, ValueError, AttributeError) as error:
            raise _refuse(path, "its rows") from error


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Parquet needs pyarrow: pip install pyarrow, or write .csv or .jsonl instead."
        ) from error
    return pyarrow


def _render_parquet(rows: Iterable[PredictionRow], fingerprint: str) -> bytes:
    arrow = _import_parquet()
    types = dict.fromkeys(COLUMNS, arrow.string())
    types |= dict.fromkeys(LABEL_KEYS, arrow.float64()) | {"warnings": arrow.list_(arrow.string())}
    schema = arrow.schema(list(types.items()), metadata={"notice": NOTICE, "fingerprint": fingerprint})
    records = [row.to_record() for row in rows]
    file = io.BytesIO()
    arrow.parquet.write_table(arrow.Table.from_pylist(records, schema), file)
    return file.getvalue()


def _read_parquet(path: Path) -> list[PredictionRow]:
    arrow = _import_parquet()
    try:
        table = arrow.parquet.read_table(path)
        if table.column_names != list(COLUMNS):
            raise _refuse(path, "its columns")
        return [parse_row(record) for record in table.to_pylist()]
    except (arrow.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refuse(path, "its rows") from error
