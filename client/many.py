"""Predict many cases with several requests in flight, and return the results in the order of the cases."""

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from client.cases import CaseInput
from client.channel import BATCH_PRIORITY, Calls
from client.prediction import Prediction
from contract.errors import ConfigError, InputError, ServiceError

# Of one of many cases. A ServiceError is a result only if the caller keeps going; otherwise it is raised.
Outcome = Prediction | InputError | ServiceError
R = TypeVar("R")


def predict_in_order(
    predict: Callable[[CaseInput, Calls], R], cases: Iterable[CaseInput], in_flight: int
) -> Generator[tuple[CaseInput, R], None, None]:
    """Yield each case with its result; see `CxrClient.predict_many`.

    Args:
        predict: Predicts one case. Several threads call it at once.
        cases: The cases.
        in_flight: Number of requests at once, at least 1.

    Raises:
        ConfigError: `in_flight` is below 1, or `cases` is not a series of cases.
    """
    _check_in_flight(in_flight)
    return _predict_in_order(predict, require_series(cases), in_flight)


def _predict_in_order(
    predict: Callable[[CaseInput, Calls], R], cases: Iterable[CaseInput], in_flight: int
) -> Generator[tuple[CaseInput, R], None, None]:
    calls = Calls(BATCH_PRIORITY)
    with ThreadPoolExecutor(in_flight, thread_name_prefix="cxr-predict") as pool:
        waiting: deque[tuple[CaseInput, Future[R]]] = deque()
        try:
            for case in cases:
                _require_case(case)
                waiting.append((case, pool.submit(copy_context().run, predict, case, calls)))
                if len(waiting) == 2 * in_flight:  # a free thread always has a next case
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            calls.cancel()  # requests whose results nobody will read


def predict_in_order_async(
    predict: Callable[[CaseInput, Calls], Awaitable[R]],
    cases: Iterable[CaseInput] | AsyncIterable[CaseInput],
    in_flight: int,
) -> AsyncGenerator[tuple[CaseInput, R], None]:
    """Yield each case with its result; see `predict_in_order`. Several tasks call `predict` at once."""
    _check_in_flight(in_flight)
    series = cases if isinstance(cases, AsyncIterable) else require_series(cases)
    return _predict_in_order_async(predict, series, in_flight)


async def _predict_in_order_async(
    predict: Callable[[CaseInput, Calls], Awaitable[R]],
    cases: Iterable[CaseInput] | AsyncIterable[CaseInput],
    in_flight: int,
) -> AsyncGenerator[tuple[CaseInput, R], None]:
    calls, places = Calls(BATCH_PRIORITY), asyncio.Semaphore(in_flight)

    async def predict_in_place(case: CaseInput) -> R:
        async with places:
            return await predict(case, calls)

    waiting: deque[tuple[CaseInput, asyncio.Task[R]]] = deque()
    try:
        async for case in _iterate(cases):
            _require_case(case)
            waiting.append((case, asyncio.create_task(predict_in_place(case))))
            if len(waiting) == 2 * in_flight:
                yield waiting[0][0], await waiting[0][1]
                waiting.popleft()
        while waiting:
            yield waiting[0][0], await waiting[0][1]
            waiting.popleft()
    finally:
        for _, task in waiting:
            task.cancel()  # requests whose results nobody will read
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)


async def _iterate(cases: Iterable[CaseInput] | AsyncIterable[CaseInput]) -> AsyncIterator[CaseInput]:
    if isinstance(cases, AsyncIterable):
        async for case in cases:
            yield case
    else:
        for case in cases:
            yield case


def _check_in_flight(in_flight: int) -> None:
    if in_flight < 1:
        raise ConfigError(f"At least 1 request must be in flight, not {in_flight}.")


def require_series(cases: Iterable[CaseInput]) -> Iterable[CaseInput]:
    """Return the cases. Raise ConfigError for a single case or a string instead of a series."""
    if isinstance(cases, (CaseInput, str, bytes)) or not isinstance(cases, Iterable):
        raise ConfigError(
            f"cases must be a series of CaseInput, such as a list, not of type {type(cases).__name__}."
        )
    return cases


def _require_case(case: object) -> None:
    if not isinstance(case, CaseInput):
        raise ConfigError(
            f"cases must be a series of CaseInput, but one of them is of type {type(case).__name__}: write "
            "CaseInput(id, study_id, image=..., report=...)."
        )
