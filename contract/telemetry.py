"""What the sidecar and the relay tell about each call besides metrics: a log line and a span.

    text   2026-11-28 12:00:00,000 INFO cxr.calls: Search OK 3.1 ms, 3084 bytes, answer 2210 bytes, request 6f1c...
    json   {"time": "...", "level": "INFO", "logger": "cxr.calls", "message": "...", "rpc": "Search", ...}

Neither holds what a caller sent, except two identifiers of fixed forms: the request id (`x-request-id`) and the trace
id (`traceparent`, W3C Trace Context). A request id of another form is replaced by a random one.
"""

import argparse
import contextvars
import datetime
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from contract.trace_context import TRACEPARENT, read_trace_id
from contract.tracing import Span, Tracing

REQUEST_ID: Final = "x-request-id"
CALLS: Final = "cxr.calls"
HEALTH: Final = "health"  # name of a call about health, in metrics
_ID: Final = re.compile(r"[A-Za-z0-9.:-]{1,64}")  # no "_": a token begins with cxr_
_FORMATS: Final = ("text", "json")
_TEXT_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# The `traceparent` for calls to another server, while this task or thread answers a call.
_onward: contextvars.ContextVar[str | None] = contextvars.ContextVar("onward", default=None)


@dataclass(frozen=True)
class Telemetry:
    """The settings of a server.

    Attributes:
        log_format: "text" or "json".
        log_calls: Largest number of lines about calls in a second; 0: none.
        otlp: Address of an OTLP receiver over gRPC, such as http://127.0.0.1:4317; None: no spans.
    """

    log_format: str = "text"
    log_calls: int = 0
    otlp: str | None = None

    def to_arguments(self) -> list[str]:
        """Return the options for the command line of a server."""
        otlp = [] if self.otlp is None else ["--otlp", self.otlp]
        return ["--log-format", self.log_format, "--log-calls", str(self.log_calls), *otlp]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Telemetry` to a parser."""
    parser.add_argument(
        "--log-format", choices=_FORMATS, default=_FORMATS[0], help="Form of a log line. (%(default)s)"
    )
    parser.add_argument(
        "--log-calls",
        type=_parse_count,
        default=0,
        metavar="N",
        help="Log each call, at most N in a second; 0: no calls. (%(default)s)",
    )
    parser.add_argument(
        "--otlp",
        metavar="ENDPOINT",
        help="Export spans to this OTLP receiver, such as http://127.0.0.1:4317.",
    )


def read_arguments(options: argparse.Namespace) -> Telemetry:
    """Return the `Telemetry` of a parsed command line."""
    return Telemetry(options.log_format, options.log_calls, options.otlp)


def _parse_count(text: str) -> int:
    count = int(text)
    if not 0 <= count <= 100_000:
        raise argparse.ArgumentTypeError("must be 0 to 100000")
    return count


class Observer:
    """Begins the observation of each call of one server. Thread-safe."""

    def __init__(self, service: str, settings: Telemetry) -> None:
        """Set up the log and the spans.

        Args:
            service: Name of the server in spans.
            settings: What to tell.

        Raises:
            ConfigError: Spans are asked for and the extra `tracing` is not installed, or the address is not valid.
        """
        self._tracing = Tracing(service, settings.otlp) if settings.otlp else None
        self._most = settings.log_calls
        self._logger = logging.getLogger(CALLS)
        self._logger.setLevel(logging.INFO)
        self._lock = threading.Lock()
        self._second, self._written, self._left_out = 0, 0, 0

    def begin(self, rpc: str, metadata: Iterable[Any]) -> "Observation | None":
        """Begin a call; None if nobody asked for lines or spans, or it only asks for health, as `cxr serve` often does.

        Args:
            rpc: Name of the call, of a fixed list.
            metadata: Pairs of name and value that came with it.
        """
        _onward.set(None)  # of the call before, in a thread that answers many
        if rpc == HEALTH or (not self._most and self._tracing is None):
            return None
        sent = {name: value for name, value in metadata if name in (REQUEST_ID, TRACEPARENT)}
        return Observation(self, rpc, sent, self._tracing.start(rpc, sent) if self._tracing else None)

    def write(self, line: str, fields: dict[str, Any]) -> None:
        """Write a line about a call, unless the second is full."""
        with self._lock:
            second = int(time.monotonic())
            if second != self._second:
                self._second, self._written = second, 0
            if self._written >= self._most:
                self._left_out += 1
                return
            self._written += 1
            left_out, self._left_out = self._left_out, 0
        if left_out and self._most:
            fields = {**fields, "left_out": left_out}
            line = f"{line} ({left_out} lines before it left out)"
        self._logger.info(line, extra={"fields": fields})

    def close(self) -> None:
        """Send the spans that are left."""
        if self._tracing is not None:
            self._tracing.close()


class Observation:
    """One call that runs."""

    def __init__(self, observer: Observer, rpc: str, sent: dict[str, Any], span: Span | None) -> None:
        """Read the identifiers that the caller sent."""
        self._observer, self._rpc, self._span = observer, rpc, span
        self._began = time.monotonic()
        given = sent.get(REQUEST_ID)
        valid = isinstance(given, str) and _ID.fullmatch(given)
        self._request_id = given if valid else uuid.uuid4().hex
        self._trace_id = span.trace_id if span else read_trace_id(sent.get(TRACEPARENT))
        _onward.set(span.header if span else None)

    def end(self, status: str, request_bytes: int, answer_bytes: int) -> None:
        """Write the line and end the span.

        Args:
            status: Name of the gRPC status.
            request_bytes: Size of the message; 0 if it was not read.
            answer_bytes: Size of the answer; 0 if there is none.
        """
        milliseconds = round(1000 * (time.monotonic() - self._began), 3)
        fields = {
            "rpc": self._rpc,
            "status": status,
            "ms": milliseconds,
            "request_bytes": request_bytes,
            "answer_bytes": answer_bytes,
            "request_id": self._request_id,
        }
        line = (
            f"{self._rpc} {status} {milliseconds} ms, {request_bytes} bytes, answer {answer_bytes} bytes, request "
            f"{self._request_id}"
        )
        if self._trace_id:
            fields["trace_id"] = self._trace_id
            line += f", trace {self._trace_id}"
        if self._span is not None:
            self._span.end(status, request_bytes, answer_bytes)
        self._observer.write(line, fields)


def replace_traceparent(metadata: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the metadata of a call to another server. Its `traceparent` names the span of the call that runs here."""
    header = _onward.get()
    if header is None:
        return list(metadata)
    return [(name, value) for name, value in metadata if name != TRACEPARENT] + [(TRACEPARENT, header)]


def set_up_log(settings: Telemetry) -> None:
    """Write the log of this process to standard error: warnings, errors and, if asked for, calls."""
    logging.basicConfig(format=_TEXT_FORMAT, level=logging.WARNING)
    if settings.log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_JsonFormatter())


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return a line of JSON. Of an exception it holds the type alone, because its text may quote a report."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        values = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            values["exception"] = record.exc_info[0].__name__
        return json.dumps(values)
