"""Triton's first step for reports: text to token ids, by `contract.text` alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from contract.errors import InputError
from contract.text import ReportTokenizer, read_report

_STEP = "preprocess_text"


class TritonPythonModel:
    """Adapts `contract.text`; tokenizer.json lies beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters `text_mode` and `max_length` (tokens) and the tokenizer."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._mode = parameters["text_mode"]["string_value"]
        self._max_length = int(parameters["max_length"]["string_value"])
        directory = Path(args["model_repository"]) / args["model_version"]
        self._tokenizer = ReportTokenizer.load(directory / "tokenizer.json")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: one that cannot be read fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            reports = pb_utils.get_input_tensor_by_name(request, "report").as_numpy().reshape(-1)
            texts = [read_report(bytes(data), self._mode) for data in reports]
            tokens = self._tokenizer.encode(texts, self._max_length)
        except InputError as error:
            return _fail(str(error), pb_utils.TritonError.INVALID_ARG)
        except (
            Exception
        ) as error:  # whatever it was: the message may hold words of the report, its type does not
            return _fail(f"unexpected {type(error).__name__}", pb_utils.TritonError.INTERNAL)
        encoded = np.array([[text.encode("utf-8")] for text in texts], dtype=np.object_)  # (B, 1)
        outputs = {
            "input_ids": tokens.input_ids,  # (B, L)
            "attention_mask": tokens.attention_mask,  # (B, L)
            "report_text": encoded,
            "token_spans": tokens.spans,  # (B, L, 2)
        }
        wanted = request.requested_output_names() or outputs
        tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items() if name in wanted]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _fail(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{_STEP}: {message}", code))
