"""The time of each step of a served request, by Triton's statistics, and the server's use of its machine."""

import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from bench.report.process import ProcessTree
from client.status import make_error
from contract.address import CHANNEL_OPTIONS
from contract.connection import PLAIN, Connection
from contract.errors import ConfigError
from contract.tensors import MODELS

STEPS: Final = ("queue", "compute_input", "compute_infer", "compute_output")
_COUNTERS: Final = ("inference_count", "execution_count")
_GPU: Final = re.compile(r"^nv_gpu_(utilization|memory_used_bytes)\{([^}]*)\} (\S+)$", re.MULTILINE)
_METRICS_TIMEOUT_S: Final = 2.0

Counts = dict[str, Counter[str]]  # model -> counter -> value


class ServerObserver:
    """Compares the server at the start and the end of a measurement (a `bench.load.generator.Observer`)."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 10.0,
        processes: ProcessTree | None = None,
        metrics_url: str | None = None,
        connection: Connection = PLAIN,
    ) -> None:
        """Set up the observer.

        Args:
            url: host:port of Triton's gRPC service.
            timeout_s: Deadline of each call, in seconds.
            processes: The server's processes, if they run on this machine.
            metrics_url: Page with Triton's Prometheus metrics, for the GPU.
            connection: TLS and token.
        """
        self._url, self._timeout_s = url, timeout_s
        self._processes, self._metrics_url = processes, metrics_url
        self._client = connection.open_triton(InferenceServerClient, url, CHANNEL_OPTIONS)
        self._before: Counts = {}

    def begin(self) -> None:
        """Record the counters."""
        if self._processes:
            self._processes.begin()
        self._before = self.read_counts()

    def end(self) -> dict[str, Any]:
        """Return the differences since `begin`."""
        observations: dict[str, Any] = {"models": compare_counts(self._before, self.read_counts())}
        if self._processes:
            observations["process"] = self._processes.end()
        if self._metrics_url and (gpus := read_gpus(self._metrics_url)):
            observations["gpus"] = gpus
        return observations

    def read_counts(self) -> Counts:
        """Read the statistics of all models.

        Raises:
            ServiceError: See `client.status`.
        """
        try:
            answer = self._client.get_inference_statistics(as_json=True, client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise make_error(
                error.status(),
                error.message() or "",
                server="Triton",
                url=self._url,
                timeout_s=self._timeout_s,
            ) from error
        return flatten_statistics(answer)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def flatten_statistics(answer: Mapping[str, Any]) -> Counts:
    """Return Triton's ModelStatisticsResponse, given as JSON, as counters for each model, summed over versions.

    Triton's "extension_statistics" document defines the fields. JSON has 64-bit numbers as text.
    """
    counts: Counts = {}
    for entry in answer.get("model_stats", []):
        counters = counts.setdefault(str(entry["name"]), Counter())
        for name in _COUNTERS:
            counters[name] += int(entry.get(name, 0))
        for name, value in entry.get("inference_stats", {}).items():
            counters[f"{name}.count"] += int(value.get("count", 0))
            counters[f"{name}.ns"] += int(value.get("ns", 0))
        for batch in entry.get("batch_stats", []):
            counters[f"batch.{batch['batch_size']}"] += int(batch.get("compute_infer", {}).get("count", 0))
    return counts


def compare_counts(before: Counts, after: Counts) -> dict[str, Any]:
    """Return, for each model that answered, the mean milliseconds per request and the batching.

    `queue` is waiting, `compute_input` and `compute_output` are moving tensors, `compute_infer` is the model. `request`
    is the total, which for an ensemble includes its steps.
    """
    models: dict[str, Any] = {}
    for name, counters in after.items():
        new = Counter(counters)
        new.subtract(before.get(name, Counter()))
        requests = new["success.count"]
        if requests <= 0 and new["fail.count"] <= 0:
            continue
        steps = {f"{step}_ms": _take_mean(new, step) for step in STEPS if new[f"{step}.count"] > 0}
        sizes = {key.partition(".")[2]: count for key, count in new.items() if key.startswith("batch.")}
        models[name] = {
            "requests": requests,
            "failed": new["fail.count"],
            "request_ms": _take_mean(new, "success"),
            **steps,
            "executions": new["execution_count"],
            "mean_batch": round(new["inference_count"] / max(1, new["execution_count"]), 3),
            "batch_sizes": {size: count for size, count in sizes.items() if count > 0},
        }
    return models


def merge_models(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge several results of `compare_counts`: counts summed, times weighted by requests."""
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        parts_of_model = [part[name] for part in parts if name in part]
        weights = [max(entry["requests"], 0) for entry in parts_of_model]
        total, executions = sum(weights), sum(entry["executions"] for entry in parts_of_model)
        sizes: Counter[str] = Counter()
        for entry in parts_of_model:
            sizes.update(entry["batch_sizes"])
        times = dict.fromkeys(key for entry in parts_of_model for key in entry if key.endswith("_ms"))
        inferences = sum(entry["mean_batch"] * entry["executions"] for entry in parts_of_model)
        merged[name] = {
            "requests": total,
            "failed": sum(entry["failed"] for entry in parts_of_model),
            **{key: _weigh([entry.get(key, 0.0) for entry in parts_of_model], weights) for key in times},
            "executions": executions,
            "mean_batch": round(inferences / max(1, executions), 3),
            "batch_sizes": dict(sizes),
        }
    return merged


def read_gpus(url: str) -> dict[str, dict[str, float]]:
    """Return utilisation (0 to 1) and used memory in MiB of each GPU from a Prometheus page; empty without GPUs.

    Raises:
        ConfigError: The page cannot be read.
    """
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for a lab's own host
        with opener.open(url, timeout=_METRICS_TIMEOUT_S) as page:
            text = page.read().decode("utf-8", errors="replace")
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise ConfigError(f"Triton's metrics cannot be read from {url}: {error}.") from error
    gpus: dict[str, dict[str, float]] = {}
    for kind, labels, value in _GPU.findall(text):
        uuid = re.search(r'gpu_uuid="([^"]*)"', labels)
        gpu = gpus.setdefault(f"gpu {len(gpus)}" if uuid is None else uuid[1], {})
        if kind == "utilization":
            gpu["utilization"] = float(value)
        else:
            gpu["memory_mib"] = round(float(value) / 2**20, 1)
    return gpus


def list_split(models: Mapping[str, Any]) -> list[tuple[str, Sequence[float]]]:
    """Return (model, mean milliseconds of each of `STEPS`) for the models that compute, slowest first.

    Ensembles are left out, because their times are the sums of their steps.
    """
    rows = [
        (name, tuple(float(figures.get(f"{step}_ms", 0.0)) for step in STEPS))
        for name, figures in models.items()
        if "compute_infer_ms" in figures and not (name in MODELS and MODELS[name].steps)
    ]
    return sorted(rows, key=lambda row: -sum(row[1]))


def _take_mean(counters: Counter[str], name: str) -> float:
    return round(counters[f"{name}.ns"] / max(1, counters[f"{name}.count"]) / 1e6, 4)


def _weigh(values: Sequence[float], weights: Sequence[int]) -> float:
    total = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return round(total / max(1, sum(weights)), 4)
