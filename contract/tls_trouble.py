"""Why a client and a server do not come together over TLS, in one sentence.

gRPC reports every such failure as UNAVAILABLE with a text of its own. This module asks the server once more with
Python's own TLS, whose errors have codes.
"""

import datetime
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from contract.address import limit_probe, split_host_and_port
from contract.connection import TLS, Connection
from contract.errors import ConfigError
from contract.protection import read_end

_TIMEOUT_S: Final = 4.0  # for all connections together; each step takes at most 1 s
_PREFACE: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
)  # and empty settings
_SETTINGS_FRAME: Final = 4
# Codes of OpenSSL (X509_V_ERR_*).
_EXPIRED: Final = 10
_NOT_YET_VALID: Final = 9
_OTHER_NAME: Final = (62, 64)  # host name, IP address


def find_tls_error(
    url: str, connection: Connection, server: str, timeout_s: float = _TIMEOUT_S
) -> ConfigError | None:
    """Return the error for a server that can be reached, but not with these settings of TLS; None if TLS is not why.

    Args:
        url: host:port of the server that did not answer.
        connection: The settings that were used.
        server: "Triton" or "the retrieval sidecar".
        timeout_s: Time for all of it, in seconds.
    """
    address, end = split_host_and_port(url), time.monotonic() + timeout_s
    if address is None:
        return None
    try:
        if connection.tls is None:
            return _find_for_plain(address, f"{server} at {url}", end)
        return _find_for_tls(address, connection.tls, f"{server} at {url}", end)
    except (OSError, UnicodeError):  # nothing listens there, or it is too slow
        return None


def _find_for_plain(address: tuple[str, int], who: str, end: float) -> ConfigError | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    context.set_alpn_protocols(["h2"])
    with _connect(address, context, address[0], end) as secure:
        secure.do_handshake()
    return ConfigError(
        f"{_begin(who)} speaks TLS: set tls (--tls-ca, CXR_TLS_CA) to the certificate of its authority."
    )


def _find_for_tls(address: tuple[str, int], tls: TLS, who: str, end: float) -> ConfigError | None:
    context = tls.make_context()
    with _connect(address, context, tls.server_name or address[0], end) as secure:
        try:
            secure.do_handshake()
            secure.settimeout(limit_probe(end))
            secure.sendall(_PREFACE)
            if secure.recv(1):
                return None
        except ssl.SSLCertVerificationError as error:
            return ConfigError(_explain_server(error, tls, address[0], who))
        except ssl.SSLError as error:
            if _speaks_plain(address, end):
                return ConfigError(
                    f"{_begin(who)} speaks plain text, not TLS: start it with --tls-dir, or unset tls (--tls-ca, "
                    "CXR_TLS_CA)."
                )
            return _explain_client(error.reason or "", tls, who)
        except ConnectionError:  # a server that closes without a word refuses the client's certificate
            return _explain_client("", tls, who)
    return _explain_client("", tls, who)


@contextmanager
def _connect(
    address: tuple[str, int], context: ssl.SSLContext, name: str, end: float
) -> Iterator[ssl.SSLSocket]:
    """Yield a connection, with the time limit of its handshake, which the caller begins.

    TLS is put on the socket before it connects. Python would leave a socket open that the server resets in between.
    """
    for family, kind, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        with (
            socket.socket(family, kind, protocol) as plain,
            context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False) as secure,
        ):
            try:
                secure.settimeout(limit_probe(end))
                secure.connect(place)
            except OSError:  # the host may have another address
                continue
            secure.settimeout(limit_probe(end))
            yield secure
            return
    raise ConnectionError


def _explain_server(error: ssl.SSLCertVerificationError, tls: TLS, host: str, who: str) -> str:
    if error.verify_code == _EXPIRED:
        return f"The certificate of {who} has expired: give the server a new one (`cxr certs`)."
    if error.verify_code == _NOT_YET_VALID:
        return f"The certificate of {who} is not valid yet: check the clocks of both machines."
    if error.verify_code in _OTHER_NAME:
        return (
            f"The certificate of {who} is not for the name {tls.server_name or host}: use a name that it holds as "
            "address or as tls.server_name (--tls-server-name, CXR_TLS_SERVER_NAME), or make one with "
            "`cxr certs --host`."
        )
    return (
        f"The certificate of {who} was not signed by an authority in {tls.ca or 'the public list'}: set tls.ca "
        "(--tls-ca, CXR_TLS_CA) to the ca.crt of that server."
    )


def _explain_client(reason: str, tls: TLS, who: str) -> ConfigError:
    setting = "tls.cert and tls.key (--tls-cert, --tls-key; CXR_TLS_CERT, CXR_TLS_KEY)"
    if tls.cert is None:
        return ConfigError(f"{_begin(who)} requires a client certificate: set {setting}.")
    if "EXPIRED" in reason or _has_expired(tls):
        return ConfigError(
            f"The client certificate {tls.cert} has expired: set {setting} to a new one (`cxr certs`)."
        )
    return ConfigError(
        f"{_begin(who)} does not accept the client certificate {tls.cert}: set {setting} to one that its authority "
        "signed."
    )


def _begin(who: str) -> str:
    """Return the name of a server as the beginning of a sentence."""
    return who[0].upper() + who[1:]


def _has_expired(tls: TLS) -> bool:
    """Whether the client's certificate has expired, by the clock of this machine; False if unknown."""
    ends = None if tls.cert is None else read_end(tls.cert)
    return ends is not None and ends < datetime.datetime.now(datetime.timezone.utc)


def _speaks_plain(address: tuple[str, int], end: float) -> bool:
    """Whether a server speaks HTTP/2 without TLS."""
    try:
        with socket.create_connection(address, timeout=limit_probe(end)) as plain:
            plain.settimeout(limit_probe(end))
            plain.sendall(_PREFACE)
            head = plain.recv(9, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(head) == 9 and head[3] == _SETTINGS_FRAME
