"""`cxr predict` of many files: where they come from, where their rows go, and what the run came to."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from cli.console import CommandConsole
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
    """Return the files of a call for many; None for a call about one case.

    One case is a call without --out that names one file, or none, or whose standard input holds an image.

    Args:
        images: As typed: files, folders, or - for standard input.
        out: File for the results.
        report: Whether --report was given, which belongs to one case.
        findings: Likewise of --finding.
        views: Likewise of --view.

    Raises:
        ConfigError: There is no radiograph, or an option belongs to one case.
    """
    from client.case_files import CaseFile, find_cases, is_image, parse_paths

    if out is None and not images:
        return None
    given: list[CaseFile] = []
    for path in images:
        if path == _STDIN:
            start = _peek(132)
            if is_image(start):
                return _require_alone(images, out)
            given += parse_paths(sys.stdin.buffer.read())
        else:
            given.append(CaseFile(path))
    alone = len(images) == 1 and images[0] != _STDIN and not images[0].is_dir()
    if out is None and alone:
        return None
    if report or findings or views:
        raise ConfigError(
            "--report, --view and --finding belong to one case without --out. For many, list the paths on standard "
            "input, each with a tab and the path of its report behind it: cxr predict - < list.txt"
        )
    return find_cases(given)


def _peek(count: int) -> bytes:
    """Return the first bytes of standard input without taking them away."""
    peek = getattr(sys.stdin.buffer, "peek", None)
    return b"" if peek is None else peek(count)[:count]


def _require_alone(images: Sequence[Path], out: Path | None) -> None:
    if len(images) > 1 or out is not None:
        raise ConfigError("An image on standard input is one case, without other files and without --out.")


def predict_all(client: "CxrClient", cases: "CaseList", *, out: Path | None, as_json: bool) -> int:
    """Predict files and write their rows to `out`, or print them; return the exit code.

    Raises:
        ConfigError, ArtifactError, FingerprintError: As of `client.prediction_file.PredictionFile`.
        ServiceError: The server is down or fails on every file; what was answered stays written.
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
        lines = out is None and sys.stdout.isatty()  # they are progress enough, and a bar would break them
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
    """Counts rows, and keeps the first that were refused for the last lines of the command."""

    def __init__(self, general: Sequence[str]) -> None:
        """Take the warnings that stand in every row: they are told once and count for none."""
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
    """Print path, status and answer between tabs; control characters of a name are written by their numbers.

    Warnings that stand in every row (`general`) are told once, at the end.
    """
    decided = [f"{key} {value:.3f} {said}" for key, value, said in row.findings if said != "absent"]
    warnings = [f"warning: {sentence}" for sentence in row.warnings if sentence not in general]
    answer = row.error or "; ".join([", ".join(decided) or "nothing present", *warnings])
    sys.stdout.write(f"{_show(row.path)}\t{row.status}\t{_show(answer)}\n")
    sys.stdout.flush()


def _show(text: str) -> str:
    """Return text of others as it fits on a line of a terminal: control characters by their numbers."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _tell_rest(done: int, total: int, out: Path | None) -> None:
    again = "" if out is None else f"; the same command goes on with {_show(str(out))}"
    typer.echo(f"{done} of {total} files done{again}.", err=True)


def _print_tally(tally: _Tally, cases: "CaseList", out: Path | None, *, as_json: bool) -> None:
    from client.case_files import count_files

    counts = {name: tally.statuses[name] for name in ("predicted", "refused", "failed")}
    if as_json and out is not None:
        others = {"kept": tally.kept, "warned": tally.warned, "skipped": cases.skipped}
        print_json({"out": str(out), **counts, **others, "warnings": list(tally.general), "notice": NOTICE})
        return
    said = [f"{count} {name}" for name, count in counts.items() if count or name != "failed"]
    said += [f"{tally.warned} with a warning"] if tally.warned else []
    said += [f"{tally.kept} of them from before"] if tally.kept else []
    said += [f"{count_files(cases.skipped)} skipped"] if cases.skipped else []
    lines = [f"{'' if out is None else f'{_show(str(out))}: '}{', '.join(said)}."]
    if out is not None:
        lines += [f"  {_show(row.path)}: {_show(row.error)}" for row in tally.refused]
        hidden = counts["refused"] + counts["failed"] - len(tally.refused)
        lines += [f"  {hidden} more; the column error has them all"] if hidden else []
    for line in [*lines, *tally.general, NOTICE]:
        typer.echo(line, err=out is None)


def exit_with(code: int) -> None:
    """End the command with a code that is not 0."""
    if code:
        raise typer.Exit(code)
