"""Folders, locks, processes and memory that a server leaves, and who may remove them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tritonclient.utils import InferenceServerException

import serving.regions as regions
import serving.runtime as runtime
from contract.errors import ConfigError
from serving.regions import RegionSweeper
from serving.runtime import LogsLock, PrivateFolder, find_stub_trouble, list_bases, show_path
from serving.stubs import read_process

ROOT = Path(__file__).parents[2]


HOLDER = "import sys, time; from pathlib import Path; from serving.runtime import LogsLock; lock = LogsLock(Path(sys.argv[1])); lock.write(()); print('held', flush=True); time.sleep(60)"  # noqa: E501


def test_the_logs_lock_outlives_nobody(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=rf"\(process {holder.pid}\) uses the logs folder"):
            LogsLock(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    LogsLock(tmp_path).release()


def test_leftovers_are_killed_only_if_they_are_the_ones(tmp_path):
    sleeper = subprocess.Popen(["sleep", "60"], start_new_session=True)
    lock = LogsLock(tmp_path)
    try:
        lock._path.write_text(f'{{"servers": {{"{sleeper.pid}": 1, "x": 1, "0": 1}}}}')
        lock.end_leftovers()
        assert sleeper.poll() is None
        lock._path.write_text(f'{{"servers": {{"{sleeper.pid}": {read_process(sleeper.pid).started}}}}}')
        lock.end_leftovers()
        assert sleeper.wait(60) == -signal.SIGKILL
    finally:
        lock.release()
        sleeper.kill()
        sleeper.wait()


def test_a_private_folder_is_plain_and_removed_when_its_owner_died(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_STALE_S", -1.0)
    kept = PrivateFolder(tmp_path)
    assert kept.path.stat().st_mode & 0o777 == 0o700
    dead = tmp_path / "cxr-serve-dead"
    dead.mkdir()
    odd = tmp_path / "a b"
    odd.mkdir()
    assert kept.link_unless_plain("x", odd) == kept.path / "x"
    assert kept.link_unless_plain("y", kept.path) == kept.path
    PrivateFolder(tmp_path).close()
    assert not dead.exists()
    assert kept.path.exists()
    kept.close()
    assert odd.exists()
    assert not kept.path.exists()


def test_bases_have_plain_paths(tmp_path, monkeypatch):
    odd = tmp_path / "a b"
    odd.mkdir()
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(odd))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert list_bases() == [Path("/tmp"), Path("/var/tmp"), tmp_path]


def test_a_stub_that_cannot_start_is_told(tmp_path):
    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\necho libpython is missing\nexit 127\n")
    assert find_stub_trouble(stub, {}) == f"{stub}: Permission denied"
    stub.chmod(0o700)
    assert find_stub_trouble(stub, {}) == "libpython is missing"


def test_paths_can_be_shown():
    assert show_path(Path(os.fsdecode(b"/a/\xff"))) == "/a/\\xff"


class Triton:
    """Keeps names of regions; those in use are not given up."""

    def __init__(self, *names: str) -> None:
        self.regions, self.in_use = set(names), set()

    def get_system_shared_memory_status(self, client_timeout):
        return SimpleNamespace(regions={name: SimpleNamespace(key=f"/{name}") for name in self.regions})

    def unregister_system_shared_memory(self, name, client_timeout):
        if name in self.in_use:
            raise InferenceServerException("in use", status="StatusCode.INTERNAL")
        self.regions.discard(name)


def test_regions_without_a_file_or_an_owner_are_forgotten(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(regions, "_SHARED_MEMORY", tmp_path)
    names = [f"cxr_client_locked_{word}" for word in ("live", "dead", "busy", "gone")] + ["foreign", "lost"]
    for name in names:
        if not name.endswith(("gone", "lost")):
            (tmp_path / name).write_bytes(b"x")
    triton = Triton(*names)
    triton.in_use = {"cxr_client_locked_busy"}
    with (tmp_path / names[0]).open("r+b") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        assert RegionSweeper(triton).sweep() == 3
        assert triton.regions == {names[0], names[2], "foreign"}
        assert {path.name for path in tmp_path.iterdir()} == {names[0], names[2], "foreign"}
    triton.in_use = set()
    assert RegionSweeper(triton).sweep() == 2
    assert triton.regions == {"foreign"}
    young = tmp_path / "cxr_client_locked_young"  # made, not locked yet
    young.write_bytes(b"x")
    assert regions.remove_orphans() == 0
    monkeypatch.setattr(regions, "_YOUNG_S", -1.0)
    assert regions.remove_orphans() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["foreign"]


def test_a_folder_from_which_no_program_runs_is_passed_over(tmp_path, monkeypatch):
    pytest.importorskip("pytriton")
    import serving.assembly as assembly
    from serving.triton import find_triton

    bases = [tmp_path / "noexec", tmp_path / "good"]
    for base in bases:
        base.mkdir()
    monkeypatch.setattr(assembly, "list_bases", lambda: bases)
    really = assembly.find_stub_trouble

    def find_trouble(stub, environment):
        return f"{stub}: Permission denied" if "noexec" in str(stub) else really(stub, environment)

    monkeypatch.setattr(assembly, "find_stub_trouble", find_trouble)
    made = assembly.assemble(find_triton())
    assert made.folder.path.parent == bases[1]
    assert made.is_whole
    (made.backends / "python" / "triton_python_backend_stub").unlink()  # as `tmpreaper` does
    assert not made.is_whole
    assert not list(bases[0].iterdir())
    made.folder.close()
    monkeypatch.setattr(assembly, "list_bases", lambda: bases[:1])
    with pytest.raises(
        ConfigError, match=r"cannot be started from .*Permission denied.*\. Set TMPDIR to a folder"
    ):
        assembly.assemble(find_triton())
