"""What the blocking and the asyncio transport to Triton have in common: the requests, the answers and the errors.

Every operation is written once, in steps (`client.steps`). A transport adds the connections.
"""

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from client.channel import Calls, ChannelSettings, Request, holds_bytes, set_data
from client.served import ServedModel, parse_model
from client.status import make_error
from client.steps import Steps
from client.transport_core import TransportCore
from client.triton_call import Call
from contract.errors import ArtifactError, CancelledError, ConfigError, CxrError, UnavailableError
from contract.grpc_status import resolve_unavailable, strip_code
from contract.runtime.embedded import EMBEDDED, SERVER_NAME, explain_refusal
from contract.tensors import FUSED, MODELS, ModelSpec

Arrays = dict[str, NDArray[Any]]
Client: TypeAlias = Any  # tritonclient.grpc.InferenceServerClient, or its namesake in tritonclient.grpc.aio

PROBE_TIMEOUT_S: Final = 1.0


class Answer(Arrays):
    """Name -> batched array, and the version of the model that answered; "" if the server states none."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], model_version: str = "") -> None:
        """Take the arrays and the version."""
        super().__init__(arrays)
        self.model_version = model_version


class Connected(Protocol):
    """A connection that a request uses: a `client.channel.Lane`, or the one of the asyncio transport."""

    client: Client
    closed: bool

    def prepare(
        self, spec: ModelSpec, arrays: Sequence[NDArray[Any]], outputs: Sequence[str], *, keep: bool
    ) -> Request:
        """See `client.channel.Lane.prepare`."""


class TritonCore(TransportCore):
    """The requests to one Triton, in steps."""

    name = "Triton"
    service = "Triton's gRPC service"
    setting = "triton_url (--triton)"
    example = "127.0.0.1:8001"

    def __init__(self, url: str, settings: ChannelSettings | None = None) -> None:
        """See `TransportCore`. The settings hold TLS and the token."""
        self.settings = settings or ChannelSettings()
        super().__init__(url, self.settings.connection)

    @abstractmethod
    def _client(self) -> Client:
        """Return the client for questions about the server."""

    @abstractmethod
    def _forget_client(self) -> None:
        """Let the next question use a new connection. Add the client of the old one to `_forgotten`."""

    @abstractmethod
    def _use_lane(self, calls: Calls | None) -> AbstractContextManager[Any]:
        """Yield a `Connected` for one request."""

    @abstractmethod
    def _give_up(self, lane: Any) -> None:
        """Let no further request use a connection."""

    def _infer_in_steps(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        timeout_s: float,
        calls: Calls | None,
    ) -> Steps[Answer]:
        """Run one served model; see `client.triton.TritonTransport.infer`."""
        spec = MODELS.get(model) or FUSED[model]
        arrays = [inputs[entry.name] for entry in spec.inputs]
        for entry, array in zip(spec.inputs, arrays, strict=True):
            entry.check(array)
        call = Call(
            spec, arrays, tuple(outputs), time.monotonic() + timeout_s, calls.priority if calls else 0
        )
        with self._use_lane(calls) as lane:
            try:
                return (yield from self._carry(lane, call))
            except InferenceServerException as error:
                explained = yield from self._explain(error, timeout_s, call.deadline, call.spec.name)
                if isinstance(explained, UnavailableError | ConfigError):
                    self._give_up(lane)  # a new channel resolves the host name again; see `_explain`
                raise explained from error

    def _carry(self, lane: Any, call: Call) -> Steps[Answer]:
        """Send a request in the way that the transport chooses."""
        return (yield from self._carry_plain(lane, call))

    def _carry_plain(self, lane: Connected, call: Call) -> Steps[Answer]:
        """Run a request whose tensors travel in the gRPC messages."""
        # Reusable objects would hold a whole file in memory.
        request = lane.prepare(call.spec, call.arrays, call.outputs, keep=not holds_bytes(call.arrays))
        set_data(request, call.arrays)
        result = yield from self._send(lane, call, request)
        arrays = {name: require_output(result.as_numpy(name), name) for name in call.outputs}
        return Answer(arrays, result.get_response().model_version)

    def _send(self, lane: Connected, call: Call, request: Request) -> Steps[Any]:
        left_s = max(call.deadline - time.monotonic(), 1e-3)
        return (
            yield from self._ask(
                lane.client.infer,
                call.spec.name,
                request.inputs,
                lane=lane,
                outputs=request.outputs,
                client_timeout=left_s,  # seconds; Triton's own timeout ends the request too late (issue 7512)
                timeout=max(1, int(left_s * 1e6)),  # microseconds in the server's queue
                compression_algorithm=self.settings.algorithm,
                priority=call.priority,
            )
        )

    def _read_model_in_steps(
        self, timeout_s: float, model: str, version: str, calls: Calls | None
    ) -> Steps[ServedModel]:
        """Return the facts about a served model; see `client.triton.TritonTransport.read_model`."""
        end = time.monotonic() + timeout_s
        if calls is None:
            return (yield from self._read_over(self._client(), None, timeout_s, end, model, version))
        with self._use_lane(calls) as lane:  # a question over the shared connection could not be cancelled
            try:
                return (yield from self._read_over(lane.client, lane, timeout_s, end, model, version))
            except (UnavailableError, ConfigError):
                self._give_up(lane)
                raise

    def _read_over(
        self, client: Client, lane: Any, timeout_s: float, end: float, model: str, version: str
    ) -> Steps[ServedModel]:
        """Read the facts over a connection. `lane` is None for the shared one; `end` is a time of `time.monotonic`."""
        source = f"Triton at {self.url}"
        try:
            answer = yield from self._ask(
                client.get_model_config, model, version, as_json=True, client_timeout=timeout_s, lane=lane
            )
            served = parse_model(model, answer["config"], source=source)
            if served.required_backend == EMBEDDED:
                left_s = max(end - time.monotonic(), 1e-3)
                server = yield from self._ask(client.get_server_metadata, client_timeout=left_s, lane=lane)
                if server.name != SERVER_NAME:
                    raise ConfigError(explain_refusal(source, served.profile))
        except InferenceServerException as error:
            raise (yield from self._explain(error, timeout_s, end)) from error
        return served

    def _check_ready_in_steps(self, timeout_s: float) -> Steps[str | None]:
        """Return None if the server and all its models are ready, else the reason in one sentence."""
        end = time.monotonic() + timeout_s
        try:
            ready = yield from self._ask(self._client().is_server_ready, client_timeout=timeout_s)
        except InferenceServerException as error:
            return str((yield from self._explain(error, timeout_s, end)))
        except CancelledError as error:
            return str(error)
        return None if ready else f"Triton at {self.url} is starting, or one of its models is not ready."

    def _explain(
        self, error: InferenceServerException, timeout_s: float, end: float, model: str | None = None
    ) -> Steps[CxrError]:
        """Return the error of this project for one of tritonclient. What it asks ends with the time of the request.

        Args:
            error: The error.
            timeout_s: Deadline of the request, in seconds.
            end: The end of this time (`time.monotonic`).
            model: The model that the request ran; None for a question about the server.
        """
        code = strip_code(error.status())
        if code == "UNAVAILABLE" and model is not None:
            code = yield from self._resolve_unavailable(model, end)
        if code == "UNAVAILABLE":
            # A new channel resolves the host name at once. The old one might wait up to two minutes, and gRPC has no
            # option for that. It closes when the other requests on it have ended.
            self._forget_client()
            trouble = yield from self._find_other_cause(end)
            if trouble is not None:
                return trouble
        elif code == "UNIMPLEMENTED" and (yield from self._is_other_service(end)):
            return self._make_wrong_service_error()
        return make_error(code, error.message() or "", server="Triton", url=self.url, timeout_s=timeout_s)

    def _resolve_unavailable(self, model: str, end: float) -> Steps[str]:
        """Return the code of a request that ended with UNAVAILABLE; see `contract.grpc_status`."""
        is_in_time = time.monotonic() < end
        serves = is_in_time and (yield from self._serves(model, end))
        code = resolve_unavailable("UNAVAILABLE", lambda: serves)
        is_late = not is_in_time or (serves and time.monotonic() >= end)
        return "DEADLINE_EXCEEDED" if is_late else code

    def _is_other_service(self, end: float) -> Steps[bool]:
        """Whether another service than Triton answers. Triton, too, reports UNIMPLEMENTED for some requests."""
        if (left_s := _limit_probe(end)) <= 0:
            return False
        try:
            yield from self._ask(self._client().is_server_live, client_timeout=left_s)
        except InferenceServerException as error:
            return strip_code(error.status()) == "UNIMPLEMENTED"
        return False

    def _serves(self, model: str, end: float) -> Steps[bool]:
        """Whether the server answers and the model is ready."""
        if (left_s := _limit_probe(end)) <= 0:
            return False
        try:
            return bool((yield from self._ask(self._client().is_model_ready, model, client_timeout=left_s)))
        except InferenceServerException:
            return False


def _limit_probe(end: float) -> float:
    """Return the seconds that a probe may take before a time of `time.monotonic`; 0 or less if there are none."""
    return min(end - time.monotonic(), PROBE_TIMEOUT_S)


def require_output(array: NDArray[Any] | None, name: str) -> NDArray[np.generic]:
    """Return an output. Raise ArtifactError if the answer lacks it."""
    if array is None:
        raise make_missing_error(name)
    return array


def make_missing_error(name: str) -> ArtifactError:
    """Return the error for an answer without a wanted output."""
    return ArtifactError(
        f"Triton answered without the output {name}: publish the bundle again with `cxr export`."
    )
