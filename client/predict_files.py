"""Many files, one row each: one that cannot be read is a row, and a server that is away for a moment is waited for."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Final

from client.case_files import CaseFile
from client.cases import CaseInput
from client.client import CxrClient
from client.prediction_row import PredictionRow, make_row
from contract.bundle import require_same_fingerprint
from contract.errors import BusyError, CancelledError, CxrError, InputError, ServiceError, UnavailableError

_AWAY_PAUSES_S: Final = (0.5, 2.0, 5.0, 10.0, 20.0)  # before a server that is away or busy is asked again
_PAUSES_S: Final = (0.5, 2.0)  # before one that failed on a file, or was too slow, is
_MOST_FAILED: Final = 3  # files in a row; then it is the server and not the file


def predict_files(
    client: CxrClient,
    cases: Sequence[CaseFile],
    fingerprint: str,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[PredictionRow]:
    """Predict files in their order with a few requests in flight.

    What the server fails to answer is asked again after a pause. A file that it fails on again and again is a row with
    the status "failed"; a server that is away, or fails on several files in a row, ends the run.

    Args:
        client: Connected to Triton.
        cases: The files; read as they are needed.
        fingerprint: Of the model that must answer: that of `client.info()` at the start.
        sleep: Called with the seconds of a pause.

    Yields:
        A row for each file, in the order of the files.

    Raises:
        FingerprintError: Another model answered.
        ServiceError: The server is down, or fails on every file.
    """
    left = deque(cases)
    attempts = failed = 0
    while left:
        try:
            with closing(_predict_once(client, tuple(left), fingerprint)) as rows:
                for row in rows:
                    left.popleft()
                    attempts = failed = 0
                    yield row
        except ServiceError as error:  # noqa: PERF203 - a run is begun anew once in a while, not for each file
            away = _is_away(client, error)
            pauses = _AWAY_PAUSES_S if away else _PAUSES_S
            if attempts < len(pauses):
                sleep(pauses[attempts])
                attempts += 1
                continue
            failed += 1
            if away or failed == _MOST_FAILED:
                raise
            case = left.popleft()
            attempts = 0
            yield make_row(case, case.read_state(), fingerprint, error)


def _is_away(client: CxrClient, error: ServiceError) -> bool:
    """Whether it is the server, rather than the file: one that stops or starts fails in every way there is."""
    if isinstance(error, (UnavailableError, BusyError, CancelledError)):
        return True
    try:
        client.info()
    except ServiceError:
        return True
    return False


def _predict_once(
    client: CxrClient, cases: Sequence[CaseFile], fingerprint: str
) -> Generator[PredictionRow, None, None]:
    """Yield the rows of the cases up to the first one that the server fails on; ServiceError is of that one."""
    sent: deque[tuple[CaseFile, str, CxrError | None]] = deque()  # in order; with the error of one never sent

    def read_cases() -> Iterator[CaseInput]:
        for case in cases:
            state = case.read_state()
            try:
                image, report = case.read()
            except InputError as error:
                sent.append((case, state, error))
                continue
            sent.append((case, state, None))
            given: Any = report  # bytes, as `CxrClient.predict` takes them
            yield CaseInput(case.name, case.name, image=image, report=given)

    def take_unread() -> Iterator[PredictionRow]:
        while sent and sent[0][2] is not None:
            case, state, error = sent.popleft()
            if error is not None:
                yield make_row(case, state, fingerprint, error)

    outcomes = client.predict_many(read_cases())
    try:
        for _, outcome in outcomes:
            yield from take_unread()
            case, state, _ = sent.popleft()
            if not isinstance(outcome, InputError):
                require_same_fingerprint(
                    fingerprint,
                    outcome.fingerprint,
                    expected_from="the model at the start",
                    found_from="the model that answered",
                )
            yield make_row(case, state, fingerprint, outcome)
    except ServiceError:
        yield from take_unread()
        raise
    yield from take_unread()
