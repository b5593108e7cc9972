"""Operations in steps: both ways to run them, and what a failed one leaves behind."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref

import pytest

from client.steps import ask, pause, run, run_async, work
from contract.errors import ServerError


def wrap(call):
    """Return a question for `run_async`, as a transport of the asyncio client has it."""

    async def answer(*arguments):
        return call(*arguments)

    return answer


RUNS = {
    "blocking": (run, lambda call: call),
    "asyncio": (lambda steps: asyncio.run(run_async(steps)), wrap),
}


@pytest.mark.parametrize("name", RUNS)
def test_results_and_errors_come_back_where_the_operation_asked(name):
    run_steps, make = RUNS[name]
    ends = []

    def fail():
        raise ServerError("no")

    def operate():
        doubled = yield from ask(make(lambda number: 2 * number), 4)
        try:
            yield from ask(make(fail))
        except ServerError as error:
            ends.append(str(error))
        thread = yield from work(threading.get_ident)
        yield from pause(0.0)
        try:
            yield from ask(make(fail))
        finally:
            ends.append(doubled)
            ends.append(thread == threading.get_ident())

    with pytest.raises(ServerError):
        run_steps(operate())
    assert ends == ["no", 8, name == "blocking"], "work runs beside the loop"


def test_a_pause_takes_its_time():
    def operate():
        yield from pause(0.05)

    for run_steps, _ in RUNS.values():
        began = time.monotonic()
        run_steps(operate())
        assert time.monotonic() - began >= 0.04


def test_a_failed_operation_holds_no_tensors():
    class Tensors:
        pass

    def fail(_tensors):
        raise ServerError("no")

    def operate(tensors):
        yield from ask(fail, tensors)

    gc.disable()
    try:
        tensors = Tensors()
        reference = weakref.ref(tensors)
        with contextlib.suppress(ServerError):
            run(operate(tensors))
        del tensors
        assert reference() is None
    finally:
        gc.enable()


def test_cancelling_a_task_ends_the_operation_at_its_question():
    ends = []

    def operate():
        try:
            yield from ask(lambda: asyncio.sleep(60))
        finally:
            ends.append("ended")

    async def scenario():
        task = asyncio.create_task(run_async(operate()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert ends == ["ended"]
