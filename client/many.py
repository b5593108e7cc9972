"""Predict many cases with several requests in flight, and return the results in the order of the cases."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from client.cases import CaseInput
from client.channel import Calls
from client.prediction import Prediction
from contract.errors import ConfigError, InputError

Outcome = Prediction | InputError


def predict_in_order(
    predict: Callable[[CaseInput, Calls], Prediction], cases: Iterable[CaseInput], in_flight: int
) -> Iterator[tuple[CaseInput, Outcome]]:
    """Yield each case with its prediction or its InputError; see `CxrClient.predict_many`.

    Args:
        predict: Predicts one case. Several threads call it at once.
        cases: The cases.
        in_flight: Number of requests at once, at least 1.

    Raises:
        ConfigError: `in_flight` is below 1, or `cases` is not a series of cases.
    """
    if in_flight < 1:
        raise ConfigError(f"At least 1 request must be in flight, not {in_flight}.")
    return _predict_in_order(predict, require_series(cases), in_flight)


def _predict_in_order(
    predict: Callable[[CaseInput, Calls], Prediction], cases: Iterable[CaseInput], in_flight: int
) -> Iterator[tuple[CaseInput, Outcome]]:
    calls = Calls()

    def try_predict(case: CaseInput) -> Outcome:
        try:
            return predict(case, calls)
        except InputError as error:
            return error

    with ThreadPoolExecutor(in_flight, thread_name_prefix="cxr-predict") as pool:
        waiting: deque[tuple[CaseInput, Future[Outcome]]] = deque()
        try:
            for case in cases:
                _require_case(case)
                waiting.append((case, pool.submit(try_predict, case)))
                if len(waiting) == 2 * in_flight:  # a free thread always has a next case
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            calls.cancel()  # requests whose results nobody will read


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
