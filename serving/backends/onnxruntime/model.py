"""The "onnxruntime" backend for a Triton without the C++ backend: a python-based backend with the same name.

It reads the same config.pbtxt: `instance_group`, `optimization.execution_accelerators`, the parameters
`intra_op_thread_count` and `inter_op_thread_count` (all by `contract.runtime.session`). The graph must belong to the
model that the directory of its version names. Requests with equal shapes run as one batch. A failing request does not
affect the others.

Triton calls an instance from only one thread, so the session and the buffers below need no lock.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from contract.errors import CxrError, InputError
from contract.report.tokens import TokenLimits
from contract.runtime.session import open_session, require_fingerprint

Array = NDArray[Any]
Feed = dict[str, Array]


class TritonPythonModel:
    """One instance of one ONNX model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Return the config unchanged, because published configs are complete."""
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load this version's `model.onnx`. Raise TritonModelException with the reason if that fails."""
        config = json.loads(args["model_config"])
        self._name = args["model_name"]
        version = Path(args["model_repository"]) / args["model_version"]
        path = version / (config.get("default_model_filename") or "model.onnx")
        kind, device = args["model_instance_kind"], args["model_instance_device_id"]
        try:
            self._session = open_session(path, config, kind=kind, device=device)
            require_fingerprint(self._session, config, version)
            self._limits = TokenLimits.find(version)
        except CxrError as error:
            raise pb_utils.TritonModelException(f"{self._name}: {error}") from error
        self._inputs = [entry["name"] for entry in config["input"]]
        self._outputs = [entry["name"] for entry in config["output"]]
        self._batches = config.get("max_batch_size", 0) > 0
        self._buffers: dict[str, Array] = {}
        self._warm_ups_left = _count_warm_ups(config)
        pb_utils.Logger.log_info(f"{self._name}: {self._session.describe()}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests, those with equal shapes together; return one response each, in their order."""
        feeds = [self._read_inputs(request) for request in requests]
        groups: dict[Any, list[int]] = defaultdict(list)
        responses: list[Any] = [None] * len(requests)
        for index, feed in enumerate(feeds):
            if (error := self._find_fault(feed)) is not None:
                responses[index] = pb_utils.InferenceResponse(error=self._describe(error))
                continue
            key = tuple((name, array.dtype.str, array.shape[1:]) for name, array in feed.items())
            groups[key if self._batches else index].append(index)
        for indices in groups.values():
            for index, response in self._run_group(requests, feeds, indices):
                responses[index] = response
        return responses

    def finalize(self) -> None:
        """Free the session and the buffers."""
        self._session = None  # type: ignore[assignment]
        self._buffers = {}

    def _read_inputs(self, request: Any) -> Feed:
        tensors = (pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs)
        return {tensor.name(): tensor.as_numpy() for tensor in tensors}  # views of Triton's shared memory

    def _find_fault(self, feed: Feed) -> InputError | None:
        """Return why the graph cannot read these inputs, or None."""
        if self._limits is None:
            return None
        if self._warm_ups_left:  # Triton's warm-up requests, all zeros; they come before all other requests
            self._warm_ups_left -= 1
            return None
        try:
            self._limits.check_inputs(feed)
        except InputError as error:
            return error
        return None

    def _run_group(self, requests: list[Any], feeds: list[Feed], indices: list[int]) -> list[tuple[int, Any]]:
        output_names = {name for index in indices for name in requests[index].requested_output_names()}
        names = [name for name in self._outputs if name in output_names] or self._outputs
        try:
            arrays = self._run([feeds[index] for index in indices], names)
        except Exception as error:  # a MemoryError must not end the instance
            if len(indices) == 1:
                return [(indices[0], pb_utils.InferenceResponse(error=self._describe(error)))]
            return [pair for index in indices for pair in self._run_group(requests, feeds, [index])]
        return [
            (index, self._answer(requests[index], dict(zip(names, part, strict=True))))
            for index, part in zip(indices, arrays, strict=True)
        ]

    def _run(self, feeds: list[Feed], names: list[str]) -> list[list[Array]]:
        """Return for each feed the list of its output arrays, as views of the batch's arrays."""
        if len(feeds) == 1:
            return [self._session.run(names, feeds[0])]
        joined = {name: self._join(name, [feed[name] for feed in feeds]) for name in feeds[0]}
        outputs = self._session.run(names, joined)
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in feeds])[:-1]
        split = [np.split(output, ends) for output in outputs]
        return [list(part) for part in zip(*split, strict=True)]

    def _join(self, name: str, arrays: list[Array]) -> Array:
        """Concatenate the arrays, in memory that the next batch reuses.

        A new array of some hundred kilobytes would cost page faults each time. The buffer grows to the largest batch.
        """
        shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
        size = int(np.prod(shape)) * arrays[0].itemsize
        if name not in self._buffers or self._buffers[name].nbytes < size:
            self._buffers[name] = np.empty(size, dtype=np.uint8)
        joined: Array = self._buffers[name][:size].view(arrays[0].dtype).reshape(shape)
        return np.concatenate(arrays, out=joined)

    def _answer(self, request: Any, arrays: Feed) -> Any:
        output_names = request.requested_output_names() or self._outputs
        tensors = [pb_utils.Tensor(name, arrays[name]) for name in self._outputs if name in output_names]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _describe(self, error: Exception) -> Any:
        codes = pb_utils.TritonError
        code = codes.INVALID_ARG if isinstance(error, InputError) else codes.INTERNAL
        # Only the type for a foreign error, because its text might hold content of a request.
        text = str(error) if isinstance(error, CxrError) else f"unexpected {type(error).__name__}"
        return pb_utils.TritonError(f"{self._name}: {text}", code)


def _count_warm_ups(config: dict[str, Any]) -> int:
    """Return the number of warm-up requests that Triton sends to each instance."""
    samples = config.get("model_warmup", [])
    return sum(int(entry.get("batch_size", 0)) * max(1, int(entry.get("count", 0))) for entry in samples)
