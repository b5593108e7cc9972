"""Start, watch and stop Triton, its relay and the retrieval sidecar together on one machine.

    with Stack(Path("repository"), Path("store"), log_dir=Path("logs")) as stack:
        stack.wait_ready()
        ...  # clients use stack.triton_url and stack.retrieval_url
        stack.wait()  # restarts servers that end (serving.supervisor), until Ctrl-C

The servers listen on 127.0.0.1, or on another address with TLS and tokens (`contract.protection`). Triton itself and
its metrics stay on this machine. All servers end with this process, however it ends.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Final

from contract.connection import PLAIN, is_local_host
from contract.errors import ArtifactError, ConfigError, CxrError, DeadlineError, ServiceError
from contract.repository import read_published
from serving.health import HealthServer
from serving.ports import Ports, is_listening
from serving.probe import ask_all, is_sidecar_ready, is_triton_ready
from serving.process import ChildProcess, find_reason, wait_until
from serving.relay import is_up
from serving.runtime import LogsLock, show_path
from serving.servers import RELAY, SIDECAR, TRITON, Servers
from serving.stack_settings import IndexSettings, StackSettings
from serving.supervisor import Part, Say
from serving.triton import (
    EXIT_TIMEOUT_S,
    find_triton,
    make_admin_key,
    name_regions,
    protect_regions,
    remove_regions,
)
from serving.watch import HealthWatch, TritonWatch

__all__ = ["IndexSettings", "Ports", "Stack"]

_PROBE_TIMEOUT_S: Final = 1.0
_MOST_ABORTS: Final = 2
_FIRST_ANSWER_S: Final = 60.0
_WATCH_S: Final = 0.25
_SIDECAR_ERRORS: Final[dict[int, type[CxrError]]] = {
    error.exit_code: error for error in (ConfigError, ArtifactError)
}
_STOP_TIMEOUT_S: Final = EXIT_TIMEOUT_S + 2.0


class Stack(StackSettings):
    """Triton and the sidecar over one published model repository and one case store."""

    def __post_init__(self) -> None:
        """Set up the stack; `start` starts it. The arguments are those of `StackSettings`."""
        super().__post_init__()
        self.connection = PLAIN
        self._children: list[ChildProcess] = []
        self._parts: list[Part] = []
        self._lock: LogsLock | None = None
        self._health: HealthServer | None = None
        self._servers: Servers | None = None
        self._ready = False
        self._aborts = 0

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the running servers, by name."""
        return {child.name: child.pid for child in self._children if child.pid and child.running}

    @property
    def own_url(self) -> str:
        """Triton's own gRPC address behind the relay, a socket file. The stack was started."""
        return self._get_servers().socket_url

    def start(self) -> None:
        """Start the servers and return before they are ready. On any error no server keeps running.

        Raises:
            ArtifactError: The repository is not a published one, or a file in it is damaged.
            ConfigError: A port is in use, a directory cannot be written or a package is missing.
            ServiceError: The stack is started already, or a server cannot be started.
        """
        if self._children:
            raise ServiceError("The stack was started already.")
        try:
            servers = self._prepare()
            for build in (servers.build_triton, servers.build_sidecar, servers.build_relay):
                self._children.append(build())
                self._children[-1].start()
            self._note_children()
            if not self.http_inference:
                self._health = HealthServer(
                    self.ports.http,
                    self._answers_health,
                    host=self.host,
                    context=self.protection.make_context(),
                )
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, timeout_s: float = 180.0) -> float:
        """Wait until both servers are ready, Triton with a real inference. Stop them if they are not ready in time.

        Args:
            timeout_s: Seconds for both together.

        Returns:
            The seconds waited.

        Raises:
            ServiceError: The stack is not started, or a server ended. The message gives the reason and the log.
            DeadlineError: A server is not ready in time. The message names its log.
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
            self.check()  # a foreign server may have taken the port and answered
            protect_regions(name_regions(self.log_dir))
            ask_all(self.triton_url, _FIRST_ANSWER_S, self.list_probed(), self.connection)
            self._ready = True
        except BaseException:
            self.stop()
            raise
        return time.monotonic() - began

    def _start_aborted_again(self) -> None:
        """Start Triton again, at most twice, if a signal ended its start.

        Triton 2.51 aborts if one of its python processes gets no processor time for a second.
        """
        triton = self._children[0]
        if triton.exit_code is None or triton.exit_code >= 0 or self._aborts == _MOST_ABORTS:
            return
        self._aborts += 1
        triton.stop(0.0)
        self._remove_regions()
        self._children[0] = self._get_servers().build_triton(keep_log=True)
        self._children[0].start()
        self._note_children()

    def check(self) -> None:
        """Raise ServiceError with the reason and the log if a server has ended.

        If the sidecar ended with one of this project's exit codes, raise its ConfigError or ArtifactError.
        """
        for child in self._children:
            if child.exit_code is None:
                continue
            kind = (
                _SIDECAR_ERRORS.get(child.exit_code, ServiceError) if child.name == SIDECAR else ServiceError
            )
            # The last log line of a killed server does not say why it ended.
            reason = f": {find_reason(child.read_tail(400))}" if child.exit_code > 0 else ""
            raise kind(f"{child.name} {child.describe_end()}{reason} (log: {show_path(child.log_path)})")

    def wait(self, say: Say = print) -> None:
        """Keep the servers running until Ctrl-C. A server that ends or hangs is restarted (`serving.supervisor`).

        Args:
            say: Receives a sentence when a server ends and when it answers again.
        """
        makers = (self._make_triton_part, self._make_sidecar_part, self._make_relay_part)
        self._parts = [make(self._get_servers()) for make in makers]
        for part in self._parts:
            part.begin()
        while True:
            protect_regions(name_regions(self.log_dir))  # a start and a new version create new regions
            for number, part in enumerate(self._parts):
                before = part.child
                part.step(say)
                if part.child is not before:
                    self._children[number] = part.child
                    self._note_children()
            time.sleep(_WATCH_S)

    def stop(self) -> None:
        """End all servers and everything they started. May be called at any time and repeatedly."""
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
        # Recursion, so that an interrupt during the wait for one child still stops the others.
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

    def _prepare(self) -> Servers:
        """Lock the logs folder, end the servers of a killed stack, and prepare the folder that Triton runs from."""
        find_triton()  # raises if it is not installed
        read_published(self.repository, self.trust)  # raises if this is not a published repository
        for host in (self.host, self.metrics_host):
            replace(self.protection, admin_key=None).check(host)
        self.protection.make_connection().make_credentials()
        if self.http_inference and (self.protection.tls_dir is not None or not is_local_host(self.host)):
            raise ConfigError(
                "--http-inference works only on loopback and without --tls-dir: Triton's HTTP has no TLS."
            )
        self._lock = LogsLock(self.log_dir)
        self._lock.end_leftovers()
        self._remove_regions()
        self.ports.require_free(self.host, self.metrics_host)
        self._servers = Servers(self, leave_socket=self._end_relay)
        self.connection = self.protection.make_connection(make_admin_key(self.admin_key_path))
        return self._servers

    def _get_servers(self) -> Servers:
        assert self._servers is not None, "the stack is not started"
        return self._servers

    def _end_relay(self) -> None:
        """End the relay. `wait` starts it again."""
        for child in self._children:
            if child.name == RELAY:
                child.stop(_PROBE_TIMEOUT_S)

    def _make_triton_part(self, servers: Servers) -> Part:
        ports = [self.ports.metrics, *([self.ports.http] if self.http_inference else [])]
        return Part(
            TRITON,
            self._children[0],
            build=partial(servers.build_triton, keep_log=True),
            watch=lambda child, up: TritonWatch(
                servers.socket_url, child.pid or 0, self.list_probed(), up=up
            ),
            ports=ports,
            clean=self._remove_regions,
        )

    def _make_sidecar_part(self, servers: Servers) -> Part:
        is_ready = partial(is_sidecar_ready, self.retrieval_url, self.connection)
        ports = [self.ports.retrieval, self.ports.retrieval_metrics]
        return _make_python_part(self._children[1], servers.build_sidecar, is_ready, ports)

    def _make_relay_part(self, servers: Servers) -> Part:
        is_ready = partial(is_up, self.triton_url, self.connection)
        ports = [self.ports.grpc, self.ports.relay_metrics]
        return _make_python_part(self._children[2], servers.build_relay, is_ready, ports)

    def _answers_health(self, model: str | None) -> bool | None:
        """Return, for `serving.health`, whether a model, or every model, infers."""
        if model is not None and model not in self.list_probed():
            return None
        if not self._parts:
            return self._ready and self._children[0].running
        watch = self._parts[0].watch
        if not isinstance(watch, TritonWatch) or not self._parts[0].child.running:
            return False
        return watch.ready if model is None else watch.answers(model)

    def _answers(self, child: ChildProcess) -> bool:
        if child.name == SIDECAR:
            return is_sidecar_ready(self.retrieval_url, self.connection)
        if child.name == RELAY:
            return is_up(self.triton_url, self.connection)
        return is_triton_ready(self.own_url) and (not self.http_inference or is_listening(self.ports.http))

    def _note_children(self) -> None:
        if self._lock is not None:
            self._lock.write(child.pid for child in self._children if child.pid)

    def _remove_regions(self) -> None:
        remove_regions(name_regions(self.log_dir))

    def _release(self) -> None:
        """Release everything that is not a process."""
        for part in self._parts:
            part.close()
        self._parts = []
        health, self._health = self._health, None
        servers, self._servers = self._servers, None
        lock, self._lock = self._lock, None
        if health is not None:
            health.close()
        if servers is not None:
            servers.close()
        if lock is not None:
            self._remove_regions()
            lock.release()


def _make_python_part(
    child: ChildProcess, build: Callable[..., ChildProcess], is_ready: Callable[[], bool], ports: list[int]
) -> Part:
    return Part(
        child.name,
        child,
        build=partial(build, keep_log=True),
        watch=lambda child, up: HealthWatch(is_ready, child.pid or 0, up=up),
        ports=[port for port in ports if port],
        clean=lambda: None,
    )
