"""Requests to Triton over gRPC: named arrays as inputs and outputs, deadlines, and errors of this project.

If the client and the server are on one host, the tensors can travel in shared memory. The request itself is still a
gRPC message. With the carrier "auto", a request uses shared memory under four conditions:

- The address is a loopback address or a unix socket.
- The inputs and outputs together have 64 KiB or more. On 2 busy cores and with a model that does nothing, 50 KB took
  the same time with and without shared memory, 150 KB took 0.5 instead of 0.8 ms, and 1.6 MB took 1.0 instead of
  9.2 ms. The prediction of a radiograph of 10 MB took 42 instead of 55 ms, and 3 instead of 24 ms of the client's CPU.
- It is at least the third request of this size, because a short-lived program would not recover the cost of a region.
- The server has accepted the registration of a region. A server refuses it on another host behind a forwarded port, or
  in a container with its own /dev/shm. After one refusal, all requests use gRPC.
"""

import math
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from client.channel import Calls, ChannelSettings, Lane, Request, holds_bytes, set_data, set_region
from client.layout import align, lay_out, lay_out_outputs, measure
from client.served import ServedModel, parse_model
from client.shared_memory import CudaRegion, Region, RegionPool, SystemRegion
from client.status import make_cancelled_error, make_error, make_wrong_service_error
from client.triton_call import Call
from contract.address import check_address, speaks_http1
from contract.connection import is_local
from contract.errors import ArtifactError, ConfigError, CxrError, UnavailableError
from contract.grpc_status import resolve_unavailable, strip_code
from contract.runtime.embedded import EMBEDDED, SERVER_NAME, explain_refusal
from contract.tensors import FUSED, MODELS, NUMPY_DTYPES
from contract.tls_trouble import find_tls_error

Arrays = dict[str, NDArray[Any]]

_MIN_SHARED_BYTES: Final = 64 * 1024
_FIRST_SHARED_CALL: Final = 3
_PROBE_TIMEOUT_S: Final = 1.0
_SERVER: Final = "Triton's gRPC service"
_SETTING: Final = "triton_url (--triton)"


