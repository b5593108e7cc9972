"""The manifests for Kubernetes: valid by the schemas, complete, and with the settings of docker/compose.yaml.

No test here starts a cluster or runs kustomize: overlays are merged by the rules that their patches need.
"""

import copy
import re
from pathlib import Path

import pytest
import yaml

from contract.protection import read_arguments
from retrieval.server import parse_arguments

kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
VERSION = "1.31.0"
OVERLAYS = ("base", "gpu", "monitoring")
OF_OPERATOR = "monitoring.coreos.com/v1"
KEYS = ("mountPath", "name", "containerPort")  # by which Kubernetes merges the entries of a list
UNITS = {"Gi": 2**30, "gb": 2**30, "s": 1, "m": 60}


def read_documents(path: Path) -> list[dict]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def read_overlay(name: str) -> list[dict]:
    """Return the objects that kustomize makes of a folder."""
    folder = FOLDER / name
    overlay = yaml.safe_load((folder / "kustomization.yaml").read_text())
    documents: list[dict] = []
    for resource in overlay["resources"]:
        path = folder / resource
        documents += read_overlay(path.resolve().name) if path.is_dir() else read_documents(path)
    for patch in overlay.get("patches", ()):
        (change,) = read_documents(folder / patch["path"])
        (target,) = (each for each in documents if identify(each) == identify(change))
        documents[documents.index(target)] = merge(target, change)
    images = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in overlay.get("images", ())}
    for document in documents:
        for container in list_containers(document):
            name = container["image"].rpartition(":")[0] or container["image"]
            container["image"] = images.get(name, container["image"])
    return documents


def identify(document: dict) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def merge(old, new):
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merge(old[key], value) if key in old else value for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list) and new and isinstance(new[0], dict):
        key = next(key for key in KEYS if key in new[0])
        merged = {entry[key]: entry for entry in copy.deepcopy(old)}
        for entry in new:
            merged[entry[key]] = merge(merged[entry[key]], entry) if entry[key] in merged else entry
        return list(merged.values())
    return new


def list_containers(document: dict) -> list[dict]:
    return document["spec"]["template"]["spec"]["containers"] if document["kind"] == "Deployment" else []


def find(documents: list[dict], kind: str, name: str) -> dict:
    (found,) = (document for document in documents if identify(document) == (kind, name))
    return found


def read_pod(overlay: str, name: str) -> tuple[dict, dict]:
    """Return the pod of a Deployment and its one container."""
    pod = find(read_overlay(overlay), "Deployment", name)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def measure(value: str) -> float:
    default = re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value)
    number, unit = re.fullmatch(r"(\d+)([a-zA-Z]+)", default).groups()
    return int(number) * UNITS[unit]


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_by_the_schema(overlay):
    documents = read_overlay(overlay)
    assert len({identify(document) for document in documents}) == len(documents)
    for document in documents:
        if document["apiVersion"] != OF_OPERATOR:
            kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_schema_refuses_an_unknown_field():
    wrong = find(read_overlay("base"), "Deployment", "triton")
    wrong["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_every_file_belongs_to_an_overlay():
    named = set()
    for overlay in OVERLAYS:
        folder = FOLDER / overlay
        settings = yaml.safe_load((folder / "kustomization.yaml").read_text())
        files = [*settings["resources"], *(patch["path"] for patch in settings.get("patches", ()))]
        named |= {(folder / file).resolve() for file in [*files, "kustomization.yaml"]}
    rest = {path.name for path in FOLDER.rglob("*.yaml")} - {path.name for path in named}
    assert rest == {"adapter-values.yaml"}


@pytest.mark.parametrize(
    ("overlay", "name", "service", "dockerfile"),
    [
        ("base", "triton", "triton", "triton"),
        ("gpu", "triton", "triton-gpu", "triton"),
        ("base", "retrieval", "retrieval", "retrieval-cpu"),
        ("gpu", "retrieval", "retrieval-gpu", "retrieval-gpu"),
    ],
)
def test_images_ports_and_users_are_those_of_compose(compose, overlay, name, service, dockerfile):
    pod, container = read_pod(overlay, name)
    text = (ROOT / "docker" / f"{dockerfile}.Dockerfile").read_text()
    assert compose[service]["build"]["dockerfile"] == f"docker/{dockerfile}.Dockerfile"
    built = re.search(r"-t (\S+) \.", text)[1]
    assert f"cxr-{name}" in container["image"]
    assert container["image"].endswith("-" + built.partition(":")[2] if ":" in built else "0.1.0")
    ports = {port["containerPort"] for port in container["ports"]}
    assert ports == {int(entry.rpartition(":")[2]) for entry in compose[service]["ports"]}
    assert ports == {int(port) for port in re.search(r"^EXPOSE (.*)$", text, re.MULTILINE)[1].split()}
    assert pod["securityContext"]["runAsUser"] == int(re.search(r"--uid (\d+)", text)[1])
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]


