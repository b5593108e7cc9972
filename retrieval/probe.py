"""Check whether a sidecar serves, as an exec probe of Docker and Kubernetes. Their own gRPC probes speak no TLS.

    python -m retrieval.probe --address 127.0.0.1:8005 --tls-dir /run/secrets/tls

The exit code is 0 if the health service (grpc.health.v1) says SERVING: the index is built. Otherwise it is 4, with an
error message.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.address import CHANNEL_OPTIONS
from contract.connection import Connection
from contract.errors import CxrError, UnavailableError
from contract.protection import make_probe_connection

_TIMEOUT_S: Final = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask once; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m retrieval.probe", description="Does a sidecar serve?")
    parser.add_argument("--address", default="127.0.0.1:8005", help="host:port of the sidecar. (%(default)s)")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT_S, help="Seconds. (%(default)s)")
    parser.add_argument(
        "--tls-dir", type=Path, help="Folder of TLS of that sidecar; health.crt is shown if it is there."
    )
    options = parser.parse_args(arguments)
    try:
        ask(options.address, make_probe_connection(options.tls_dir), options.timeout)
    except CxrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def ask(address: str, connection: Connection, timeout_s: float) -> None:
    """Raise UnavailableError if the sidecar does not answer, or does not serve."""
    with connection.open_channel(address, CHANNEL_OPTIONS) as channel:
        try:
            request = health_pb2.HealthCheckRequest()
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s).status
        except grpc.RpcError as error:
            raise UnavailableError(f"The sidecar does not answer ({error.code().name}).") from error
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError("The sidecar does not serve: its index is not built, or it is stopping.")


if __name__ == "__main__":
    sys.exit(main())
