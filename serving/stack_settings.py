"""What a stack serves and where: its model, its files, the addresses of its servers and who may call them."""

from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Final

from contract.case_store import MilvusStore, parse_store
from contract.probe_case import PROBED
from contract.protection import UNPROTECTED, Protection
from contract.repository import read_published
from contract.signatures import TrustedKeys
from contract.telemetry import Telemetry
from serving.ports import LOOPBACK, Ports, find_near_host, join_address
from serving.runtime import show_path
from serving.triton import ADMIN_KEY_FILE


@dataclass(frozen=True)
class IndexSettings:
    """The kind of index that the sidecar should answer with, and the recall@10 (0 to 1) that it must reach."""

    kind: str = "flat"
    recall_floor: float = 0.95

    def to_arguments(self) -> list[str]:
        """Return the options of `python -m retrieval.server`."""
        return ["--index", self.kind, "--recall-floor", str(self.recall_floor)]


FLAT: Final = IndexSettings()


@dataclass(eq=False)
class StackSettings:
    """One published model repository, one case store, and how they are served.

    Attributes:
        repository: A published model repository.
        store: Directory of the case store, or a Milvus database (`contract.case_store`). The sidecar creates it if
            needed.
        ports: Ports to listen on. By default 8000 to 8002 and 8005, and no metrics of the relay and the sidecar.
        log_dir: Directory for triton.log, relay.log, retrieval.log and the admin key. It is created if needed, and only
            one running stack may use it.
        http_inference: Open Triton's own HTTP front end on the HTTP port, only for trusted callers (see
            `serving.triton.build_command`). Without it the port answers only health requests. It is plain text on
            loopback.
        host: Address that the relay, the sidecar and the health service listen on.
        metrics_host: Address of the metrics of the relay and the sidecar. The relay passes on Triton's there.
        index: The sidecar's kind of index.
        protection: TLS, client certificates and tokens.
        telemetry: Log lines and spans of the relay and the sidecar.
        triton_otlp: Where Triton exports its spans, as in `serving.triton.build_command`.
        trust: The keys of which one must have signed the repository, at each start of Triton and at each load of a
            model into it. None: no signature is needed.
    """

    repository: Path
    store: Path | str | MilvusStore
    _: KW_ONLY
    log_dir: Path
    ports: Ports = field(default_factory=Ports)
    http_inference: bool = False
    host: str = LOOPBACK
    metrics_host: str = LOOPBACK
    index: IndexSettings = FLAT
    protection: Protection = UNPROTECTED
    telemetry: Telemetry = field(default_factory=Telemetry)
    triton_otlp: str | None = None
    trust: TrustedKeys | None = None

    def __post_init__(self) -> None:
        """Make the paths absolute, because the servers may have another current directory."""
        self.repository = Path(self.repository).resolve()
        self.store = parse_store(self.store)
        self.log_dir = Path(self.log_dir).resolve()
        self.protection = replace(self.protection.resolve(), admin_key=self.admin_key_path)

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
            **self.list_metrics(),
            "retrieval": self.retrieval_url,
            "listens_on": self.host,
            "protection": self.protection.describe(),
            "fingerprint": self.fingerprint,
            "logs": show_path(self.log_dir),
            "admin_key": show_path(self.admin_key_path),
        }

    def list_metrics(self) -> dict[str, str]:
        """Return the pages of metrics of the relay and the sidecar, as programs on this machine read them."""
        scheme = "http" if self.protection.tls_dir is None else "https"
        ports = {"relay_metrics": self.ports.relay_metrics, "retrieval_metrics": self.ports.retrieval_metrics}
        host = find_near_host(self.metrics_host)
        return {
            name: f"{scheme}://{join_address(host, port)}/metrics" for name, port in ports.items() if port
        }

    def list_probed(self) -> list[str]:
        """Return the models of the repository that get a request to see whether they work."""
        return [name for name in PROBED if (self.repository / name / "config.pbtxt").is_file()]
