"""`cxr predict` for many files: list the files, write one row each, print the totals."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from cli.console import CommandConsole, show_plain
from cli.progress import show_progress
from cli.show import NOTICE, print_json
from contract.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from client import CxrClient
    from client.case_files import CaseList
    from client.prediction_row import PredictionRow

_SHOWN_REFUSED: Final = 10
_STDIN: Final = Path("-")
_REFUSED_CODE: Final = 2
_FAILED_CODE: Final = 4


def list_cases(
    images: Sequence[Path], *, out: Path | None, report: bool, findings: bool, views: bool = False
) -> "CaseList | None":
    """Return the files to predict; None if the call is about one case.

    A call without --out is about one case if it names one file or none, or if standard input holds an image.

    Args:
        images: The arguments: files, folders, or - for standard input.
        out: File for the results.
        report: Whether --report was given. It is allowed only for one case.
        findings: Whether --finding was given. It is allowed only for one case.
        views: Whether --view was given. It is allowed only for one case.

    Raises:
        ConfigError: There is no radiograph, or an option is allowed only for one case.
    """
    from client.case_files import CaseFile, find_cases, is_image, parse_paths

    if out is None and not images:
        return None
    files: list[CaseFile] = []
    for path in images:
        if path == _STDIN:
            start = _peek(132)
            if is_image(start):
                _require_alone(images, out)
                return None
            files += parse_paths(sys.stdin.buffer.read())
        else:
            files.append(CaseFile(path))
    alone = len(images) == 1 and images[0] != _STDIN and not images[0].is_dir()
    if out is None and alone:
        return None
    if report or findings or views:
        raise ConfigError(
            "--report, --view and --finding work with one case and without --out. For many images, list the paths on "
            "standard input, each followed by a tab and the path of its report: cxr predict - < list.txt"
        )
    return find_cases(files)


def _peek(count: int) -> bytes:
    """Return the first bytes of standard input without consuming them."""
    peek = getattr(sys.stdin.buffer, "peek", None)
    return b"" if peek is None else peek(count)[:count]


def _require_alone(images: Sequence[Path], out: Path | None) -> None:
    if len(images) > 1 or out is not None:
        raise ConfigError("An image on standard input is one case. Give no other files and no --out.")


def predict_all(client: "CxrClient", cases: "CaseList", *, out: Path | None, as_json: bool) -> int:
    """Predict files, write or print one row each, and return the exit code.

    Raises:
        ConfigError, ArtifactError, FingerprintError: See `client.prediction_file.PredictionFile`.
        ServiceError: The server is down or fails on every file. Rows that were written stay.
    """
    from client.predict_files import predict_files
    from client.prediction_file import PredictionFile, check_format

    if out is not None:
        check_format(out)
    model = client.info()
    tally = _Tally(model.warnings)
    emit = _print_jsonl if as_json else partial(_print_line, general=model.warnings)
    with nullcontext() if out is None else PredictionFile(out, model.fingerprint) as file:
        todo = []
        for case in cases.cases:
            if file is not None and (row := file.find(case)) is not None:
                tally.count(row, kept=True)
            else:
                todo.append(case)
        write: Callable[[PredictionRow], None] = emit if file is None else file.add
        # Printed lines show the progress, and a bar would break them.
        lines = out is None and sys.stdout.isatty()
        with show_progress(CommandConsole(stderr=True, quiet=lines), "Predicting") as progress:
            progress(tally.done, len(cases.cases))
            try:
                for row in predict_files(client, todo, model.fingerprint):
                    write(row)
                    tally.count(row)
                    progress(tally.done, len(cases.cases))
            except (ServiceError, KeyboardInterrupt):
                _tell_rest(tally.done, len(cases.cases), out)
                raise
    _print_tally(tally, cases, out, as_json=as_json)
    return tally.exit_code


class _Tally:
    """Counts rows, and keeps the first refused ones for the command's last lines."""

    def __init__(self, general: Sequence[str]) -> None:
        """Take the warnings that every row has. They are printed once and not counted."""
        self.general = tuple(general)
        self.statuses: Counter[str] = Counter()
        self.kept = self.warned = 0
        self.refused: list[PredictionRow] = []

    @property
    def done(self) -> int:
        return self.statuses.total()

    @property
    def exit_code(self) -> int:
        if self.statuses["failed"]:
            return _FAILED_CODE
        return _REFUSED_CODE if self.statuses["refused"] else 0

    def count(self, row: "PredictionRow", *, kept: bool = False) -> None:
        self.statuses[row.status] += 1
        self.kept += kept
        self.warned += bool(set(row.warnings) - set(self.general))
        if row.error and len(self.refused) < _SHOWN_REFUSED:
            self.refused.append(row)


def _print_jsonl(row: "PredictionRow") -> None:
    sys.stdout.write(row.to_json())
    sys.stdout.flush()


def _print_line(row: "PredictionRow", *, general: Sequence[str]) -> None:
    """Print path, status and answer, separated by tabs, with control characters as codes.

    Warnings that every row has (`general`) are printed once, at the end.
    """
    decided = [
        f"{key} {value:.3f} {decision}" for key, value, decision in row.findings if decision != "absent"
    ]
    warnings = [f"warning: {sentence}" for sentence in row.warnings if sentence not in general]
    answer = row.error or "; ".join([", ".join(decided) or "nothing present", *warnings])
    sys.stdout.write(f"{show_plain(row.path)}\t{row.status}\t{show_plain(answer)}\n")
    sys.stdout.flush()


def _tell_rest(done: int, total: int, out: Path | None) -> None:
    again = "" if out is None else f" Repeat the command to continue {show_plain(str(out))}."
    typer.echo(f"{done} of {total} files done.{again}", err=True)


def _print_tally(tally: _Tally, cases: "CaseList", out: Path | None, *, as_json: bool) -> None:
    from client.case_files import count_files

    counts = {name: tally.statuses[name] for name in ("predicted", "refused", "failed")}
    if as_json and out is not None:
        extra = {"kept": tally.kept, "warned": tally.warned, "skipped": cases.skipped}
        print_json({"out": str(out), **counts, **extra, "warnings": list(tally.general), "notice": NOTICE})
        return
    parts = [f"{count} {name}" for name, count in counts.items() if count or name != "failed"]
    parts += [f"{tally.warned} with a warning"] if tally.warned else []
    parts += [f"{tally.kept} of them from an earlier run"] if tally.kept else []
    parts += [f"{count_files(cases.skipped)} skipped"] if cases.skipped else []
    lines = [f"{'' if out is None else f'{show_plain(str(out))}: '}{', '.join(parts)}."]
    if out is not None:
        lines += [f"  {show_plain(row.path)}: {show_plain(row.error)}" for row in tally.refused]
        hidden = counts["refused"] + counts["failed"] - len(tally.refused)
        lines += [f"  {hidden} more; see the column error"] if hidden else []
    for line in [*lines, *tally.general, NOTICE]:
        typer.echo(line, err=out is None)


def exit_with(code: int) -> None:
    """Exit the command with `code`, unless it is 0."""
    if code:
        raise typer.Exit(code)
