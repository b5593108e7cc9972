"""The command `cxr index`, and the commands for what it stored and for kinds of index."""

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.index_migrate import migrate
from cli.commands.index_store import back_up, list_cases, restore, verify
from cli.commands.index_tune import tune
from cli.connection import takes_connection
from cli.default_command import DefaultCommandGroup
from cli.options import (
    Compression,
    Json,
    RetrievalUrls,
    Shrink,
    Table,
    Timeout,
    Transport,
    TritonUrls,
    make_console,
)
from contract.connection import PLAIN, Connection
from contract.errors import InputError

index_app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    help="Store cases for search; list, back up, restore, verify and migrate what is stored; compare kinds of index.",
)
index_app.command("list")(list_cases)
index_app.command("backup")(back_up)
index_app.command("restore")(restore)
index_app.command("verify")(verify)
index_app.command("migrate")(migrate)
index_app.command("tune")(tune)


@index_app.command(DefaultCommandGroup.default, hidden=True)
@takes_connection
def index_cases(
    table: Table,
    split: Annotated[
        Path | None, typer.Option(help="split.json of a bundle. Only its training studies are indexed.")
    ] = None,
    triton: TritonUrls = None,
    retrieval: RetrievalUrls = None,
    timeout: Timeout = 30.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    shrink: Shrink = True,
    connection: Connection = PLAIN,
    as_json: Json = False,
) -> None:
    """Embed every study of a table through the served model and store it for search."""
    from cli.cases import make_cases
    from cli.progress import show_progress
    from cli.show import print_indexed, print_json
    from client import CxrClient
    from training.data.rows import choose_rows, read_rows

    rows = read_rows(table)
    if split:
        rows = choose_rows(rows, split, "train")
    console = make_console(as_json)
    connected = CxrClient(
        triton,
        retrieval,
        timeout,
        transport=transport,
        compression=compression,
        shrink=shrink,
        **connection.as_arguments(),
    )
    with connected as client, show_progress(console, "Indexing") as progress:
        text_mode = client.info().text_mode
        result = client.index(make_cases(rows, text_mode), progress=lambda done: progress(done, len(rows)))
    if as_json:
        print_json(result.to_dict())
    else:
        print_indexed(console, result)
    if result.refused and not result.indexed:
        raise InputError(
            f"None of {len(result.refused)} cases could be indexed. The reasons are listed above."
        )
