"""Write a comparison in Prometheus's text format, for the textfile collector of node_exporter."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from contract.errors import ConfigError
from contract.files import write_file
from training.monitoring.compare import Row

_NAMES: Final = ("way", "kind", "name")
_OF_ROWS: Final = {
    "cxr_drift_cases": ("Values that were compared.", "cases"),
    "cxr_drift_psi": ("Population stability index against the reference.", "psi"),
    "cxr_drift_mean_shift": ("Mean now minus mean of the reference.", "shift"),
    "cxr_drift_p_adjusted_ratio": ("P value, adjusted for all rows.", "p_adjusted"),
}
_CHANGED: Final = "cxr_drift_changed"
_MMD: Final = "cxr_drift_squared_mmd"
_RUN: Final = "cxr_drift_last_run_timestamp_seconds"
_MODEL: Final = "cxr_drift_model_info"
NAMES: Final = (*_OF_ROWS, _CHANGED, _MMD, _RUN, _MODEL)


def write_metrics(rows: Sequence[Row], fingerprint: str, path: Path) -> None:
    """Write the metrics in one step. A row with too few cases has only its number of cases.

    Args:
        rows: The rows of `training.monitoring.compare.compare`.
        fingerprint: Fingerprint of the model.
        path: A file whose name ends in .prom, which node_exporter expects.

    Raises:
        ConfigError: The name has another ending, or prometheus-client is missing.
        ArtifactError: The file cannot be written.
    """
    check_metrics_file(path)
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def make(name: str, text: str, labels: Sequence[str] = _NAMES) -> Any:
        return Gauge(name, text, labels, registry=registry)

    gauges = {name: (make(name, text), field) for name, (text, field) in _OF_ROWS.items()}
    changed = make(_CHANGED, "1 if the row says that the value changed, else 0.")
    mmd = make(_MMD, "Squared maximum mean discrepancy of the embeddings.", ("way",))
    for row in rows:
        labels = (row.way, row.kind, row.name)
        for gauge, field in gauges.values():
            if (value := getattr(row, field)) is not None:
                gauge.labels(*labels).set(value)
        if row.p is not None:
            changed.labels(*labels).set(row.verdict == "changed")
        if row.kind == "embedding" and row.statistic is not None:
            mmd.labels(row.way).set(row.statistic)
    make(_RUN, "When the comparison ran.", ()).set(time.time())
    make(_MODEL, "The model; the value is 1.", ("model",)).labels(fingerprint[:12]).set(1)
    write_file(path, generate_latest(registry))


def check_metrics_file(path: Path) -> None:
    """Raise ConfigError if metrics cannot be written to a path. Call this before comparing anything."""
    if path.suffix != ".prom":
        raise ConfigError(f"{path} must end in .prom: node_exporter reads no other files.")
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("Metrics need prometheus-client: pip install 'cxr-serving[retrieval]'.") from error
