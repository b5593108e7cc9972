"""Predict many files, with one row for each file, and wait for a server that is not reachable for a moment."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Final

from client.case_files import CaseFile
from client.cases import CaseInput
from client.client import CxrClient
from client.prediction import Prediction
from client.prediction_row import PredictionRow, make_row
from client.served import require_unchanged
from contract.errors import BusyError, CancelledError, CxrError, InputError, ServiceError, UnavailableError

_SERVER_PAUSES_S: Final = (0.5, 2.0, 5.0, 10.0, 20.0)  # before a retry, if the server is down or busy
_FILE_PAUSES_S: Final = (0.5, 2.0)  # before a retry, if the server is up and fails on one file
_MAX_FAILED: Final = 3  # files in a row; then the server is at fault


def predict_files(
    client: CxrClient,
    cases: Sequence[CaseFile],
    fingerprint: str,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[PredictionRow]:
    """Predict files with several requests in flight. The rows have the order of the files.

    A request that fails is repeated after a pause. If a file fails at every attempt, its row has the status "failed".
    If the server is down, or fails on several files in a row, the run ends with an error.

    Args:
        client: A client of Triton.
        cases: The files. They are read one after another.
        fingerprint: Fingerprint of the model that must answer: that of `client.info()` at the start.
        sleep: Waits for the given seconds.

    Yields:
        A row for each file.

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
        except ServiceError as error:  # noqa: PERF203 - this loop restarts once per failure, not once per file
            is_down = _is_server_down(client, error)
            pauses = _SERVER_PAUSES_S if is_down else _FILE_PAUSES_S
            if attempts < len(pauses):
                sleep(pauses[attempts])
                attempts += 1
                continue
            failed += 1
            if is_down or failed == _MAX_FAILED:
                raise
            case = left.popleft()
            attempts = 0
            yield make_row(case, case.read_state(), fingerprint, error)


def _is_server_down(client: CxrClient, error: ServiceError) -> bool:
    """Whether an error is due to the server and not to the file. A server that stops or starts raises any error."""
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
    """Yield the rows of the cases, up to the first case on which the server fails. Then raise its ServiceError."""
    pending: deque[tuple[CaseFile, str, CxrError | None]] = (
        deque()
    )  # case, state, and why it could not be read

    def read_cases() -> Iterator[CaseInput]:
        for case in cases:
            state = case.read_state()
            try:
                image, report = case.read()
            except InputError as error:
                pending.append((case, state, error))
                continue
            pending.append((case, state, None))
            yield CaseInput(case.name, case.name, image=image, report=report)

    def take_unread() -> Iterator[PredictionRow]:
        """Yield the rows of the next cases that could not be read, and so have no prediction."""
        while pending and pending[0][2] is not None:
            case, state, error = pending.popleft()
            if error is not None:
                yield make_row(case, state, fingerprint, error)

    try:
        for _, outcome in client.predict_many(read_cases()):
            yield from take_unread()
            case, state, _ = pending.popleft()
            if isinstance(outcome, Prediction):
                require_unchanged(fingerprint, outcome.fingerprint)
            yield make_row(case, state, fingerprint, outcome)
    except ServiceError:
        yield from take_unread()
        raise
    yield from take_unread()
