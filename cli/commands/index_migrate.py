"""`cxr index migrate`: copy a store from files to Milvus or back."""

from typing import Annotated

import typer

from cli.options import Json, make_console
from contract.errors import ArtifactError


def migrate(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="Directory of a store, or milvus://HOST:PORT/DATABASE.")
    ],
    target: Annotated[str, typer.Argument(metavar="TO", help="The same. It is created if it is missing.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace cases of TO with the same id and another content.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy all cases of a store into another one, and compare each. Run it again to go on after an interrupt."""
    from cli.progress import show_progress
    from cli.show import print_json
    from retrieval.migrating import migrate as migrate_store

    console = make_console(as_json)
    with show_progress(console, "Copying and checking") as progress:
        moved = migrate_store(source, target, replace=replace, progress=progress)
    if as_json:
        print_json({"models": [model.to_dict() for model in moved]})
    for model in moved:
        console.print(
            f"model {model.fingerprint[:12]}: {model.cases} cases are in both stores, {model.written} of them new",
            soft_wrap=True,
        )
    if damaged := sum(model.damaged for model in moved):
        raise ArtifactError(f"{damaged} cases of FROM were left out: they differ from what was written.")
