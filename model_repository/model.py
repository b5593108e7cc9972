"""The code of every python model: it passes each request to the step of `contract.steps` with the model's name.

`cxr export` publishes this file as the `model.py` of each python model.
"""

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from contract.errors import InputError
from contract.steps import open_step


class TritonPythonModel:
    """Runs one step of `contract.steps` for Triton."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the step, with the parameters of the config and the files of the version."""
        self._name = args["model_name"]
        config = json.loads(args["model_config"])
        self._inputs = [entry["name"] for entry in config["input"]]
        self._run = open_step(self._name, config, Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request separately, so that an unreadable one does not fail the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            inputs = {name: self._read(request, name) for name in self._inputs}
            outputs = self._run(inputs, request.requested_output_names())
            tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
        except InputError as error:
            return self._fail(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # the message may hold content of a file or a report; the type does not
            return self._fail(f"unexpected {type(error).__name__}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _read(self, request: Any, name: str) -> Any:
        return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

    def _fail(self, message: str, code: int) -> Any:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{self._name}: {message}", code))
