"""compose.yaml: a GPU where one is wanted, engines that outlive the container, memory for what the readers allow."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import yaml

from contract.image.dicom_file import MAX_IMAGE_BYTES
from contract.protection import read_arguments
from contract.tensors import GRAPHS, IMAGE_BYTES, MODELS
from export.targets import SETTINGS
from retrieval.server import parse_arguments

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
DECODING_BYTES = GIB  # of one instance, for an image of 64 million pixels
MODEL_BYTES = {
    "cpu": 4 * GIB,
    "gpu": 8 * GIB,
}  # two versions; on a GPU also CUDA's libraries and a build of an engine
TARGETS, READERS = (tomllib.loads(SETTINGS.read_text())[name] for name in ("target", "image_files"))
UNITS = {"s": 1, "m": 60, "h": 3600, "mb": 2**20, "gb": GIB}


def read(value: str) -> float:
    """Return seconds or bytes of a setting, its default where it is a variable."""
    default = re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value)
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", default).groups()
    return int(number) * UNITS[unit]


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def services(compose):
    return compose["services"]


def count_readers(*targets: str) -> int:
    """Return how many instances read image files at once, at most, each of them one."""
    models = [spec for spec in MODELS.values() if spec.backend == "python" and IMAGE_BYTES in spec.inputs]
    return len(models) * max(READERS[target] for target in targets)


@pytest.mark.parametrize(
    ("name", "machine", "targets"),
    [("triton", "cpu", ["cpu"]), ("triton-gpu", "gpu", ["gpu", "tensorrt"])],
)
def test_memory_holds_what_the_readers_allow(services, name, machine, targets):
    instances = count_readers(*targets)
    files = instances * MAX_IMAGE_BYTES
    shared = read(services[name]["shm_size"])
    assert files <= shared <= 1.5 * files
    memory = read(services[name]["deploy"]["resources"]["limits"]["memory"])
    assert memory >= 2 * shared + instances * DECODING_BYTES + MODEL_BYTES[machine]


@pytest.mark.parametrize("name", ["triton-gpu", "retrieval-gpu"])
def test_a_gpu_is_reserved_in_the_gpu_profile_alone(services, name):
    (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert services[name]["profiles"] == ["gpu"]
    plain = services[name.removesuffix("-gpu")]
    assert "profiles" not in plain
    assert "reservations" not in plain.get("deploy", {}).get("resources", {})


def test_other_services_reach_either_under_one_name(services):
    for name in ("triton", "retrieval"):
        assert services[f"{name}-gpu"]["networks"]["default"]["aliases"] == [name]
        port = services[name]["ports"][0].rpartition(":")[2]
        assert services["client"]["environment"][f"CXR_{name.upper()}"] == f"{name}:{port}"


def test_engines_outlive_the_container_and_belong_to_its_user(compose, services):
    parameters = TARGETS["tensorrt"]["accelerator"]["parameters"]
    places = {parameters["trt_engine_cache_path"], parameters["trt_timing_cache_path"]}
    (place,) = places
    mounts = dict(entry.split(":", 1) for entry in services["triton-gpu"]["volumes"] if "$" not in entry)
    assert mounts == {"engines": place}
    assert "engines" in compose["volumes"]
    assert not any(place.startswith(path) for path in services["triton-gpu"]["tmpfs"])
    dockerfile = (ROOT / "docker" / "triton.Dockerfile").read_text()
    made = re.search(rf"install --directory --owner (\w+) --mode 700 {place}$", dockerfile, re.MULTILINE)
    assert f"useradd --create-home --uid 10001 {made[1]} " in dockerfile
    assert "USER 10001\n" in dockerfile


@pytest.mark.parametrize("name", ["triton", "triton-gpu"])
def test_health_is_asked_of_the_ensembles(services, name):
    health = services[name]["healthcheck"]
    assert health["test"][:4] == ["CMD", "python3", "-m", "serving.probe"]
    per_model = int(health["test"][health["test"].index("--timeout") + 1])
    assert read(health["timeout"]) > 3 * per_model  # predict_study, predict_image, predict_text
    command = [sys.executable, *health["test"][2:], "--triton", "127.0.0.1:9"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert asked.returncode == 4
    assert "Triton does not answer" in asked.stderr


def test_a_start_may_take_as_long_as_its_engines(services):
    slowest_build_s = 8 * 60  # of one graph of the base size, over all shapes
    graphs = len(GRAPHS)
    assert read(services["triton-gpu"]["healthcheck"]["start_period"]) >= graphs * slowest_build_s
    assert read(services["triton"]["healthcheck"]["start_period"]) >= 120


def test_servers_write_nowhere_else_and_listen_on_loopback(services):
    for name in ("triton", "triton-gpu", "retrieval", "retrieval-gpu"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])


class Loader(yaml.SafeLoader):
    """Reads Docker Compose's tag for a value that replaces that of the file before."""


Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


