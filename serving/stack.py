"""Triton, the relay in front of it and the retrieval sidecar, started, watched and stopped together on one machine.

    with Stack(Path("repository"), Path("store"), log_dir=Path("logs")) as stack:
        stack.wait_ready()
        ...  # clients use stack.triton_url and stack.retrieval_url
        stack.wait()  # brings back what ends (serving.supervisor), until Ctrl-C

All answer on 127.0.0.1 only and die with this process, however it dies.
"""

import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from contract.address import CHANNEL_OPTIONS
from contract.errors import ArtifactError, ConfigError, CxrError, DeadlineError, ServiceError
from contract.probe_case import PROBED
from contract.repository import read_published, verify
from serving.assembly import Assembly, assemble
from serving.health import HealthServer
from serving.ports import LOOPBACK, Ports, is_listening
from serving.probe import ask_all, is_triton_ready
from serving.process import ChildProcess, wait_until
from serving.relay import MOST_RUNNING, QUEUED_BY_TRITON, is_up
from serving.runtime import LogsLock, show_path
from serving.supervisor import Part, Say
from serving.triton import (
    ADMIN_KEY_FILE,
    EXIT_TIMEOUT_S,
    INSTALL_HINT,
    TritonAddresses,
    build_command,
    find_triton,
    list_import_paths,
    make_admin_key,
    name_regions,
    protect_regions,
    read_fingerprint,
    remove_regions,
    write_socket_url,
)
from serving.watch import HealthWatch, TritonWatch

__all__ = ["Ports", "Stack", "find_reason", "is_sidecar_ready", "is_triton_ready"]

_PROBE_TIMEOUT_S: Final = 1.0
_MOST_ABORTS: Final = 2
_FIRST_ANSWER_S: Final = 60.0
_WATCH_S: Final = 0.25
_TRITON: Final = "Triton"
_SIDECAR: Final = "The retrieval sidecar"
_RELAY: Final = "The relay in front of Triton"
_SIDECAR_ERRORS: Final[dict[int, type[CxrError]]] = {
    error.exit_code: error for error in (ConfigError, ArtifactError)
}
_TRITON_PREFIX: Final = re.compile(r"^[IWEF]\d{4} \S+ \d+ \S+\] ")  # E1124 02:44:48.12 99 model.cc:12]
_STOP_TIMEOUT_S: Final = EXIT_TIMEOUT_S + 2.0


