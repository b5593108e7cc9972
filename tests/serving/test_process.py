"""Children die with their parent, whatever ends it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contract.errors import ConfigError, ServiceError
from serving.process import ChildProcess, TerminationGuard

ROOT = Path(__file__).parents[2]
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""
PARENT = """
import sys, time
from pathlib import Path
from serving.process import ChildProcess
child = ChildProcess("sleeper", ["sleep", "60"], log_path=Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(condition, timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_child_dies_with_parent(tmp_path, ending):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"))
        parent.send_signal(ending)
        parent.wait(60)
    assert wait_for(lambda: not is_alive(pid))


def test_stop_escalates_to_kill(tmp_path):
    child = ChildProcess("deaf", [sys.executable, "-c", DEAF], log_path=tmp_path / "log")
    child.start()
    assert wait_for(lambda: child.read_tail() == ["deaf"])
    child.stop(timeout_s=0.2)
    assert child.exit_code == -signal.SIGKILL
    child.stop()  # again: nothing to do


def test_stop_ends_grandchildren(tmp_path):
    child = ChildProcess("shell", ["sh", "-c", "sleep 60 & echo $!; wait"], log_path=tmp_path / "log")
    child.start()
    assert wait_for(child.read_tail)
    grandchild = int(child.read_tail()[0])
    assert os.getpgid(grandchild) == child.pid
    child.stop()
    assert wait_for(lambda: not is_alive(grandchild))


def test_missing_program_is_told_in_the_log(tmp_path):
    child = ChildProcess("nothing", ["/no/such/program"], log_path=tmp_path / "log")
    child.start()
    assert wait_for(lambda: child.exit_code is not None)
    assert child.read_tail() == ["/no/such/program cannot be run: No such file or directory"]
    with pytest.raises(ServiceError, match="started already"):
        child.start()


def test_log_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        ChildProcess("x", ["true"], log_path=tmp_path / "file" / "log").start()


def test_termination_guard_runs_cleanup_and_restores():
    earlier = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as info, TerminationGuard():
        signal.raise_signal(signal.SIGTERM)
    assert info.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is earlier
