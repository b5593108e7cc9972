"""gRPC status codes -> errors of this project: one table for both servers, by code, never by text."""

from typing import Final

from contract.errors import (
    BusyError,
    CancelledError,
    ConfigError,
    CxrError,
    DeadlineError,
    FingerprintError,
    InputError,
    ServerError,
    UnavailableError,
)
from contract.grpc_status import strip_code

# Triton also says UNAVAILABLE where its queue is full; `client.triton` tells the two apart by asking it whether
# it serves the model, and then looks up RESOURCE_EXHAUSTED.
ERRORS: Final[dict[str, type[CxrError]]] = {
    "INVALID_ARGUMENT": InputError,
    "OUT_OF_RANGE": InputError,
    "NOT_FOUND": ServerError,
    "FAILED_PRECONDITION": FingerprintError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "CANCELLED": CancelledError,
    "UNAVAILABLE": UnavailableError,
    "RESOURCE_EXHAUSTED": BusyError,
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
    kind = ERRORS.get(strip_code(status), ServerError)
    said = _shorten(message)
    if kind is DeadlineError:
        return DeadlineError(f"{server} at {url} did not answer within {round(timeout_s, 3):g} s.")
    if kind is UnavailableError:
        return UnavailableError(f"{server} at {url} does not answer: is `cxr serve` running there? ({said})")
    if kind is BusyError:
        return BusyError(f"{server} at {url} is busy, its queue is full: try again in a moment. ({said})")
    if kind is CancelledError:
        return CancelledError(f"The call to {url} was cancelled before its answer.")
    if kind is ServerError:
        return ServerError(f"{server} at {url} failed: {said}")
    return kind(f"{server} refused the request: {said}")


def make_wrong_service_error(url: str, server: str, setting: str) -> ConfigError:
    """Return the error of an address at which something else answers.

    Args:
        url: The address, host:port.
        server: Who should answer: "Triton's gRPC service".
        setting: Where the address is set: "triton_url (--triton)".
    """
    return ConfigError(
        f"What answers at {url} is another service than {server}: set {setting} to the host:port of {server} "
        "(by default Triton's gRPC has port 8001, its HTTP 8000, its metrics 8002, the sidecar's gRPC 8005)."
    )


def _shorten(message: str) -> str:
    text = " ".join(message.split()).rstrip(".")
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"
