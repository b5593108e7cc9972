"""Calls to Triton over gRPC: arrays in, arrays out, a deadline on every call, errors of this project.

Where client and server share a host, tensors may travel in shared memory while the call itself stays gRPC.
With the carrier "auto" they do so

- where the address is a loopback one (or a unix socket),
- for calls of 64 KiB and more, in and out together: measured on 2 busy cores, 50 KB to a model that does nothing
  took as long both ways, 150 KB 0.5 instead of 0.8 ms and 1.6 MB 1.0 instead of 9.2 ms; the whole prediction of
  a radiograph of 10 MB took 42 instead of 55 ms, and the client 3 instead of 24 ms of CPU,
- from the third such call on, since making a region costs a short-lived program more than it saves,
- and where the server takes the region. One that refuses (another host behind a forwarded port, a container with
  a /dev/shm of its own) is never asked again, and every call goes over gRPC.
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

from client.channel import Calls, ChannelSettings, Lane, Request, holds_bytes, is_local, set_data, set_region
from client.served import ServedModel, parse_model
from client.shared_memory import CudaRegion, Region, RegionPool, SystemRegion, align, measure, place
from client.status import make_error, make_wrong_service_error
from contract.address import check_address, speaks_http1
from contract.errors import ArtifactError, CancelledError, ConfigError, CxrError, UnavailableError
from contract.grpc_status import resolve_unavailable, strip_code
from contract.runtime.embedded import EMBEDDED, SERVER_NAME, explain_refusal
from contract.tensors import FUSED, MODELS, NUMPY_DTYPES, ModelSpec, TensorSpec

Arrays = dict[str, NDArray[Any]]

_SHARED_FROM_BYTES: Final = 64 * 1024
_SHARED_FROM_CALL: Final = 3
_PROBE_TIMEOUT_S: Final = 1.0
_SERVER: Final = "Triton's gRPC service"
_SETTING: Final = "triton_url (--triton)"


class Answer(Arrays):
    """Name -> batched array, and the version of the model that answered (empty where the server says none)."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], model_version: str = "") -> None:
        """Take the arrays as they are."""
        super().__init__(arrays)
        self.model_version = model_version


