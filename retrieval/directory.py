"""The directory of a case store, which only one process at a time may use."""

import fcntl
import os
from pathlib import Path
from typing import Final

from contract.errors import ConfigError

DATABASE: Final = "cases.sqlite"
LOCK: Final = "lock"


def lock_directory(directory: Path) -> int:
    """Create the directory if needed and lock it for this process; return the descriptor of the lock file.

    Raises:
        ConfigError: Another process has the lock, or the directory cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its other files the mode of this one. No other user may read reports.
        os.close(os.open(directory / DATABASE, os.O_RDWR | os.O_CREAT, 0o600))
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"The case store {directory} cannot be opened: {error.strerror}.") from error
    try:
        # The kernel releases the lock however the process ends.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigError(
            f"The case store {directory} is in use by another server. Stop it or choose another directory."
        ) from error
    return lock
