"""Triton and the retrieval sidecar, started, watched and stopped together on one machine.

    with Stack(Path("repository"), Path("store"), log_dir=Path("logs")) as stack:
        stack.wait_ready()
        ...  # clients use stack.triton_url and stack.retrieval_url

Both answer on 127.0.0.1 only and die with this process, however it dies.
"""

import os
import re
import socket
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from contract.errors import ArtifactError, ConfigError, CxrError, DeadlineError, ServiceError
from serving.process import ChildProcess, wait_until
from serving.triton import (
    ADMIN_KEY_FILE,
    EXIT_TIMEOUT_S,
    INSTALL_HINT,
    TritonAddresses,
    assemble_backends,
    assemble_python,
    build_command,
    build_environment,
    find_triton,
    is_rate_limited,
    list_import_paths,
    make_admin_key,
    name_regions,
    read_fingerprint,
    remove_regions,
)

LOOPBACK: Final = "127.0.0.1"
_PROBE_TIMEOUT_S: Final = 1.0
_WATCH_S: Final = 0.5
_SIDECAR: Final = "The retrieval sidecar"
_SIDECAR_ERRORS: Final[dict[int, type[CxrError]]] = {
    error.exit_code: error for error in (ConfigError, ArtifactError)
}
_TRITON_PREFIX: Final = re.compile(r"^[IWEF]\d{4} \S+ \d+ \S+\] ")  # E1124 02:44:48.12 99 model.cc:12]
_STOP_TIMEOUT_S: Final = EXIT_TIMEOUT_S + 2.0


