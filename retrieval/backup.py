"""Send a copy of the store to a caller while it is served."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from contract.proto import retrieval_pb2
from retrieval.directory import DATABASE
from retrieval.store import CaseStore

_PART_BYTES: Final = 2**20


def send_backup(
    stores: Sequence[CaseStore], directory: Path, left_out: Sequence[str], is_wanted: Callable[[], bool]
) -> Iterator[Any]:
    """Yield the parts of a backup, `BackupPart` messages.

    The stores are copied and sent one after another, so the disk holds one copy at a time.

    Args:
        stores: The stores, of each model.
        directory: The folder that all of them are in.
        left_out: Fingerprints of models whose stores are too damaged to be copied.
        is_wanted: Whether the caller still waits. If not, the backup ends.

    Raises:
        ArtifactError: A store cannot be copied, such as on a full disk.
        CancelledError: The caller does not wait any more.
    """
    for store in stores:
        yield from _send_store(store, directory, is_wanted)
    yield retrieval_pb2.BackupPart(complete=True, left_out=left_out)


def _send_store(store: CaseStore, directory: Path, is_wanted: Callable[[], bool]) -> Iterator[Any]:
    name = (store.directory / DATABASE).relative_to(directory)
    with store.open_copy(is_wanted) as file:
        digest = hashlib.sha256()
        yield retrieval_pb2.BackupPart(name=name.as_posix())
        while data := file.read(_PART_BYTES):
            digest.update(data)
            yield retrieval_pb2.BackupPart(data=data)
        yield retrieval_pb2.BackupPart(sha256=digest.hexdigest())
