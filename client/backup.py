"""Write a backup that the retrieval sidecar sends into a folder."""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from contract.case_backup import MANIFEST, BackupFile, BackupManifest, require_file_name
from contract.errors import ArtifactError, ConfigError, ServerError


@dataclass(frozen=True)
class Backup:
    """A written backup: its folder, and what it holds."""

    folder: Path
    manifest: BackupManifest

    @property
    def size(self) -> int:
        """Size of its files, in bytes."""
        return sum(file.size for file in self.manifest.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return {
            "folder": str(self.folder),
            "made": self.manifest.made,
            "bytes": self.size,
            "files": [file.name for file in self.manifest.files],
            "left_out": list(self.manifest.left_out),
        }


def write_backup(parts: Iterable[Any], out: Path) -> Backup:
    """Write a backup beside `out`, check its hashes, make it durable, and give it its name: it is there whole or not.

    Args:
        parts: `BackupPart` messages in the order of the sidecar.
        out: The new folder.

    Raises:
        ConfigError: `out` exists.
        ArtifactError: The disk is full or failed.
        ServerError: The sidecar sent something else than a whole backup.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists. Give the path of a new folder.")
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    aside = out.with_name(f".{out.name[:40]}-{secrets.token_hex(6)}.partial")
    try:
        aside.mkdir(mode=0o700, parents=True)
        files, left_out = _write_files(iter(parts), aside)
        manifest = BackupManifest(made, tuple(files), left_out)
        with _create(aside / MANIFEST) as file:
            file.write(manifest.to_json().encode())
        for folder in (*(path for path in aside.rglob("*") if path.is_dir()), aside):
            _sync(folder)
        aside.rename(out)
        _sync(out.parent)
    except OSError as error:
        raise ArtifactError(f"Could not write {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Backup(out, manifest)


def _write_files(parts: Iterator[Any], folder: Path) -> tuple[list[BackupFile], tuple[str, ...]]:
    files: list[BackupFile] = []
    for part in parts:
        if part.complete and files:
            return files, tuple(part.left_out)
        if not part.name:
            break
        path = folder / require_file_name(part.name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.append(_write_file(parts, path, part.name))
    raise ServerError("The sidecar did not send a whole backup.")


def _write_file(parts: Iterator[Any], path: Path, name: str) -> BackupFile:
    digest, size = hashlib.sha256(), 0
    with _create(path) as file:
        for part in parts:
            if part.sha256:
                break
            digest.update(part.data)
            size += file.write(part.data)
        else:
            raise ServerError("The sidecar did not send a whole backup.")
    if digest.hexdigest() != part.sha256:
        raise ServerError("The backup was damaged on its way.")
    return BackupFile(name, size, part.sha256)


@contextlib.contextmanager
def _create(path: Path) -> Iterator[Any]:
    """Open a new file that no other user may read, and make it durable in the end."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