@pytest.mark.parametrize("overlay", ["base", "gpu"])
@pytest.mark.parametrize("name", ["triton", "retrieval"])
def test_no_container_is_root_or_writes_to_its_image(overlay, name):
    pod, container = read_pod(overlay, name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    settings = container["securityContext"]
    assert settings["readOnlyRootFilesystem"] is True
    assert settings["allowPrivilegeEscalation"] is False
    assert settings["capabilities"] == {"drop": ["ALL"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    for volume in volumes.values():
        assert volume.get("secret", {}).get("defaultMode", 0o440) == 0o440
    if name == "triton":
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts["/models"]["readOnly"] is True


@pytest.mark.parametrize(("overlay", "service"), [("base", "triton"), ("gpu", "triton-gpu")])
def test_triton_has_the_sizes_and_the_probes_of_compose(compose, overlay, service):
    pod, container = read_pod(overlay, "triton")
    (memory,) = (each["emptyDir"] for each in pod["volumes"] if each["name"] == "shared-memory")
    assert memory["medium"] == "Memory"
    assert measure(memory["sizeLimit"]) == measure(compose[service]["shm_size"])
    limits = container["resources"]["limits"]
    assert measure(limits["memory"]) == measure(compose[service]["deploy"]["resources"]["limits"]["memory"])
    assert ("nvidia.com/gpu" in limits) is (overlay == "gpu")
    check_probes(container, compose[service]["healthcheck"])
    assert container["readinessProbe"]["exec"]["command"][2] == "serving.probe"


@pytest.mark.parametrize(("overlay", "service"), [("base", "retrieval"), ("gpu", "retrieval-gpu")])
def test_the_sidecar_has_the_probes_of_compose(compose, overlay, service):
    _, container = read_pod(overlay, "retrieval")
    health = compose[service]["healthcheck"]
    secure = {**health, "test": [*health["test"], "--tls-dir", "/run/secrets/tls"]}
    check_probes(container, secure)
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) is (overlay == "gpu")


def check_probes(container: dict, health: dict) -> None:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]
        assert probe["exec"]["command"] == health["test"][1:]
        assert probe["timeoutSeconds"] == measure(health["timeout"])
    assert container["readinessProbe"]["periodSeconds"] == measure(health["interval"])
    assert container["readinessProbe"]["failureThreshold"] == health["retries"]
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= measure(health["start_period"])


def test_the_sidecar_is_protected_and_only_one_opens_the_store():
    documents = read_overlay("base")
    deployment = find(documents, "Deployment", "retrieval")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert find(documents, "PersistentVolumeClaim", "cases")["spec"]["accessModes"] == ["ReadWriteOncePod"]
    _, container = read_pod("base", "retrieval")
    options = parse_arguments(["--store", "/store", *container["args"]])
    protection = read_arguments(options)
    assert protection.require_client
    assert not protection.insecure
    places = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(protection.tls_dir), str(protection.tokens.parent)} <= places
    assert (options.metrics_host, options.metrics_port) == ("0.0.0.0", 8006)
    secure = (ROOT / "docker" / "compose.tls.yaml").read_text()
    for variable in read_pod("base", "triton")[1]["env"]:
        if "value" in variable:
            assert re.search(rf'{variable["name"]}: "?{variable["value"]}"?\b', secure)
    assert "kind: Secret" not in "".join(path.read_text() for path in FOLDER.rglob("*.yaml"))


def test_selectors_find_pods_and_ports_exist():
    documents = read_overlay("base")
    pods = {name: read_pod("base", name) for name in ("triton", "retrieval")}
    ports = {name: {port["name"] for port in container["ports"]} for name, (_, container) in pods.items()}
    for name in pods:
        spec = find(documents, "Deployment", name)["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == {"app": name}
        service = find(documents, "Service", name)["spec"]
        assert service["selector"] == {"app": name}
        assert {port["targetPort"] for port in service["ports"]} <= ports[name]
    for monitor in read_overlay("monitoring"):
        name = monitor["spec"]["selector"]["matchLabels"]["app"]
        assert {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]} == {"metrics"} <= ports[name]
        assert monitor["spec"]["jobLabel"] == "app"
    for name in ("clients", "metrics"):
        for rule in find(documents, "NetworkPolicy", name)["spec"]["ingress"]:
            assert {port["port"] for port in rule["ports"]} <= ports["triton"] & ports["retrieval"]
    closed = find(documents, "NetworkPolicy", "closed")["spec"]
    assert (closed["podSelector"], set(closed)) == ({}, {"podSelector", "policyTypes"})
    assert find(documents, "PodDisruptionBudget", "triton")["spec"]["selector"]["matchLabels"] == {
        "app": "triton"
    }


def test_the_autoscaler_asks_for_a_metric_that_the_adapter_makes_of_tritons():
    scaler = find(read_overlay("base"), "HorizontalPodAutoscaler", "triton")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "triton"}
    assert "replicas" not in find(read_overlay("base"), "Deployment", "triton")["spec"]
    (metric,) = scaler["metrics"]
    (rule,) = yaml.safe_load((FOLDER / "monitoring" / "adapter-values.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    triton = (Path(__file__).parent / "triton_metrics.txt").read_text().split()
    assert set(re.findall(r"nv_\w+", rule["metricsQuery"] + rule["seriesQuery"])) <= set(triton)
