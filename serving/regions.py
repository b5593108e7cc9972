"""Shared-memory regions of clients that are gone: forgotten by Triton, removed from /dev/shm.

A client that is killed cannot unregister its regions; Triton would keep them mapped, with what they hold of a
radiograph, until it ends. `client.shared_memory` keeps a lock (flock(2)) on each region's file while it lives; the
kernel gives it back however the client ends. Unlike a process id this says the truth across containers that share a
/dev/shm. A region of another kind of client, which has no lock, is forgotten when its file is gone.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Any, Final

from tritonclient.utils import InferenceServerException

LOCKED_PREFIX: Final = (
    "cxr_client_locked_"  # of regions whose file is locked; client.shared_memory names them so
)
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108
_CONTROL_TIMEOUT_S: Final = 1.0
_YOUNG_S: Final = 5.0  # a file is made a moment before it is locked


class RegionSweeper:
    """Removes what dead clients left at one Triton."""

    def __init__(self, client: Any) -> None:
        """Take a tritonclient.grpc.InferenceServerClient."""
        self._client = client

    def sweep(self) -> int:
        """Forget and remove regions without an owner; return how many. A server that does not answer is left alone."""
        try:
            status = self._client.get_system_shared_memory_status(client_timeout=_CONTROL_TIMEOUT_S)
        except InferenceServerException:
            return 0
        removed = 0
        for name, region in status.regions.items():
            path = _SHARED_MEMORY / region.key.lstrip("/")
            if not path.exists() or (path.name.startswith(LOCKED_PREFIX) and _is_orphan(path)):
                removed += self._forget(name, path)
        return removed + remove_orphans(set(status.regions))

    def _forget(self, name: str, path: Path) -> int:
        with contextlib.suppress(
            InferenceServerException
        ):  # in use by a call that still runs: the next sweep
            self._client.unregister_system_shared_memory(name, client_timeout=_CONTROL_TIMEOUT_S)
            if path.name.startswith(LOCKED_PREFIX):
                with contextlib.suppress(OSError):
                    path.unlink()
            return 1
        return 0


def remove_orphans(registered: set[str] = frozenset()) -> int:  # type: ignore[assignment]
    """Remove the files of dead clients that no Triton has registered; return how many."""
    removed = 0
    for path in _SHARED_MEMORY.glob(f"{LOCKED_PREFIX}*"):
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_ctime > _YOUNG_S
            if path.name not in registered and old and _is_orphan(path):
                path.unlink()
                removed += 1
    return removed


def _is_orphan(path: Path) -> bool:
    """Return whether nobody holds the lock of a region; False where that cannot be told."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(file)
