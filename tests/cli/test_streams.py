"""Closed, full and broken streams, Ctrl-C at any moment, errors that nobody foresaw: never a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import command
from cli.app import app
from contract.errors import ArtifactError

ROOT = Path(__file__).parents[2]
# A shell's background job ignores Ctrl-C, and so would its children: the tests take it back first.
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'cxr'; "
    "from cxr import main; main()"
)
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def run_shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line in which $CXR is the command; `rc N M` at the end of stderr holds the exit codes."""
    script = f'{line}\necho "rc ${{PIPESTATUS[*]}}" >&2\n'
    cxr_line = f'cxr() {{ "{sys.executable}" -m cxr "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", cxr_line + script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "300", **environment},
        timeout=120,
        check=False,
    )


def read_codes(done: subprocess.CompletedProcess[str]) -> tuple[list[str], list[int]]:
    *said, codes = done.stderr.splitlines()
    return said, [int(code) for code in codes.removeprefix("rc ").split()]


WRITE_ERROR = "Error: Standard output cannot be written: No space left on device."


@needs_full
@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "predict --help",
        "train configs --json",
        "train configs",
        "train configs demo",
        "train configs demo --json",
    ],
)
def test_a_full_standard_output_is_one_sentence(line):
    assert read_codes(run_shell(f"cxr {line} > /dev/full")) == ([WRITE_ERROR], [1])


@needs_full
@pytest.mark.parametrize(
    "line", ["predict 2> /dev/full", "predict 2>&-", "predict > /dev/full 2>&1", "bad 2>&-"]
)
def test_an_error_that_cannot_be_said_keeps_its_exit_code(line):
    assert read_codes(run_shell(f"cxr {line}")) == ([], [2])


@pytest.mark.parametrize("line", ["train configs --json", "train configs", "--help", "train configs demo"])
def test_a_closed_standard_output_is_silence(line):
    assert read_codes(run_shell(f"cxr {line} >&-")) == ([], [0])


def test_what_is_printed_goes_into_no_file_that_takes_the_number_of_a_closed_stream(tmp_path):
    shell = f"cxr data draw {tmp_path / 'phantom'} --studies 1 --scale 0.02"
    done = run_shell(f"{shell} 0<&- 1>&- 2>&-; echo $? > {tmp_path / 'code'}")
    assert (tmp_path / "code").read_text() == "0\n", done.stderr
    for path in (tmp_path / "phantom").rglob("*"):
        assert path.is_dir() or b"phantom studies in" not in path.read_bytes(), path


@pytest.mark.parametrize("line", ["predict -", "predict --report -", "explain -"])
def test_a_closed_standard_input_holds_nothing(line):
    said, codes = read_codes(run_shell(f"cxr {line} <&-"))
    assert codes[0] in {2, 3, 4}
    assert len(said) == 1
    assert said[0].startswith("Error: ")


@pytest.mark.parametrize("line", ["--help", "train configs demo", "train configs --json", "train configs"])
def test_nobody_who_reads_is_silence(line):
    """`true` reads nothing; that it has ended before anything is written needs the pause."""
    said, codes = read_codes(run_shell(f"(sleep 0.3; cxr {line}; echo $? >&2) | true"))
    assert said == ["141"]
    assert codes == [0, 0]


def test_a_name_that_is_no_text_is_printed_by_its_codes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cxr", "predict", b"\xff\x1b[31m.png"],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == rb"Error: Cannot read the image file '\udcff\x1b[31m.png': No such file or directory." + b"\n"
    )


def write_module(directory: Path, name: str, text: str) -> str:
    """Write a module that hides the real one; return the path to look for modules in."""
    (directory / f"{name}.py").write_text(text)
    return f"{directory}{os.pathsep}{ROOT}"


_PRESS = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(100)\n"
_HIDE = "import os, signal, time\ntry:\n  os.kill(os.getpid(), signal.SIGINT)\n  time.sleep(100)\n"


