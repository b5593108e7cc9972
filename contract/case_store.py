"""What `--store` names: a directory of this machine, or a Milvus database.

    DIRECTORY                          files, for `retrieval.indexes`
    milvus://HOST:PORT/DATABASE        a Milvus server; without /DATABASE its database "default"
    milvus+tls://HOST:PORT/DATABASE    the same with TLS
    milvus-lite:FILE.db                Milvus Lite inside of the sidecar, for tests

The file that `CXR_MILVUS_TOKEN_FILE` names holds what Milvus asks for: USER:PASSWORD, or a key.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from contract.address import check_address
from contract.connection import is_local
from contract.errors import ConfigError

TOKEN_FILE: Final = "CXR_MILVUS_TOKEN_FILE"  # noqa: S105 - the name of a variable
_SERVER: Final = re.compile(r"milvus(?P<tls>\+tls)?://(?P<address>[^/]*)(?:/(?P<database>[^/]*))?", re.ASCII)
_DATABASE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_DEFAULT_DATABASE: Final = "default"
_LITE: Final = "milvus-lite:"
_EXAMPLE: Final = "milvus://127.0.0.1:19530/cases"


@dataclass(frozen=True)
class MilvusStore:
    """A Milvus database.

    Attributes:
        text: As the user wrote it; of Milvus Lite with an absolute path.
        uri: What `pymilvus.MilvusClient` connects to.
        database: Name of the database; "" with Milvus Lite.
        token: USER:PASSWORD or a key; "" without one.
        lite: The file of Milvus Lite; None with a server.
    """

    text: str
    uri: str
    database: str = ""
    token: str = field(default="", repr=False)
    lite: Path | None = None

    def __str__(self) -> str:
        return self.text

    def describe_exposure(self) -> str:
        """Return a warning if reports travel over a network as plain text; "" otherwise."""
        address = self.uri.removeprefix("http://")
        if self.lite is not None or address == self.uri or is_local(address):
            return ""
        return (
            f"Reports and embeddings travel to {address} as plain text. Use milvus+tls:// if Milvus has TLS."
        )


def is_milvus(store: str | Path) -> bool:
    """Whether `--store` names a Milvus database. A path that was made of its address counts too."""
    return re.match(r"milvus(\+tls)?:/|milvus-lite:", str(store)) is not None


def parse_store(store: str | Path | MilvusStore) -> Path | MilvusStore:
    """Return what `--store` names, as an absolute path or a Milvus database.

    Raises:
        ConfigError: It looks like the address of a Milvus database and is none, or its token cannot be used.
    """
    text = str(store)
    if not is_milvus(text):
        return Path(text).resolve()
    if text.startswith(_LITE):
        return _parse_lite(text.removeprefix(_LITE))
    parts = _SERVER.fullmatch(text)
    database = (parts and parts["database"]) or _DEFAULT_DATABASE
    if parts is None or not _DATABASE.fullmatch(database):
        raise ConfigError(f"--store must be a directory or a Milvus database such as {_EXAMPLE}, not {text}.")
    address = check_address(parts["address"], server="Milvus", setting="--store", example=_EXAMPLE)
    token = _read_token()
    if token and not parts["tls"] and not is_local(address):
        raise ConfigError(
            f"The token of {TOKEN_FILE} would travel to {address} as plain text. Use milvus+tls://."
        )
    return MilvusStore(text, f"http{'s' if parts['tls'] else ''}://{address}", database, token)


def refuse_milvus(store: str | Path | None, sentence: str) -> None:
    """Raise ConfigError with a sentence if `--store` names a Milvus database."""
    if store is not None and is_milvus(store):
        raise ConfigError(sentence)


def _parse_lite(name: str) -> MilvusStore:
    if not name.endswith(".db"):
        raise ConfigError(f"--store {_LITE}{name} must name a file that ends with .db.")
    path = Path(name).resolve()
    return MilvusStore(f"{_LITE}{path}", str(path), lite=path)


def _read_token() -> str:
    path = os.environ.get(TOKEN_FILE)
    if not path:
        return ""
    try:
        token = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{TOKEN_FILE}: {path} cannot be read ({type(error).__name__}).") from error
    if not token or len(token.split()) != 1:
        raise ConfigError(f"{TOKEN_FILE}: {path} must hold USER:PASSWORD or a key, in one line.")
    return token
