"""Write an operation once, and run it for blocking callers and for asyncio.

An operation is a generator. It yields what takes time: a question to a server, work that keeps a processor or a disk
busy, or a pause. `run` does each of these and waits. `run_async` awaits the questions and pauses, and moves the work to
a thread, so that the event loop stays free. An error, also a cancellation, appears in the operation at its `yield`.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """Something that takes time.

    Attributes:
        kind: "ask": `call` blocks, or returns an awaitable for `run_async`. "work": `call` always blocks.
            "pause": `call` returns the seconds to wait.
        call: What to call.
        stop: Ends a pause of `run` early when it is set.
    """

    kind: Literal["ask", "work", "pause"]
    call: Callable[[], Any]
    stop: threading.Event | None = None


Steps: TypeAlias = Generator[Step, Any, T]


def ask(call: Callable[P, T | Awaitable[T]], *arguments: P.args, **options: P.kwargs) -> Steps[T]:
    """Ask a server. `call` returns the answer, or in the asyncio client an awaitable of it."""
    answer: T = yield Step("ask", partial(call, *arguments, **options))
    return answer


def work(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> Steps[T]:
    """Do something that keeps a processor, a disk or a socket busy."""
    result: T = yield Step("work", partial(call, *arguments, **options))
    return result


def pause(seconds: float, stop: threading.Event | None = None) -> Steps[None]:
    """Wait. In `run`, setting `stop` ends the wait; in `run_async`, cancelling the task does."""
    yield Step("pause", lambda: seconds, stop)


def run(steps: Steps[T]) -> T:
    """Run an operation in this thread, and return its result."""
    resume: Callable[[], Step] = partial(next, steps)
    try:
        while True:
            step = resume()
            try:
                value = step.call()
                if step.kind == "pause" and step.stop is not None:
                    step.stop.wait(value)
                elif step.kind == "pause":
                    time.sleep(value)
                resume = partial(steps.send, value)
            except BaseException as error:  # the operation decides what it means
                resume = partial(steps.throw, error)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        del resume  # it may hold an error whose traceback holds this frame and the tensors of the call


async def run_async(steps: Steps[T]) -> T:
    """Run an operation in this task, and return its result. Cancelling the task cancels the current step."""
    resume: Callable[[], Step] = partial(next, steps)
    try:
        while True:
            step = resume()
            try:
                resume = partial(steps.send, await _take(step))
            except BaseException as error:  # also a cancellation: the operation cleans up and raises it again
                resume = partial(steps.throw, error)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        del resume  # as in `run`


async def _take(step: Step) -> Any:
    if step.kind == "ask":
        return await step.call()
    if step.kind == "work":
        return await asyncio.to_thread(step.call)
    return await asyncio.sleep(step.call())
