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
from typing import Any, Final

from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from client.channel import Calls, ChannelSettings, Lane, holds_bytes, set_region
from client.layout import align, lay_out, lay_out_outputs, measure
from client.served import ServedModel
from client.shared_memory import CudaRegion, Region, RegionPool, SystemRegion
from client.steps import Steps, run
from client.triton_call import Call
from client.triton_core import (
    PROBE_TIMEOUT_S,
    Answer,
    Arrays,
    TritonCore,
    make_missing_error,
    require_output,
)
from contract.connection import is_local
from contract.grpc_status import strip_code
from contract.tensors import NUMPY_DTYPES

_MIN_SHARED_BYTES: Final = 64 * 1024
_FIRST_SHARED_CALL: Final = 3


class TritonTransport(TritonCore):
    """Sends requests to one Triton. Several threads may use it at once.

    tritonclient's request objects are not thread-safe. So each running request has its own connection with its own
    request objects, which later requests reuse.
    """

    def __init__(self, url: str, settings: ChannelSettings | None = None) -> None:
        """Set the address, host:port. The first request connects.

        Raises:
            ConfigError: The address is not valid, or a token would travel to it as plain text.
        """
        super().__init__(url, settings)
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
        return run(self._infer_in_steps(model, inputs, outputs, timeout_s, calls))

    def read_model(
        self,
        timeout_s: float,
        model: str = "predict_study",
        version: str = "",
        *,
        calls: Calls | None = None,
    ) -> ServedModel:
        """Return the facts that the configuration of a served model states.

        Args:
            timeout_s: Deadline in seconds.
            model: One of `predict_*`.
            version: Its version; "" for the version that the server would use now.
            calls: The group with which the question is cancelled.

        Raises:
            ArtifactError: `cxr export` of this version did not publish the model.
            ConfigError: The server's backend does not run the graphs as they were tested
                (`contract.runtime.embedded`).
            ServiceError: As in `infer`.
        """
        return run(self._read_model_in_steps(timeout_s, model, version, calls))

    def check_ready(self, timeout_s: float) -> str | None:
        """Return None if the server and all its models are ready, else the reason in one sentence."""
        return run(self._check_ready_in_steps(timeout_s))

    def close(self) -> None:
        """Close all connections, which cancels the running requests, and remove all shared-memory regions.

        A later request is a CancelledError.
        """
        with self._lock:
            self._closed = True
            lanes, self._lanes, self._idle = self._lanes, set(), []
        for lane in lanes:
            lane.close()
        self._regions.close()
        self._forget_client()
        for client in list(self._forgotten):
            client.close()

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

    def _carry(self, lane: Lane, call: Call) -> Steps[Answer]:
        """Send a request through shared memory if that is faster, else over gRPC."""
        answer = (yield from self._carry_shared(lane, call)) if self._wants_region(call) else None
        if answer is None:
            answer = yield from self._carry_plain(lane, call)
        self._output_sizes[call.key] = {name: answer[name].nbytes for name in call.sized_outputs}
        return answer

    def _carry_shared(self, lane: Lane, call: Call) -> Steps[Answer | None]:
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
            result = yield from self._send(lane, call, request)
            return _read_shared(result, call, region, outputs)
        except InferenceServerException as error:
            code = strip_code(error.status())
            reusable = code == "INVALID_ARGUMENT"  # the server has answered and no longer uses the region
            if code == "NOT_FOUND":  # after a restart the server does not know the region: no model has run
                self._output_sizes.clear()
                self._regions.retire_free()
                return None
            if code == "INTERNAL" and (yield from self._has_outgrown(call, outputs)):
                self._output_sizes.clear()
                return None
            raise  # a model that failed is not run a second time, because it might harm the server again
        except BaseException:
            reusable = False
            raise
        finally:
            (self._regions.give_back if reusable else self._regions.retire)(region)

    def _has_outgrown(self, call: Call, outputs: Mapping[str, tuple[int, int]]) -> Steps[bool]:
        """Whether the server has a new model whose outputs are larger than their spans in the region.

        Triton reports INTERNAL for this and for a model that failed. Only its configuration tells the two apart.
        """
        try:
            left_s = max(min(PROBE_TIMEOUT_S, call.deadline - time.monotonic()), 1e-3)
            answer = yield from self._ask(
                self._client().get_model_config, call.spec.name, client_timeout=left_s
            )
        except InferenceServerException:
            return False
        config = answer.config
        tokens = int(config.parameters["image_tokens_grid"].string_value or 0) ** 2
        specs = {entry.name: entry for entry in call.spec.outputs if entry.name in outputs}
        return any(
            call.count_items(specs[entry.name], entry.dims, tokens)
            * NUMPY_DTYPES[specs[entry.name].dtype].itemsize
            > outputs[entry.name][1]
            for entry in config.output
            if entry.name in specs
        )

    @contextmanager
    def _use_lane(self, calls: Calls | None) -> Iterator[Lane]:
        """Yield a connection that no other request uses."""
        with self._lock:
            self._require_open()
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
            self._require_open()
            if self._control is None:
                self._control = Lane(self.url, self.settings)
            return self._control.client

    def _forget_client(self) -> None:
        with self._lock:
            if self._control is not None:
                self._forgotten.add(self._control.client)
            self._control = None

    def _give_up(self, lane: Lane) -> None:
        lane.close()


def _read_shared(result: Any, call: Call, region: Region, outputs: Mapping[str, tuple[int, int]]) -> Answer:
    """Read the outputs from the region (`outputs`: name -> offset, size) and the others from the gRPC answer."""
    dtypes = {entry.name: NUMPY_DTYPES[entry.dtype] for entry in call.spec.outputs}
    arrays: Arrays = {}
    for name in call.outputs:
        if name not in outputs:
            arrays[name] = require_output(result.as_numpy(name), name)
            continue
        output = result.get_output(name)
        offset, size = outputs[name]
        shape = tuple(output.shape) if output is not None else ()
        if not shape or math.prod(shape) * dtypes[name].itemsize > size:
            raise make_missing_error(name)
        arrays[name] = region.read(dtypes[name], shape, offset)
    return Answer(arrays, result.get_response().model_version)