@dataclass(frozen=True)
class Ports:
    """TCP ports on loopback."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    retrieval: int = 8005

    @classmethod
    def free(cls) -> "Ports":
        """Choose four ports that nothing listens on now (another process may still take one)."""
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(4)]
        try:
            for entry in sockets:
                entry.bind((LOOPBACK, 0))
            return cls(*(int(entry.getsockname()[1]) for entry in sockets))
        finally:
            for entry in sockets:
                entry.close()

    def require_free(self) -> None:
        """Raise ConfigError, with the port, if two are equal, one is out of range or one is in use."""
        ports: tuple[int, ...] = astuple(self)
        for port in ports:
            if not 1 <= port <= 65535:
                raise ConfigError(f"Port {port} is outside 1 to 65535.")
            if ports.count(port) > 1:
                raise ConfigError(f"Port {port} is given twice: the four ports must differ.")
            _require_free(port)


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
            log_dir: Receives triton.log, retrieval.log and the assembled `runtime`; made if needed. A running
                stack has it to itself.
            http_inference: Open Triton's own HTTP front end on the HTTP port, for trusted callers alone (see
                `serving.triton.build_command`). Without it the port answers questions about health and nothing else.
        """
        self.repository = Path(repository).resolve()
        self.store = Path(store).resolve()
        self.ports = ports or Ports()
        self.log_dir = Path(log_dir).resolve()
        self.http_inference = http_inference
        self._children: list[ChildProcess] = []

    @property
    def triton_url(self) -> str:
        """Address of Triton's gRPC service, host:port."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Address of Triton's HTTP service, host:port."""
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
            "triton_http": self.http_url,
            "metrics": self.metrics_url,
            "retrieval": self.retrieval_url,
            "fingerprint": self.fingerprint,
            "logs": str(self.log_dir),
            "admin_key": str(self.admin_key_path),
        }

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the servers that run, by name."""
        return {child.name: child.pid for child in self._children if child.pid and child.running}

    def start(self) -> None:
        """Start both servers; returns before they are ready. On any error nothing is left running.

        Raises:
            ArtifactError: The repository is not a published one.
            ConfigError: A port is in use, a directory cannot be written or a package is missing.
            ServiceError: The stack was started already, or a server cannot be started.
        """
        if self._children:
            raise ServiceError("The stack was started already.")
        try:
            self.ports.require_free()
            self._prepare_log_dir()
            children = [self._build_triton(), self._build_sidecar()]
            for child in children:
                self._children.append(child)
                child.start()
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, timeout_s: float = 180.0) -> float:
        """Wait until both servers answer as ready, and stop them if they do not.

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
        waiting = list(self._children)
        try:
            while waiting := [child for child in waiting if not self._answers(child)]:
                self.check()
                if not wait_until(began + timeout_s):
                    names = " and ".join(child.name for child in waiting)
                    logs = ", ".join(str(child.log_path) for child in waiting)
                    raise DeadlineError(f"{names} not ready after {timeout_s:g} s; see {logs}.")
            self.check()  # a server of somebody else may have taken the port and answered
        except BaseException:
            self.stop()
            raise
        return time.monotonic() - began

    def check(self) -> None:
        """Raise ServiceError, with the reason and the log, if a server has ended.

        The sidecar ends with this project's exit codes: then it is the ConfigError or ArtifactError it met.
        """
        for child in self._children:
            if child.exit_code is not None:
                kind = _SIDECAR_ERRORS.get(child.exit_code, ServiceError)
                raise (kind if child.name == _SIDECAR else ServiceError)(
                    f"{child.name} ended with code {child.exit_code}: {find_reason(child.read_tail(400))} "
                    f"(log: {child.log_path})"
                )

    def wait(self) -> None:
        """Block while both servers run; Ctrl-C ends it.

        Raises:
            ServiceError: A server has ended; names its reason and its log.
        """
        while True:
            self.check()
            time.sleep(_WATCH_S)

    def stop(self) -> None:
        """End both servers and everything they started; may be called at any time and repeatedly."""
        try:
            for child in self._children:
                child.request_stop()
        finally:
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            self._stop_children(deadline)
            remove_regions(name_regions(self.log_dir))

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

    def _prepare_log_dir(self) -> None:
        remove_regions(name_regions(self.log_dir))  # of an earlier stack that was killed
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.log_dir} cannot be written: {error.strerror}.") from error

    def _build_triton(self) -> ChildProcess:
        installation = find_triton()
        _ = self.fingerprint  # before anything is started: is this a published repository at all?
        runtime = self.log_dir / "runtime"
        backends = assemble_backends(installation, runtime / "backends")
        python = assemble_python(runtime / "python")
        addresses = TritonAddresses(self.ports.http, self.ports.grpc, self.ports.metrics)
        return ChildProcess(
            "Triton",
            build_command(
                installation,
                self.repository,
                backends,
                addresses,
                name_regions(self.log_dir),
                make_admin_key(self.admin_key_path),
                rate_limited=is_rate_limited(self.repository),
                http_inference=self.http_inference,
            ),
            log_path=self.log_dir / "triton.log",
            environment=build_environment(installation, python),
            directory=runtime,  # the models import from the current directory first: one without surprises
        )

    def _build_sidecar(self) -> ChildProcess:
        # -P: no `retrieval` folder in the current directory takes the place of this project's.
        command = [sys.executable, "-P", "-m", "retrieval.server", "--store", str(self.store)]
        command += ["--address", self.retrieval_url, "--fingerprint", self.fingerprint]
        return ChildProcess(
            _SIDECAR,
            command,
            log_path=self.log_dir / "retrieval.log",
            environment={**os.environ, "PYTHONPATH": os.pathsep.join(list_import_paths())},
        )

    def _answers(self, child: ChildProcess) -> bool:
        if child.name == "Triton":
            return is_triton_ready(self.triton_url)
        return is_sidecar_ready(self.retrieval_url)


def is_triton_ready(url: str) -> bool:
    """Ask Triton (KServe v2, ServerReady) whether it and all its models are ready."""
    client = triton.InferenceServerClient(url, channel_args=[("grpc.enable_http_proxy", 0)])
    try:
        return bool(client.is_server_ready(client_timeout=_PROBE_TIMEOUT_S))
    except InferenceServerException:
        return False
    finally:
        client.close()


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
    with grpc.insecure_channel(url, options=[("grpc.enable_http_proxy", 0)]) as channel:
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


def _require_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ConfigError(
                f"Port {port} on {LOOPBACK} is in use ({error.strerror}): stop what listens there or "
                "choose another port."
            ) from error
