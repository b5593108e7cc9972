"""`cxr certs`: certificates and tokens for the servers and their clients."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.console import escape
from cli.default_command import DefaultCommandGroup
from cli.options import Json, make_console

certs_app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    help="Make certificates for TLS, and tokens with roles.",
)


@certs_app.command(DefaultCommandGroup.default, hidden=True)
def certs(
    directory: Annotated[
        Path,
        typer.Argument(help="Folder for `cxr serve --tls-dir`. One with an authority gets what it lacks."),
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address of the servers. Repeatable. localhost, 127.0.0.1 and ::1 are always there."
        ),
    ] = None,
    client: Annotated[
        list[str] | None, typer.Option(help="Name of a client that gets a certificate. Repeatable.")
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="Days until the certificates of servers and clients end.")
    ] = 365,
    as_json: Json = False,
) -> None:
    """Make a small certificate authority, a server certificate and client certificates. No file is replaced."""
    from cli.show import print_json
    from serving.certificates import make_certificates

    issued = make_certificates(directory, host or (), client or (), days=days)
    if as_json:
        print_json({"files": [file.to_dict() for file in issued]})
        return
    console = make_console(False)
    for file in issued:
        until = f" (until {file.ends:%Y-%m-%d})" if file.ends else ""
        console.print(f"{escape(file.path)}: {escape(file.purpose)}{until}", soft_wrap=True)
    console.print(
        "Whoever reads a .key file can act as its owner. Send keys only over protected ways.", soft_wrap=True
    )


@certs_app.command("token")
def token(
    name: Annotated[str, typer.Option(help="Whose token it is. The log shows this name.")],
    role: Annotated[
        Literal["metrics", "read", "write", "admin"],
        typer.Option(
            help="metrics: read the pages of metrics. read: predict, search, list. write: also index, delete. "
            "admin: also change models, back up cases."
        ),
    ] = "read",
    tokens: Annotated[
        Path | None, typer.Option(help="Tokens file that gets the line. Created if missing, with mode 0600.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New file for the token, with mode 0600. Then it is not printed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a new token once, and its line for the tokens file of `cxr serve --tokens`, which holds only a hash."""
    from cli.show import print_json
    from contract.access import append_token, make_token, write_token

    value, entry = make_token(name, role)
    if out is not None:
        write_token(out, value)
    if tokens is not None:
        append_token(tokens, entry)
    if as_json:
        secret = {"token": value} if out is None else {"token_file": str(out)}
        print_json({**secret, "name": entry.name, "role": entry.role.label, "line": entry.to_line()})
        return
    console = make_console(False)
    if out is None:
        console.print(
            f"Token of {escape(name)} ({role}), shown only now. Write it into a file for --token-file:"
        )
        typer.echo(value)
    else:
        console.print(f"Token of {escape(name)} ({role}) written to {escape(out)}.", soft_wrap=True)
    console.print(
        "Line for the tokens file:" if tokens is None else f"Added to {escape(tokens)}:", soft_wrap=True
    )
    typer.echo(entry.to_line())
