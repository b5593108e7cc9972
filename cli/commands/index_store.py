"""`cxr index list`, `backup`, `restore` and `verify`: what is stored, and copies of it."""

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.connection import takes_connection
from cli.console import escape, show_plain
from cli.filters import (
    CaseKinds,
    CaseViews,
    ExcludedCases,
    ExcludedStudies,
    WithAll,
    WithAny,
    Without,
    make_options,
)
from cli.options import Json, RetrievalUrls, Timeout, make_console
from contract.case_store import refuse_milvus
from contract.connection import PLAIN, Connection
from contract.errors import ArtifactError, ConfigError

_NOT_RESTORED = (
    "A Milvus store takes no backup: restore it into a directory, then copy that with `cxr index migrate`."
)
_NOT_VERIFIED = (
    "A Milvus store has no files to verify: `cxr index migrate STORE DIRECTORY` checks every case of it."
)

if TYPE_CHECKING:
    from rich.console import Console

    from retrieval.verification import StoreCheck


@takes_connection
def list_cases(
    reports: Annotated[bool, typer.Option("--reports", help="Show the reports, too.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of cases. Default: all.")] = None,
    model: Annotated[str, typer.Option(help="Fingerprint of the model. Default: the served one.")] = "",
    exclude: ExcludedStudies = None,
    exclude_case: ExcludedCases = None,
    with_any: WithAny = None,
    with_all: WithAll = None,
    without: Without = None,
    case_view: CaseViews = None,
    case_kind: CaseKinds = None,
    retrieval: RetrievalUrls = None,
    timeout: Timeout = 30.0,
    connection: Connection = PLAIN,
    as_json: Json = False,
) -> None:
    """List the stored cases of a model: id, study, labels, view and kind, a line for each case."""
    from cli.show import print_json
    from client import CxrClient

    options = make_options(with_any, with_all, without, case_view, case_kind, exclude_case)
    with CxrClient(retrieval_url=retrieval, timeout_s=timeout, **connection.as_arguments()) as client:
        listed = client.list_cases(
            fingerprint=model, exclude_studies=tuple(exclude or ()), options=options, reports=reports
        )
        cases = islice(listed, limit)
        if as_json:
            print_json({"cases": [case.to_dict() for case in cases]})
            return
        for case in cases:
            fields = [case.id, case.study_id, ",".join(case.labels), case.view, case.embedding_kind]
            report = [" ".join(case.report.split())] if reports else []
            sys.stdout.write("\t".join(show_plain(value) for value in fields + report) + "\n")


@takes_connection
def back_up(
    out: Annotated[Path, typer.Argument(help="New folder for the backup.")],
    retrieval: RetrievalUrls = None,
    timeout: Timeout = 3600.0,
    connection: Connection = PLAIN,
    as_json: Json = False,
) -> None:
    """Copy the store of a running sidecar into a new folder, and check the copy. Needs a token with the role admin."""
    from cli.show import print_json
    from client import CxrClient
    from retrieval.verification import check_folder

    with CxrClient(retrieval_url=retrieval, timeout_s=timeout, **connection.as_arguments()) as client:
        backup = client.back_up(out, timeout_s=timeout)
    checks = check_folder(out)
    console = make_console(as_json)
    if as_json:
        print_json({**backup.to_dict(), **_describe(checks)})
    else:
        _print_checks(console, checks)
        console.print(f"Backup of {backup.size / 1e6:.1f} MB in {escape(out)}.", soft_wrap=True)
    if backup.manifest.left_out:
        names = ", ".join(name[:12] for name in backup.manifest.left_out)
        raise ArtifactError(f"The backup lacks the cases of model {names}: their store is damaged.")
    _require_ok(checks, "The backup holds what the store holds, and the store is damaged")


def restore(
    backup: Annotated[Path, typer.Argument(help="Folder of a backup, made by `cxr index backup`.")],
    store: Annotated[Path, typer.Option(help="Folder of the store. No sidecar may use it.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the store that is there. Its cases are lost.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a backup and make it the content of a store. Start the sidecar afterwards."""
    from cli.show import print_json
    from retrieval.restoring import restore as restore_backup

    refuse_milvus(store, _NOT_RESTORED)
    checks = restore_backup(backup, store, replace=replace)
    if as_json:
        print_json({"store": str(store), **_describe(checks)})
        return
    console = make_console(False)
    _print_checks(console, checks)
    console.print(f"Restored into {escape(store)}.", soft_wrap=True)


def verify(
    backup: Annotated[Path | None, typer.Argument(help="Folder of a backup.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of a store. A sidecar may be serving it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every row of a backup or of a store against its checksum. The exit code is 3 if something is damaged."""
    from cli.show import print_json
    from retrieval.verification import check_folder

    if (backup is None) == (store is None):
        raise ConfigError("Give either the folder of a backup, or --store with the folder of a store.")
    folder = backup or store
    refuse_milvus(folder, _NOT_VERIFIED)
    assert folder is not None
    checks = check_folder(folder)
    if as_json:
        print_json(_describe(checks))
    else:
        _print_checks(make_console(False), checks)
    _require_ok(checks, f"{folder} is damaged")


def _describe(checks: Sequence["StoreCheck"]) -> dict[str, Any]:
    return {"ok": all(check.ok for check in checks), "stores": [check.to_dict() for check in checks]}


def _print_checks(console: "Console", checks: Sequence["StoreCheck"]) -> None:
    for check in checks:
        model = f"model {check.fingerprint[:12]}" if check.fingerprint else "no model"
        state = "ok" if check.ok else f"{len(check.damaged)} damaged rows" if check.damaged else "damaged"
        console.print(f"{escape(check.path)}: {check.rows} cases, {model}: {state}", soft_wrap=True)
        for sentence in check.problems:
            console.print(f"  {escape(sentence)}", soft_wrap=True)


def _require_ok(checks: Sequence["StoreCheck"], what: str) -> None:
    damaged = sum(len(check.damaged) for check in checks)
    problems = sum(len(check.problems) for check in checks)
    if damaged or problems:
        raise ArtifactError(
            f"{what}: {damaged} damaged rows, {problems} other problems. They are listed above."
        )
