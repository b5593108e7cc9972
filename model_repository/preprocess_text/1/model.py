"""Triton's first step for reports: text to token ids and notes, by `contract` alone."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from contract.errors import InputError
from contract.notes import ReportNotes, note_reports
from contract.text import ReportTokenizer, TokenBatch, read_report

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
            makers = {
                "input_ids": lambda: tokens.input_ids,  # (B, L)
                "attention_mask": lambda: tokens.attention_mask,  # (B, L)
                "report_text": lambda: _pack(text.encode() for text in texts),  # (B, 1)
                "token_spans": lambda: tokens.spans,  # (B, L, 2)
                "report_notes": lambda: _pack(note.to_json() for note in self._note(tokens)),  # (B, 1)
            }
            wanted = request.requested_output_names() or makers
            tensors = [pb_utils.Tensor(name, make()) for name, make in makers.items() if name in wanted]
        except InputError as error:
            return _fail(str(error), pb_utils.TritonError.INVALID_ARG)
        except (
            Exception
        ) as error:  # whatever it was: the message may hold words of the report, its type does not
            return _fail(f"unexpected {type(error).__name__}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _note(self, tokens: TokenBatch) -> tuple[ReportNotes, ...]:
        return note_reports(tokens, text_mode=self._mode, max_length=self._max_length)


def _pack(values: Iterable[bytes]) -> Any:
    return np.array([[value] for value in values], dtype=np.object_)


def _fail(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{_STEP}: {message}", code))
