"""Turn every error of a command into one sentence and an exit code, without a traceback.

0     success
1     standard output cannot be written, or an unexpected error (CXR_DEBUG=1 shows its traceback)
2     an argument or an input file cannot be used
3     a file made by this project is wrong, or cannot be written
4     a server failed or gave a wrong answer
5     `cxr monitor report --fail-on-change` saw a change
130   Ctrl-C
141   nobody reads the output any more, as after `| head -1`
"""

import errno
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from cli.console import CommandConsole, escape
from contract.errors import ConfigError, CxrError
from contract.installation import PACKAGES, describe_shadowed

DEBUG: Final = "CXR_DEBUG"
FAILED: Final = 1
INTERRUPTED: Final = 130  # 128 + SIGINT
NO_READER: Final = 141  # 128 + SIGPIPE
_UNINTERRUPTED: Final = ("<frozen importlib._bootstrap>", "multiprocessing/popen_spawn_posix.py")
_FINISH_S: Final = 2.0
_LOOK_S: Final = 0.05

# Depending on its version, typer has its own copy of click's errors or uses click's. This finds both.
_UsageError: Final = typer.BadParameter.__bases__[0]
_ClickError: Final = _UsageError.__bases__[0]


class OutputError(OSError):
    """Standard output cannot be written. A class of its own tells it apart from an OSError about another file."""


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error


class _Interrupts:
    """Whether Ctrl-C was pressed, and since when it waits. A library may turn KeyboardInterrupt into another error."""

    came = False
    waiting_since: float | None = None


def raise_interrupt(_signal: int, frame: FrameType | None) -> None:
    """Record Ctrl-C and raise KeyboardInterrupt. An import or a process start may finish first, for at most 2 seconds.

    C code that initialises a module prints or swallows a KeyboardInterrupt, and a process that is interrupted during
    its start prints its own traceback.
    """
    _Interrupts.came = True
    now = time.monotonic()
    since = _Interrupts.waiting_since = _Interrupts.waiting_since or now
    if now - since < _FINISH_S and _must_finish(frame):
        # Send the signal to the main thread: a signal to another thread does not wake it from a sleep.
        main = threading.main_thread().ident
        again = threading.Timer(_LOOK_S, signal.pthread_kill, (main, signal.SIGINT))
        again.daemon = True
        again.start()
        return
    _Interrupts.waiting_since = None
    raise KeyboardInterrupt


