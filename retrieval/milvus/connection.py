"""Connections to Milvus, and its errors as ours. No message of Milvus is passed on: it may quote an id."""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from contract.case_store import MilvusStore
from contract.errors import ConfigError, CxrError, DeadlineError, ServerError, UnavailableError

if TYPE_CHECKING:
    from pymilvus import MilvusClient

TIMEOUT_S: Final = 30.0  # of a call that is no search
_CONNECT_S: Final = 10.0
# They log expressions, with ids of cases in them.
_LOGGERS: Final = ("pymilvus", "pymilvus.milvus_client", "milvus_lite")
_SILENT: Final = logging.CRITICAL + 1


def load_pymilvus() -> Any:
    """Return the module pymilvus, silenced. Raise ConfigError if it is not installed."""
    try:
        import pymilvus
    except ImportError as error:
        raise ConfigError(
            "pymilvus is not installed: pip install 'cxr-serving[retrieval,milvus]'."
        ) from error
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(_SILENT)
    return pymilvus


@contextlib.contextmanager
def connect(store: MilvusStore) -> Iterator["MilvusClient"]:
    """Connect to a Milvus database, which is created if it is missing, and end the connection afterwards.

    Raises:
        ConfigError: pymilvus is not installed, nothing answers at the address, Milvus refuses the token, or another
            process has the file of Milvus Lite open.
    """
    pymilvus = load_pymilvus()
    if store.lite is not None:
        store.lite.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _create_database(pymilvus, store)
        client = pymilvus.MilvusClient(
            store.uri, db_name=store.database, token=store.token, timeout=_CONNECT_S, dedicated=True
        )
    except (pymilvus.MilvusException, ImportError, OSError) as error:
        raise ConfigError(_explain_failure(store)) from error
    try:
        yield client
    finally:
        client.close()
        _release(store)


@contextlib.contextmanager
def translate(action: str) -> Iterator[None]:
    """Turn the errors of a call to Milvus into ours: DeadlineError, UnavailableError, or ServerError.

    Args:
        action: What failed, such as "The search".
    """
    try:
        yield
    except CxrError:
        raise
    except Exception as error:
        raise _explain(error, action) from None  # its frames and text hold data of cases


def _explain(error: Exception, action: str) -> CxrError:
    codes = {_name(getattr(each, "code", None)) for each in (error, error.__cause__)}
    if "DEADLINE_EXCEEDED" in codes:
        return DeadlineError(f"{action} did not end in time in Milvus.")
    if codes & {"UNAVAILABLE", "CANCELLED"}:
        return UnavailableError("Milvus does not answer. Is it running?")
    code = getattr(error, "code", None)
    detail = f"code {code}" if isinstance(code, int) else type(error).__name__
    return ServerError(f"{action} failed in Milvus ({detail}).")


def _name(code: Any) -> str:
    """Return the name of a gRPC status code, or "" for anything else."""
    return str(getattr(code() if callable(code) else code, "name", ""))


def _create_database(pymilvus: Any, store: MilvusStore) -> None:
    if not store.database or store.database == "default":
        return
    client = pymilvus.MilvusClient(store.uri, token=store.token, timeout=_CONNECT_S, dedicated=True)
    try:
        if store.database not in client.list_databases(timeout=_CONNECT_S):
            client.create_database(store.database, timeout=_CONNECT_S)
    finally:
        client.close()


def _explain_failure(store: MilvusStore) -> str:
    if store.lite is not None:
        return (
            f"Milvus Lite cannot open {store.lite}. Does another process use it? Is it a file of another program? "
            "Is the package there: pip install 'cxr-serving[milvus-lite]'?"
        )
    return f"Nothing usable answers at {store}. Is Milvus running there, and is its token right?"


def _release(store: MilvusStore) -> None:
    """End Milvus Lite, which pymilvus leaves running."""
    if store.lite is None:
        return
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(str(store.lite))
