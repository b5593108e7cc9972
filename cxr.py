"""The `cxr` command, assembled in `cli.app`. Ctrl-C prints no traceback, even during the imports."""

import os
import signal
from types import FrameType
from typing import NoReturn


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    os._exit(130)  # no work has started yet; a module that is being imported could catch an exception


def main() -> None:
    """Import the command, which takes a third of a second, and run it."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's `cxr ... &` ignores it
        signal.signal(signal.SIGINT, _leave)
    from cli.app import main as run

    run()


if __name__ == "__main__":
    main()
