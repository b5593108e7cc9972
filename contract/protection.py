"""What a server asks of its callers: TLS, client certificates, tokens. The relay, the sidecar and `cxr serve` share it.

The folder of TLS holds PEM files with these names, as `cxr certs` makes them:

    server.crt, server.key   what the server shows to its callers, with all certificates between it and the authority
    ca.crt                   the authority of `server.crt` and of the clients' certificates
    health.crt, health.key   a client certificate, with which the servers are checked; needed only if clients need one
"""

import argparse
import datetime
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from contract.access import Access
from contract.connection import (
    PLAIN,
    TLS,
    Connection,
    describe_file_error,
    describe_pair_error,
    is_local_host,
)
from contract.errors import ConfigError

SERVER: Final = "server"
CA: Final = "ca.crt"
HEALTH: Final = "health"
_SOON: Final = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Protection:
    """What a server asks of its callers. The default is nothing, for servers on loopback.

    Attributes:
        tls_dir: Folder with the files of TLS; None: plain text.
        require_client: Whether callers must show a certificate that `ca.crt` signed (mutual TLS).
        tokens: Tokens file (`contract.access`); None: callers need no token to read and write.
        admin_key: File with the admin key of a running stack; None: there is none.
        insecure: Whether the server may listen on a network without TLS or without tokens.
    """

    tls_dir: Path | None = None
    require_client: bool = False
    tokens: Path | None = None
    admin_key: Path | None = None
    insecure: bool = False

    def resolve(self) -> "Protection":
        """Return the same with absolute paths."""
        paths = {name: getattr(self, name) for name in ("tls_dir", "tokens", "admin_key")}
        return replace(self, **{name: path.absolute() for name, path in paths.items() if path is not None})

    def describe(self) -> str:
        """Return what is asked of callers, in a few words."""
        if self.tls_dir is None:
            words = ["plain text"]
        else:
            ends = read_end(self.tls_dir / f"{SERVER}.crt")
            words = ["TLS" if ends is None else f"TLS, certificate until {ends:%Y-%m-%d}"]
        words += ["client certificates"] * self.require_client + ["tokens"] * (self.tokens is not None)
        return ", ".join(words)

    def find_warnings(self) -> list[str]:
        """Return what an operator should mend soon: a certificate that ends, a key that others can read."""
        if self.tls_dir is None:
            return []
        found = []
        for name in (SERVER, *([HEALTH] if self.require_client else [])):
            ends = read_end(self.tls_dir / f"{name}.crt")
            if ends is not None and ends - _now() < _SOON:
                found.append(
                    f"The certificate {self.tls_dir / name}.crt ends on {ends:%Y-%m-%d}: make a new one in time."
                )
            if (self.tls_dir / f"{name}.key").stat().st_mode & 0o007:
                found.append(f"Every user of this machine can read {self.tls_dir / name}.key: chmod 600 it.")
        return found

    def check(self, host: str) -> None:
        """Check all files, and that a server on this host may listen with these settings.

        Raises:
            ConfigError: A file is missing or wrong, or TLS or tokens are missing for a host that a network can reach.
        """
        if self.require_client and self.tls_dir is None:
            raise ConfigError("--tls-require-client needs --tls-dir.")
        missing = " and ".join(
            option
            for option, value in (("--tls-dir", self.tls_dir), ("--tokens", self.tokens))
            if value is None
        )
        if missing and not self.insecure and not is_local_host(host):
            raise ConfigError(
                f"A network can reach {host}, and whoever calls could read reports and delete cases: give {missing} "
                "too, or --insecure if something else protects the servers."
            )
        self.make_context()
        Access(self.tokens, self.admin_key)

    def make_context(self) -> ssl.SSLContext | None:
        """Return the settings for HTTPS, which asks for no client certificate; None for plain text.

        Raises:
            ConfigError: A file is missing or wrong.
        """
        if self.tls_dir is None:
            return None
        certificate, key = self._find(f"{SERVER}.crt"), self._find(f"{SERVER}.key")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--tls-dir: {describe_pair_error(certificate, key, error)}") from error
        _require_current(certificate)
        try:
            context.load_verify_locations(self._find(CA))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--tls-dir: {describe_file_error(self._find(CA), error)}") from error
        return context

    def make_credentials(self) -> Any:
        """Return the grpc.ServerCredentials; None for plain text. ConfigError: as in `make_context`."""
        if self.make_context() is None:
            return None
        import grpc

        key, certificate, authority = (
            self._find(name).read_bytes() for name in (f"{SERVER}.key", f"{SERVER}.crt", CA)
        )
        return grpc.ssl_server_credentials(
            [(key, certificate)],
            root_certificates=authority if self.require_client else None,
            require_client_auth=self.require_client,
        )

    def make_access(self) -> Access:
        """Return what decides about tokens. ConfigError: a file cannot be used."""
        return Access(self.tokens, self.admin_key)

    def make_connection(self, token: str | None = None) -> Connection:
        """Return how a program on this host checks its own servers. ConfigError: a file is missing or has expired.

        The certificate is compared with a name that it states, because the checks may go to another address.
        """
        if self.tls_dir is None:
            return replace(PLAIN, token=token)
        tls = TLS(self._find(CA), server_name=read_server_name(self._find(f"{SERVER}.crt")))
        if self.require_client:
            tls = replace(tls, cert=self._find(f"{HEALTH}.crt"), key=self._find(f"{HEALTH}.key"))
            _require_current(self.tls_dir / f"{HEALTH}.crt")
        return Connection(tls, token)

    def to_arguments(self) -> list[str]:
        """Return the options for the command line of a server. They hold paths alone, no key and no token."""
        paths = (("--tls-dir", self.tls_dir), ("--tokens", self.tokens), ("--admin-key", self.admin_key))
        arguments = [word for name, path in paths if path is not None for word in (name, str(path))]
        flags = (("--tls-require-client", self.require_client), ("--insecure", self.insecure))
        return [*arguments, *(name for name, given in flags if given)]

    def _find(self, name: str) -> Path:
        assert self.tls_dir is not None
        path = self.tls_dir / name
        if not path.is_file():
            why = (
                ", the client certificate with which the servers are checked"
                if name.startswith(HEALTH)
                else ""
            )
            raise ConfigError(f"--tls-dir: there is no {path}{why}. `cxr certs` makes such a folder.")
        if not os.access(path, os.R_OK):
            raise ConfigError(f"--tls-dir: {path} cannot be read.")
        return path