def _must_finish(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.endswith(_UNINTERRUPTED):
            return True
        frame = frame.f_back
    return False


def take_interrupts() -> None:
    """Handle Ctrl-C from now on, unless the caller ignores it, as a shell does for `cxr ... &`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, raise_interrupt)


def open_streams() -> None:
    """Give the process three standard streams that accept every character.

    A closed stream (`<&-`, `>&-`) becomes the null device. Otherwise the next opened file would get its descriptor,
    and printed text would go into that file.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            if os.open(os.devnull, os.O_RDWR) != descriptor:
                continue  # something else uses this descriptor
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if not sys.stdout.isatty():
        raw = io.BufferedWriter(_Output(1, "wb", closefd=False))
        sys.stdout = io.TextIOWrapper(raw, encoding=sys.stdout.encoding)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no character


class CommandGroup(TyperGroup):
    """The `cxr` command. The module docstring lists its exit codes."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """Run the command line and exit with its code. Without `standalone_mode`, raise errors instead."""
        is_whole_program = settings.pop("standalone_mode", True)
        settings = {"prog_name": "cxr", **settings, "standalone_mode": False}  # a name also for python -m cxr
        if not is_whole_program:
            return super().main(*arguments, **settings)
        run(lambda: super(CommandGroup, self).main(*arguments, **settings))


def run(command: Callable[[], Any]) -> NoReturn:
    """Run a command and exit with its code.

    `main` runs `CommandGroup.main` through this function too, because typer first takes a quarter of a second to
    build the commands.
    """
    sys.exit(_run(command))


def _run(command: Callable[[], Any]) -> int:
    _Interrupts.came, _Interrupts.waiting_since = False, None
    try:
        code = _end(command)
        sys.stdout.flush()
    except OutputError as error:
        return _give_up_output(error)
    return INTERRUPTED if _Interrupts.came else code


def _end(command: Callable[[], Any]) -> int:
    """Run a command; return its exit code.

    Raises:
        OutputError: Standard output cannot be written.
    """
    try:
        code = command()
        if code == INTERRUPTED:  # typer returns this code for a KeyboardInterrupt
            return _stop()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _stop()
    except SystemExit as error:
        if isinstance(error.__context__, OutputError):  # typer and rich exit like this if nobody reads
            raise error.__context__ from None
        raise
    except OutputError:
        raise
    except Exception as error:
        if _Interrupts.came:
            return _stop()
        return _explain(error)


def _stop() -> int:
    _Interrupts.came = True
    _say("Stopped.")
    return INTERRUPTED


def _explain(error: Exception) -> int:
    """Print one sentence about an error; return the exit code."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    if isinstance(error, CxrError):
        _say_error(str(error))
        return error.exit_code
    if isinstance(error, _ClickError | typer.Abort | typer.Exit):
        return _explain_usage(error)
    if isinstance(error, ImportError) and (reason := _describe_import(error)):
        _say_error(reason)
        return ConfigError.exit_code
    if isinstance(error, OSError):
        _say_error(_describe_refusal(error))
        return ConfigError.exit_code
    if isinstance(error, MemoryError):
        _say_error("This machine does not have enough memory for this command.")
        return FAILED
    _say_error(
        f"Unexpected error: {type(error).__name__} in {_locate(error)}. Please report it. "
        f"{DEBUG}=1 shows the traceback, which may hold names and reports of patients."
    )
    return FAILED


def _explain_usage(error: Any) -> int:
    """Print one sentence about a wrong argument or option."""
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, typer.Abort):
        return _stop()
    message = "" if type(error).__name__ == "NoArgsIsHelpError" else error.format_message()
    if message:
        context = getattr(error, "ctx", None)
        path = context.command_path.strip() if context is not None else "cxr"
        words = " ".join(message.split()).rstrip(".")
        _say_error(f"{words} (see Usage in `{path} --help`).")
    return int(error.exit_code)


def _describe_refusal(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    if error.filename is None:
        return f"The operating system reported: {reason}."
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
    return f"Cannot use {name}: {reason}."


def _describe_import(error: ImportError) -> str | None:
    """Return what to do about a package that is missing, or that another one shadows; None: neither is so."""
    if (error.name or "").partition(".")[0] in PACKAGES:
        return describe_shadowed()
    if isinstance(error, ModuleNotFoundError):
        return f"The package {error.name} is not installed. Run `cxr doctor` to see which extra installs it."
    return None


def _locate(error: Exception) -> str:
    """Return the file and line that raised the error, without any value."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "cxr"
    root = Path(__file__).resolve().parents[1]
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(root)] or frames
    frame = ours[-1]
    return f"{Path(frame.filename).parent.name}/{Path(frame.filename).name} line {frame.lineno}"


def _give_up_output(error: OutputError) -> int:
    """Report that standard output cannot be written, and stop the interpreter from writing again at exit."""
    _point_to_null(1)
    if error.errno == errno.EPIPE:
        return NO_READER
    _say_error(f"Standard output cannot be written: {error.strerror or error}.")
    return FAILED


def _point_to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _say_error(message: str) -> None:
    _say(f"[red]Error:[/red] {escape(message)}")


def _say(markup: str) -> None:
    """Print one line on standard error, if it is open."""
    try:
        CommandConsole(stderr=True, soft_wrap=True).print(markup)
    except OSError:
        _point_to_null(2)
