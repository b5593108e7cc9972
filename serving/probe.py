"""Check whether a Triton still infers, with a request like a client's: a real image and a real report.

    python -m serving.probe --triton 127.0.0.1:8001

"Ready" means only that the models were loaded. A Triton with a dead python process, or one that waits for a lock for
ever, also reports ready. The exit code is 0 if `predict_study`, `predict_image` and `predict_text` all answer, else
4, with an error message. The command needs only this package and tritonclient, which the Triton image has.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from contract.address import CHANNEL_OPTIONS
from contract.connection import PLAIN, Connection
from contract.errors import (
    BusyError,
    ConfigError,
    CxrError,
    DeadlineError,
    ServerError,
    ServiceError,
    UnavailableError,
)
from contract.grpc_status import resolve_unavailable, strip_code
from contract.probe_case import PROBE_INPUTS, PROBED
from contract.protection import make_probe_connection
from contract.tensors import MODELS

_CONTROL_TIMEOUT_S: Final = 1.0
_MAX_CHARS: Final = 300


def ask(client: Any, model: str, timeout_s: float, inputs: Sequence[str] | None = None) -> None:
    """Run one real inference.

    Args:
        client: A tritonclient.grpc.InferenceServerClient.
        model: One of `PROBED`, or a model that takes some of their inputs under the same names.
        timeout_s: Deadline in seconds. It should be so long that only a dead server exceeds it, because Triton 2.51 may
            fail after a call that ends by its deadline.
        inputs: Names of the inputs. None: the inputs of `predict_study`, `predict_image` or `predict_text`.

    Raises:
        BusyError: The queue is full. The server works.
        DeadlineError, UnavailableError: There is no answer.
        ServerError: The answer is an error, or not a number.
    """
    names = inputs if inputs is not None else [tensor.name for tensor in MODELS[model].inputs]
    try:
        answer = client.infer(model, [_make_input(name) for name in names], client_timeout=timeout_s)
    except InferenceServerException as error:
        raise _explain(client, model, error, timeout_s) from error
    values = answer.as_numpy("probabilities")
    if model in PROBED and (values is None or not np.isfinite(values).all()):
        raise ServerError(f"{model} answers without finite numbers.")


def is_triton_ready(url: str, connection: Connection = PLAIN) -> bool:
    """Return whether Triton and all its models are ready (KServe v2, ServerReady)."""
    client = connection.open_triton(triton.InferenceServerClient, url, CHANNEL_OPTIONS)
    try:
        return bool(client.is_server_ready(client_timeout=_CONTROL_TIMEOUT_S))
    except InferenceServerException:
        return False
    finally:
        client.close()


def is_sidecar_ready(url: str, connection: Connection = PLAIN) -> bool:
    """Return whether the sidecar is serving (grpc.health.v1).

    Raises:
        ConfigError: gRPC is not installed, or a file of TLS cannot be used.
    """
    try:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc
    except ImportError as error:
        from serving.triton import INSTALL_HINT

        raise ConfigError(f"Serving needs the 'serve' extra: {INSTALL_HINT}.") from error
    with connection.open_channel(url, CHANNEL_OPTIONS) as channel:
        try:
            request = health_pb2.HealthCheckRequest()
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_CONTROL_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def ask_all(
    url: str, timeout_s: float, models: Sequence[str] = PROBED, connection: Connection = PLAIN
) -> None:
    """Run one real inference of each model.

    Raises:
        ConfigError: A file of TLS cannot be used.
        ServiceError: The error of the first model that fails; see `ask`.
    """
    client = connection.open_triton(triton.InferenceServerClient, url, CHANNEL_OPTIONS)
    try:
        for model in models:
            ask(client, model, timeout_s)
    finally:
        client.close()


def make_own_connection(tls_dir: Path | None) -> Connection:
    """Return how to check a Triton of this host: with its folder of TLS, and the client certificate that lies there.

    Raises:
        ConfigError: A file is missing.
    """
    required = os.environ.get("CXR_TLS_REQUIRE_CLIENT") == "1"
    return make_probe_connection(tls_dir, require_client=required)


def _make_input(name: str) -> Any:
    tensor = triton.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[PROBE_INPUTS[name]]], dtype=np.object_))
    return tensor


def _explain(client: Any, model: str, error: InferenceServerException, timeout_s: float) -> ServiceError:
    code = resolve_unavailable(strip_code(error.status()), lambda: _serves(client, model))
    text = " ".join((error.message() or "").split()).rstrip(".")[:_MAX_CHARS]
    if code == "DEADLINE_EXCEEDED":
        return DeadlineError(f"{model} did not answer within {timeout_s:g} s.")
    if code == "RESOURCE_EXHAUSTED":
        return BusyError(f"The queue of {model} is full.")
    if code in ("UNAVAILABLE", "CANCELLED"):
        return UnavailableError(f"Triton does not answer ({text}).")
    return ServerError(f"{model} fails: {text}.")


def _serves(client: Any, model: str) -> bool:
    try:
        return bool(client.is_model_ready(model, client_timeout=_CONTROL_TIMEOUT_S))
    except InferenceServerException:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the probe once; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.probe", description="One real inference of each model."
    )
    parser.add_argument(
        "--triton", default="127.0.0.1:8001", help="host:port of Triton's gRPC service. (%(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="Seconds for each model. (%(default)s)")
    parser.add_argument(
        "--tls-dir",
        type=Path,
        default=os.environ.get("CXR_TLS_DIR") or None,
        help="Folder of TLS of that Triton (`contract.protection`). Default: CXR_TLS_DIR.",
    )
    options = parser.parse_args(arguments)
    try:
        ask_all(options.triton, options.timeout, connection=make_own_connection(options.tls_dir))
    except BusyError:
        return 0  # a full queue means that the server works
    except CxrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
