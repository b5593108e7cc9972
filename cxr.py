"""The `cxr` command; `cli.app` assembles it. Ctrl-C is silent from the first moment, before the imports."""

import os
import signal
from types import FrameType
from typing import NoReturn


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    os._exit(130)  # nothing was begun; an exception could be caught by whatever is being imported


def main() -> None:
    """Import the command, a third of a second, and run it."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's `cxr ... &` ignores it
        signal.signal(signal.SIGINT, _leave)
    from cli.app import main as run

    run()


if __name__ == "__main__":
    main()