@pytest.mark.parametrize(
    ("module", "text", "said"),
    [
        ("typer", _PRESS, ""),  # while the command is imported
        ("rich", _PRESS, ""),
        ("pyarrow", _PRESS, "Stopped.\n"),  # while a command imports what it needs
        ("pyarrow", f"{_HIDE}except BaseException:\n  raise ImportError('broken')\n", "Stopped.\n"),
        ("pyarrow", f"{_HIDE}except BaseException:\n  raise SystemError('broken')\n", "Stopped.\n"),
    ],
)
def test_ctrl_c_while_modules_are_imported(module, text, said, tmp_path):
    """An import that hangs gets two seconds to end; the test waits for less time than it hangs."""
    paths = write_module(tmp_path, module, text)
    done = subprocess.run(
        [sys.executable, "-c", START, "data", "audit", "missing.parquet"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", said)


def test_ctrl_c_while_typer_builds_the_commands(tmp_path):
    """It takes a quarter of a second, before the first line of any command runs."""
    press = "import typer.main, os; typer.main.get_command = lambda app: os.kill(os.getpid(), 2); "
    done = subprocess.run(
        [sys.executable, "-c", press + START, "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Stopped.\n")


@pytest.mark.parametrize("delay_s", [0.1, 0.2, 0.3, 0.5, 1.0, 1.5])
def test_ctrl_c_at_any_moment(delay_s, tmp_path):
    """Python's own start takes its first 0.05 s; nobody's handler can stand before it."""
    started = subprocess.Popen(
        [sys.executable, "-c", f"print(flush=True); {START}", "data", "draw", "phantom", "--studies", "5000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    started.stdout.readline()
    time.sleep(delay_s)
    started.send_signal(signal.SIGINT)
    out, error = started.communicate(timeout=60)
    assert (started.returncode, out) == (130, "")
    assert error in {"", "Stopped.\n"}
    assert list(tmp_path.iterdir()) == []


def test_a_job_in_the_background_goes_on_ignoring_ctrl_c(tmp_path):
    """As a shell starts `cxr ... &`: the signal comes while pyarrow is imported, and the command goes on."""
    start = START.replace("signal.default_int_handler", "signal.SIG_IGN")
    press = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise ImportError('went on')\n"
    done = subprocess.run(
        [sys.executable, "-c", start, "data", "audit", "missing.parquet"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": write_module(tmp_path, "pyarrow", press)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Unexpected error: ImportError in ")


@pytest.fixture
def broken(monkeypatch):
    """Let `cxr train configs` raise an error."""

    def set_error(error: BaseException) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr("training.config.toml_file.list_configs", fail)

    return set_error


def run_broken(monkeypatch, **environment: str):
    monkeypatch.delenv(command.DEBUG, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(app, ["train", "configs"])


def test_an_error_that_nobody_foresaw_says_where_and_nothing_of_a_patient(broken, monkeypatch):
    broken(KeyError("Jane Doe, 12.03.1950, nodule"))
    result = run_broken(monkeypatch)
    assert result.exit_code == 1
    assert re.match(
        r"Error: Unexpected error: KeyError in cli/\w+\.py line \d+\. Please report it\. ", result.stderr
    )
    assert "CXR_DEBUG=1" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Doe" not in result.output
    shown = run_broken(monkeypatch, CXR_DEBUG="1")
    assert "Traceback" in shown.stderr
    assert "Jane Doe" in shown.stderr
    assert shown.exit_code == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ArtifactError("It is broken [x] :key:."), 3, "Error: It is broken [x] :key:."),
        (
            PermissionError(13, "Permission denied", "/a/[b]"),
            2,
            "Error: Cannot use /a/[b]: Permission denied.",
        ),
        (OSError(24, "Too many open files"), 2, "Error: The operating system reported: Too many open files."),
        (MemoryError(), 1, "Error: This machine does not have enough memory for this command."),
        (KeyboardInterrupt(), 130, "Stopped."),
        (
            ModuleNotFoundError("No module named 'timm'", name="timm"),
            2,
            "Error: The package timm is not installed. Run `cxr doctor` to see which extra installs it.",
        ),
    ],
)
def test_every_error_is_one_line_with_its_exit_code(error, code, said, broken, monkeypatch):
    broken(error)
    result = run_broken(monkeypatch)
    assert (result.exit_code, result.stderr, result.stdout) == (code, f"{said}\n", "")


def test_standalone_mode_off_raises(broken):
    broken(ArtifactError("It is broken."))
    from typer.main import get_command

    with pytest.raises(ArtifactError):
        get_command(app).main(["train", "configs"], standalone_mode=False)


def test_json_is_written_whole_into_a_pipe():
    done = run_shell("cxr train configs demo --json | cat")
    assert json.loads(done.stdout)["model"]
    assert read_codes(done) == ([], [0, 0])
