"""Start, watch and stop Triton, its relay and the retrieval sidecar together on one machine.

    with Stack(Path("repository"), Path("store"), log_dir=Path("logs")) as stack:
        stack.wait_ready()
        ...  # clients use stack.triton_url and stack.retrieval_url
        stack.wait()  # restarts servers that end (serving.supervisor), until Ctrl-C

The servers listen on 127.0.0.1, or on another address with TLS and tokens (`contract.protection`). Triton itself and
its metrics stay on this machine. All servers end with this process, however it ends.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from contract.connection import PLAIN, is_local_host, quiet_grpc
from contract.errors import ArtifactError, ConfigError, CxrError, DeadlineError, ServiceError
from contract.probe_case import PROBED
from contract.protection import UNPROTECTED, Protection
from contract.repository import read_published, verify
from contract.signatures import TrustedKeys
from contract.telemetry import Telemetry
from serving.assembly import Assembly, assemble
from serving.health import HealthServer
from serving.ports import LOOPBACK, Ports, find_near_host, is_listening, join_address
from serving.probe import ask_all, is_sidecar_ready, is_triton_ready
from serving.process import ChildProcess, find_reason, wait_until
from serving.relay import is_up
from serving.runtime import LogsLock, show_path
from serving.supervisor import Part, Say
from serving.triton import (
    ADMIN_KEY_FILE,
    EXIT_TIMEOUT_S,
    TritonAddresses,
    build_command,
    copy_environment,
    find_triton,
    list_import_paths,
    make_admin_key,
    name_regions,
    protect_regions,
    remove_regions,
    write_socket_url,
)
from serving.turns import MOST_RUNNING, QUEUED_BY_TRITON
from serving.watch import HealthWatch, TritonWatch

__all__ = ["IndexSettings", "Ports", "Stack"]

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
_STOP_TIMEOUT_S: Final = EXIT_TIMEOUT_S + 2.0


@dataclass(frozen=True)
class IndexSettings:
    """The kind of index that the sidecar should answer with, and the recall@10 (0 to 1) that it must reach."""

    kind: str = "flat"
    recall_floor: float = 0.95

    def to_arguments(self) -> list[str]:
        """Return the options of `python -m retrieval.server`."""
        return ["--index", self.kind, "--recall-floor", str(self.recall_floor)]


FLAT: Final = IndexSettings()


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
        host: str = LOOPBACK,
        metrics_host: str = LOOPBACK,
        index: IndexSettings = FLAT,
        protection: Protection = UNPROTECTED,
        telemetry: Telemetry | None = None,
        triton_otlp: str | None = None,
        trust: TrustedKeys | None = None,
    ) -> None:
        """Set up the stack; `start` starts it.

        Args:
            repository: A published model repository.
            store: Directory of the case store. The sidecar creates it if needed.
            ports: Ports to listen on. None: 8000 to 8002 and 8005, no metrics of the relay and the sidecar.
            log_dir: Directory for triton.log, relay.log, retrieval.log and the admin key. It is created if needed, and
                only one running stack may use it.
            http_inference: Open Triton's own HTTP front end on the HTTP port, only for trusted callers (see
                `serving.triton.build_command`). Without it the port answers only health requests. It is plain text on
                loopback.
            host: Address that the relay, the sidecar and the health service listen on.
            metrics_host: Address of the metrics of the relay and the sidecar. The relay passes on Triton's there.
            index: The sidecar's kind of index.
            protection: TLS, client certificates and tokens.
            telemetry: Log lines and spans of the relay and the sidecar. None: the defaults.
            triton_otlp: Where Triton exports its spans, as in `serving.triton.build_command`.
            trust: The keys of which one must have signed the repository, at each start of Triton and at each load of
                a model into it. None: no signature is needed.
        """
        self.telemetry = telemetry or Telemetry()
        self.triton_otlp = triton_otlp
        self.trust = trust
        self.repository = Path(repository).resolve()
        self.store = Path(store).resolve()
        self.ports = ports or Ports()
        self.log_dir = Path(log_dir).resolve()
        self.http_inference = http_inference
        self.host = host
        self.metrics_host = metrics_host
        self.index = index
        self.protection = replace(protection.resolve(), admin_key=self.admin_key_path)
        self.connection = PLAIN
        self._children: list[ChildProcess] = []
        self._parts: list[Part] = []
        self._lock: LogsLock | None = None
        self._health: HealthServer | None = None
        self._assembly: Assembly | None = None
        self._ready = False
        self._aborts = 0

    @property
    def triton_url(self) -> str:
        """Address of Triton's gRPC service for programs on this machine, host:port."""
        return join_address(find_near_host(self.host), self.ports.grpc)

    @property
    def http_url(self) -> str:
        """Address of the HTTP health service, host:port; with `http_inference`, of Triton's own HTTP service."""
        return join_address(find_near_host(self.host), self.ports.http)

    @property
    def metrics_url(self) -> str:
        """Page with Triton's Prometheus metrics."""
        return f"http://{LOOPBACK}:{self.ports.metrics}/metrics"

    @property
    def retrieval_url(self) -> str:
        """Address of the sidecar's gRPC service for programs on this machine, host:port."""
        return join_address(find_near_host(self.host), self.ports.retrieval)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the served model. Raise ArtifactError if the repository is not a published one."""
        return read_published(self.repository, self.trust).fingerprint

    @property
    def admin_key_path(self) -> Path:
        """File with the key for loading a new version (`serving.reload`). It is written at the start."""
        return self.log_dir / "runtime" / ADMIN_KEY_FILE

    def describe(self) -> dict[str, str]:
        """Return the addresses, the protection, the model and the logs of the stack."""
        scheme = "http" if self.protection.tls_dir is None else "https"
        return {
            "triton": self.triton_url,
            (
                "triton_http" if self.http_inference else "health"
            ): f"{scheme}://{self.http_url}/v2/health/ready",
            "metrics": self.metrics_url,
            **self._list_metrics(),
            "retrieval": self.retrieval_url,
            "listens_on": self.host,
            "protection": self.protection.describe(),
            "fingerprint": self.fingerprint,
            "logs": show_path(self.log_dir),
            "admin_key": show_path(self.admin_key_path),
        }

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the running servers, by name."""
        return {child.name: child.pid for child in self._children if child.pid and child.running}

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
            self._prepare()
            for build in (self._build_triton, self._build_sidecar, self._build_relay):
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
            ask_all(self.triton_url, _FIRST_ANSWER_S, self._list_probed(), self.connection)
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
        self._children[0] = self._build_triton()
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
                _SIDECAR_ERRORS.get(child.exit_code, ServiceError) if child.name == _SIDECAR else ServiceError
            )
            # The last log line of a killed server does not say why it ended.
            reason = f": {find_reason(child.read_tail(400))}" if child.exit_code > 0 else ""
            raise kind(f"{child.name} {child.describe_end()}{reason} (log: {show_path(child.log_path)})")

    def wait(self, say: Say = print) -> None:
        """Keep the servers running until Ctrl-C. A server that ends or hangs is restarted (`serving.supervisor`).

        Args:
            say: Receives a sentence when a server ends and when it answers again.
        """
        self._parts = [self._make_triton_part(), self._make_sidecar_part(), self._make_relay_part()]
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

    def _prepare(self) -> None:
        """Lock the logs folder, end the servers of a killed stack, and prepare the folder that Triton runs from."""
        installation = find_triton()
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
        self._assembly = assemble(installation)
        self.connection = self.protection.make_connection(make_admin_key(self.admin_key_path))

    def _build_triton(self) -> ChildProcess:
        assert self._assembly is not None
        if not self._assembly.is_whole:  # the temporary files were deleted
            fallen, self._assembly = self._assembly, assemble(find_triton())
            fallen.folder.close()
            self._end_relay()  # it knows only the old socket
        published = verify(self.repository, self.trust)  # raises if a file differs from the published one
        return ChildProcess(
            _TRITON,
            build_command(
                self._assembly.installation,
                self._assembly.folder.link("repository", self.repository),
                self._assembly.backends,
                TritonAddresses(self._assembly.socket, self.ports.http, self.ports.metrics),
                name_regions(self.log_dir),
                rate_limited=published.rate_limited,
                http_inference=self.http_inference,
                otlp=self.triton_otlp,
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
            join_address(self.host, self.ports.retrieval),
            "--fingerprint",
            self.fingerprint,
            *self.index.to_arguments(),
            *self.protection.to_arguments(),
            *self._choose_metrics(self.ports.retrieval_metrics),
            *self.telemetry.to_arguments(),
        ]
        return self._build_python(_SIDECAR, "retrieval.server", options, "retrieval.log")

    def _build_relay(self) -> ChildProcess:
        queues = read_published(self.repository, self.trust).to_dict().get("variant") == "throughput"
        options = ["--listen", join_address(self.host, self.ports.grpc), "--triton", self.own_url]
        options += [*self.protection.to_arguments(), *self.telemetry.to_arguments()]
        options += [*self._choose_metrics(self.ports.relay_metrics), "--triton-metrics", self.metrics_url]
        if self.trust is not None:
            options += [*self.trust.to_arguments(), "--repository", str(self.repository)]
        options += ["--running", str(QUEUED_BY_TRITON if queues else MOST_RUNNING)]
        return self._build_python(_RELAY, "serving.relay", options, "relay.log")

    def _choose_metrics(self, port: int) -> list[str]:
        """Return the options of a server for its metrics."""
        return ["--metrics-port", str(port), "--metrics-host", self.metrics_host]

    def _list_metrics(self) -> dict[str, str]:
        """Return the pages of metrics of the relay and the sidecar, as programs on this machine read them."""
        scheme = "http" if self.protection.tls_dir is None else "https"
        ports = {"relay_metrics": self.ports.relay_metrics, "retrieval_metrics": self.ports.retrieval_metrics}
        host = find_near_host(self.metrics_host)
        return {
            name: f"{scheme}://{join_address(host, port)}/metrics" for name, port in ports.items() if port
        }

    def _build_python(self, name: str, module: str, options: list[str], log: str) -> ChildProcess:
        # -P: ignore a folder with the module's name in the current directory.
        environment = copy_environment()
        environment["PYTHONPATH"] = os.pathsep.join(list_import_paths())
        quiet_grpc(environment)
        return ChildProcess(
            name,
            [sys.executable, "-P", "-m", module, *options],
            log_path=self.log_dir / log,
            environment=environment,
            keep_log=self._ready,
        )

    def _end_relay(self) -> None:
        """End the relay. `wait` starts it again."""
        for child in self._children:
            if child.name == _RELAY:
                child.stop(_PROBE_TIMEOUT_S)

    def _make_triton_part(self) -> Part:
        ports = [self.ports.metrics, *([self.ports.http] if self.http_inference else [])]
        return Part(
            _TRITON,
            self._children[0],
            build=self._build_triton,
            watch=lambda child, up: TritonWatch(self.own_url, child.pid or 0, self._list_probed(), up=up),
            ports=ports,
            clean=self._remove_regions,
        )

    def _make_sidecar_part(self) -> Part:
        is_ready = partial(is_sidecar_ready, self.retrieval_url, self.connection)
        ports = [self.ports.retrieval, self.ports.retrieval_metrics]
        return self._make_python_part(self._children[1], self._build_sidecar, is_ready, ports)

    def _make_relay_part(self) -> Part:
        is_ready = partial(is_up, self.triton_url, self.connection)
        ports = [self.ports.grpc, self.ports.relay_metrics]
        return self._make_python_part(self._children[2], self._build_relay, is_ready, ports)

    @staticmethod
    def _make_python_part(
        child: ChildProcess, build: Callable[[], ChildProcess], is_ready: Callable[[], bool], ports: list[int]
    ) -> Part:
        return Part(
            child.name,
            child,
            build=build,
            watch=lambda child, up: HealthWatch(is_ready, child.pid or 0, up=up),
            ports=[port for port in ports if port],
            clean=lambda: None,
        )

    @property
    def own_url(self) -> str:
        """Triton's own gRPC address behind the relay, a socket file. The stack was started."""
        assert self._assembly is not None
        return write_socket_url(self._assembly.socket)

    def _list_probed(self) -> list[str]:
        return [name for name in PROBED if (self.repository / name / "config.pbtxt").is_file()]

    def _answers_health(self, model: str | None) -> bool | None:
        """Return, for `serving.health`, whether a model, or every model, infers."""
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
            return is_sidecar_ready(self.retrieval_url, self.connection)
        if child.name == _RELAY:
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
        assembly, self._assembly = self._assembly, None
        lock, self._lock = self._lock, None
        if health is not None:
            health.close()
        if assembly is not None:
            assembly.folder.close()
        if lock is not None:
            self._remove_regions()
            lock.release()
