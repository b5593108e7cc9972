"""How every command ends: one sentence for what went wrong, its exit code, and never a traceback.

0     done
1     standard output cannot be written, or an error that nobody foresaw (CXR_DEBUG=1 shows its traceback)
2     what was typed or read cannot be used
3     a file made by this project is wrong, or cannot be written
4     a server did not answer as it should
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

# Typer brings its own copy of click's errors, or uses click's, by its version: this finds them either way.
_UsageError: Final = typer.BadParameter.__bases__[0]
_ClickError: Final = _UsageError.__bases__[0]


class OutputError(OSError):
    """Standard output cannot be written; an OSError of its own, to tell it from one about any other file."""


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error


class _Interrupts:
    """Whether Ctrl-C came, and since when it waits: a library may turn the KeyboardInterrupt into another error."""

    came = False
    waiting_since: float | None = None


def raise_interrupt(_signal: int, frame: FrameType | None) -> None:
    """Remember Ctrl-C, and raise it; an import or the start of a process is finished first, for two seconds at most.

    C code that initialises a module prints a KeyboardInterrupt or swallows it, and a process whose start is cut off
    prints a traceback of its own.
    """
    _Interrupts.came = True
    now = time.monotonic()
    since = _Interrupts.waiting_since = _Interrupts.waiting_since or now
    if now - since < _FINISH_S and _must_finish(frame):
        # To the main thread: where it waits, as in a sleep, no other thread's signal wakes it.
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
    """Handle Ctrl-C from here on; where the caller ignores it, as a shell does for `cxr ... &`, that stays."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, raise_interrupt)


def open_streams() -> None:
    """Give the process three standard streams that take every letter.

    What was closed (`<&-`, `>&-`) becomes the null device: else the next file that is opened takes its number, and
    what is printed goes into it.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            if os.open(os.devnull, os.O_RDWR) != descriptor:
                continue  # there is such a descriptor, of something else
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if not sys.stdout.isatty():
        raw = io.BufferedWriter(_Output(1, "wb", closefd=False))
        sys.stdout = io.TextIOWrapper(raw, encoding=sys.stdout.encoding)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what no character set has


class CommandGroup(TyperGroup):
    """The `cxr` command: see the module for how it ends."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """Run what was typed and leave with its exit code; without `standalone_mode` errors are raised."""
        is_whole_program = settings.pop("standalone_mode", True)
        settings = {"prog_name": "cxr", **settings, "standalone_mode": False}  # a name also for python -m cxr
        if not is_whole_program:
            return super().main(*arguments, **settings)
        run(lambda: super(CommandGroup, self).main(*arguments, **settings))


def run(command: Callable[[], Any]) -> NoReturn:
    """Run a command and leave with its exit code.

    It stands around `CommandGroup.main`, too: typer first takes a quarter of a second to build the commands.
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
        if code == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            return _stop()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _stop()
    except SystemExit as error:
        if isinstance(error.__context__, OutputError):  # typer's and rich's own way to end when nobody reads
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
        _say_error("This machine has not enough memory for that.")
        return FAILED
    _say_error(
        f"An error that was not foreseen, {type(error).__name__} in {_find_place(error)}: please report it; "
        f"{DEBUG}=1 shows its traceback, which may hold names and reports of patients."
    )
    return FAILED


def _explain_usage(error: Any) -> int:
    """Print one sentence about what was typed."""
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
        return f"The system refused: {reason}."
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
    return f"Cannot use {name}: {reason}."


def _describe_import(error: ImportError) -> str | None:
    """Return what to do about a package that is missing, or that another one shadows; None: neither is so."""
    if (error.name or "").partition(".")[0] in PACKAGES:
        return describe_shadowed()
    if isinstance(error, ModuleNotFoundError):
        return f"The package {error.name} is not installed; `cxr doctor` names the extra that brings it."
    return None


def _find_place(error: Exception) -> str:
    """Return where the error was raised, without any value."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "cxr"
    root = Path(__file__).resolve().parents[1]
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(root)] or frames
    frame = ours[-1]
    return f"{Path(frame.filename).parent.name}/{Path(frame.filename).name} line {frame.lineno}"


def _give_up_output(error: OutputError) -> int:
    """Say that standard output cannot be written, and keep the interpreter from trying again at its end."""
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
    """Print one line on standard error, where that can be."""
    try:
        CommandConsole(stderr=True, soft_wrap=True).print(markup)
    except OSError:
        _point_to_null(2)
