"""Wait for SIGTERM or SIGINT without losing one."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def open_events() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe into which SIGTERM and SIGINT write their numbers: one to read, one to write.

    The interpreter's C handler writes them at once (signal.set_wakeup_fd). A Python handler would run only when the
    main thread next executes Python code: never, if the signal arrives just before the thread blocks. Call it in the
    main thread of a process that ends afterwards: a further signal does nothing then, and cannot cut the end short.
    """
    events, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # only signals with a handler are written to the pipe
    try:
        yield events, tell
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)
        os.close(events)
