"""Triton's first step for radiographs: file bytes to pixels and notes, by `contract` alone."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from contract.dicom import load_radiograph
from contract.errors import InputError
from contract.notes import note_image

_STEP = "preprocess_image"


class TritonPythonModel:
    """Adapts `contract.dicom.load_radiograph` and `contract.notes.note_image`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameter `image_size`, in pixels."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._size = int(parameters["image_size"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: one that cannot be read fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            files = pb_utils.get_input_tensor_by_name(request, "image_bytes").as_numpy().reshape(-1)
            radiographs = [load_radiograph(bytes(data), size=self._size) for data in files]
            makers = {
                "pixels": lambda: np.stack([each.pixels for each in radiographs]),  # (B, 1, S, S)
                "image_notes": lambda: _pack(note_image(each).to_json() for each in radiographs),  # (B, 1)
            }
            wanted = request.requested_output_names() or makers
            tensors = [pb_utils.Tensor(name, make()) for name, make in makers.items() if name in wanted]
        except InputError as error:
            return _fail(str(error), pb_utils.TritonError.INVALID_ARG)
        except (
            Exception
        ) as error:  # whatever it was: the message may hold content of the file, its type does not
            return _fail(f"unexpected {type(error).__name__}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _pack(values: Iterable[bytes]) -> Any:
    return np.array([[value] for value in values], dtype=np.object_)


def _fail(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{_STEP}: {message}", code))
