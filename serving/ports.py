"""The TCP ports of one stack: on loopback, or on the address that `cxr serve --host` names."""

import errno
import socket
from dataclasses import astuple, dataclass, fields
from typing import Final

from contract.errors import ConfigError

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """TCP ports of one stack. `metrics` is Triton's; the metrics of the relay and the sidecar are off with port 0."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    retrieval: int = 8005
    relay_metrics: int = 0
    retrieval_metrics: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError with the port if one is out of range or two are equal."""
        ports = self._list()
        for port in (*ports, self.http, self.grpc, self.metrics, self.retrieval):
            if not 1 <= port <= 65535:
                raise ConfigError(f"Port {port} is outside 1 to 65535.")
            if ports.count(port) > 1:
                raise ConfigError(f"Port {port} is given twice. The ports must differ.")

    @classmethod
    def free(cls) -> "Ports":
        """Choose free ports for everything. Another process may still take one before they are used."""
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in fields(cls)]
        try:
            for entry in sockets:
                entry.bind((LOOPBACK, 0))
            return cls(*(int(entry.getsockname()[1]) for entry in sockets))
        finally:
            for entry in sockets:
                entry.close()

    def require_free(self, host: str = LOOPBACK, metrics_host: str = LOOPBACK) -> None:
        """Raise ConfigError with the port if one is in use. Triton's metrics are always on loopback."""
        hosts = {
            self.metrics: LOOPBACK,
            self.relay_metrics: metrics_host,
            self.retrieval_metrics: metrics_host,
        }
        for port in self._list():
            require_free(port, hosts.get(port, host))

    def _list(self) -> list[int]:
        """Return the ports that are on."""
        return [port for port in astuple(self) if port]


def require_free(port: int, host: str = LOOPBACK) -> None:
    """Raise ConfigError if another process listens on this port, or the address is not one of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(
                    f"The address {host} (--host) cannot be used: {error.strerror or error}."
                ) from error
            raise ConfigError(
                f"Port {port} on {host} is in use ({error.strerror}). Stop the process that listens there or "
                "choose another port."
            ) from error


def is_listening(port: int) -> bool:
    """Return whether a process accepts connections on this loopback port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def join_address(host: str, port: int) -> str:
    """Return host:port, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def find_near_host(host: str) -> str:
    """Return the address at which programs on this machine reach a server that listens on `host`."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104
