"""Run models of a running Triton by name and version, and read which runtime they use."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from contract.address import CHANNEL_OPTIONS, check_address, speaks_http1
from contract.connection import PLAIN, TOKEN_SETTING, Connection
from contract.errors import (
    ArtifactError,
    ConfigError,
    DeadlineError,
    ServerError,
    ServiceError,
    UnavailableError,
)
from contract.grpc_status import strip_code
from contract.runtime.embedded import EMBEDDED, SERVER_NAME, explain_refusal, needs_embedded
from contract.tensors import ADDED_OUTPUTS, FUSED, MODELS, ModelSpec
from contract.tls_trouble import find_tls_error

Arrays = dict[str, NDArray[Any]]
PROBE_TIMEOUT_S: Final = 5.0
_SERVER: Final = "Triton's gRPC service"
_MAX_CHARS: Final = 400


class ServedGraphs:
    """Runs one version of the models of a running Triton. Every call has a deadline."""

    def __init__(self, client: Any, url: str, version: int, timeout_s: float = 120.0) -> None:
        """Take a tritonclient.grpc.InferenceServerClient.

        Args:
            client: The client.
            url: Its address, for messages.
            version: The version to run.
            timeout_s: Seconds for all calls together.
        """
        self.version = version
        self._client = client
        self._url = url
        self._deadline = time.monotonic() + timeout_s

    def ask(self, model: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run a model on batched inputs by name; return all its outputs by name.

        A model that an older version of this software published lacks some of `contract.tensors.ADDED_OUTPUTS`.

        Raises:
            DeadlineError, UnavailableError: There is no answer.
            ServerError: Triton answered with an error, or without an output.
        """
        spec = MODELS.get(model) or FUSED[model]
        try:
            answer = self._client.infer(
                model,
                _make_inputs(spec, inputs),
                model_version=str(self.version),
                client_timeout=max(self._deadline - time.monotonic(), 1e-3),
            )
        except InferenceServerException as error:
            raise self._explain(model, error) from error
        arrays = {tensor.name: answer.as_numpy(tensor.name) for tensor in spec.outputs}
        missing = [name for name, array in arrays.items() if array is None]
        if lacking := [name for name in missing if name not in ADDED_OUTPUTS]:
            raise ServerError(f"Triton at {self._url} answered {model} without the output {lacking[0]}.")
        return {name: array for name, array in arrays.items() if name not in missing}

    def read_config(self, model: str) -> dict[str, Any]:
        """Return a model's config as Triton's JSON. For ServiceError see `ask`."""
        try:
            answer = self._client.get_model_config(model, str(self.version), client_timeout=PROBE_TIMEOUT_S)
        except InferenceServerException as error:
            raise self._explain(model, error) from error
        return dict(json_format.MessageToDict(answer.config, preserving_proto_field_name=True))

    def describe(self, model: str) -> dict[str, str]:
        """Return the runtime, the provider and, if known, the precision of a graph.

        Raises:
            ConfigError: The backend does not honour the graph's config.
            ServiceError: See `ask`.
        """
        config = self.read_config(model)
        try:
            server = self._client.get_server_metadata(client_timeout=PROBE_TIMEOUT_S)
        except InferenceServerException as error:
            raise self._explain(model, error) from error
        embedded = server.name == SERVER_NAME
        if not embedded and needs_embedded(config):
            raise ConfigError(explain_refusal(f"Triton at {self._url}", "int8 or bf16"))
        kinds = {group.get("kind", "KIND_AUTO") for group in config.get("instance_group", [{}])}
        accelerators = [
            entry["name"]
            for listed in config.get("optimization", {}).get("execution_accelerators", {}).values()
            for entry in listed
        ]
        backend = config.get("backend") or config.get("platform", "")
        provider = ", ".join([*(kind.removeprefix("KIND_") for kind in sorted(kinds)), *accelerators])
        name = f"{EMBEDDED} {backend}" if embedded else backend
        return {"runtime": f"Triton {server.version}, {name}", "provider": provider}

    def _explain(self, model: str, error: InferenceServerException) -> ServiceError:
        code = strip_code(error.status())
        name = f"version {self.version} of {model}"
        if code in ("DEADLINE_EXCEEDED", "CANCELLED"):
            return DeadlineError(f"Triton at {self._url} did not answer with {name} in time.")
        if code == "UNAVAILABLE":
            return UnavailableError(f"Triton at {self._url} does not answer with {name}.")
        return ServerError(f"Triton at {self._url} failed at {name}: {shorten(error.message() or '')}.")


def find_version(client: Any, url: str, model: str) -> int:
    """Return the version of an ensemble that answers now.

    Raises:
        ArtifactError: The server's ensemble was not published by `cxr export`.
        ServiceError: The server does not answer.
    """
    try:
        config = client.get_model_config(model, client_timeout=PROBE_TIMEOUT_S).config
    except InferenceServerException as error:
        if (error.status() or "").endswith("UNAVAILABLE"):
            raise UnavailableError(f"Triton at {url} does not answer.") from error
        raise ArtifactError(
            f"Triton at {url} does not serve {model}. Publish it with `cxr export`."
        ) from error
    versions = list(config.version_policy.specific.versions)
    if not versions:
        raise ArtifactError(f"Triton at {url} serves a {model} that `cxr export` did not publish.")
    return int(versions[0])


@contextmanager
def connect(url: str, setting: str, connection: Connection = PLAIN) -> Iterator[Any]:
    """Open a client of a Triton that answers, and close it at the end.

    Args:
        url: Triton's gRPC address, host:port.
        setting: Name of the setting with the address, such as "--load".
        connection: TLS and token.

    Raises:
        ConfigError: The address is not valid, another service answers there, the settings of TLS do not fit the server,
            or the server wants another token.
        UnavailableError: Nothing answers.
    """
    check_address(url, server=_SERVER, setting=setting, example="127.0.0.1:8001")
    connection.require_private(url, setting)
    client = connection.open_triton(triton.InferenceServerClient, url, CHANNEL_OPTIONS)
    try:
        _require_live(client, url, setting, connection)
        yield client
    finally:
        client.close()


def _require_live(client: Any, url: str, setting: str, connection: Connection) -> None:
    try:
        client.is_server_live(client_timeout=PROBE_TIMEOUT_S)
    except InferenceServerException as error:
        if (error.status() or "").endswith("UNAUTHENTICATED"):
            raise ConfigError(f"Triton at {url} wants another {TOKEN_SETTING}: {error.message()}") from error
        if (trouble := find_tls_error(url, connection, "Triton")) is not None:
            raise trouble from error
        if (error.status() or "").endswith("UNIMPLEMENTED") or speaks_http1(url):
            raise ConfigError(
                f"The service at {url} is not {_SERVER}. Give {setting} the address that "
                "`cxr serve` prints as triton."
            ) from error
        raise UnavailableError(f"Triton at {url} does not answer: is `cxr serve` running there?") from error


def shorten(message: str) -> str:
    """Return an error message without the Python stack of a python backend."""
    text = " ".join(message.partition("\n\nAt:")[0].split()).rstrip(".;")
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"


def _make_inputs(spec: ModelSpec, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
    tensors = []
    for entry in spec.inputs:
        array = np.ascontiguousarray(inputs[entry.name])
        tensor = triton.InferInput(entry.name, list(array.shape), entry.dtype)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors
