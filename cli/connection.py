"""The options of TLS and the token, which every command has that calls a server."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from contract.connection import SYSTEM, TLS, Connection, read_token, resolve_connection

_PARAMETER: Final = "connection"
_OPTIONS: Final[dict[str, Any]] = {
    "tls_ca": Annotated[
        str | None,
        typer.Option(
            "--tls-ca", help="Use TLS. PEM file of the servers' authority, or 'system'. Default: CXR_TLS_CA."
        ),
    ],
    "tls_cert": Annotated[
        Path | None,
        typer.Option("--tls-cert", help="PEM file of this client's certificate. Default: CXR_TLS_CERT."),
    ],
    "tls_key": Annotated[
        Path | None,
        typer.Option("--tls-key", help="PEM file of the key of --tls-cert. Default: CXR_TLS_KEY."),
    ],
    "tls_server_name": Annotated[
        str | None,
        typer.Option(
            "--tls-server-name",
            help="Name in the servers' certificate, if it is not that of the address. Default: CXR_TLS_SERVER_NAME.",
        ),
    ],
    "token_file": Annotated[
        Path | None,
        typer.Option(
            "--token-file", help="File with this client's token. Default: CXR_TOKEN or CXR_TOKEN_FILE."
        ),
    ],
}

Result = TypeVar("Result")


def takes_connection(command: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command the options of TLS and the token, in place of its parameter `connection`."""
    signature = inspect.signature(command)
    assert signature.parameters[_PARAMETER].annotation is Connection
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != _PARAMETER:
            parameters.append(parameter)
            continue
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters += [
            inspect.Parameter(name, kind, default=None, annotation=annotation)
            for name, annotation in _OPTIONS.items()
        ]

    @functools.wraps(command)
    def run(**values: Any) -> Result:
        given = {name: values.pop(name) for name in _OPTIONS}
        return command(**values, **{_PARAMETER: _read_connection(**given)})

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {
        "return": None
    }
    return run


def _read_connection(
    tls_ca: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_server_name: str | None,
    token_file: Path | None,
) -> Connection:
    """Return the settings of the options, the environment or the config file (`contract.connection`)."""
    tls = None
    if any((tls_ca, tls_cert, tls_key, tls_server_name)):
        tls = TLS(Path(tls_ca) if tls_ca and tls_ca != SYSTEM else None, tls_cert, tls_key, tls_server_name)
    return resolve_connection(tls, None if token_file is None else read_token(token_file))
