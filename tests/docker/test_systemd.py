"""The unit for systemd: its command is one of `cxr`, it is protected, and Prometheus's settings name its ports."""

import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from cli.app import app

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "docker" / "systemd" / "cxr-serve.service"
CONFIG = UNIT.with_name("serve.ini")


@pytest.fixture(scope="module")
def service():
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(UNIT.read_text().replace("\\\n", " "))
    return unit["Service"]


@pytest.fixture(scope="module")
def options(service):
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert (program, command) == ("/opt/cxr/venv/bin/cxr", "serve")
    assert arguments == ["--config", "/etc/cxr/serve.ini"]
    serve = get_command(app).get_command(None, "serve")
    return serve.make_context("serve", ["--config", str(CONFIG)]).params


def test_it_serves_with_tls_certificates_and_tokens(service, options):
    assert options["tls_require_client"]
    assert not options["insecure"]
    assert (str(options["tls_dir"]), str(options["tokens"])) == ("/etc/cxr/tls", "/etc/cxr/tokens.jsonl")
    assert options["metrics_host"] == "127.0.0.1"
    # ProtectSystem=strict leaves only these folders writable.
    assert f"/var/lib/{service['StateDirectory']}" in str(options["store"])
    assert str(options["logs"]) == f"/var/log/{service['LogsDirectory']}"
    assert service["User"] != "root"


def test_prometheus_reads_its_ports(options):
    settings = yaml.safe_load((ROOT / "docker" / "monitoring" / "prometheus.serve.yaml").read_text())
    found = {job["job_name"]: job["static_configs"][0]["targets"] for job in settings["scrape_configs"]}
    ports = {"triton": "metrics_port", "relay": "relay_metrics_port", "retrieval": "retrieval_metrics_port"}
    assert found == {job: [f"127.0.0.1:{options[name]}"] for job, name in ports.items()}
    for job in settings["scrape_configs"][1:]:
        assert job["scheme"] == "https"
        assert job["authorization"] == {"credentials_file": "prometheus.token"}


def test_systemd_accepts_it(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/cxr/venv/bin/cxr", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])
