"""`cxr sign`: keys for signatures, and signatures of bundles and repositories."""

from pathlib import Path
from typing import Annotated

import typer

from cli.console import escape
from cli.options import Json, make_console
from cli.signing import PasswordFile

Key = Annotated[Path, typer.Option("--key", help="Secret key, made by `cxr sign key`.")]

sign_app = typer.Typer(
    no_args_is_help=True,
    help="Make keys for signatures; sign a bundle or a model repository. `--require-signature` checks the signatures.",
)


@sign_app.command("key")
def key(
    out: Annotated[Path, typer.Option(help="Folder for minisign.key and minisign.pub.")],
    password_file: PasswordFile = None,
    no_password: Annotated[
        bool,
        typer.Option(
            "--no-password", help="Do not encrypt the secret key: for CI that keeps it as a secret."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a key pair in the format of minisign. No file is replaced."""
    from cli.show import print_json
    from cli.signing import read_password
    from contract.errors import ConfigError
    from export.signing_keys import make_key

    if no_password and password_file is not None:
        raise ConfigError("Give --password-file or --no-password, not both.")
    if no_password:
        password = None
    elif password_file is not None:
        password = read_password(password_file)
    else:
        password = typer.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)
    made = make_key(out, password)
    if as_json:
        print_json(made.to_dict())
        return
    console = make_console(False)
    console.print(f"{escape(made.secret)}: signs. Keep it away from the servers.", soft_wrap=True)
    console.print(f"{escape(made.public)}: for --require-signature. Its id is {made.key_id}.", soft_wrap=True)


@sign_app.command("bundle")
def bundle(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory, made by `cxr train`.")],
    key: Key,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Check every file of a bundle, then sign its manifest."""
    from cli.signing import open_required_key
    from export.signing import sign_bundle

    opened = open_required_key(key, password_file)
    _print_signed(sign_bundle(bundle, opened), opened.key_id, as_json=as_json)


@sign_app.command("repository")
def repository(
    repository: Annotated[Path, typer.Argument(help="Model repository, published by `cxr export`.")],
    key: Key,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Check every file of a model repository, and sign its marker."""
    from cli.signing import open_required_key
    from contract.repository import SIGNATURE
    from export.signing import sign_repository

    opened = open_required_key(key, password_file)
    signature = sign_repository(repository, opened).repository / SIGNATURE
    _print_signed(signature, opened.key_id, as_json=as_json)


def _print_signed(signature: Path, key_id: str, *, as_json: bool) -> None:
    from cli.show import print_json

    if as_json:
        print_json({"signature": str(signature), "key_id": key_id})
        return
    make_console(False).print(f"{escape(signature)}: signed with key {key_id}.", soft_wrap=True)
