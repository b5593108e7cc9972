"""The command `cxr doctor`."""

from typing import Annotated

import typer

from cli.connection import takes_connection
from cli.options import Json, RetrievalUrls, TritonUrls, make_console
from contract.connection import PLAIN, Connection


@takes_connection
def doctor(
    local: Annotated[
        bool, typer.Option("--local", help="Check only this machine and its packages; contact no server.")
    ] = False,
    triton: TritonUrls = None,
    retrieval: RetrievalUrls = None,
    connection: Connection = PLAIN,
    as_json: Json = False,
) -> None:
    """Check this machine and the servers: what is missing and how to install it, and whether inference and search work.

    Exit code 4: a server does not answer. Exit code 3: the index belongs to another model. A missing extra is no error.
    """
    from cli.show import find_exit_code, print_checks, print_json
    from serving.doctor import run_checks

    checks, health = run_checks(), None
    if not local:
        from client import CxrClient

        with CxrClient(triton, retrieval, timeout_s=10.0, **connection.as_arguments()) as client:
            # three real inferences
            health = client.health()
    if as_json:
        servers = health.to_dict() if health else None
        print_json({"checks": [check.to_dict() for check in checks], "servers": servers})
    else:
        print_checks(make_console(False), checks, health)
    if health:
        raise typer.Exit(find_exit_code(health))