@pytest.fixture(scope="module")
def secure():
    return yaml.load((ROOT / "docker" / "compose.tls.yaml").read_text(), Loader)


def test_on_a_network_every_server_has_tls_and_asks_who_calls(secure, services):
    mounted = {}
    for name in ("triton", "triton-gpu", "retrieval", "retrieval-gpu"):
        service = secure["services"][name]
        mounted[name] = {entry["target"]: entry["source"] for entry in service["secrets"]}
        assert set(mounted[name].values()) <= set(secure["secrets"])
        open_ports = [port for port in service["ports"] if not port.startswith("127.0.0.1:")]
        own = services[name]["ports"][0].rpartition(":")[2]
        assert open_ports == [f"${{CXR_LISTEN:-127.0.0.1}}:{own}:{own}"]
    for name in ("triton", "triton-gpu"):
        environment = secure["services"][name]["environment"]
        assert environment == {"CXR_TLS_DIR": "/run/secrets/tls", "CXR_TLS_REQUIRE_CLIENT": "1"}
        names = ("server.crt", "server.key", "ca.crt", "health.crt", "health.key")
        assert set(mounted[name]) == {f"/run/secrets/tls/{file}" for file in names}
    for name in ("retrieval", "retrieval-gpu"):
        options = parse_arguments(["--store", "/store", *secure["services"][name]["command"]])
        protection = read_arguments(options)
        assert protection.require_client
        assert not protection.insecure
        for place in (protection.tls_dir / "server.key", protection.tls_dir / "ca.crt", protection.tokens):
            assert str(place) in mounted[name]


def test_no_key_is_in_a_file_of_compose_and_the_authority_stays_outside(secure):
    for name, secret in secure["secrets"].items():
        assert list(secret) == ["file"], name
        assert secret["file"].startswith(("${CXR_TLS:?", "${CXR_TOKENS:?", "${CXR_METRICS_TOKEN:-"))
    assert "ca.key" not in [secret["file"].rpartition("/")[2] for secret in secure["secrets"].values()]


def test_without_tls_the_sidecar_is_told_that_its_network_is_closed(services):
    for name in ("retrieval", "retrieval-gpu"):
        options = parse_arguments(["--store", "/store", *services[name]["command"]])
        assert read_arguments(options).insecure
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])


@pytest.mark.parametrize(
    ("given", "words", "code"),
    [
        ({}, {"--allow-http=false"}, 0),
        (
            {"CXR_TLS_DIR": "/t", "CXR_TLS_REQUIRE_CLIENT": "1"},
            {"--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", "--grpc-server-key=/t/server.key"},
            0,
        ),
        ({"CXR_TLS_DIR": "/t"}, {"--grpc-use-ssl=true", "--grpc-use-ssl-mutual=false"}, 0),
        ({"CXR_TLS_DIR": "/t", "CXR_HTTP_INFERENCE": "1"}, set(), 2),
    ],
)
def test_the_image_passes_tls_to_triton(tmp_path, given, words, code):
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\n[ "$2" = serving.container ] && echo "$@" > {tmp_path}/started\nexit 0\n')
    python.chmod(0o755)
    (tmp_path / ".published.json").write_text("{}")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "CXR_MODELS": str(tmp_path),
        "CXR_ADMIN_KEY": "k",
        **given,
    }
    ended = subprocess.run(
        [ROOT / "docker" / "serve_triton.sh"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == code, ended.stderr
    started = tmp_path / "started"
    said = started.read_text().split() if started.exists() else []
    assert words <= set(said)
    protocols = "model-repository,logging,trace,shared-memory:cxr-admin-key=k"
    assert (f"--grpc-restricted-protocol={protocols}" in said) is (code == 0)