class TritonTransport:
    """One address of Triton; may be used by several threads at once.

    tritonclient promises thread safety for none of its request objects, so each call has a connection and request
    objects of its own, which the next call uses again.
    """

    def __init__(self, url: str, settings: ChannelSettings | None = None) -> None:
        """Describe the server at `url`, host:port; nothing is sent yet. ConfigError: it is no address."""
        self.url = check_address(url, server=_SERVER, setting=_SETTING, example="127.0.0.1:8001")
        self.settings = settings or ChannelSettings()
        self._lock = threading.Lock()
        self._lanes: set[Lane] = set()
        self._idle: list[Lane] = []
        self._control: Lane | None = None
        carrier = self.settings.carrier
        make = CudaRegion if carrier == "cuda_shared_memory" else SystemRegion
        self._regions = RegionPool(make, partial(_connect, url, self.settings))
        weakref.finalize(
            self, self._regions.close
        )  # of a transport that nobody closed: no image stays in memory
        self._shares = carrier != "grpc" and (carrier != "auto" or is_local(url))
        self._large_calls = 0
        self._output_sizes: dict[
            tuple[object, ...], dict[str, int]
        ] = {}  # of calls of the same shapes, in bytes

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
            timeout_s: Deadline of the call, in seconds.
            calls: The group with which the call is cancelled.

        Returns:
            Name -> batched array.

        Raises:
            TensorError: An input does not fit the tensor table.
            BusyError: The server's queue is full.
            InputError, ServiceError: See `client.status`.
        """
        spec = MODELS.get(model) or FUSED[model]
        arrays = [inputs[entry.name] for entry in spec.inputs]
        for entry, array in zip(spec.inputs, arrays, strict=True):
            entry.check(array)
        call = _Call(spec, arrays, tuple(outputs), time.monotonic() + timeout_s)
        with self._use_lane(calls) as lane:
            try:
                answer = self._infer_shared(lane, call) if self._wants_region(call) else None
                if answer is None:
                    answer = self._infer_plain(lane, call)
            except InferenceServerException as error:
                explained = self._explain(error, timeout_s, call)
                if isinstance(explained, UnavailableError):
                    lane.close()  # see `_explain`
                raise explained from error
            except ValueError as error:  # gRPC's word for a channel that was closed
                if not lane.closed:
                    raise
                raise CancelledError(f"The call to {self.url} was cancelled before its answer.") from error
        self._output_sizes[call.key] = {name: answer[name].nbytes for name in call.sized_outputs}
        return answer

    def read_model(self, timeout_s: float, model: str = "predict_study", version: str = "") -> ServedModel:
        """Read what a served model says about itself from the parameters of its configuration.

        Args:
            timeout_s: Deadline of the call, in seconds.
            model: One of `predict_*`.
            version: The version to ask about; empty for the one that the server would use now.

        Raises:
            ArtifactError: The server runs something else than a repository published by `cxr export` of this version.
            ConfigError: Its backend does not run the graphs as they were gated (`contract.runtime.embedded`).
            ServiceError: See `client.status`.
        """
        try:
            answer = self._client().get_model_config(model, version, as_json=True, client_timeout=timeout_s)
            served = parse_model(model, answer["config"], source=f"Triton at {self.url}")
            if served.required_backend == EMBEDDED:
                self._require_embedded(served.profile, timeout_s)
        except InferenceServerException as error:
            raise self._explain(error, timeout_s) from error
        return served

    def _require_embedded(self, profile: str, timeout_s: float) -> None:
        name = self._client().get_server_metadata(client_timeout=timeout_s).name
        if name != SERVER_NAME:
            raise ConfigError(explain_refusal(f"Triton at {self.url}", profile))

    def check_ready(self, timeout_s: float) -> str | None:
        """Return None when the server and all its models are ready, else one sentence."""
        try:
            ready = self._client().is_server_ready(client_timeout=timeout_s)
        except InferenceServerException as error:
            return str(self._explain(error, timeout_s))
        return None if ready else f"Triton at {self.url} is starting or has a model that is not ready."

    def close(self) -> None:
        """Close every connection, which cancels the calls under way, and remove every shared-memory region."""
        with self._lock:
            lanes, self._lanes, self._idle = self._lanes, set(), []
        for lane in lanes:
            lane.close()
        self._regions.close()
        with self._lock:
            control, self._control = self._control, None
        if control is not None:
            control.close()

    def _wants_region(self, call: "_Call") -> bool:
        if not self._shares or self._regions.refused:
            return False
        if self.settings.carrier == "cuda_shared_memory":
            return not holds_bytes(call.arrays)
        if self.settings.carrier == "shared_memory":
            return True
        expected = sum(self._output_sizes.get(call.key, {}).values())
        if sum(map(measure, call.arrays)) + expected < _SHARED_FROM_BYTES:
            return False
        self._large_calls += 1
        return self._large_calls >= _SHARED_FROM_CALL

    def _infer_plain(self, lane: Lane, call: "_Call") -> Answer:
        # An object that is kept would keep a whole file in memory.
        request = lane.prepare(call.spec, call.arrays, call.outputs, keep=not holds_bytes(call.arrays))
        set_data(request, call.arrays)
        result = self._send(lane, call, request)
        arrays = {name: _require(result.as_numpy(name), name) for name in call.outputs}
        return Answer(arrays, result.get_response().model_version)

    def _infer_shared(self, lane: Lane, call: "_Call") -> Answer | None:
        """Run a call through a region; None when it should go over gRPC."""
        pieces, places, end = place(call.arrays)
        sizes = self._output_sizes.get(call.key, {})
        region = self._regions.lease(end + sum(map(align, sizes.values())))
        if region is None:
            return None
        outputs = _place_outputs(sizes, end) if region.holds_outputs else {}
        kept = True
        try:
            region.write(pieces)
            request = lane.prepare(call.spec, call.arrays, call.outputs, keep=True)
            names = (entry.name for entry in call.spec.inputs)
            set_region(request, region.name, dict(zip(names, places, strict=True)), outputs)
            result = self._send(lane, call, request)
            return _read_shared(result, call, region, outputs)
        except InferenceServerException as error:
            code = strip_code(error.status())
            kept = code == "INVALID_ARGUMENT"  # an answer: nothing of the call is left at the server
            if code == "NOT_FOUND":  # of the region, as after a restart: nothing was run
                self._output_sizes.clear()
                self._regions.retire_free()
                return None
            if code == "INTERNAL" and self._has_outgrown(call, outputs):
                self._output_sizes.clear()
                return None
            raise  # also what failed at the server: a second run would fail again, or harm it again
        except BaseException:
            kept = False
            raise
        finally:
            (self._regions.give_back if kept else self._regions.retire)(region)

    def _has_outgrown(self, call: "_Call", outputs: Mapping[str, tuple[int, int]]) -> bool:
        """Whether the server now has a model whose outputs do not fit their places.

        Triton says INTERNAL of that and of a model that failed, so its configuration decides.
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

    def _send(self, lane: Lane, call: "_Call", request: Request) -> Any:
        left_s = max(call.deadline - time.monotonic(), 1e-3)
        return lane.client.infer(
            call.spec.name,
            request.inputs,
            outputs=request.outputs,
            client_timeout=left_s,  # ends the call here at its deadline; the server's own ends it late (issue 7512)
            timeout=max(1, int(left_s * 1e6)),  # microseconds in the server's queue
            compression_algorithm=self.settings.algorithm,
        )

    @contextmanager
    def _use_lane(self, calls: Calls | None) -> Iterator[Lane]:
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
        """Return the client for calls about the server, which threads may share (no request objects)."""
        with self._lock:
            if self._control is None:
                self._control = Lane(self.url, self.settings)
            return self._control.client

    def _explain(
        self, error: InferenceServerException, timeout_s: float, call: "_Call | None" = None
    ) -> CxrError:
        code = strip_code(error.status())
        if code == "UNAVAILABLE":
            # The next call looks the name up anew, for which a channel may wait up to two minutes: gRPC has no option
            # for it. The old one ends with the calls of other threads that use it.
            with self._lock:
                self._control = None
            if call is not None:
                code = resolve_unavailable(code, partial(self._serves, call.spec.name))
                if code == "RESOURCE_EXHAUSTED" and time.monotonic() >= call.deadline:
                    code = "DEADLINE_EXCEEDED"
        if self._is_other_service(code):
            return make_wrong_service_error(self.url, _SERVER, _SETTING)
        return make_error(code, error.message() or "", server="Triton", url=self.url, timeout_s=timeout_s)

    def _is_other_service(self, code: str) -> bool:
        """Whether something else than a Triton answers; a Triton, too, says UNIMPLEMENTED of some calls."""
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
        """Whether the server answers and has the model: then it refused the call because it has too many."""
        try:
            return bool(self._client().is_model_ready(model, client_timeout=_PROBE_TIMEOUT_S))
        except InferenceServerException:
            return False


