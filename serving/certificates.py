"""A small certificate authority for a lab: `cxr certs` makes the folder that `cxr serve --tls-dir` reads.

    ca.crt, ca.key           the authority; the servers do not need the key
    server.crt, server.key   the servers' certificate (serverAuth)
    health.crt, health.key   the client certificate (clientAuth) with which `cxr serve` checks its own servers
    NAME.crt, NAME.key       the client certificate of NAME

Keys are on the curve P-256 and have no password; their mode is 0600.
"""

import datetime
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from contract.errors import ConfigError
from contract.protection import CA, HEALTH, SERVER
from serving.triton import INSTALL_HINT

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")
CA_DAYS: Final = 3650
MOST_DAYS: Final = 3650
_CA_KEY: Final = "ca.key"
_SKEW: Final = datetime.timedelta(minutes=5)  # clocks differ
_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(\*\.)?({_LABEL}\.)*{_LABEL}\.?", re.ASCII)
_CLIENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Issued:
    """A file of the folder, what it is for, and when its certificate ends."""

    path: Path
    purpose: str
    ends: datetime.datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            "path": str(self.path),
            "purpose": self.purpose,
            "ends": self.ends.isoformat() if self.ends else None,
        }


def make_certificates(
    directory: Path,
    hosts: Sequence[str] = (),
    clients: Sequence[str] = (),
    *,
    days: int = 365,
    now: datetime.datetime | None = None,
) -> list[Issued]:
    """Make an authority with the certificates of a server and of clients; with an existing authority what it lacks.

    No file is ever replaced. To renew a certificate, move its two files away first.

    Args:
        directory: Folder for the files. It is created with mode 0700.
        hosts: Names and addresses of the servers, beside localhost, 127.0.0.1 and ::1.
        clients: Names of clients, each for one pair of files.
        days: Days until the server's and the clients' certificates end, 1 to 3650. The authority ends after 3650.
        now: The begin of the validity. None: the present.

    Returns:
        The new files.

    Raises:
        ConfigError: A name or the number of days is not valid, a file exists already, or the folder cannot be used.
    """
    _check_names(hosts, clients, days)
    _prepare(directory)
    moment = now or datetime.datetime.now(datetime.timezone.utc)
    authority = _Authority.read(directory) if (directory / _CA_KEY).exists() else _Authority.make(moment)
    files: dict[str, tuple[bytes, str, datetime.datetime | None]] = {}
    if authority.is_new:
        files[CA] = (
            authority.certificate_pem,
            "the authority: give it to every client (--tls-ca)",
            authority.ends,
        )
        files[_CA_KEY] = (authority.key_pem, "signs new certificates: keep it away from the servers", None)
    if authority.ends <= moment:
        raise ConfigError(f"The authority {directory / CA} has expired. Make a new one in another folder.")
    ends = min(moment + datetime.timedelta(days=days), authority.ends)
    if hosts or authority.is_new or not (directory / f"{SERVER}.crt").exists():
        names = list(dict.fromkeys([*LOCAL_NAMES, *hosts]))
        pair = authority.issue(SERVER, moment, ends, hosts=names)
        files |= _name_pair(SERVER, pair, f"the servers' certificate, for {', '.join(names)}", ends)
    if authority.is_new or not (directory / f"{HEALTH}.crt").exists():
        pair = authority.issue(HEALTH, moment, ends)
        files |= _name_pair(HEALTH, pair, "the client certificate with which the servers are checked", ends)
    for client in dict.fromkeys(clients):
        pair = authority.issue(client, moment, ends)
        files |= _name_pair(client, pair, f"the client certificate of {client} (--tls-cert)", ends)
    if not files:
        raise ConfigError(f"{directory} is complete: give --client NAME for another client.")
    return _write(directory, files)


class _Authority:
    """The key and the certificate that sign the others."""

    def __init__(self, key: Any, certificate: Any, *, is_new: bool) -> None:
        self._key, self._certificate, self.is_new = key, certificate, is_new

    @classmethod
    def make(cls, moment: datetime.datetime) -> "_Authority":
        x509 = _import_x509()
        key = _make_key()
        name = _make_name("cxr-serving certificate authority")
        ends = moment + datetime.timedelta(days=CA_DAYS)
        builder = _build(name, name, key, moment, ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_make_usage(x509, signs=True), critical=True)
        return cls(key, _sign(builder, key), is_new=True)

    @classmethod
    def read(cls, directory: Path) -> "_Authority":
        x509 = _import_x509()
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            certificate = x509.load_pem_x509_certificate((directory / CA).read_bytes())
            key = load_pem_private_key((directory / _CA_KEY).read_bytes(), password=None)
        except (OSError, TypeError, ValueError) as error:
            raise ConfigError(f"{directory / CA} and {directory / _CA_KEY} cannot be used.") from error
        if key.public_key() != certificate.public_key():
            raise ConfigError(f"{directory / _CA_KEY} is not the key of {directory / CA}.")
        return cls(key, certificate, is_new=False)

    @property
    def ends(self) -> datetime.datetime:
        ends: datetime.datetime = self._certificate.not_valid_after_utc
        return ends

    @property
    def certificate_pem(self) -> bytes:
        return _to_pem(self._certificate)

    @property
    def key_pem(self) -> bytes:
        return _key_to_pem(self._key)

    def issue(
        self, name: str, moment: datetime.datetime, ends: datetime.datetime, hosts: Sequence[str] = ()
    ) -> tuple[bytes, bytes]:
        """Return a new certificate and its key as PEM: of a server with `hosts`, else of a client."""
        x509 = _import_x509()
        from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

        key = _make_key()
        builder = _build(_make_name(name), self._certificate.subject, key, moment, ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_make_usage(x509, signs=False), critical=True)
        usage = Usage.SERVER_AUTH if hosts else Usage.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(authority, critical=False)
        if hosts:
            names = [_make_host(x509, host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _to_pem(_sign(builder, self._key)), _key_to_pem(key)


def _check_names(hosts: Sequence[str], clients: Sequence[str], days: int) -> None:
    if not 1 <= days <= MOST_DAYS:
        raise ConfigError(f"--days must be 1 to {MOST_DAYS}, not {days}.")
    for host in hosts:
        if not _is_address(host) and not _HOST.fullmatch(host):
            raise ConfigError(
                f"--host {host!r} is neither a host name nor an address, such as triton.lab or 10.0.0.5."
            )
    for client in clients:
        if not _CLIENT.fullmatch(client) or client in (SERVER, HEALTH, "ca"):
            raise ConfigError(
                f"--client {client!r} cannot be used: 1 to 64 letters, digits and ._- make a name; ca, {SERVER} "
                f"and {HEALTH} are taken."
            )


def _prepare(directory: Path) -> None:
    """Create the folder, or check that no other user can read an existing one."""
    _import_x509()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            raise ConfigError(f"Other users may enter {directory}: chmod 700 it, or name a new folder.")
    except OSError as error:
        raise ConfigError(f"{directory} cannot be used as a folder: {error.strerror}.") from error


def _name_pair(
    name: str, pair: tuple[bytes, bytes], purpose: str, ends: datetime.datetime
) -> dict[str, tuple[bytes, str, datetime.datetime | None]]:
    return {f"{name}.crt": (pair[0], purpose, ends), f"{name}.key": (pair[1], f"the key of {name}.crt", None)}


def _write(directory: Path, files: dict[str, tuple[bytes, str, datetime.datetime | None]]) -> list[Issued]:
    """Write all files, or none."""
    for name in files:
        if os.path.lexists(directory / name):
            raise ConfigError(
                f"{directory / name} exists already. Move it away to replace it; nothing was written."
            )
    written: list[Path] = []
    try:
        for name, (data, _, _) in files.items():
            path = directory / name
            mode = 0o600 if name.endswith(".key") else 0o644
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            written.append(path)
            with open(handle, "wb") as file:
                file.write(data)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise ConfigError(f"{directory} cannot be written: {error.strerror}.") from error
    return [Issued(directory / name, purpose, ends) for name, (_, purpose, ends) in files.items()]


def _import_x509() -> Any:
    try:
        from cryptography import x509
    except ImportError as error:
        raise ConfigError(f"Certificates need the package cryptography: {INSTALL_HINT}.") from error
    return x509


def _make_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _make_name(text: str) -> Any:
    from cryptography.x509 import Name, NameAttribute
    from cryptography.x509.oid import NameOID

    return Name([NameAttribute(NameOID.COMMON_NAME, text)])


def _make_host(x509: Any, host: str) -> Any:
    return x509.IPAddress(ip_address(host)) if _is_address(host) else x509.DNSName(host)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _build(subject: Any, issuer: Any, key: Any, moment: datetime.datetime, ends: datetime.datetime) -> Any:
    x509 = _import_x509()
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(moment - _SKEW).not_valid_after(ends)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.add_extension(identifier, critical=False)


def _make_usage(x509: Any, *, signs: bool) -> Any:
    """Return what a key is for: to sign certificates, or to show who one is."""
    no = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, **no)


def _sign(builder: Any, key: Any) -> Any:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _to_pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _key_to_pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    return bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
