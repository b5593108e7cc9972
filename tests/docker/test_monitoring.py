"""Alerts, dashboard and Prometheus's settings name only what the servers really export, and they work."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import get_args

import pytest
import yaml

from contract.access import HEALTH_CALLS
from retrieval import listener, metrics
from serving import relay_metrics
from serving.ports import Ports, is_listening
from serving.relay import PING, find_class
from training.monitoring.compare import Kind
from training.monitoring.metrics import NAMES as OF_DRIFT

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "docker" / "monitoring"
# What a real Triton exports. tests/e2e/test_secure.py holds the list to the bundled one.
TRITON = frozenset((Path(__file__).parent / "triton_metrics.txt").read_text().split())
OF_PROMETHEUS = {"up"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


def read_rules() -> "dict[str, str]":
    """Return the expression of each alert."""
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def read_panels() -> "dict[str, str]":
    """Return the expressions of each panel."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return {panel["title"]: "\n".join(target["expr"] for target in panel["targets"]) for panel in panels}


def find_names(expression: str) -> "set[str]":
    return set(re.findall(r"\b(?:cxr|nv)_[a-z0-9_]+|\bup\b", re.sub(r'"[^"]*"', "", expression)))


def list_names(page: str) -> "set[str]":
    """Return the names of the samples that a page of metrics may hold."""
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE)
    return {name + suffix for name, kind in kinds for suffix in SUFFIXES[kind]}


def read_page(port: int) -> str:
    deadline = time.monotonic() + 60
    while not is_listening(port):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Names that a running sidecar and a running relay export."""
    place, ports = tmp_path_factory.mktemp("exported"), Ports.free()
    commands = [
        ["retrieval.server", f"--store={place / 'store'}", f"--address=127.0.0.1:{ports.retrieval}"],
        ["serving.relay", f"--listen=127.0.0.1:{ports.grpc}", "--triton=unix:/nowhere"],
    ]
    found = [ports.retrieval_metrics, ports.relay_metrics]
    servers = [
        subprocess.Popen(
            [sys.executable, "-m", *command, f"--metrics-port={port}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        for command, port in zip(commands, found, strict=True)
    ]
    try:
        yield {name for port in found for name in list_names(read_page(port))}
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
        assert [server.wait(60) for server in servers] == [0, 0]


@pytest.mark.parametrize("read", [read_rules, read_panels], ids=["alerts", "dashboard"])
def test_every_name_is_exported_by_a_server(exported, read):
    used = {name: find_names(expression) for name, expression in read().items()}
    assert all(used.values())
    unknown = {
        name: left
        for name, names in used.items()
        if (left := names - exported - TRITON - OF_PROMETHEUS - set(OF_DRIFT))
    }
    assert unknown == {}


def test_our_names_follow_the_rules_of_prometheus(exported):
    for name in exported:
        assert name.startswith(("cxr_retrieval_", "cxr_relay_"))
        assert not re.search(r"_(ms|us|milliseconds|kb|mb|gib)(_|$)", name), name


def test_every_alert_has_a_test_a_place_in_the_documentation_and_a_reason_to_wake_somebody():
    tests = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
    tested = {
        check["alertname"] for test in tests for check in test["alert_rule_test"] if check.get("exp_alerts")
    }
    documented = (ROOT / "docs" / "operations.md").read_text()
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        assert rule["alert"] in tested
        assert f"| `{rule['alert']}` |" in documented
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".")


def test_values_of_labels_exist():
    """A misspelled value would give an alert that never fires."""
    known = {
        "rpc": set(listener._NAMES.values()) | {metrics.OTHER},
        "reason": {*metrics.REFUSALS.values(), *relay_metrics.REFUSALS.values()},
        "status": {"INTERNAL"},
        "operation": {"upsert", "delete"},
        "job": {"triton", "relay", "retrieval"},
        "kind": set(get_args(Kind)),
    }
    for name, expression in {**read_rules(), **read_panels()}.items():
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', expression):
            if label != "model":
                assert set(value.split("|")) <= known[label], name
    assert find_class(PING) == "other"
    assert find_class(f"{HEALTH_CALLS}Check") == "health"


def test_prometheus_asks_the_services_of_compose():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    for name in ("prometheus.yaml", "prometheus.tls.yaml"):
        jobs = yaml.safe_load((MONITORING / name).read_text())["scrape_configs"]
        assert [job["job_name"] for job in jobs] == ["triton", "retrieval"]
        for job in jobs:
            ((target,),) = (entry["targets"] for entry in job["static_configs"])
            service, port = target.split(":")
            assert f"127.0.0.1:{port}:{port}" in compose[service]["ports"]
    for name in ("prometheus", "grafana"):
        assert compose[name]["profiles"] == ["monitoring"]
        assert re.search(r":v?\d+\.\d+\.\d+$", compose[name]["image"])
        assert all(port.startswith("127.0.0.1:") for port in compose[name]["ports"])
        for entry in compose[name]["volumes"]:
            if entry.startswith("./"):
                assert (ROOT / "docker" / entry.split(":")[0]).is_file(), entry


def test_the_dashboard_is_as_its_program_writes_it():
    build = runpy.run_path(str(MONITORING / "dashboard.py"))["build_dashboard"]
    assert json.loads((MONITORING / "dashboard.json").read_text()) == build()


@pytest.mark.parametrize(
    "command",
    [
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts_test.yaml"],
        ["check", "config", "--syntax-only", "prometheus.yaml"],
        ["check", "config", "--syntax-only", "prometheus.tls.yaml"],
        ["check", "config", "--syntax-only", "prometheus.serve.yaml"],
    ],
    ids=" ".join,
)
def test_promtool_accepts(command):
    if not shutil.which("promtool"):
        pytest.skip("promtool (Debian: prometheus) is not installed")
    done = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
