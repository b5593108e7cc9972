"""Restore a backup into the folder of a store.

The files are copied aside, made durable and checked. Only then they take the place of the old ones. While that
happens, the file `restore-unfinished` keeps servers out, so that none serves files of two moments. A restore that was
killed is run again.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

from contract.case_backup import BackupFile, read_manifest
from contract.errors import ArtifactError, ConfigError
from retrieval.directory import ASIDE, DATABASE, MODELS, UNFINISHED, lock_for_restore, sync_folder
from retrieval.verification import StoreCheck, check_database

_COPIED_AT_ONCE: Final = 2**20


def restore(backup: Path, directory: Path, *, replace: bool = False) -> list[StoreCheck]:
    """Make a backup the content of a store that no server has open.

    Args:
        backup: Folder of the backup. It is not changed.
        directory: Folder of the store. Created (mode 0700) if missing.
        replace: Whether to replace a store that is there.

    Returns:
        What each file holds. Damaged rows that were in the backup are in the store too.

    Raises:
        ConfigError: There is a store already, a server has it open, or `backup` is no backup.
        ArtifactError: The backup is damaged, or the disk is full or failed. The old store is as it was, unless the
            message says that the restore must be run again.
    """
    manifest = read_manifest(backup)
    if holds_store(directory) and not replace:
        raise ConfigError(
            f"There is a case store at {directory} already. Choose another folder, or replace it (--replace)."
        )
    lock = lock_for_restore(directory)
    aside = directory / ASIDE.format(secrets.token_hex(6))
    try:
        checks = [_copy(backup / file.name, aside / file.name, file) for file in manifest.files]
        _exchange(directory, aside, [file.name for file in manifest.files])
    except OSError as error:
        reason = error.strerror or type(error).__name__
        again = " Run the restore again." if (directory / UNFINISHED).exists() else ""
        raise ArtifactError(
            f"The backup {backup} cannot be restored into {directory}: {reason}.{again}"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)
    return checks


def holds_store(directory: Path) -> bool:
    """Whether a folder holds a store, or a part of one."""
    files = [*directory.glob(f"{DATABASE}*"), *directory.glob(f"{MODELS}/*/{DATABASE}*")]
    return (directory / UNFINISHED).exists() or any(file.stat().st_size for file in files)


def _copy(source: Path, target: Path, file: BackupFile) -> StoreCheck:
    """Copy a file and check the copy."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(source, "rb") as reader, open(os.open(target, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as writer:
        while data := reader.read(_COPIED_AT_ONCE):
            digest.update(data)
            writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())
    if digest.hexdigest() != file.sha256:
        raise ArtifactError(f"The backup file {source} differs from what was written. Use another backup.")
    check = check_database(target, fixed=True)
    if check.problems:
        raise ArtifactError(f"The backup file {source} cannot be restored. {' '.join(check.problems)}")
    return check


def _exchange(directory: Path, aside: Path, names: list[str]) -> None:
    """Put the new files in the place of all old ones."""
    mark = directory / UNFINISHED
    mark.touch(mode=0o600)
    sync_folder(directory)
    # SQLite would replay an old WAL over a new file.
    for old in (*directory.glob(f"{DATABASE}*"), *directory.glob(ASIDE.format("*"))):
        if old != aside:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory / MODELS)
    for name in names:
        target = directory / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (aside / name).rename(target)
        sync_folder(target.parent)
    if (directory / MODELS).is_dir():
        sync_folder(directory / MODELS)
    sync_folder(directory)
    mark.unlink()
    sync_folder(directory)
