"""The directory of a case store, which only one process at a time may use."""

import contextlib
import fcntl
import os
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Final

from contract.errors import ArtifactError, ConfigError
from retrieval.connection import PAGE_BYTES
from retrieval.copying import remove_copies
from retrieval.damage import report_damage

DATABASE: Final = "cases.sqlite"
LOCK: Final = "lock"
MODELS: Final = "models"
NEW: Final = ".cases.sqlite.new"  # a file of cases before it has its name
ASIDE: Final = ".restore-{}.partial"  # folder of a restore that copies
VERIFIED: Final = ".verify-"  # how the folder of a check begins
UNFINISHED: Final = "restore-unfinished"  # is there while a restore exchanges the files
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")


def find_wal(path: Path) -> Path:
    """Return the path of the WAL of a database."""
    return path.with_name(f"{path.name}-wal")


def list_models(directory: Path) -> list[Path]:
    """Return the folders of the further models, sorted. Other names beside them are left out."""
    return sorted(path for path in (directory / MODELS).glob("*") if _FINGERPRINT.fullmatch(path.name))


def lock_directory(directory: Path) -> int:
    """Create the directory if needed and lock it for this process; return the descriptor of the lock file.

    Raises:
        ConfigError: Another process has the lock, or the directory cannot be used.
        ArtifactError: A restore into the directory did not end, or the file of the cases is empty.
    """
    lock = lock_for_restore(directory)
    try:
        if (directory / UNFINISHED).exists():
            raise ArtifactError(
                f"A restore into the case store {directory} did not end. Run `cxr index restore BACKUP --store "
                f"{directory} --replace` again."
            )
        remove_copies(directory)
        # Of a restore that was killed before it changed anything, and of a check.
        for aside in (*directory.glob(ASIDE.format("*")), *directory.glob(f"{VERIFIED}*")):
            shutil.rmtree(aside)
        _prepare_database(directory)
    except OSError as error:
        os.close(lock)
        raise ConfigError(f"The case store {directory} cannot be opened: {error.strerror}.") from error
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


def _prepare_database(directory: Path) -> None:
    """Create the file of the cases if there is none: one page, so that an empty file is one that lost its content."""
    path, new = directory / DATABASE, directory / NEW
    if not path.exists():
        new.unlink(missing_ok=True)
        # SQLite gives its other files the mode of this one. No other user may read reports.
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with contextlib.closing(sqlite3.connect(new)) as connection:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA user_version = 0")  # writes the page
        new.rename(path)
        sync_folder(directory)
    os.close(os.open(path, os.O_RDWR))
    if not path.stat().st_size:
        raise report_damage(path, "it is empty, and the sidecar never leaves it so")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
