"""Turn gRPC status codes into the errors of this project: one table for Triton and the sidecar.

The code alone decides on the error, never the text of the message.
"""

from typing import Final

from contract.connection import TOKEN_SETTING
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

ERRORS: Final[dict[str, type[CxrError]]] = {
    "INVALID_ARGUMENT": InputError,
    "OUT_OF_RANGE": InputError,
    "NOT_FOUND": ServerError,
    "FAILED_PRECONDITION": FingerprintError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "CANCELLED": CancelledError,
    "UNAVAILABLE": UnavailableError,  # for Triton's full queue see `contract.grpc_status.resolve_unavailable`
    "RESOURCE_EXHAUSTED": BusyError,
    "UNAUTHENTICATED": ConfigError,
    "PERMISSION_DENIED": ConfigError,
}
_MAX_CHARS: Final = 400


def make_error(status: str | None, message: str, *, server: str, url: str, timeout_s: float) -> CxrError:
    """Return the error for a failed request.

    Args:
        status: Name of the gRPC status code, with or without "StatusCode." before it; None if unknown.
        message: The server's message.
        server: "Triton" or "The retrieval sidecar".
        url: Address of the server, host:port.
        timeout_s: Deadline of the request, in seconds.
    """
    kind = ERRORS.get(strip_code(status), ServerError)
    text = " ".join(message.split()).rstrip(".")
    if len(text) > _MAX_CHARS:
        text = text[: _MAX_CHARS - 1] + "…"
    if kind is DeadlineError:
        return DeadlineError(f"{server} at {url} did not answer within {round(timeout_s, 3):g} s.")
    if kind is UnavailableError:
        return UnavailableError(f"{server} at {url} does not answer: is `cxr serve` running there? ({text})")
    if kind is BusyError:
        return BusyError(f"{server} at {url} is busy: its queue is full. Try again in a moment. ({text})")
    if kind is CancelledError:
        return make_cancelled_error(url)
    if kind is ServerError:
        return ServerError(f"{server} at {url} failed: {text}")
    what = f"at {url} wants another {TOKEN_SETTING}" if kind is ConfigError else "refused the request"
    return kind(f"{server} {what}: {text}")


def make_cancelled_error(url: str) -> CancelledError:
    """Return the error for a cancelled request to a server at host:port."""
    return CancelledError(f"The request to {url} was cancelled before the server answered.")


def make_closed_error(url: str) -> CancelledError:
    """Return the error for a request of a client that was closed before."""
    return CancelledError(f"Nothing was sent to {url}, because the client is closed: make a new one.")


def make_wrong_service_error(url: str, server: str, setting: str) -> ConfigError:
    """Return the error for an address at which another service answers.

    Args:
        url: The address, host:port.
        server: The server that should answer, such as "Triton's gRPC service".
        setting: The setting that holds the address, such as "triton_url (--triton)".
    """
    return ConfigError(
        f"The server at {url} is another service than {server}: set {setting} to the host:port of {server}. "
        "(Default ports: Triton's gRPC 8001, its HTTP 8000, its metrics 8002; the sidecar's gRPC 8005.)"
    )
