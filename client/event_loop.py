"""The event loop of an asyncio transport, and who cancelled a task."""

import asyncio
import sys
from typing import Any

from contract.errors import ConfigError


class LoopOwner:
    """Remembers the event loop of the first request. A gRPC connection cannot serve another one."""

    def __init__(self) -> None:
        """Start without a loop."""
        self._loop: asyncio.AbstractEventLoop | None = None

    def require(self) -> None:
        """Raise ConfigError in another event loop than that of the first call."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise ConfigError(
                "An AsyncCxrClient belongs to the event loop of its first call, and this is another one: make a client "
                "in each event loop, such as in each asyncio.run()."
            )


def is_task_cancelled() -> bool:
    """Whether somebody cancelled the running task. Python 3.10 does not tell: False."""
    if sys.version_info < (3, 11):
        return False
    task: Any = asyncio.current_task()
    return task is not None and task.cancelling() > 0
