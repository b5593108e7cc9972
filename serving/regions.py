"""Unregister the shared-memory regions of dead clients from Triton, and remove them from /dev/shm.

A killed client cannot unregister its regions. Triton would keep them mapped, with patient data, until it exits.
`client.shared_memory` holds a lock (flock(2)) on the file of each region. The kernel releases it however the client
ends. Unlike a process id, the lock also works across containers that share a /dev/shm. A region of another kind of
client has no lock and is unregistered when its file is gone.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Any, Final

from tritonclient.utils import InferenceServerException

LOCKED_PREFIX: Final = (
    "cxr_client_locked_"  # prefix of regions with a locked file; set by client.shared_memory
)
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108
_CONTROL_TIMEOUT_S: Final = 1.0
_YOUNG_S: Final = 5.0  # a file is created a moment before it is locked


class RegionSweeper:
    """Removes the regions of dead clients at one Triton."""

    def __init__(self, client: Any) -> None:
        """Take a tritonclient.grpc.InferenceServerClient."""
        self._client = client

    def sweep(self) -> int:
        """Unregister and remove regions without an owner; return their number (0 without an answer of the server)."""
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
        ):  # a running call uses it; the next sweep removes it
            self._client.unregister_system_shared_memory(name, client_timeout=_CONTROL_TIMEOUT_S)
            if path.name.startswith(LOCKED_PREFIX):
                with contextlib.suppress(OSError):
                    path.unlink()
            return 1
        return 0


def remove_orphans(registered: set[str] = frozenset()) -> int:  # type: ignore[assignment]
    """Remove the files of dead clients that no Triton has registered; return their number."""
    removed = 0
    for path in _SHARED_MEMORY.glob(f"{LOCKED_PREFIX}*"):
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_ctime > _YOUNG_S
            if path.name not in registered and old and _is_orphan(path):
                path.unlink()
                removed += 1
    return removed


def _is_orphan(path: Path) -> bool:
    """Return whether no process holds the lock of a region; False if unknown."""
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
