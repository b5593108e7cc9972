"""Many cases, a few requests in flight, answers in the order of the cases."""

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
    """See `CxrClient.predict_many`; `predict` predicts one case and may be called by several threads at once."""
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
                if len(waiting) == 2 * in_flight:  # the next ones are at hand when the first are done
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            calls.cancel()  # those that no one will read; the pool then waits for their threads only


def require_series(cases: Iterable[CaseInput]) -> Iterable[CaseInput]:
    """Return the cases; ConfigError for one case, or one string, in place of several."""
    if isinstance(cases, (CaseInput, str, bytes)) or not isinstance(cases, Iterable):
        raise ConfigError(f"cases must be a series of CaseInput, not of type {type(cases).__name__}.")
    return cases


def _require_case(case: object) -> None:
    if not isinstance(case, CaseInput):
        raise ConfigError(
            f"cases must be a series of CaseInput; one of them is of type {type(case).__name__}: write "
            "CaseInput(id, study_id, image=..., report=...)."
        )
