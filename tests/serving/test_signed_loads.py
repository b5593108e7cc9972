"""`cxr serve --require-signature`: neither the start nor an admin loads what no trusted key signed."""

import signal

import pytest

pytest.importorskip("minisign")
grpc = pytest.importorskip("grpc")
grpc_client = pytest.importorskip("tritonclient.grpc")

from contract.errors import ConfigError, SignatureError  # noqa: E402
from contract.protection import Protection  # noqa: E402
from contract.repository import SIGNATURE  # noqa: E402
from contract.signatures import TrustedKeys  # noqa: E402
from export.signing_keys import SigningKey, make_key  # noqa: E402
from serving import relay  # noqa: E402
from serving.ports import Ports  # noqa: E402
from serving.signed_loads import LOAD, SignedLoads  # noqa: E402
from serving.stack import Stack  # noqa: E402

service_pb2 = grpc_client.service_pb2
OTHER = "/inference.GRPCInferenceService/RepositoryModelUnload"


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> SigningKey:
    return SigningKey.read(make_key(tmp_path_factory.mktemp("key"), None).secret, str)


@pytest.fixture
def load(triton, make_relay, own_repository, key, tmp_path):
    """A function that asks a relay as an admin: a call and its message -> the gRPC code and what it says."""
    (tmp_path / "admin_key").write_text("secret")
    running = make_relay(Protection(admin_key=tmp_path / "admin_key"), SignedLoads(own_repository, key.trust))

    def call(method: str, request: bytes) -> tuple[str, str]:
        try:
            running.call(method, request, metadata=(("authorization", "Bearer secret"),))
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return "OK", ""

    return call


def test_a_running_server_loads_only_what_is_signed(load, triton, own_repository, key):
    asked = service_pb2.RepositoryModelLoadRequest(model_name="graph")
    code, said = load(LOAD, asked.SerializeToString())
    assert (code, "has no signature" in said) == ("FAILED_PRECONDITION", True)
    sign_marker(own_repository, key)
    assert load(LOAD, asked.SerializeToString()) == ("OK", "")
    (own_repository / "graph" / "1" / "model.onnx").write_bytes(b"other weights")
    code, said = load(LOAD, asked.SerializeToString())
    assert (code, "differs from the published file" in said) == ("FAILED_PRECONDITION", True)
    assert triton.methods == [LOAD]
    assert load(OTHER, b"x") == ("OK", "")


@pytest.mark.parametrize("name", ["config", "file:1/model.onnx"])
def test_a_load_cannot_bring_its_own_config_or_graph(name, load, triton, own_repository, key):
    """Triton would take both from the message, whatever the signed files are."""
    sign_marker(own_repository, key)
    asked = service_pb2.RepositoryModelLoadRequest(model_name="graph")
    asked.parameters[name].string_param = "{}"
    code, said = load(LOAD, asked.SerializeToString())
    assert (code, "its own config or files" in said) == ("FAILED_PRECONDITION", True)
    assert load(LOAD, b"\xff\xff")[0] == "FAILED_PRECONDITION"
    assert triton.methods == []


def sign_marker(repository, key: SigningKey) -> None:
    (repository / SIGNATURE).write_text(
        key.sign(".published.json", (repository / ".published.json").read_bytes(), "")
    )


def make_stack(repository, place, trust: TrustedKeys) -> Stack:
    options = {"ports": Ports.free(), "log_dir": place / "logs"}
    return Stack(repository, place / "store", **options, trust=trust)


def test_the_stack_starts_nothing_without_the_signature(own_repository, tmp_path, key):
    stack = make_stack(own_repository, tmp_path, key.trust)
    with pytest.raises(SignatureError, match="has no signature"):
        stack.start()
    assert stack.pids == {}
    sign_marker(own_repository, key)
    assert stack.fingerprint  # the check passes; Triton is not started here


def test_each_start_of_triton_checks_again(own_repository, tmp_path, key, mark_published):
    """A supervised Triton that is started again must not load what was swapped meanwhile."""
    pytest.importorskip("pytriton")
    from serving.servers import Servers

    sign_marker(own_repository, key)
    stack = make_stack(own_repository, tmp_path, key.trust)
    servers = Servers(stack, leave_socket=lambda: None)
    try:
        assert servers.build_triton()
        words = servers.build_relay()._command
        assert words[words.index("--require-signature") + 1] == key.trust.keys[0]
        assert words[words.index("--repository") + 1] == str(own_repository)
        (own_repository / "graph" / "1" / "model.onnx").write_bytes(b"other weights")
        mark_published(own_repository, "f" * 64)
        with pytest.raises(SignatureError, match=r"was changed after it was signed|damaged or forged"):
            servers.build_triton()
        with pytest.raises(SignatureError):
            servers.build_sidecar()
    finally:
        servers.close()


def test_the_relay_needs_the_repository_with_the_keys(key):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ended = relay.main(["--listen", "127.0.0.1:0", "--triton", "unix:x", *key.trust.to_arguments()])
    assert ended == ConfigError.exit_code
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked  # every child of this process inherits it
