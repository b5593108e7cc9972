"""Who may read what is written: the umask says so, whichever library wrote the file."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from contract.bundle import write_directory

UMASKS = {0o022: (0o755, 0o644), 0o077: (0o700, 0o600), 0o002: (0o775, 0o664)}


@pytest.fixture(params=UMASKS, ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def list_modes(directory: Path) -> dict[str, set[int]]:
    """Return the modes of all directories and of all files, the directory itself included."""
    paths = [directory, *directory.rglob("*")]
    modes = {"directories": set(), "files": set()}
    for path in paths:
        modes["directories" if path.is_dir() else "files"].add(stat.S_IMODE(path.stat().st_mode))
    return modes


def write_privately(path: Path) -> None:
    """Write as safetensors does: into a private temporary file that takes the name at the end."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    Path(name).rename(path)


def test_a_private_temporary_file_becomes_readable_like_its_neighbours(umask, tmp_path):
    with write_directory(tmp_path / "made") as scratch:
        (scratch / "below").mkdir()
        (scratch / "text.json").write_text("{}")
        write_privately(scratch / "weights")
        write_privately(scratch / "below" / "weights")
    directories, files = UMASKS[umask]
    assert list_modes(tmp_path / "made") == {"directories": {directories}, "files": {files}}


def test_a_bundle_and_a_checkpoint_are_readable_like_other_files(umask, tmp_path, small_config, write_bundle):
    from safetensors.numpy import save_file

    from contract.bundle import amend_bundle
    from training.checkpoint import RunDirectory

    directories, files = UMASKS[umask]
    bundle = write_bundle(
        tmp_path / "bundle", small_config, seed=0, texts=["Normal heart."] * 9, thresholds=[0.5] * 22
    )
    assert 0o600 in list_modes(bundle.path)["files"], "safetensors no longer writes private files"
    with amend_bundle(bundle) as scratch:
        (scratch / "note.txt").write_text("more")
    assert list_modes(bundle.path) == {"directories": {directories}, "files": {files}}

    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    written = run.begin_checkpoint(3)
    save_file({}, written / "model.safetensors")
    run.finish_checkpoint(written)
    assert list_modes(run.path / "checkpoint-3")["files"] == {files}
