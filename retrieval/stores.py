"""Choose what answers the service, by what `--store` names."""

import argparse
from typing import TYPE_CHECKING, Final

from contract.case_store import MilvusStore, parse_store
from contract.errors import ConfigError, InputError
from retrieval.backend import CaseBackend
from retrieval.builder import IndexPlan
from retrieval.index import require_kind
from retrieval.indexes import CaseIndexes, compact, forget, remove_damaged
from retrieval.kinds import parse_kind
from retrieval.requests import parse_fingerprint

if TYPE_CHECKING:
    from pathlib import Path

_FLAT_ONLY: Final = (
    "A Milvus store compares every case (FLAT): leave out --index and --device, or use a directory."
)
_NO_DAMAGED: Final = "A Milvus store has no --remove-damaged: `cxr index TABLE` replaces the damaged cases."
_NO_COMPACT: Final = "A Milvus store has no --compact: Milvus compacts its files itself."


def open_backend(options: argparse.Namespace) -> CaseBackend:
    """Open the store of the options of `retrieval.server`. The caller closes it.

    Raises:
        ConfigError: An option is wrong or does not go with the store, or the store cannot be opened.
        ArtifactError: The store is damaged.
    """
    store, fingerprint = parse_store(options.store), _check_fingerprint(options.fingerprint)
    if isinstance(store, MilvusStore):
        return _open_milvus(store, fingerprint, options)
    return CaseIndexes(
        store,
        fingerprint=fingerprint,
        device=options.device,
        threads=options.threads,
        codes=options.codes,
        plan=_make_plan(options),
    )


def maintain(options: argparse.Namespace) -> list[str]:
    """Remove the index of one model or damaged rows, or compact the files, while no server has the store open.

    Returns:
        What was done, in sentences.

    Raises:
        ConfigError: A server has the store open, the model has no index, or the store does not offer it.
        ArtifactError: More than rows of a store are damaged, or the disk failed.
    """
    store = parse_store(options.store)
    if isinstance(store, MilvusStore):
        return _maintain_milvus(store, options)
    return _maintain_files(store, options)


def _open_milvus(store: MilvusStore, fingerprint: str | None, options: argparse.Namespace) -> CaseBackend:
    if not parse_kind(options.index).is_flat or options.device != "cpu":
        raise ConfigError(_FLAT_ONLY)
    from retrieval.milvus.database import MilvusDatabase

    return MilvusDatabase(store, fingerprint=fingerprint)


def _maintain_milvus(store: MilvusStore, options: argparse.Namespace) -> list[str]:
    if options.remove_damaged:
        raise ConfigError(_NO_DAMAGED)
    if options.compact:
        raise ConfigError(_NO_COMPACT)
    from retrieval.milvus.database import forget as forget_collection

    return [_tell_forgotten(options.forget, forget_collection(store, options.forget))]


def _maintain_files(store: "Path", options: argparse.Namespace) -> list[str]:
    if not store.is_dir():
        raise ConfigError(f"There is no case store at {options.store}.")
    done = []
    if options.forget:
        done.append(_tell_forgotten(options.forget, forget(store, options.forget)))
    if options.remove_damaged:
        done.append(f"Removed {remove_damaged(store)} damaged rows.")
    if options.compact:
        done.append(f"Wrote the files anew: {compact(store) / 2**20:.1f} MiB.")
    return done


def _tell_forgotten(fingerprint: str, count: int) -> str:
    return f"Removed the index of model {fingerprint[:12]}: {count} cases."


def _check_fingerprint(text: str | None) -> str | None:
    try:
        return None if text is None else parse_fingerprint(text)
    except InputError as error:
        raise ConfigError(f"--fingerprint: {error}") from error


def _make_plan(options: argparse.Namespace) -> IndexPlan:
    choice = parse_kind(options.index)
    if not options.rebuild_growth:
        raise ConfigError("--rebuild-growth must be above 0.")
    require_kind(choice.kind.name)
    return IndexPlan(choice, options.recall_floor, options.rebuild_growth)
