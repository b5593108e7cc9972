"""gRPC status codes -> errors of this project: one table for both servers, by code, never by text."""

from typing import Final

from contract.errors import (
    CxrError,
    DeadlineError,
    FingerprintError,
    InputError,
    ServerError,
    UnavailableError,
)

ERRORS: Final[dict[str, type[CxrError]]] = {
    "INVALID_ARGUMENT": InputError,
    "OUT_OF_RANGE": InputError,
    "NOT_FOUND": ServerError,
    "FAILED_PRECONDITION": FingerprintError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "CANCELLED": DeadlineError,
    "UNAVAILABLE": UnavailableError,
    "RESOURCE_EXHAUSTED": UnavailableError,
}
_MAX_CHARS: Final = 400


def make_error(status: str | None, message: str, *, server: str, url: str, timeout_s: float) -> CxrError:
    """Turn a failed call into the error to raise.

    Args:
        status: Name of the gRPC status code, with or without "StatusCode." before it; None when unknown.
        message: What the server said.
        server: "Triton" or "The retrieval sidecar".
        url: Its address, host:port.
        timeout_s: The deadline that the call had, in seconds.
    """
    name = (status or "").rpartition(".")[2]
    kind = ERRORS.get(name, ServerError)
    said = _shorten(message)
    if kind is DeadlineError:
        return DeadlineError(f"{server} at {url} did not answer within {timeout_s:g} s.")
    if kind is UnavailableError:
        return UnavailableError(f"{server} at {url} does not answer: is `cxr serve` running there? ({said})")
    if kind is ServerError:
        return ServerError(f"{server} at {url} failed: {said}")
    return kind(f"{server} refused the request: {said}")


def _shorten(message: str) -> str:
    text = " ".join(message.split()).rstrip(".")
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"
