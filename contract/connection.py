"""How a client reaches the servers: TLS, its own certificate, and a token.

Each setting comes from the first of these places that has it:

1. the argument (`CxrClient(tls=..., token=...)`) or the option of a command (`--tls-ca`, `--token-file`, ...),
2. the environment: CXR_TLS_CA, CXR_TLS_CERT, CXR_TLS_KEY, CXR_TLS_SERVER_NAME, CXR_TOKEN or CXR_TOKEN_FILE,
3. the section [client] of the file CXR_CONFIG, by default ~/.config/cxr/client.ini: tls_ca, tls_cert, tls_key,
   tls_server_name, token_file.

The addresses of the servers come from the same places: the argument or option, CXR_TRITON and CXR_RETRIEVAL, the names
triton and retrieval in the file. Several addresses have commas between them.

The settings of TLS belong together: they all come from one place.
"""

import os
import re
import ssl
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal

from contract.address import split_addresses
from contract.config_file import read_section
from contract.errors import ConfigError
from contract.trace_context import find_propagator, make_trace_metadata

DEFAULT_ADDRESSES: Final = {"triton": "127.0.0.1:8001", "retrieval": "127.0.0.1:8005"}
SYSTEM: Final = "system"  # as a value of CXR_TLS_CA: trust the public authorities
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")  # RFC 6750, and long enough to be no word
_FIELDS: Final = {
    "ca": "tls.ca (--tls-ca, CXR_TLS_CA)",
    "cert": "tls.cert (--tls-cert, CXR_TLS_CERT)",
    "key": "tls.key (--tls-key, CXR_TLS_KEY)",
}
TOKEN_SETTING: Final = "token (--token-file, CXR_TOKEN)"  # noqa: S105


@dataclass(frozen=True)
class TLS:
    """How a client checks a server, and the certificate that it shows.

    Attributes:
        ca: PEM file with the authorities that may have signed the server's certificate. None: the public authorities
            that gRPC knows.
        cert: PEM file with the client's own certificate, for servers that require one.
        key: PEM file with the key of that certificate.
        server_name: The name in the server's certificate. None: the host of the address.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        """Make paths of strings. Raise ConfigError if only one of `cert` and `key` is given."""
        for name in _FIELDS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value).expanduser())
        if (self.cert is None) is not (self.key is None):
            raise ConfigError(f"{_FIELDS['cert']} and {_FIELDS['key']} belong together: set both or neither.")

    def make_context(self) -> ssl.SSLContext:
        """Return the settings for Python's own TLS.

        Raises:
            ConfigError: A file cannot be read, holds no PEM data, or the key belongs to another certificate.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{_FIELDS['ca']}: {describe_file_error(self.ca, error)}") from error
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password="")
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"{_FIELDS['cert']} and {_FIELDS['key']}: {describe_pair_error(self.cert, self.key, error)}"
                ) from error
        context.set_alpn_protocols(["h2"])
        return context

    def make_credentials(self) -> Any:
        """Return the grpc.ChannelCredentials. ConfigError: as in `make_context`."""
        import grpc

        self.make_context()  # gRPC would report a wrong file only as a failed connection
        parts = [None if path is None else path.read_bytes() for path in (self.ca, self.key, self.cert)]
        return grpc.ssl_channel_credentials(*parts)


