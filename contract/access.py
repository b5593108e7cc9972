"""Who may call what: tokens with roles, from a file that holds only their hashes.

The file has one JSON object on each line, as `cxr certs token` prints it:

    {"name": "ward-7", "role": "read", "sha256": "64 hexadecimal digits"}

A role includes those before it: metrics, read, write, admin. The admin key that `cxr serve` writes is a token with the
role admin. A caller sends a token as the gRPC metadata or the HTTP header `authorization: Bearer TOKEN`. No token is
ever logged or sent on.
"""

import enum
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contract.errors import ConfigError

ADMIN_HEADER: Final = "cxr-admin-key"
TRITON_HEADER: Final = f"triton-grpc-protocol-{ADMIN_HEADER}"  # Triton puts this before restricted headers
AUTHORIZATION: Final = "authorization"
HEALTH_CALLS: Final = "/grpc.health.v1.Health/"  # how its calls begin: they need no role
SECRET_HEADERS: Final = frozenset({AUTHORIZATION, TRITON_HEADER, ADMIN_HEADER})
_BEARER: Final = "bearer "
_NAME: Final = re.compile(r"[A-Za-z0-9._@ -]{1,100}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_PREFIX: Final = "cxr_"  # lets a secret scanner find a token
_MAX_TOKEN: Final = 1024  # characters of a token that is looked at
_LOG_EVERY_S: Final = 1.0


class Role(enum.IntEnum):
    """What a caller may do. A higher role includes the lower ones."""

    METRICS = 0
    READ = 1
    WRITE = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        """The role as files and messages write it."""
        return self.name.lower()


ROLES: Final = tuple(role.label for role in Role)


@dataclass(frozen=True)
class TokenEntry:
    """One line of a tokens file: whose token it is, its role, and its SHA-256."""

    name: str
    role: Role
    sha256: str

    def to_line(self) -> str:
        """Return the line, without its end."""
        return json.dumps({"name": self.name, "role": self.role.label, "sha256": self.sha256})


@dataclass(frozen=True)
class Denial:
    """Why a call is refused: a gRPC status code by name, and a sentence for the caller."""

    code: str
    message: str


def make_token(name: str, role: str) -> tuple[str, TokenEntry]:
    """Return a new random token of 256 bits, and its line. ConfigError: the name or the role is not valid."""
    token = f"{_PREFIX}{secrets.token_urlsafe(32)}"
    return token, _make_entry({"name": name, "role": role, "sha256": hash_token(token)})


def hash_token(token: str) -> str:
    """Return the SHA-256 of a token, in hexadecimal digits. A random token of 256 bits needs no salt."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """Read a tokens file. Empty lines and lines that begin with # are ignored.

    Raises:
        ConfigError: The file cannot be read, other users may change it, or a line is not valid. No line is shown.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"The tokens file {path} (--tokens) cannot be read: {reason}.") from error
    if mode & 0o022:
        raise ConfigError(f"Other users may change the tokens file {path} (--tokens): chmod 600 it.")
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            entries.append(_make_entry(json.loads(line)))
        except (ValueError, ConfigError) as error:
            reason = str(error) if isinstance(error, ConfigError) else "It is not JSON."
            raise ConfigError(f"Line {number} of the tokens file {path} (--tokens): {reason}") from error
    if len({entry.name for entry in entries}) < len(entries):
        raise ConfigError(f"Two tokens in {path} (--tokens) have the same name.")
    return tuple(entries)


def append_token(path: Path, entry: TokenEntry) -> None:
    """Add a line to a tokens file, which is created with mode 0600.

    Raises:
        ConfigError: The file cannot be used, or it has a token of this name.
    """
    try:
        empty = not path.exists() or path.stat().st_size == 0
        if not empty and entry.name in {known.name for known in read_tokens(path)}:
            raise ConfigError(f"{path} has a token of {entry.name} already: remove its line to revoke it.")
        ends = empty or path.read_bytes().endswith(b"\n")
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(handle, "a", encoding="utf-8") as file:
            file.write(f"{'' if ends else chr(10)}{entry.to_line()}\n")
    except OSError as error:
        raise ConfigError(f"The tokens file {path} cannot be written: {error.strerror}.") from error


