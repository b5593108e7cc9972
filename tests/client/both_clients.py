"""The blocking and the asyncio client behind one blocking interface, so that one test body runs on both."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Protocol

from client import AsyncCxrClient, CxrClient


class Caller(Protocol):
    """Calls a client."""

    client: Any

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method and return its result; of `predict_many`, the list of results."""

    def close(self) -> None:
        """Close the client."""


class BlockingCaller:
    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.client = CxrClient(*arguments, **options)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        result = getattr(self.client, method)(*arguments, **options)
        return list(result) if inspect.isgenerator(result) else result

    def close(self) -> None:
        self.client.close()


class AsyncCaller:
    """Calls the asyncio client from a loop of its own. After each call no other task may be left."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = AsyncCxrClient(*arguments, **options)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self.loop.run_until_complete(self._call(method, *arguments, **options))

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        result = getattr(self.client, method)(*arguments, **options)
        try:
            return [each async for each in result] if inspect.isasyncgen(result) else await result
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


CALLERS: dict[str, Callable[..., Caller]] = {"blocking": BlockingCaller, "asyncio": AsyncCaller}


class AsyncFake:
    """A fake transport for the asyncio client: its methods return awaitables."""

    def __init__(self, fake: Any) -> None:
        self._fake = fake

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._fake, name)
        if not callable(value):
            return value

        async def call(*arguments: Any, **options: Any) -> Any:
            await asyncio.sleep(0)
            return value(*arguments, **options)

        return call