class Stack:
    """Triton and the sidecar over one published model repository and one case store."""

    def __init__(
        self,
        repository: Path,
        store: Path,
        *,
        ports: Ports | None = None,
        log_dir: Path,
        http_inference: bool = False,
    ) -> None:
        """Describe the stack; nothing runs yet.

        Args:
            repository: A published model repository.
            store: Directory of the case store; the sidecar makes it if needed.
            ports: Where to listen; None means 8000 to 8002 and 8005.
            log_dir: Receives triton.log, relay.log, retrieval.log and the admin key; made if needed. A running stack
                has it to itself.
            http_inference: Open Triton's own HTTP front end on the HTTP port, for trusted callers alone (see
                `serving.triton.build_command`). Without it the port answers questions about health and nothing else.
        """
        self.repository = Path(repository).resolve()
        self.store = Path(store).resolve()
        self.ports = ports or Ports()
        self.log_dir = Path(log_dir).resolve()
        self.http_inference = http_inference
        self._children: list[ChildProcess] = []
        self._parts: list[Part] = []
        self._lock: LogsLock | None = None
        self._health: HealthServer | None = None
        self._assembly: Assembly | None = None
        self._admin_key = ""
        self._ready = False
        self._aborts = 0

    @property
    def triton_url(self) -> str:
        """Address of Triton's gRPC service, host:port."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Address that answers health over HTTP, host:port; Triton's own HTTP service with `http_inference`."""
        return f"{LOOPBACK}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Page with Triton's Prometheus metrics."""
        return f"http://{LOOPBACK}:{self.ports.metrics}/metrics"

    @property
    def retrieval_url(self) -> str:
        """Address of the sidecar's gRPC service, host:port."""
        return f"{LOOPBACK}:{self.ports.retrieval}"

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the served model; ArtifactError if the repository is not a published one."""
        return read_fingerprint(self.repository)

    @property
    def admin_key_path(self) -> Path:
        """File with the key that loading a new version takes (`serving.reload`); written at the start."""
        return self.log_dir / "runtime" / ADMIN_KEY_FILE

    def describe(self) -> dict[str, str]:
        """Return what a person or a program needs to call the stack: addresses, model and logs."""
        return {
            "triton": self.triton_url,
            ("triton_http" if self.http_inference else "health"): f"http://{self.http_url}/v2/health/ready",
            "metrics": self.metrics_url,
            "retrieval": self.retrieval_url,
            "fingerprint": self.fingerprint,
            "logs": show_path(self.log_dir),
            "admin_key": show_path(self.admin_key_path),
        }

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the servers that run, by name."""
        return {child.name: child.pid for child in self._children if child.pid and child.running}

    def start(self) -> None:
        """Start both servers; returns before they are ready. On any error nothing is left running.

        Raises:
            ArtifactError: The repository is not a published one, or a file of it is damaged.
            ConfigError: A port is in use, a directory cannot be written or a package is missing.
            ServiceError: The stack was started already, or a server cannot be started.
        """
        if self._children:
            raise ServiceError("The stack was started already.")
        try:
            self._prepare()
            for build in (self._build_triton, self._build_sidecar, self._build_relay):
                self._children.append(build())
                self._children[-1].start()
            self._note_children()
            if not self.http_inference:
                self._health = HealthServer(self.ports.http, self._answers_health)
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, timeout_s: float = 180.0) -> float:
        """Wait until both servers answer as ready, Triton with a real inference, and stop them if they do not.

        Args:
            timeout_s: How long both together may take.

        Returns:
            Seconds waited.

        Raises:
            ServiceError: The stack is not started, or a server ended; names its reason and its log.
            DeadlineError: A server is not ready in time; names its log.
        """
        if not self._children:
            raise ServiceError("The stack is not started.")
        began = time.monotonic()
        try:
            while waiting := [child for child in self._children if not self._answers(child)]:
                self._start_aborted_again()
                self.check()
                if not wait_until(began + timeout_s):
                    names = " and ".join(child.name for child in waiting)
                    logs = ", ".join(str(child.log_path) for child in waiting)
                    raise DeadlineError(f"{names} not ready after {timeout_s:g} s; see {logs}.")
            self.check()  # a server of somebody else may have taken the port and answered
            protect_regions(name_regions(self.log_dir))
            ask_all(self.triton_url, _FIRST_ANSWER_S, self._list_probed())
            self._ready = True
        except BaseException:
            self.stop()
            raise
        return time.monotonic() - began

    def _start_aborted_again(self) -> None:
        """Start Triton again, twice at most, where a signal ended its start.

        Triton 2.51 aborts when one of its python processes gets no processor for a second.
        """
        triton = self._children[0]
        if triton.exit_code is None or triton.exit_code >= 0 or self._aborts == _MOST_ABORTS:
            return
        self._aborts += 1
        triton.stop(0.0)
        self._remove_regions()
        self._children[0] = self._build_triton()
        self._children[0].start()
        self._note_children()

    def check(self) -> None:
        """Raise ServiceError, with the reason and the log, if a server has ended.

        The sidecar ends with this project's exit codes: then it is the ConfigError or ArtifactError it met.
        """
        for child in self._children:
            if child.exit_code is None:
                continue
            kind = (
                _SIDECAR_ERRORS.get(child.exit_code, ServiceError) if child.name == _SIDECAR else ServiceError
            )
            # The last line of a server that was killed says what it did before, not why it ended.
            reason = f": {find_reason(child.read_tail(400))}" if child.exit_code > 0 else ""
            raise kind(f"{child.name} {child.describe_end()}{reason} (log: {show_path(child.log_path)})")

    def wait(self, say: Say = print) -> None:
        """Keep both servers up until Ctrl-C: what ends or stands still is started again (`serving.supervisor`).

        Args:
            say: Is told, one sentence each, what ended and what answers again.
        """
        self._parts = [self._make_triton_part(), self._make_sidecar_part(), self._make_relay_part()]
        for part in self._parts:
            part.begin()
        while True:
            protect_regions(name_regions(self.log_dir))  # a start and a new version make new ones
            for place, part in enumerate(self._parts):
                before = part.child
                part.step(say)
                if part.child is not before:
                    self._children[place] = part.child
                    self._note_children()
            time.sleep(_WATCH_S)

    def stop(self) -> None:
        """End both servers and everything they started; may be called at any time and repeatedly."""
        self._ready = False
        try:
            for child in self._children:
                child.request_stop()
        finally:
            try:
                self._stop_children(time.monotonic() + _STOP_TIMEOUT_S)
            finally:
                self._release()

    def __enter__(self) -> "Stack":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _stop_children(self, deadline: float) -> None:
        # Recursion, so that an interrupt while one child is awaited still stops the others.
        while self._children:
            child = self._children[-1]
            try:
                child.stop(max(0.1, deadline - time.monotonic()))
            except BaseException:
                deadline = 0.0
                self._children.pop()
                self._stop_children(deadline)
                raise
            self._children.pop()

    def _prepare(self) -> None:
        """Take the logs folder, end what a killed stack left in it, and lay out what Triton runs from."""
        installation = find_triton()
        _ = self.fingerprint  # before anything is started: is this a published repository at all?
        self._lock = LogsLock(self.log_dir)
        self._lock.end_leftovers()
        self._remove_regions()
        self.ports.require_free()
        self._assembly = assemble(installation)
        self._admin_key = make_admin_key(self.admin_key_path)

    def _build_triton(self) -> ChildProcess:
        assert self._assembly is not None
        if not self._assembly.is_whole:  # something tidied up the temporary files
            fallen, self._assembly = self._assembly, assemble(find_triton())
            fallen.folder.close()
            self._end_relay()  # it knows the old socket only
        published = verify(self.repository)  # is every file what was published?
        return ChildProcess(
            _TRITON,
            build_command(
                self._assembly.installation,
                self._assembly.folder.link("repository", self.repository),
                self._assembly.backends,
                TritonAddresses(self._assembly.socket, self.ports.http, self.ports.metrics),
                name_regions(self.log_dir),
                self._admin_key,
                rate_limited=published.rate_limited,
                http_inference=self.http_inference,
            ),
            log_path=self.log_dir / "triton.log",
            environment=self._assembly.environment,
            directory=self._assembly.empty,
            keep_log=self._ready or self._aborts > 0,
        )

    def _build_sidecar(self) -> ChildProcess:
        options = [
            "--store",
            str(self.store),
            "--address",
            self.retrieval_url,
            "--fingerprint",
            self.fingerprint,
        ]
        return self._build_python(_SIDECAR, "retrieval.server", options, "retrieval.log")

    def _build_relay(self) -> ChildProcess:
        queues = read_published(self.repository).to_dict().get("variant") == "throughput"
        options = ["--listen", self.triton_url, "--triton", self._own_url]
        options += ["--running", str(QUEUED_BY_TRITON if queues else MOST_RUNNING)]
        return self._build_python(_RELAY, "serving.relay", options, "relay.log")

    def _build_python(self, name: str, module: str, options: list[str], log: str) -> ChildProcess:
        # -P: no folder of the module's name in the current directory takes the place of this project's.
        return ChildProcess(
            name,
            [sys.executable, "-P", "-m", module, *options],
            log_path=self.log_dir / log,
            environment={**os.environ, "PYTHONPATH": os.pathsep.join(list_import_paths())},
            keep_log=self._ready,
        )

    def _end_relay(self) -> None:
        """End the relay, which `wait` then starts again."""
        for child in self._children:
            if child.name == _RELAY:
                child.stop(_PROBE_TIMEOUT_S)

    def _make_triton_part(self) -> Part:
        ports = [self.ports.metrics, *([self.ports.http] if self.http_inference else [])]
        return Part(
            _TRITON,
            self._children[0],
            build=self._build_triton,
            watch=lambda child, up: TritonWatch(self._own_url, child.pid or 0, self._list_probed(), up=up),
            ports=ports,
            clean=self._remove_regions,
        )

    def _make_sidecar_part(self) -> Part:
        is_ready = partial(is_sidecar_ready, self.retrieval_url)
        return self._make_python_part(self._children[1], self._build_sidecar, is_ready, self.ports.retrieval)

    def _make_relay_part(self) -> Part:
        is_ready = partial(is_up, self.triton_url)
        return self._make_python_part(self._children[2], self._build_relay, is_ready, self.ports.grpc)

    @staticmethod
    def _make_python_part(
        child: ChildProcess, build: Callable[[], ChildProcess], is_ready: Callable[[], bool], port: int
    ) -> Part:
        return Part(
            child.name,
            child,
            build=build,
            watch=lambda child, up: HealthWatch(is_ready, child.pid or 0, up=up),
            ports=[port],
            clean=lambda: None,
        )

    @property
    def _own_url(self) -> str:
        """Triton's gRPC address behind the relay."""
        assert self._assembly is not None
        return write_socket_url(self._assembly.socket)

    def _list_probed(self) -> list[str]:
        return [name for name in PROBED if (self.repository / name / "config.pbtxt").is_file()]

    def _answers_health(self, model: str | None) -> bool | None:
        """Answer for `serving.health`: does a model, or every one, infer?"""
        if model is not None and model not in self._list_probed():
            return None
        if not self._parts:
            return self._ready and self._children[0].running
        watch = self._parts[0].watch
        if not isinstance(watch, TritonWatch) or not self._parts[0].child.running:
            return False
        return watch.ready if model is None else watch.answers(model)

    def _answers(self, child: ChildProcess) -> bool:
        if child.name == _SIDECAR:
            return is_sidecar_ready(self.retrieval_url)
        if child.name == _RELAY:
            return is_up(self.triton_url)
        return is_triton_ready(self._own_url) and (not self.http_inference or is_listening(self.ports.http))

    def _note_children(self) -> None:
        if self._lock is not None:
            self._lock.write(child.pid for child in self._children if child.pid)

    def _remove_regions(self) -> None:
        remove_regions(name_regions(self.log_dir))

    def _release(self) -> None:
        """Give back all that is not a process."""
        for part in self._parts:
            part.close()
        self._parts = []
        health, self._health = self._health, None
        assembly, self._assembly = self._assembly, None
        lock, self._lock = self._lock, None
        if health is not None:
            health.close()
        if assembly is not None:
            assembly.folder.close()
        if lock is not None:
            self._remove_regions()
            lock.release()


def is_sidecar_ready(url: str) -> bool:
    """Ask the sidecar (grpc.health.v1) whether it serves.

    Raises:
        ConfigError: gRPC is not installed.
    """
    try:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc
    except ImportError as error:
        raise ConfigError(f"Serving needs the 'serve' extra: {INSTALL_HINT}.") from error
    with grpc.insecure_channel(url, options=CHANNEL_OPTIONS) as channel:
        try:
            request = health_pb2.HealthCheckRequest()
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_PROBE_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def find_reason(lines: list[str]) -> str:
    """Pick the log line that says why a server ended: the first error, else the last line."""
    for mark in ("failed to load", "TritonModelException"):
        for line in lines:
            if mark in line and "creating server" not in line:
                return _shorten(line)
    return _shorten(lines[-1]) if lines else "it wrote no log"


def _shorten(line: str, limit: int = 500) -> str:
    text = _TRITON_PREFIX.sub("", line).partition("\\n\\nAt:")[0]  # without the Python stack
    text = text.strip().strip('"')
    return text if len(text) <= limit else text[: limit - 1] + "…"