def write_token(path: Path, token: str) -> None:
    """Write a token into a new file with mode 0600, and no line end. ConfigError: it exists, or cannot be written."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(token)
    except OSError as error:
        raise ConfigError(f"The token file {path} cannot be written: {error.strerror}.") from error


class Access:
    """Decides about calls. It reads a tokens file again when the file has changed. Several threads may use it at once.

    Without a tokens file everybody may read and write, and see the metrics. Only the admin key allows the rest.
    """

    def __init__(self, tokens: Path | None = None, admin_key: Path | None = None) -> None:
        """Read the files.

        Args:
            tokens: Tokens file; None: callers need no token to read and write.
            admin_key: File with a token of the role admin, which `cxr serve` writes; None: there is none.

        Raises:
            ConfigError: A file cannot be used.
        """
        self._path = tokens
        self._lock = threading.Lock()
        self._own: tuple[TokenEntry, ...] = ()
        if admin_key is not None:
            self._own = (TokenEntry("admin key", Role.ADMIN, hash_token(_read_key(admin_key))),)
        self._state = _look(tokens)
        self._entries = self._own + (read_tokens(tokens) if tokens else ())
        self._log = _Limited(logging.getLogger(__name__))

    def check(self, metadata: Iterable[Any], needed: Role, method: str) -> Denial | None:
        """Return why a call is refused; None: it is allowed.

        Args:
            metadata: Pairs of name and value that came with the call.
            needed: The role that the call needs.
            method: Name of the call, for the log.
        """
        if self._path is None and needed < Role.ADMIN:
            return None
        tokens = list(_find_tokens(metadata))
        entry = max((found for token in tokens if (found := self._find(token))), key=_get_role, default=None)
        if entry is not None and entry.role >= needed:
            return None
        denial = _explain(entry, needed, given=bool(tokens))
        self._log.write(
            f"refused {method[:100]!r}: {denial.code}{f', token of {entry.name}' if entry else ''}"
        )
        return denial

    def _find(self, token: str) -> TokenEntry | None:
        """Return the entry of a token. The time does not tell how much of a wrong token is right."""
        self._update()
        digest, found = hash_token(token), None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found

    def _update(self) -> None:
        """Read a changed file again. If it is damaged, the tokens that were read before stay valid."""
        state = _look(self._path)
        if self._path is None or state == self._state:
            return
        with self._lock:
            self._state = state
            try:
                self._entries = self._own + read_tokens(self._path)
            except ConfigError as error:
                self._log.write(f"{error} The tokens that were read before stay valid.")


class _Limited:
    """Writes at most one line each second, so that a stranger cannot fill the disk."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger, self._lock = logger, threading.Lock()
        self._next_at, self._left_out = 0.0, 0

    def write(self, line: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._next_at:
                self._left_out += 1
                return
            left_out, self._left_out, self._next_at = self._left_out, 0, now + _LOG_EVERY_S
        self._logger.warning("%s%s", line, f" ({left_out} lines before it left out)" if left_out else "")


def _find_tokens(metadata: Iterable[Any]) -> Iterable[str]:
    for name, value in metadata:
        if not isinstance(value, str) or not value or len(value) > _MAX_TOKEN:
            continue
        if name == AUTHORIZATION and value[: len(_BEARER)].lower() == _BEARER:
            yield value[len(_BEARER) :].strip()
        elif name == TRITON_HEADER:
            yield value


def _get_role(entry: TokenEntry) -> Role:
    return entry.role


def _explain(entry: TokenEntry | None, needed: Role, *, given: bool) -> Denial:
    if entry is not None:
        return Denial(
            "PERMISSION_DENIED",
            f"The token of {entry.name} has the role {entry.role.label}, and this call needs {needed.label}.",
        )
    what = "The token is not one of this server's" if given else "This call needs a token"
    if needed is Role.ADMIN:
        what = f"This call is restricted to admins. {what}"
    return Denial("UNAUTHENTICATED", f"{what}.")


def _make_entry(values: Any) -> TokenEntry:
    if not isinstance(values, dict) or set(values) != {"name", "role", "sha256"}:
        raise ConfigError("It must be an object with name, role and sha256.")
    name, role, digest = values["name"], values["role"], values["sha256"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError("The name must have 1 to 100 letters, digits, spaces and ._@-.")
    if role not in ROLES:
        raise ConfigError(f"The role must be one of {', '.join(ROLES)}.")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise ConfigError("The sha256 must have 64 hexadecimal digits (0 to 9, a to f).")
    return TokenEntry(name, Role[role.upper()], digest)


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The admin key {path} cannot be read: {type(error).__name__}.") from error
    if not key:
        raise ConfigError(f"The admin key {path} is empty. Restart the servers, which write a new one.")
    return key


def hide_bad_headers() -> None:
    """Keep gRPC from logging headers that are no text: one of them may be a token, and a stranger can send many."""
    logger = logging.getLogger("grpc._cython.cygrpc")
    logger.addFilter(lambda record: not str(record.msg).startswith("Invalid encoding"))


def _look(path: Path | None) -> tuple[int, ...]:
    """Return what changes when a file is written or replaced; empty if it is not there."""
    if path is None:
        return ()
    try:
        state = os.stat(path)
    except OSError:
        return ()
    return state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino
