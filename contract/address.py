"""Addresses of the servers: check what a user wrote, and the options of every gRPC channel."""

import re
import socket
import time
from collections.abc import Sequence
from typing import Any, Final

from contract.errors import ConfigError

# Options of every channel to Triton and to the sidecar. gRPC waits longer after each failed attempt, up to 120 s. All
# channels of a process to one address, also new ones, share one connection and its wait. Without these options a
# client would reconnect long after its server came back (https://grpc.github.io/grpc/core/group__grpc__arg__keys.html).
# An attempt may take 3 s, so that a network with a round trip of one second still connects.
CHANNEL_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),  # a proxy set in the environment must not see a lab's studies
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # a restarted container has another address
)
_NAMED: Final = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")  # gRPC's own address forms
_HOST_AND_PORT: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]|[A-Za-z0-9._-]+):(?P<port>[0-9]+)", re.ASCII
)
_PROBE_TIMEOUT_S: Final = 1.0


def check_address(url: str, *, server: str, setting: str, example: str) -> str:
    """Return the address of a gRPC service unchanged. Raise ConfigError unless it is host:port or a gRPC address form.

    Args:
        url: The address, as the user wrote it.
        server: The server at this address, such as "Triton's gRPC service".
        setting: Name of the setting, such as "triton_url (--triton)".
        example: A valid address.
    """
    remedy = f"{setting} must be host:port of {server}, such as {example}"
    if not isinstance(url, str):
        raise ConfigError(f"{remedy}, not {_name_type(url)}.")
    if url.startswith(_NAMED) and not re.search(r"\s", url):
        if not url.partition(":")[2].strip("/"):
            raise ConfigError(f"{remedy}: {url!r} names no path or host.")
        return url
    problem = _find_problem(url)
    if problem:
        raise ConfigError(f"{remedy}: {problem}.")
    return url


def split_addresses(given: str | Sequence[str], setting: str) -> list[str]:
    """Return the addresses in a setting, each once.

    Args:
        given: One address, several with commas between them, or a list. gRPC's form of several numeric addresses
            ("ipv4:10.0.0.1:8001,10.0.0.2:8001") counts as a list of them.
        setting: Name of the setting, such as "triton_url (--triton)".

    Raises:
        ConfigError: One of several addresses is empty.
    """
    urls = _flatten(given)
    empty = [place for place, url in enumerate(urls, start=1) if isinstance(url, str) and not url.strip()]
    if empty and len(urls) > 1:
        raise ConfigError(
            f"{setting} holds {len(urls)} addresses, but number {empty[0]} is empty: remove the comma too many."
        )
    return [url for place, url in enumerate(urls) if url not in urls[:place]]


def _flatten(given: str | Sequence[str]) -> list[Any]:
    """Return every address in a setting. What is no text is refused when it is checked."""
    if isinstance(given, str):
        prefix = next((name for name in ("ipv4:", "ipv6:") if given.startswith(name)), "")
        parts = (part.strip() for part in given.split(","))
        return [part if part.startswith(_NAMED) or not part else f"{prefix}{part}" for part in parts]
    if isinstance(given, Sequence) and given:
        return [url for item in given for url in (_flatten(item) if isinstance(item, str) else [item])]
    return [given]


def _find_problem(url: str) -> str:
    """Return what is wrong with host:port, or "". The text never repeats what precedes an @, perhaps a password."""
    match = _HOST_AND_PORT.fullmatch(url)
    if match:
        return "" if 1 <= _read_port(match) <= 65535 else f"the port of {url!r} is not from 1 to 65535"
    scheme, separator, _ = url.partition("://")
    problems = {
        "it is empty": not url.strip(),
        "it holds a user name, which the servers do not accept": "@" in url,
        f"remove {scheme}:// from {url!r}, and note that HTTP and gRPC use different ports": bool(separator),
        f"{url!r} needs brackets around the IPv6 address, as in [::1]:8001": url.count(":") > 1
        and not url.startswith("["),
        f"{url!r} has no host": url.startswith(":"),
        f"{url!r} has no port": ":" not in url.rpartition("]")[2].rstrip(":"),
    }
    return next((problem for problem, applies in problems.items() if applies), f"{url!r} is not host:port")


def _name_type(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def split_host_and_port(url: str) -> tuple[str, int] | None:
    """Return the host, without brackets, and the port of host:port; None for another address."""
    match = _HOST_AND_PORT.fullmatch(url)
    if match is None or _read_port(match) > 65535:
        return None
    return match["host"].strip("[]"), _read_port(match)


def _read_port(match: re.Match[str]) -> int:
    """Return the port; a number above 65,535 for a port that is too large, however many digits it has."""
    return int(match["port"].lstrip("0")[:6] or "0")


def speaks_http1(url: str, timeout_s: float = 2 * _PROBE_TIMEOUT_S) -> bool:
    """Whether the server at host:port speaks HTTP/1, as Triton's HTTP and metrics ports do.

    Send one GET over a new connection. Connecting takes at most one second, and the answer another one.

    Args:
        url: The address.
        timeout_s: Time for all of it, in seconds.
    """
    address, end = split_host_and_port(url), time.monotonic() + timeout_s
    if address is None:
        return False
    try:
        with socket.create_connection(address, timeout=limit_probe(end)) as connection:
            connection.settimeout(limit_probe(end))
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(7, socket.MSG_WAITALL) == b"HTTP/1."
    except (OSError, UnicodeError):
        return False


def limit_probe(end: float) -> float:
    """Return the seconds that a step of a probe may take, at most 1. Raise TimeoutError if there are none.

    Args:
        end: The end of the probe (`time.monotonic`).
    """
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, _PROBE_TIMEOUT_S)