@dataclass(frozen=True)
class Connection:
    """TLS and token of a client. Without both: plain text, as on loopback.

    Attributes:
        tls: TLS; None: plain text.
        token: Token of this client; None: none. It is never shown.
    """

    tls: TLS | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise ConfigError, without showing it, if the token has other characters than a token may have."""
        if self.token is not None and not is_token(self.token):
            raise ConfigError(
                f"{TOKEN_SETTING} is not a token: 16 to 512 letters, digits and ._~+/=- are allowed. `cxr certs token` "
                "makes one."
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The gRPC metadata of a call: the token, and the current span if there is one (`contract.trace_context`)."""
        token = () if self.token is None else (("authorization", f"Bearer {self.token}"),)
        return (*token, *make_trace_metadata())

    def as_arguments(self) -> dict[str, Any]:
        """Return the arguments `tls` and `token` that let a `CxrClient` use exactly these settings."""
        return {"tls": self.tls or False, "token": self.token or ""}

    def add_options(self, options: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Return the options of a channel with the name that the server's certificate must have."""
        name = self.tls.server_name if self.tls else None
        return [*options, *([("grpc.ssl_target_name_override", name)] if name else [])]

    def make_credentials(self) -> Any:
        """Return the grpc.ChannelCredentials; None for plain text. ConfigError: as in `TLS.make_context`."""
        return None if self.tls is None else self.tls.make_credentials()

    def open_channel(self, url: str, options: Sequence[tuple[str, Any]]) -> Any:
        """Return a grpc.Channel to host:port. ConfigError: as in `TLS.make_context`."""
        import grpc

        credentials = self.make_credentials()
        if credentials is None:
            return grpc.insecure_channel(url, options=self.add_options(options))
        return grpc.secure_channel(url, credentials, options=self.add_options(options))

    def open_async_channel(self, url: str, options: Sequence[tuple[str, Any]]) -> Any:
        """Return a grpc.aio.Channel to host:port. ConfigError: as in `TLS.make_context`."""
        import grpc.aio

        credentials = self.make_credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(url, options=self.add_options(options))
        return grpc.aio.secure_channel(url, credentials, options=self.add_options(options))

    def open_triton(self, make: Callable[..., Any], url: str, options: Sequence[tuple[str, Any]]) -> Any:
        """Return a tritonclient.grpc.InferenceServerClient, or one of its `aio`, whose calls carry `metadata`.

        Args:
            make: The class InferenceServerClient. This package does not import it.
            url: host:port.
            options: Options of the channel.

        Raises:
            ConfigError: As in `TLS.make_context`.
        """
        credentials = self.make_credentials()
        secure = {} if credentials is None else {"creds": credentials}
        client = make(url, channel_args=self.add_options(options), **secure)
        if self.token is not None or find_propagator() is not None:
            client.register_plugin(self._add_metadata)
        return client

    def _add_metadata(self, request: Any) -> None:
        """Add the metadata to the headers of a call, as a plugin of tritonclient."""
        request.headers = {**(request.headers or {}), **dict(self.metadata)}

    def require_private(self, url: str, setting: str) -> None:
        """Raise ConfigError if the token would travel as plain text to another host.

        Args:
            url: The address, host:port.
            setting: Name of the setting that holds the address.
        """
        if self.token is not None and self.tls is None and not is_local(url):
            raise ConfigError(
                f"The token is not sent to {url} ({setting}) without TLS, because others on the network could read it: "
                f"set {_FIELDS['ca']} too."
            )


PLAIN: Final = Connection()


def resolve_connection(
    tls: TLS | Literal[False] | None = None,
    token: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Connection:
    """Return the settings of a connection from the arguments, the environment or the file, in this order.

    Args:
        tls: TLS of the caller. False: plain text, whatever the environment says. None: not given.
        token: Token of the caller. "": none, whatever the environment says. None: not given.
        environment: Environment variables. None: those of this process.

    Raises:
        ConfigError: A file cannot be read, or a setting is not valid.
    """
    if tls is not None and not isinstance(tls, TLS) and tls is not False:
        raise ConfigError(f"tls must be a TLS, False or None, not of type {type(tls).__name__}.")
    if token is not None and not isinstance(token, str):
        raise ConfigError(f"token must be text, not of type {type(token).__name__}.")
    values = os.environ if environment is None else environment
    file = _read_file(values) if tls is None or token is None else {}
    if tls is None:
        tls = _find_tls(values, "CXR_TLS_{}") or _find_tls(file, "tls_{}")
    if token is None:
        token = _find_token(values, file)
    return Connection(tls or None, token or None)


def resolve_addresses(
    given: str | Sequence[str] | None,
    server: Literal["triton", "retrieval"],
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the addresses of a kind of server from the argument, the environment or the file, in this order.

    Args:
        given: Addresses of the caller; see `contract.address.split_addresses`. None: not given.
        server: The kind of server.
        environment: Environment variables. None: those of this process.

    Raises:
        ConfigError: The config file cannot be read, or one of several addresses is empty. The addresses themselves are
            not checked.
    """
    values = os.environ if environment is None else environment
    if given is None:
        given = values.get(f"CXR_{server.upper()}") or _read_file(values).get(server)
    return split_addresses(
        DEFAULT_ADDRESSES[server] if given is None else given, f"{server}_url (--{server})"
    )


def quiet_grpc(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let gRPC itself write no lines, unless the environment says how much it writes.

    A stranger could fill a disk with lines about failed handshakes and wrong headers, and choose their text. What this
    software has to say about a failure is in its own errors. gRPC reads the variable when it is imported.

    Args:
        environment: Environment variables of the program, which are changed.
    """
    environment.setdefault("GRPC_VERBOSITY", "NONE")


def is_token(text: str) -> bool:
    """Whether text can be sent as a token."""
    return _TOKEN.fullmatch(text) is not None


def read_token(path: Path) -> str:
    """Return the token in a file. ConfigError: the file cannot be read or is empty."""
    try:
        token = path.expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise ConfigError(
            f"The token file {path} (--token-file, CXR_TOKEN_FILE) cannot be read: {reason}."
        ) from error
    if not token:
        raise ConfigError(f"The token file {path} (--token-file, CXR_TOKEN_FILE) is empty.")
    return token


def is_local(url: str) -> bool:
    """Whether an address (host:port or unix:path) belongs to this host."""
    if url.startswith("unix:"):
        return True
    return is_local_host(url.rpartition(":")[0].strip("[]") or url)


def is_local_host(host: str) -> bool:
    """Whether only programs on this host can connect to a host name or address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def describe_file_error(path: Path | None, error: Exception) -> str:
    """Return, in a sentence without its content, why a PEM file cannot be used."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return f"{path} cannot be read ({error.strerror})."
    return f"{path} holds no certificate in PEM form."


def describe_pair_error(cert: Path, key: Path | None, error: Exception) -> str:
    """Return, in a sentence without their content, why a certificate and its key cannot be used."""
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"the key {key} does not belong to the certificate {cert}."
        return f"{cert} and {key} do not hold a certificate and a key without a password in PEM form."
    for path in (cert, key):
        if path is not None and not os.access(path, os.R_OK):
            return f"{path} cannot be read ({'it is not there' if not path.exists() else 'no permission'})."
    return f"{cert} or {key} cannot be read."


def _find_tls(values: Mapping[str, str], form: str) -> TLS | None:
    upper = form.isupper() or form.startswith("CXR")

    def get(name: str) -> str | None:
        return values.get(form.format(name.upper() if upper else name)) or None

    ca, cert, key, name = (get(part) for part in ("ca", "cert", "key", "server_name"))
    if not (ca or cert or key or name):
        return None
    return TLS(
        None if ca in (None, SYSTEM) else Path(str(ca)),
        Path(cert) if cert else None,
        Path(key) if key else None,
        name,
    )


def _find_token(values: Mapping[str, str], file: Mapping[str, str]) -> str | None:
    if token := values.get("CXR_TOKEN"):
        return token.strip()
    path = values.get("CXR_TOKEN_FILE") or file.get("token_file")
    return read_token(Path(path)) if path else None


def _read_file(values: Mapping[str, str]) -> Mapping[str, str]:
    """Return the section [client] of the config file; empty if there is no file."""
    given = values.get("CXR_CONFIG")
    home = values.get("XDG_CONFIG_HOME") or (f"{values['HOME']}/.config" if values.get("HOME") else "")
    path = Path(given) if given else Path(home or ".") / "cxr" / "client.ini"
    if not given and (not home or not _is_file(path)):
        return {}
    known = {"tls_ca", "tls_cert", "tls_key", "tls_server_name", "token_file", *DEFAULT_ADDRESSES}
    return read_section(path, "client", known, "CXR_CONFIG")


def _is_file(path: Path) -> bool:
    """Whether a path is a file. What this user may not look up is none."""
    try:
        return path.is_file()
    except PermissionError:  # until Python 3.13
        return False
