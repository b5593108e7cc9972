"""Write dashboard.json, the Grafana dashboard of the stack: `python docker/monitoring/dashboard.py`.

The panels stand here, because the JSON repeats itself. A test compares the two files.
"""

import json
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).with_name("dashboard.json")
DATASOURCE: Final = {"type": "prometheus", "uid": "prometheus"}
WIDTH: Final = 12  # of 24 columns
HEIGHT: Final = 8
PREDICTIONS: Final = '{model=~"predict_.*"}'

Query = tuple[str, str]  # expression, name of its lines


def rate(metric: str, by: str) -> str:
    """Return the expression of a counter's rate over 5 minutes."""
    return f"sum by ({by}) (rate({metric}[5m]))"


def mean(seconds: str, count: str, by: str, scale: str = "") -> str:
    """Return the expression of a mean time."""
    return f"{rate(seconds, by)} / {rate(count, by)}{scale}"


def quantile(share: float, histogram: str, selector: str = "") -> str:
    """Return the expression of a quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket{selector}', 'le')})"


# Title, unit, queries.
PANELS: Final[tuple[tuple[str, str, tuple[Query, ...]], ...]] = (
    (
        "Servers that answer",
        "short",
        (('up{job=~"triton|relay|retrieval"}', "{{job}}"), ("cxr_retrieval_ready", "index")),
    ),
    ("Predictions", "reqps", ((rate(f"nv_inference_request_success{PREDICTIONS}", "model"), "{{model}}"),)),
    (
        "Predictions that fail",
        "reqps",
        ((rate(f"nv_inference_request_failure{PREDICTIONS}", "model"), "{{model}}"),),
    ),
    (
        "Mean time of a prediction",
        "s",
        (
            (
                mean(
                    f"nv_inference_request_duration_us{PREDICTIONS}",
                    f"nv_inference_request_success{PREDICTIONS}",
                    "model",
                    " / 1e6",
                ),
                "{{model}}",
            ),
        ),
    ),
    (
        "Mean wait for a model",
        "s",
        (
            (
                mean("nv_inference_queue_duration_us", "nv_inference_request_success", "model", " / 1e6"),
                "{{model}}",
            ),
        ),
    ),
    (
        "Requests that wait",
        "short",
        (
            ("sum by (model) (nv_inference_pending_request_count)", "{{model}}"),
            ("cxr_relay_pending_request_count", "relay"),
            ("cxr_retrieval_pending_request_count", "sidecar"),
        ),
    ),
    (
        "Calls at the relay",
        "reqps",
        ((rate("cxr_relay_calls_total", "class, status"), "{{class}} {{status}}"),),
    ),
    (
        "Refused calls",
        "reqps",
        (
            (rate("cxr_relay_refused_total", "reason"), "relay {{reason}}"),
            (rate("cxr_retrieval_refused_total", "reason"), "sidecar {{reason}}"),
        ),
    ),
    (
        "Calls at the sidecar",
        "reqps",
        ((rate("cxr_retrieval_requests_total", "rpc, status"), "{{rpc}} {{status}}"),),
    ),
    (
        "Time of a search",
        "s",
        (
            (quantile(0.5, "cxr_retrieval_request_duration_seconds", '{rpc="Search"}'), "half of the calls"),
            (quantile(0.95, "cxr_retrieval_request_duration_seconds", '{rpc="Search"}'), "95 % of the calls"),
            (quantile(0.95, "cxr_retrieval_queue_duration_seconds"), "95 %, wait alone"),
            (quantile(0.95, "cxr_retrieval_search_duration_seconds"), "95 %, index alone"),
        ),
    ),
    (
        "Queries in one search of the index",
        "short",
        (
            (quantile(0.5, "cxr_retrieval_batch_size_queries"), "half"),
            (quantile(0.95, "cxr_retrieval_batch_size_queries"), "95 %"),
        ),
    ),
    (
        "Time of a write",
        "s",
        (
            (quantile(0.95, "cxr_retrieval_write_duration_seconds", '{operation="upsert"}'), "95 %, upsert"),
            (quantile(0.95, "cxr_retrieval_write_duration_seconds", '{operation="delete"}'), "95 %, delete"),
            (quantile(0.95, "cxr_retrieval_fsync_duration_seconds"), "95 %, fsync"),
        ),
    ),
    ("Cases", "short", (("cxr_retrieval_cases", "cases"), ("cxr_retrieval_damaged_cases", "damaged"))),
    (
        "Memory and disk",
        "bytes",
        (
            ("cxr_retrieval_process_resident_memory_bytes", "sidecar"),
            ("cxr_relay_process_resident_memory_bytes", "relay"),
            ("cxr_retrieval_vector_bytes + cxr_retrieval_code_bytes", "embeddings and codes"),
            ("cxr_retrieval_store_bytes", "store on the disk"),
            ("nv_cpu_memory_used_bytes", "machine of Triton"),
            ("nv_gpu_memory_used_bytes", "GPU {{gpu_uuid}}"),
        ),
    ),
)


def build_dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    return {
        "uid": "cxr-serving",
        "title": "Chest X-ray serving",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "panels": [_build_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _build_panel(number: int, title: str, unit: str, queries: tuple[Query, ...]) -> dict[str, Any]:
    place = {"x": WIDTH * (number % 2), "y": HEIGHT * (number // 2), "w": WIDTH, "h": HEIGHT}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
            }
            for place, (expression, legend) in enumerate(queries)
        ],
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(build_dashboard(), indent=1) + "\n", encoding="utf-8")
