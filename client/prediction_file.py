"""The results of many files in one file, which a later run continues: JSON lines, CSV or Parquet.

    results.jsonl           Each row is appended at once.
    results.csv, .parquet   Each row is appended to the journal results.csv.partial.jsonl at once. At the end of the
                            run the table is written in one step, and the journal is removed.

The journal of a run that was killed remains. The next run reads it, drops an incomplete last line, and predicts the
file of that line again. A file that something else wrote is an error, and is never changed.
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

_SYNC_S: Final = 1.0  # a power failure loses the rows of at most one second; a kill loses none
_LINE_START: Final = b'{"path": '
_SEPARATOR: Final = " | "  # between the warnings of a row in CSV
_FORMATS: Final = (".jsonl", ".csv", ".parquet")


class PredictionFile:
    """The rows on the disk, one for each path. A context manager that locks the file."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Set the path. Entering the context opens the file.

        Args:
            path: The file; it must end in .jsonl, .csv or .parquet.
            fingerprint: Fingerprint of the model whose results the file holds.
        """
        self.path = path
        self._fingerprint = fingerprint
        self._suffix = path.suffix.lower()
        self._is_journal = self._suffix == ".jsonl"
        self._target = Path(os.path.realpath(path))  # a link remains, and its target is written
        self._journal = self._target if self._is_journal else Path(f"{self._target}.partial.jsonl")
        self._rows: dict[str, PredictionRow] = {}
        self._handle = -1
        self._changed = False  # whether the file at `path` must be written again
        self._synced_at = 0.0

    def __enter__(self) -> "PredictionFile":
        """Lock the file, read its rows, and cut off an incomplete last line.

        Raises:
            ConfigError: The path has another suffix, the file holds something else, or another run writes it.
            FingerprintError: The file holds the results of another model.
            ArtifactError: The file cannot be read or written.
        """
        check_format(self.path)
        with _DiskErrors(self.path):
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
        """Write the table, also after an interrupted run."""
        with _DiskErrors(self.path):
            try:
                os.fsync(self._handle)
                if self._changed:
                    write_file(self._target, self._render())
            except BaseException:
                self._release(keep=True)
                raise
            self._release(keep=self._is_journal and bool(self._rows))

    def find(self, case: CaseFile) -> PredictionRow | None:
        """Return the row of a file; None if the model did not answer, or the file has changed since."""
        row = self._rows.get(case.name)
        if row is None or row.status != PREDICTED or not row.input_state:
            return None
        report = "" if case.report is None else to_text(case.report)
        return row if (row.report, row.input_state) == (report, case.read_state()) else None

    def add(self, row: PredictionRow) -> None:
        """Write a row. It replaces an earlier row of the same path."""
        if not self._is_journal or row.path in self._rows:
            self._changed = True
        self._rows[row.path] = row
        with _DiskErrors(self.path):
            _write_all(self._handle, row.to_json().encode())
            if time.monotonic() - self._synced_at >= _SYNC_S:
                os.fsync(self._handle)
                self._synced_at = time.monotonic()

    def _read(self) -> None:
        if not self._is_journal and self._target.exists():
            read = _read_csv if self._suffix == ".csv" else _read_parquet
            self._rows = {row.path: row for row in read(self._target)}
        data = _read_all(self._handle)
        end = data.rfind(b"\n") + 1  # of the last complete line
        lines = data[:end].splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_row(json.loads(line))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _make_foreign_error(self._journal, f"line {number}") from error
            self._changed |= not self._is_journal or row.path in self._rows
            self._rows[row.path] = row
        rest = data[end:].rstrip(b"\0")  # a file system may leave zeros after a power failure
        if not (rest.startswith(_LINE_START) or _LINE_START.startswith(rest)):
            raise _make_foreign_error(self._journal, f"line {len(lines) + 1}")
        os.ftruncate(self._handle, end)
        os.lseek(self._handle, 0, os.SEEK_END)

    def _require_model(self) -> None:
        for row in self._rows.values():
            if row.fingerprint != self._fingerprint:
                raise FingerprintError(
                    f"{self.path} holds results of model {row.fingerprint[:12]}, but the server runs model "
                    f"{self._fingerprint[:12]}: choose another file with --out, or remove this one."
                )

    def _render(self) -> bytes:
        rows = self._rows.values()
        if self._suffix == ".jsonl":
            return b"".join(row.to_json().encode() for row in rows)
        return _render_csv(rows) if self._suffix == ".csv" else _render_parquet(rows, self._fingerprint)

    def _release(self, *, keep: bool) -> None:
        """Unlock the journal. Unless `keep`, remove it first: under the lock, so that no other run appends to it."""
        if not keep:
            self._journal.unlink(missing_ok=True)
        os.close(self._handle)


class _DiskErrors:
    """A context manager that turns OSError into ArtifactError."""

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
    """Raise ConfigError if results cannot be written to a path. Call this before predicting anything."""
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"{path} must end in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}.")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path} is not a regular file: choose another file with --out.")
    except (FileNotFoundError, NotADirectoryError):
        pass  # the file will be created, or creating it raises the error
    if path.suffix.lower() == ".parquet":
        _import_parquet()


def _open_locked(path: Path) -> int:
    """Open a file for reading and appending, and lock it for this process."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ConfigError(
                f"Another `cxr predict` is writing {path}: wait until it ends, or stop it."
            ) from error
        except OSError:
            pass  # the file system has no locks
        try:
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # another run ended meanwhile and removed the file


def _read_all(handle: int) -> bytes:
    os.lseek(handle, 0, os.SEEK_SET)
    with open(os.dup(handle), "rb") as file:
        return file.read()


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _make_foreign_error(path: Path, part: str) -> ConfigError:
    """Return the error of a file that `cxr predict` did not write. `part` names the part that does not fit."""
    return ConfigError(
        f"{path} holds something else than results of `cxr predict` ({part}): choose another file with --out."
    )


class _LineEnds:
    """Replaces the line ends CRLF of `csv.writer` by LF.

    With LF as its own line terminator, `csv.writer` would not quote a carriage return in a file name, and no reader
    could read that row.
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
        record = row.to_record() | {"warnings": _SEPARATOR.join(row.warnings)}
        writer.writerow([*(record[name] for name in COLUMNS), NOTICE])
    return text.getvalue().encode()


def _read_csv(path: Path) -> list[PredictionRow]:
    with path.open(encoding="utf-8", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            if reader.fieldnames != [*COLUMNS, "notice"]:
                raise _make_foreign_error(path, "its columns")
            return [
                parse_row(
                    record | {"warnings": [part for part in record["warnings"].split(_SEPARATOR) if part]}
                )
                for record in reader
            ]
        except (csv.Error, KeyError, TypeError, ValueError, AttributeError) as error:
            raise _make_foreign_error(path, "its rows") from error


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ConfigError(
            "A .parquet file needs pyarrow: pip install pyarrow, or write a .csv or .jsonl file instead."
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
            raise _make_foreign_error(path, "its columns")
        return [parse_row(record) for record in table.to_pylist()]
    except (arrow.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _make_foreign_error(path, "its rows") from error
