"""The real `cxr serve` with TLS, client certificates and tokens: all that clients do, and what others cannot do."""

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cli.cases import make_cases
from client import TLS, CxrClient
from contract.access import append_token, make_token
from contract.connection import Connection
from contract.errors import ConfigError
from serving.certificates import make_certificates
from serving.ports import Ports
from serving.reload import check_server, reload_models
from serving.triton import read_admin_key

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


class SpanReceiver(HTTPServer):
    """An OTLP receiver over HTTP that keeps what Triton sends."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), SpanHandler)

    def wait_for(self, word: bytes) -> bool:
        deadline = time.monotonic() + 60
        while not any(word in body for body in self.bodies) and time.monotonic() < deadline:
            time.sleep(0.2)
        return any(word in body for body in self.bodies)


class SpanHandler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


class Served:
    """`cxr serve --tls-dir --tls-require-client --tokens` as its own process."""

    def __init__(self, repository: Path, place: Path, spans: "SpanReceiver") -> None:
        pytest.importorskip("pytriton")
        self.place, self.ports, self.folder = place, Ports.free(), place / "tls"
        self.repository, self.logs = repository, place / "logs"
        make_certificates(self.folder, ["triton.lab"], ["lab"])
        self.tokens = {}
        for role in ("metrics", "read", "write", "admin"):
            self.tokens[role], entry = make_token(f"{role} user", role)
            append_token(place / "tokens.jsonl", entry)
            (place / f"{role}.token").write_text(self.tokens[role])
        ports = ("http", "grpc", "metrics", "retrieval", "relay_metrics", "retrieval_metrics")
        options = [f"--{name.replace('_', '-')}-port={getattr(self.ports, name)}" for name in ports]
        options += [
            "--tls-dir",
            str(self.folder),
            "--tls-require-client",
            "--tokens",
            str(place / "tokens.jsonl"),
        ]
        options += ["--log-format", "json", "--log-calls", "1000"]
        options += ["--triton-otlp", f"http://127.0.0.1:{spans.server_port}/v1/traces"]
        places = ["--repository", str(repository), "--store", str(place / "store"), "--logs", str(self.logs)]
        command = ["serve", *places, *options, "--host", "127.0.0.1", "--json"]
        with (place / "errors").open("w") as errors:
            self.process = self.start(*command, stdout=subprocess.PIPE, stderr=errors)
        line = ""
        for line in self.process.stdout:
            if line.startswith("}"):
                break
        assert line, (place / "errors").read_text()

    @staticmethod
    def start(*command: str, **options) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-m", "cxr", *command], env=environment, text=True, **options
        )

    def connect(self, role: str | None = None, *, plain: bool = False, certificate: bool = True) -> CxrClient:
        own = {"cert": self.folder / "lab.crt", "key": self.folder / "lab.key"} if certificate else {}
        tls = False if plain else TLS(self.folder / "ca.crt", **own)
        urls = (f"127.0.0.1:{self.ports.grpc}", f"127.0.0.1:{self.ports.retrieval}")
        return CxrClient(*urls, timeout_s=30, tls=tls, token=self.tokens[role] if role else "")

    def run(self, *command: str, role: str | None = "read") -> "subprocess.CompletedProcess[str]":
        """Run a command of `cxr` with the options of this server."""
        names = ("ca", "cert", "key")
        files = [self.folder / name for name in ("ca.crt", "lab.crt", "lab.key")]
        options = [
            word for name, file in zip(names, files, strict=True) for word in (f"--tls-{name}", str(file))
        ]
        options += ["--token-file", str(self.place / f"{role}.token")] if role else []
        process = self.start(*command, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, errors)

    def list_words(self) -> str:
        """Return the command lines of this server and all that it started."""
        pids = {self.process.pid}
        for _ in range(4):
            for path in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = path.read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[1]) in pids:
                    pids.add(int(path.parent.name))
        return "\n".join(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def spans():
    receiver = SpanReceiver()
    thread = threading.Thread(target=receiver.serve_forever)
    thread.start()
    yield receiver
    receiver.shutdown()
    receiver.server_close()
    thread.join()


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory, spans):
    server = Served(trained.repository, tmp_path_factory.mktemp("secure"), spans)
    yield server
    server.close()


def test_everything_works_over_mutual_tls_with_tokens(served, trained):
    cases = list(make_cases(trained.train_rows[:6], trained.bundle.config["text_mode"]))
    with served.connect("write") as writer:
        assert writer.health().ready
        assert writer.index(cases).indexed == 6
        assert len(writer.predict(None, "Small left effusion.").findings) == 22
    with served.connect("read") as reader:
        found = reader.search(cases[0].image, cases[0].report, k=3)
        assert len(found) == 3
        with pytest.raises(
            ConfigError, match="The token of read user has the role read, and this call needs write"
        ):
            reader.delete([cases[0].id])
        assert reader.index_info().case_count == 6
    with served.connect("write") as writer:
        assert writer.delete([cases[0].id]) == 1
        assert writer.index_info().case_count == 5


def test_strangers_get_nothing(served):
    for settings, words in (
        ({"plain": True}, "speaks TLS"),
        ({"certificate": False, "role": "write"}, "requires a client certificate"),
        ({}, "This call needs a token"),
    ):
        with served.connect(**settings) as stranger:
            for call in (lambda: stranger.predict(None, "Effusion."), stranger.index_info):
                with pytest.raises(ConfigError, match=words):
                    call()
    trust = ssl.create_default_context(cafile=served.folder / "ca.crt")
    web = http.client.HTTPSConnection("localhost", served.ports.http, timeout=10, context=trust)
    web.request("GET", "/v2/health/ready")
    assert web.getresponse().status == 200
    web.close()
    for port in (served.ports.http, served.ports.grpc, served.ports.retrieval):
        with pytest.raises((http.client.HTTPException, OSError)):
            ask_plainly(port)


@pytest.mark.parametrize(
    "name", ["../predict_text", "predict_text/../../x", "/etc/passwd", "predict_text\n", "..", ""]
)
def test_the_name_of_a_model_is_no_path(served, name):
    from tritonclient.utils import InferenceServerException

    def ask(call) -> str:
        try:
            return str(call(name))
        except InferenceServerException as error:
            return error.status()

    with served.connect("read") as client:
        control = client._tritons[0]._client()
        calls = (control.get_model_config, control.get_model_metadata, control.is_model_ready)
        answers = {ask(call) for call in calls}
    assert answers <= {"False", "StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT"}


def test_triton_is_closed_for_readers(served):
    from tritonclient.utils import InferenceServerException

    with served.connect("write") as client:
        control = client._tritons[0]._client()
        for call in (
            control.get_model_repository_index,
            lambda: control.load_model("predict_text"),
            lambda: control.unload_model("predict_text"),
            lambda: control.update_log_settings({"log_verbose_level": 5}),
            lambda: control.update_trace_settings("predict_text", {"trace_level": ["TENSORS"]}),
        ):
            with pytest.raises(
                InferenceServerException, match="has the role write, and this call needs admin"
            ):
                call()


def ask_plainly(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status
    finally:
        connection.close()


def test_commands_take_the_same_settings(served):
    doctor = served.run(
        "doctor",
        "--json",
        "--triton",
        f"127.0.0.1:{served.ports.grpc}",
        "--retrieval",
        f"127.0.0.1:{served.ports.retrieval}",
    )
    assert json.loads(doctor.stdout)["servers"]["ready"], doctor.stderr
    verified = served.run("export", "verify", f"127.0.0.1:{served.ports.grpc}", "--json")
    assert verified.returncode == 0, verified.stderr
    outside = served.run(
        "predict", "--report", "Normal.", "--triton", f"127.0.0.1:{served.ports.grpc}", role=None
    )
    assert outside.returncode == 2
    assert "This call needs a token" in outside.stderr
    short = (
        "--count",
        "2",
        "--repeats",
        "1",
        "--warmup",
        "0",
        "--concurrency",
        "1",
        "--cases",
        "1",
        "--json",
    )
    measured = served.run("bench", "run", "--triton", f"127.0.0.1:{served.ports.grpc}", *short)
    assert measured.returncode == 0, measured.stderr
    report = json.loads(measured.stdout)
    assert report["settings"]["tls"] == "mutual"
    assert served.tokens["read"] not in measured.stdout


def test_models_are_loaded_with_an_admin_token_alone(served):
    own = (served.folder / "lab.crt", served.folder / "lab.key")
    connection = Connection(TLS(served.folder / "ca.crt", *own))
    url = f"127.0.0.1:{served.ports.grpc}"
    with pytest.raises(ConfigError, match="does not accept this admin key"):
        check_server(url, served.repository, served.tokens["read"], connection)
    loaded = reload_models(url, served.repository, served.tokens["admin"], connection=connection)
    assert "predict_study" in loaded.seconds
    key = read_admin_key(served.logs / "runtime" / "admin_key")
    assert check_server(url, served.repository, key, connection) == 1


def test_triton_exports_spans_without_the_report(served, spans):
    with served.connect("read") as client:
        client.predict(None, "Small left effusion.")
    assert spans.wait_for(b"predict_text")
    assert not [
        body for body in spans.bodies if b"effusion" in body or served.tokens["read"].encode() in body
    ]


def test_metrics_need_tls_a_certificate_and_a_token(served):
    """The relay passes on Triton's page, whose own port is plain text on loopback."""
    context = ssl.create_default_context(cafile=served.folder / "ca.crt")

    def ask(port: int, path: str, token: str) -> "tuple[int, str]":
        connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=context)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    token, ports = served.tokens["metrics"], served.ports
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(ports.relay_metrics, "/metrics", token)
    context.load_cert_chain(served.folder / "lab.crt", served.folder / "lab.key")
    for port, path, name in (
        (ports.relay_metrics, "/metrics", "cxr_relay_calls_total"),
        (ports.relay_metrics, "/triton/metrics", "nv_inference_count"),
        (ports.retrieval_metrics, "/metrics", "cxr_retrieval_cases"),
    ):
        status, page = ask(port, path, token)
        assert status == 200
        assert name in page
        assert ask(port, path, "wrong") == (401, "")
    with served.connect("metrics") as client, pytest.raises(ConfigError, match="role metrics"):
        client.predict(None, "Small left effusion.")


def test_no_key_and_no_token_is_written_anywhere(served):
    secrets = [*served.tokens.values(), (served.logs / "runtime" / "admin_key").read_text().strip()]
    secrets += [
        re.sub(r"-----.*?-----|\s", "", path.read_text())[:40] for path in served.folder.glob("*.key")
    ]
    assert len(secrets) == 9
    words = served.list_words()
    assert words.count("tritonserver") >= 1
    metrics = http.client.HTTPConnection("127.0.0.1", served.ports.metrics, timeout=10)
    metrics.request("GET", "/metrics")
    page = metrics.getresponse().read().decode()
    metrics.close()
    places = {path: path.read_text(errors="replace") for path in served.logs.glob("*.log")}
    places |= {"ps": words, "metrics": page, "stderr": (served.place / "errors").read_text()}
    assert len(places) == 6
    names = (Path(__file__).parents[1] / "docker" / "triton_metrics.txt").read_text().split()
    assert [name for name in names if f"# TYPE {name} " not in page and not name.startswith("nv_gpu")] == []
    for place, text in places.items():
        assert not [secret for secret in secrets if secret in text], place
        assert "Handshake failed" not in text, place  # a stranger could fill the disk
    assert "nv_inference" in page
