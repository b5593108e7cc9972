"""Calls to Triton over gRPC: arrays in, arrays out, a deadline on every call, errors of this project."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from client.results import ServedModel
from client.status import make_error
from contract.bundle import ServedLabel, check_numbers
from contract.errors import ArtifactError, CxrError
from contract.labels import LABEL_KEYS
from contract.tensors import MODELS

Arrays = dict[str, NDArray[Any]]

_LABEL_FIELDS: Final = {field.name for field in fields(ServedLabel)}  # a newer server may say more

_CHANNEL: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment must not see studies of a lab's own host
]


class TritonTransport:
    """One address of Triton; may be used by several threads at once.

    tritonclient promises thread safety for no object of its own, so each thread has one.
    """

    def __init__(self, url: str) -> None:
        """Describe the server at `url`, host:port; nothing is sent yet."""
        self.url = url
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: list[Any] = []

    def infer(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], timeout_s: float
    ) -> Arrays:
        """Run one served model.

        Args:
            model: A key of `contract.tensors.MODELS`.
            inputs: Name -> batched array (B, ...), exactly the model's inputs.
            outputs: Names of the outputs to return.
            timeout_s: Deadline of the call, in seconds.

        Returns:
            Name -> batched array.

        Raises:
            TensorError: An input does not fit the tensor table.
            InputError, ServiceError: See `client.status`.
        """
        spec = MODELS[model]
        tensors = []
        for entry in spec.inputs:
            array = inputs[entry.name]
            entry.check(array)
            tensor = triton.InferInput(entry.name, list(array.shape), entry.dtype)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        wanted = [triton.InferRequestedOutput(name) for name in outputs]
        try:
            result = self._client().infer(
                model,
                tensors,
                outputs=wanted,
                client_timeout=timeout_s,
                timeout=max(1, int(timeout_s * 1e6)),  # microseconds in the server's queue
            )
        except InferenceServerException as error:
            raise self._explain(error, timeout_s) from error
        return {name: _require(result.as_numpy(name), name) for name in outputs}

    def read_model(self, timeout_s: float) -> ServedModel:
        """Read what the served model says about itself from the parameters of `predict_study`.

        Raises:
            ArtifactError: The server runs something else than a repository published by `cxr export` of this version.
            ServiceError: See `client.status`.
        """
        try:
            answer = self._client().get_model_config("predict_study", as_json=True, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise self._explain(error, timeout_s) from error
        model = self._parse_model(answer["config"])
        self._check_outputs(answer["config"])
        return model

    def _parse_model(self, config: Mapping[str, Any]) -> ServedModel:
        try:
            values = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
            labels = tuple(
                ServedLabel(**{name: value for name, value in entry.items() if name in _LABEL_FIELDS})
                for entry in json.loads(values["labels"])
            )
            model = ServedModel(
                fingerprint=values["fingerprint"],
                text_mode=values["text_mode"],
                max_length=int(values["max_length"]),
                image_size=int(values["image_size"]),
                embedding_size=int(values["embedding_size"]),
                grid=int(values["image_tokens_grid"]),
                labels=labels,
                temperature=float(values["temperature"]) if "temperature" in values else None,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"Triton at {self.url} serves models that `cxr export` did not publish: their parameters "
                "lack labels or sizes."
            ) from error
        if tuple(label.key for label in labels) != LABEL_KEYS:
            raise ArtifactError(f"Triton at {self.url} serves other categories than this client knows.")
        for label in labels:
            check_numbers(label, source=f"Triton at {self.url}")
        return model

    def _check_outputs(self, config: Mapping[str, Any]) -> None:
        """Refuse a repository of an older version: without its notes an odd image would pass for a usual one."""
        served = {entry["name"] for entry in config.get("output", [])}
        expected = {tensor.name for tensor in MODELS["predict_study"].outputs}
        if missing := sorted(expected - served):
            raise ArtifactError(
                f"Triton at {self.url} serves predict_study without the outputs {', '.join(missing)}: an older "
                "version published it; publish the bundle again with `cxr export`."
            )

    def check_ready(self, timeout_s: float) -> str | None:
        """Return None when the server and all its models are ready, else one sentence."""
        try:
            ready = self._client().is_server_ready(client_timeout=timeout_s)
        except InferenceServerException as error:
            return str(self._explain(error, timeout_s))
        return None if ready else f"Triton at {self.url} is starting or has a model that is not ready."

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for client in self._open:
                client.close()
            self._open.clear()
            self._local = threading.local()

    def _client(self) -> Any:
        client = getattr(self._local, "client", None)
        if client is None:
            client = triton.InferenceServerClient(self.url, channel_args=_CHANNEL)
            with self._lock:
                self._open.append(client)
            self._local.client = client
        return client

    def _explain(self, error: InferenceServerException, timeout_s: float) -> CxrError:
        return make_error(
            error.status(), error.message() or "", server="Triton", url=self.url, timeout_s=timeout_s
        )


def _require(array: NDArray[Any] | None, name: str) -> NDArray[np.generic]:
    if array is None:
        raise ArtifactError(f"Triton answered without the output {name}.")
    return array
