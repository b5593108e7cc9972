"""Options for signatures that several commands share, and the secret key of a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli.console import escape
from contract.errors import ConfigError
from contract.signatures import ENVIRONMENT, TrustedKeys

if TYPE_CHECKING:
    from contract.bundle import Bundle
    from export.signing_keys import SigningKey

RequireSignature = Annotated[
    list[str] | None,
    typer.Option(
        "--require-signature",
        metavar="PUBKEY",
        envvar=ENVIRONMENT,
        show_envvar=False,  # the help names it
        help="Public key, or its file, that must have signed it (`cxr sign`). Repeatable: one of them suffices. "
        f"Checked before anything is loaded. Default: {ENVIRONMENT}; empty: no signature is needed.",
    ),
]
Sign = Annotated[
    Path | None,
    typer.Option(
        "--sign",
        metavar="KEY",
        help="Secret key (`cxr sign key`) that signs the changed repository. A signed repository needs it.",
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(help="File with the password of the secret key. Without it the password is asked for."),
]


def find_trust(values: list[str] | None, *, repository: Path | None = None) -> TrustedKeys | None:
    """Return the keys of --require-signature or the environment; None if no signature is needed.

    Args:
        values: The values of the option.
        repository: A published repository that the command reads. It is checked here, with all its files.

    Raises:
        ConfigError: A key cannot be read.
        SignatureError: No key signed the repository.
        ArtifactError: A file of the repository differs from the signed one.
    """
    trust = TrustedKeys.find(values)
    if trust is not None and repository is not None:
        from contract.repository import verify

        verify(repository, trust)
    return trust


def open_key(path: Path | None, password_file: Path | None) -> "SigningKey | None":
    """Return the secret key at a path; None without a path. Ask for its password if it has one.

    Raises:
        ConfigError: A file cannot be read, the password is wrong, or the package `minisign` is missing.
    """
    if path is None:
        if password_file is not None:
            raise ConfigError("--password-file belongs to a secret key: give --sign KEY too.")
        return None
    return open_required_key(path, password_file)


def open_required_key(path: Path, password_file: Path | None) -> "SigningKey":
    """Return the secret key at a path. For errors see `open_key`."""
    from export.signing_keys import SigningKey

    def ask() -> str:
        if password_file is not None:
            return read_password(password_file)
        return str(typer.prompt(f"Password of {path}", hide_input=True, err=True))

    return SigningKey.read(path, ask)


def read_password(path: Path) -> str:
    """Return the first line of a password file. Raise ConfigError if it cannot be read or is empty."""
    try:
        password = path.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"The password file {path} cannot be read: {reason}.") from error
    if not password:
        raise ConfigError(f"The first line of the password file {path} is empty.")
    return password


def tell_of_signature(console: Console, signed: bool, bundle: "Bundle") -> None:
    """Say that a bundle lost its signature, if it was signed before results were written into it."""
    if signed and not bundle.is_signed:
        console.print(
            f"The results changed the manifest of {escape(bundle.path)}, so its signature was removed. Sign it again "
            "with `cxr sign bundle`.",
            soft_wrap=True,
        )