UNPROTECTED: Final = Protection()


def make_probe_connection(tls_dir: Path | None, *, require_client: bool = False) -> Connection:
    """Return how a probe asks the server that uses a folder of TLS. It shows the client certificate that lies there.

    Args:
        tls_dir: The folder; None for plain text.
        require_client: Whether the client certificate must be there.

    Raises:
        ConfigError: A file is missing or has expired.
    """
    has_client = tls_dir is not None and (tls_dir / f"{HEALTH}.crt").is_file()
    return Protection(tls_dir, require_client=require_client or has_client).make_connection()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Protection` to a parser."""
    parser.add_argument(
        "--tls-dir", type=Path, help="Folder with server.crt, server.key and ca.crt (`cxr certs`)."
    )
    parser.add_argument(
        "--tls-require-client", action="store_true", help="Require a client certificate that ca.crt signed."
    )
    parser.add_argument(
        "--tokens", type=Path, help="Tokens file (`cxr certs token`). Without it no token is needed."
    )
    parser.add_argument("--admin-key", type=Path, help="File with a token of the role admin.")
    parser.add_argument(
        "--insecure", action="store_true", help="Allow an address on a network without TLS or without tokens."
    )


def read_arguments(options: argparse.Namespace) -> Protection:
    """Return the `Protection` of a parsed command line."""
    return Protection(
        options.tls_dir, options.tls_require_client, options.tokens, options.admin_key, options.insecure
    )


def read_end(path: Path) -> datetime.datetime | None:
    """Return when a certificate ends; None if it cannot be read, or without the package cryptography."""
    try:
        from cryptography import x509

        ends: datetime.datetime = x509.load_pem_x509_certificates(path.read_bytes())[0].not_valid_after_utc
    except (ImportError, OSError, ValueError, IndexError):
        return None
    return ends


def _require_current(path: Path) -> None:
    """Raise ConfigError if a certificate has expired."""
    if (ends := read_end(path)) is not None and ends < _now():
        raise ConfigError(f"--tls-dir: {path} has expired on {ends:%Y-%m-%d}: make a new one (`cxr certs`).")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def read_server_name(path: Path) -> str | None:
    """Return a name that a server's certificate states; None if it states none, or without the package cryptography."""
    try:
        from cryptography import x509
    except ImportError:
        return None
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, IndexError, x509.ExtensionNotFound):
        return None
    found: Sequence[str] = names.get_values_for_type(x509.DNSName)
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    plain = [name for name in (*found, *addresses) if not name.startswith("*")]
    return "localhost" if "localhost" in plain else next(iter(plain), None)