class _Call:
    """One call on its way: what is sent, what is wanted, until when (of `time.monotonic`)."""

    def __init__(
        self, spec: ModelSpec, arrays: Sequence[NDArray[Any]], outputs: tuple[str, ...], deadline: float
    ) -> None:
        self.spec = spec
        self.arrays = arrays
        self.outputs = outputs
        self.deadline = deadline
        self.key = (spec.name, outputs, *(array.shape for array in arrays))

    def count_items(self, output: TensorSpec, dims: Sequence[int], tokens: int) -> int:
        """Return how many numbers an output has.

        Args:
            output: Its entry in the tensor table.
            dims: Its dimensions as the server says them, -1 for what differs from request to request.
            tokens: Image tokens of one image, N.
        """
        free: dict[str, int] = {}
        for entry, array in zip(self.spec.inputs, self.arrays, strict=True):
            for letter, size in zip(entry.shape, array.shape[1:], strict=True):
                free[str(letter)] = size
        views = free.get("V", 1)
        free |= {"V": views, "I": views * tokens}
        sizes = (
            free.get(str(letter), 0) if dim == -1 else dim
            for letter, dim in zip(output.shape, dims, strict=True)
        )
        return len(self.arrays[0]) * math.prod(sizes)

    @property
    def sized_outputs(self) -> list[str]:
        """Names of the outputs whose size follows from the shapes of the inputs: numbers, no text length unknown."""
        has_length = any("L" in entry.shape for entry in self.spec.inputs)
        return [
            entry.name
            for entry in self.spec.outputs
            if entry.name in self.outputs
            and entry.dtype != "BYTES"
            and (has_length or "L" not in entry.shape)
        ]


def _connect(url: str, settings: ChannelSettings) -> Any:
    return Lane(url, settings).client


def _place_outputs(sizes: Mapping[str, int], start: int) -> dict[str, tuple[int, int]]:
    """Return name -> (offset, size) of the outputs behind the inputs of a region, in bytes."""
    places = {}
    for name, size in sizes.items():
        places[name] = (start, size)
        start += align(size)
    return places


def _read_shared(result: Any, call: _Call, region: Region, outputs: Mapping[str, tuple[int, int]]) -> Answer:
    dtypes = {entry.name: NUMPY_DTYPES[entry.dtype] for entry in call.spec.outputs}
    arrays: Arrays = {}
    for name in call.outputs:
        if name not in outputs:
            arrays[name] = _require(result.as_numpy(name), name)
            continue
        described = result.get_output(name)
        offset, size = outputs[name]
        shape = tuple(described.shape) if described is not None else ()
        if not shape or math.prod(shape) * dtypes[name].itemsize > size:
            raise ArtifactError(f"Triton answered without the output {name}.")
        arrays[name] = region.read(dtypes[name], shape, offset)
    return Answer(arrays, result.get_response().model_version)


def _require(array: NDArray[Any] | None, name: str) -> NDArray[np.generic]:
    if array is None:
        raise ArtifactError(f"Triton answered without the output {name}.")
    return array
