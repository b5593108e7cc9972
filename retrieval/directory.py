"""The directory of a case store, which only one process at a time may use."""

import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

from contract.errors import ArtifactError, ConfigError
from retrieval.copying import remove_copies

DATABASE: Final = "cases.sqlite"
LOCK: Final = "lock"
MODELS: Final = "models"
ASIDE: Final = ".restore-{}.partial"  # folder of a restore that copies
UNFINISHED: Final = "restore-unfinished"  # is there while a restore exchanges the files


def lock_directory(directory: Path) -> int:
    """Create the directory if needed and lock it for this process; return the descriptor of the lock file.

    Raises:
        ConfigError: Another process has the lock, or the directory cannot be used.
        ArtifactError: A restore into the directory did not end.
    """
    lock = lock_for_restore(directory)
    try:
        if (directory / UNFINISHED).exists():
            raise ArtifactError(
                f"A restore into the case store {directory} did not end. Run `cxr index restore BACKUP --store "
                f"{directory} --replace` again."
            )
        remove_copies(directory)
        for aside in directory.glob(
            ASIDE.format("*")
        ):  # of a restore that was killed before it changed anything
            shutil.rmtree(aside)
    except BaseException:
        os.close(lock)
        raise
    return lock


def lock_for_restore(directory: Path) -> int:
    """Lock a directory as `lock_directory` does, also one with an unfinished restore."""
    try:
        new = [folder for folder in (directory, *directory.parents) if not folder.exists()]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in new:
            sync_folder(folder.parent)
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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
