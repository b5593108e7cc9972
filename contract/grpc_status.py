"""Names of gRPC status codes, and the code that has two meanings at Triton."""

from collections.abc import Callable


def strip_code(status: str | None) -> str:
    """Return the bare name of a status code, such as NOT_FOUND for "StatusCode.NOT_FOUND"; "" for None."""
    return (status or "").rpartition(".")[2]


def resolve_unavailable(code: str, is_model_ready: Callable[[], bool]) -> str:
    """Return RESOURCE_EXHAUSTED instead of UNAVAILABLE if a Triton refused a call because its queue is full.

    Triton reports a full queue as UNAVAILABLE. gRPC reports a server that it cannot reach in the same way. Only a
    server with a full queue then says that the model is ready.

    Args:
        code: Bare name of the status code of the call.
        is_model_ready: Asks the server whether the model of the call is ready; False if the server does not answer.
    """
    return "RESOURCE_EXHAUSTED" if code == "UNAVAILABLE" and is_model_ready() else code
