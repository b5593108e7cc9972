"""The processes of Triton, its relay and the retrieval sidecar: their commands, environments and logs."""

import os
import sys
from collections.abc import Callable
from typing import Final

from contract.connection import quiet_grpc
from contract.repository import read_published, verify
from serving.assembly import Assembly, assemble
from serving.ports import join_address
from serving.process import ChildProcess
from serving.stack_settings import StackSettings
from serving.triton import (
    TritonAddresses,
    build_command,
    copy_environment,
    find_triton,
    list_import_paths,
    name_regions,
    write_socket_url,
)
from serving.turns import MOST_RUNNING, QUEUED_BY_TRITON

TRITON: Final = "Triton"
SIDECAR: Final = "The retrieval sidecar"
RELAY: Final = "The relay in front of Triton"


class Servers:
    """Builds the processes of one stack. `ChildProcess.start` starts one."""

    def __init__(self, settings: StackSettings, leave_socket: Callable[[], None]) -> None:
        """Prepare the folder that Triton runs from.

        Args:
            settings: What is served and where.
            leave_socket: Called when Triton is about to move to another socket. It ends the relay, which knows only the
                old one.

        Raises:
            ConfigError: The bundled Triton is not installed, or cannot be started from any folder.
        """
        self._settings, self._leave_socket = settings, leave_socket
        self.assembly: Assembly = assemble(find_triton())

    @property
    def socket_url(self) -> str:
        """Triton's gRPC address behind the relay."""
        return write_socket_url(self.assembly.socket)

    def close(self) -> None:
        """Remove the folder."""
        self.assembly.folder.close()

    def build_triton(self, *, keep_log: bool = False) -> ChildProcess:
        """Return Triton, after a check of every file that it serves.

        Raises:
            ArtifactError: A file differs from the published one.
            ConfigError: As in the constructor, if the folder must be made again.
        """
        if not self.assembly.is_whole:  # the temporary files were deleted
            fallen, self.assembly = self.assembly, assemble(find_triton())
            fallen.folder.close()
            self._leave_socket()
        settings = self._settings
        published = verify(settings.repository, settings.trust)
        return ChildProcess(
            TRITON,
            build_command(
                self.assembly.installation,
                self.assembly.folder.link("repository", settings.repository),
                self.assembly.backends,
                TritonAddresses(self.assembly.socket, settings.ports.http, settings.ports.metrics),
                name_regions(settings.log_dir),
                rate_limited=published.rate_limited,
                http_inference=settings.http_inference,
                otlp=settings.triton_otlp,
            ),
            log_path=settings.log_dir / "triton.log",
            environment=self.assembly.environment,
            directory=self.assembly.empty,
            keep_log=keep_log,
        )

    def build_sidecar(self, *, keep_log: bool = False) -> ChildProcess:
        """Return the sidecar. ArtifactError: the repository is not a published one."""
        settings = self._settings
        options = [
            "--store",
            str(settings.store),
            "--address",
            join_address(settings.host, settings.ports.retrieval),
            "--fingerprint",
            settings.fingerprint,
            *settings.index.to_arguments(),
            *settings.protection.to_arguments(),
            *self._choose_metrics(settings.ports.retrieval_metrics),
            *settings.telemetry.to_arguments(),
        ]
        return build_python(
            settings, SIDECAR, "retrieval.server", options, "retrieval.log", keep_log=keep_log
        )

    def build_relay(self, *, keep_log: bool = False) -> ChildProcess:
        """Return the relay. ArtifactError: the repository is not a published one."""
        settings = self._settings
        published = read_published(settings.repository, settings.trust)
        queues = published.to_dict().get("variant") == "throughput"
        options = [
            "--listen",
            join_address(settings.host, settings.ports.grpc),
            "--triton",
            self.socket_url,
            *settings.protection.to_arguments(),
            *settings.telemetry.to_arguments(),
            *self._choose_metrics(settings.ports.relay_metrics),
            "--triton-metrics",
            settings.metrics_url,
            "--running",
            str(QUEUED_BY_TRITON if queues else MOST_RUNNING),
        ]
        if settings.trust is not None:
            options += [*settings.trust.to_arguments(), "--repository", str(settings.repository)]
        return build_python(settings, RELAY, "serving.relay", options, "relay.log", keep_log=keep_log)

    def _choose_metrics(self, port: int) -> list[str]:
        """Return the options of a server for its metrics."""
        return ["--metrics-port", str(port), "--metrics-host", self._settings.metrics_host]


def build_python(
    settings: StackSettings, name: str, module: str, options: list[str], log: str, *, keep_log: bool = False
) -> ChildProcess:
    """Return a server of this project: a module that runs in its own Python."""
    environment = copy_environment()
    environment["PYTHONPATH"] = os.pathsep.join(list_import_paths())
    quiet_grpc(environment)
    return ChildProcess(
        name,
        # -P: ignore a folder with the module's name in the current directory.
        [sys.executable, "-P", "-m", module, *options],
        log_path=settings.log_dir / log,
        environment=environment,
        keep_log=keep_log,
    )