class Answer(Arrays):
    """Name -> batched array, and the version of the model that answered; "" if the server states none."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], model_version: str = "") -> None:
        """Take the arrays and the version."""
        super().__init__(arrays)
        self.model_version = model_version


class TritonTransport:
    """Sends requests to one Triton. Several threads may use it at once.

    tritonclient's request objects are not thread-safe. So each running request has its own connection with its own
    request objects, which later requests reuse.
    """

    def __init__(self, url: str, settings: ChannelSettings | None = None) -> None:
        """Set the address, host:port. The first request connects.

        Raises:
            ConfigError: The address is not valid, or a token would travel to it as plain text.
        """
        self.url = check_address(url, server=_SERVER, setting=_SETTING, example="127.0.0.1:8001")
        self.settings = settings or ChannelSettings()
        self.settings.connection.require_private(url, _SETTING)
        self._lock = threading.Lock()
        self._lanes: set[Lane] = set()
        self._idle: list[Lane] = []
        self._control: Lane | None = None
        carrier = self.settings.carrier
        make = CudaRegion if carrier == "cuda_shared_memory" else SystemRegion
        channel = self.settings
        self._regions = RegionPool(make, lambda: Lane(url, channel).client)  # holds no reference to `self`
        weakref.finalize(self, self._regions.close)  # no image remains in memory if nobody calls `close`
        self._shares = carrier != "grpc" and (carrier != "auto" or is_local(url))
        self._large_calls = 0
        self._output_sizes: dict[tuple[object, ...], dict[str, int]] = {}  # `Call.key` -> name -> bytes

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        timeout_s: float,
        *,
        calls: Calls | None = None,
    ) -> Answer:
        """Run one served model.

        Args:
            model: A key of `contract.tensors.MODELS` or `FUSED`.
            inputs: Name -> batched array (B, ...), exactly the model's inputs.
            outputs: Names of the outputs to return.
            timeout_s: Deadline in seconds.
            calls: The group with which the request is cancelled.

        Returns:
            Name -> batched array.

        Raises:
            TensorError: An input does not fit the tensor table.
            InputError: The server refuses an input.
            BusyError: The server's queue is full.
            ServiceError: The server is down, slow, or failed; see `client.status`.
        """
        spec = MODELS.get(model) or FUSED[model]
        arrays = [inputs[entry.name] for entry in spec.inputs]
        for entry, array in zip(spec.inputs, arrays, strict=True):
            entry.check(array)
        call = Call(spec, arrays, tuple(outputs), time.monotonic() + timeout_s)
        with self._use_lane(calls) as lane:
            try:
                answer = self._infer_shared(lane, call) if self._wants_region(call) else None
                if answer is None:
                    answer = self._infer_plain(lane, call)
            except InferenceServerException as error:
                explained = self._explain(error, timeout_s, call)
                if isinstance(explained, UnavailableError | ConfigError):
                    lane.close()  # a new channel resolves the host name again; see `_explain`
                raise explained from error
            except ValueError as error:  # raised by gRPC for a closed channel
                if not lane.closed:
                    raise
                raise make_cancelled_error(self.url) from error
        self._output_sizes[call.key] = {name: answer[name].nbytes for name in call.sized_outputs}
        return answer

    def read_model(self, timeout_s: float, model: str = "predict_study", version: str = "") -> ServedModel:
        """Return the facts that the configuration of a served model states.

        Args:
            timeout_s: Deadline of each request, in seconds.
            model: One of `predict_*`.
            version: Its version; "" for the version that the server would use now.

        Raises:
            ArtifactError: `cxr export` of this version did not publish the model.
            ConfigError: The server's backend does not run the graphs as they were tested
                (`contract.runtime.embedded`).
            ServiceError: As in `infer`.
        """
        try:
            answer = self._client().get_model_config(model, version, as_json=True, client_timeout=timeout_s)
            served = parse_model(model, answer["config"], source=f"Triton at {self.url}")
            if served.required_backend == EMBEDDED:
                server = self._client().get_server_metadata(client_timeout=timeout_s).name
                if server != SERVER_NAME:
                    raise ConfigError(explain_refusal(f"Triton at {self.url}", served.profile))
        except InferenceServerException as error:
            raise self._explain(error, timeout_s) from error
        return served

    def check_ready(self, timeout_s: float) -> str | None:
        """Return None if the server and all its models are ready, else the reason in one sentence."""
        try:
            ready = self._client().is_server_ready(client_timeout=timeout_s)
        except InferenceServerException as error:
            return str(self._explain(error, timeout_s))
        return None if ready else f"Triton at {self.url} is starting, or one of its models is not ready."

    def close(self) -> None:
        """Close all connections, which cancels the running requests, and remove all shared-memory regions."""
        with self._lock:
            lanes, self._lanes, self._idle = self._lanes, set(), []
        for lane in lanes:
            lane.close()
        self._regions.close()
        with self._lock:
            control, self._control = self._control, None
        if control is not None:
            control.close()

    def _wants_region(self, call: Call) -> bool:
        """Whether a request should use shared memory; see the top of this file."""
        if not self._shares or self._regions.refused:
            return False
        if self.settings.carrier == "cuda_shared_memory":
            return not holds_bytes(call.arrays)
        if self.settings.carrier == "shared_memory":
            return True
        expected = sum(self._output_sizes.get(call.key, {}).values())
        if sum(map(measure, call.arrays)) + expected < _MIN_SHARED_BYTES:
            return False
        self._large_calls += 1
        return self._large_calls >= _FIRST_SHARED_CALL

    def _infer_plain(self, lane: Lane, call: Call) -> Answer:
        """Run a request whose tensors travel in the gRPC messages."""
        # Reusable objects would hold a whole file in memory.
        request = lane.prepare(call.spec, call.arrays, call.outputs, keep=not holds_bytes(call.arrays))
        set_data(request, call.arrays)
        result = self._send(lane, call, request)
        arrays = {name: _require(result.as_numpy(name), name) for name in call.outputs}
        return Answer(arrays, result.get_response().model_version)

    def _infer_shared(self, lane: Lane, call: Call) -> Answer | None:
        """Run a request whose tensors travel in a region; None if the request should use gRPC."""
        pieces, spans, end = lay_out(call.arrays)
        sizes = self._output_sizes.get(call.key, {})
        region = self._regions.lease(end + sum(map(align, sizes.values())))
        if region is None:
            return None
        outputs = lay_out_outputs(sizes, end) if region.holds_outputs else {}
        reusable = True
        try:
            region.write(pieces)
            request = lane.prepare(call.spec, call.arrays, call.outputs, keep=True)
            names = (entry.name for entry in call.spec.inputs)
            set_region(request, region.name, dict(zip(names, spans, strict=True)), outputs)
            result = self._send(lane, call, request)
            return _read_shared(result, call, region, outputs)
        except InferenceServerException as error:
            code = strip_code(error.status())
            reusable = code == "INVALID_ARGUMENT"  # the server has answered and no longer uses the region
            if code == "NOT_FOUND":  # after a restart the server does not know the region: no model has run
                self._output_sizes.clear()
                self._regions.retire_free()
                return None
            if code == "INTERNAL" and self._has_outgrown(call, outputs):
                self._output_sizes.clear()
                return None
            raise  # a model that failed is not run a second time, because it might harm the server again
        except BaseException:
            reusable = False
            raise
        finally:
            (self._regions.give_back if reusable else self._regions.retire)(region)

    def _has_outgrown(self, call: Call, outputs: Mapping[str, tuple[int, int]]) -> bool:
        """Whether the server has a new model whose outputs are larger than their spans in the region.

        Triton reports INTERNAL for this and for a model that failed. Only its configuration tells the two apart.
        """
        try:
            config = self._client().get_model_config(call.spec.name, client_timeout=_PROBE_TIMEOUT_S).config
        except InferenceServerException:
            return False
        tokens = int(config.parameters["image_tokens_grid"].string_value or 0) ** 2
        specs = {entry.name: entry for entry in call.spec.outputs if entry.name in outputs}
        return any(
            call.count_items(specs[entry.name], entry.dims, tokens)
            * NUMPY_DTYPES[specs[entry.name].dtype].itemsize
            > outputs[entry.name][1]
            for entry in config.output
            if entry.name in specs
        )

    def _send(self, lane: Lane, call: Call, request: Request) -> Any:
        left_s = max(call.deadline - time.monotonic(), 1e-3)
        return lane.client.infer(
            call.spec.name,
            request.inputs,
            outputs=request.outputs,
            client_timeout=left_s,  # seconds; Triton's own timeout ends the request too late (issue 7512)
            timeout=max(1, int(left_s * 1e6)),  # microseconds in the server's queue
            compression_algorithm=self.settings.algorithm,
        )

    @contextmanager
    def _use_lane(self, calls: Calls | None) -> Iterator[Lane]:
        """Yield a connection that no other request uses."""
        with self._lock:
            lane = self._idle.pop() if self._idle else None
            if lane is None:
                lane = Lane(self.url, self.settings)
                self._lanes.add(lane)
        try:
            if calls is not None:
                calls.add(lane)
            yield lane
        finally:
            if calls is not None:
                calls.remove(lane)
            with self._lock:
                if lane.closed:
                    self._lanes.discard(lane)
                elif lane in self._lanes:
                    self._idle.append(lane)

    def _client(self) -> Any:
        """Return the client for questions about the server. Threads may share it: it has no request objects."""
        with self._lock:
            if self._control is None:
                self._control = Lane(self.url, self.settings)
            return self._control.client

    def _explain(
        self, error: InferenceServerException, timeout_s: float, call: Call | None = None
    ) -> CxrError:
        """Return the error of this project for one of tritonclient. `call` is None for a question about the server."""
        code = strip_code(error.status())
        if code == "UNAVAILABLE":
            # A new channel resolves the host name at once. The old one might wait up to two minutes, and gRPC has no
            # option for that. It closes when the requests of other threads on it have ended.
            with self._lock:
                self._control = None
            if call is not None:
                code = resolve_unavailable(code, partial(self._serves, call.spec.name))
                if code == "RESOURCE_EXHAUSTED" and time.monotonic() >= call.deadline:
                    code = "DEADLINE_EXCEEDED"
        if code == "UNAVAILABLE":
            trouble = find_tls_error(self.url, self.settings.connection, "Triton")
            if trouble is not None:
                return trouble
        if self._is_other_service(code):
            return make_wrong_service_error(self.url, _SERVER, _SETTING)
        return make_error(code, error.message() or "", server="Triton", url=self.url, timeout_s=timeout_s)

    def _is_other_service(self, code: str) -> bool:
        """Whether another service than Triton answers. Triton, too, reports UNIMPLEMENTED for some requests."""
        if code == "UNAVAILABLE":
            return speaks_http1(self.url)
        if code != "UNIMPLEMENTED":
            return False
        try:
            self._client().is_server_live(client_timeout=_PROBE_TIMEOUT_S)
        except InferenceServerException as error:
            return strip_code(error.status()) == "UNIMPLEMENTED"
        return False

    def _serves(self, model: str) -> bool:
        """Whether the server answers and the model is ready."""
        try:
            return bool(self._client().is_model_ready(model, client_timeout=_PROBE_TIMEOUT_S))
        except InferenceServerException:
            return False


def _read_shared(result: Any, call: Call, region: Region, outputs: Mapping[str, tuple[int, int]]) -> Answer:
    """Read the outputs from the region (`outputs`: name -> offset, size) and the others from the gRPC answer."""
    dtypes = {entry.name: NUMPY_DTYPES[entry.dtype] for entry in call.spec.outputs}
    arrays: Arrays = {}
    for name in call.outputs:
        if name not in outputs:
            arrays[name] = _require(result.as_numpy(name), name)
            continue
        output = result.get_output(name)
        offset, size = outputs[name]
        shape = tuple(output.shape) if output is not None else ()
        if not shape or math.prod(shape) * dtypes[name].itemsize > size:
            raise _make_missing_error(name)
        arrays[name] = region.read(dtypes[name], shape, offset)
    return Answer(arrays, result.get_response().model_version)


def _require(array: NDArray[Any] | None, name: str) -> NDArray[np.generic]:
    if array is None:
        raise _make_missing_error(name)
    return array


def _make_missing_error(name: str) -> ArtifactError:
    return ArtifactError(
        f"Triton answered without the output {name}: publish the bundle again with `cxr export`."
    )
