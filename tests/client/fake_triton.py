"""A Triton in memory, for the tests of the client.

FakeTriton stands for `client.triton.TritonTransport`: it takes and returns arrays.
FakeTritonClient stands for tritonclient's own client: it returns the configuration of a model and the server's name.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from client import ServedModel, SimilarCase
from client.retrieval_core import Found, IndexInfo, Stored, StoredCase
from client.triton_core import Answer
from contract.decisions import Decisions, ServedLabel
from contract.errors import InputError, ServerError
from contract.labels import LABELS
from contract.notes import ImageNotes, ReportNotes
from contract.tensors import (
    IMAGE_BYTES,
    IMAGE_SHARE,
    INPUT_IDS,
    LATERAL,
    MAX_BATCH_SIZE,
    MODELS,
    NUMPY_DTYPES,
    REPORT,
)

TOKENS = 9  # of every report
FINGERPRINT = "ab" * 32


def in_steps(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as an operation of `client.steps` that asks nobody."""

    def run(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)
        yield

    return run


def make_decisions(threshold: float = 0.5) -> Decisions:
    """Return the same threshold for all labels and all kinds of input."""
    return Decisions.repeat(tuple(ServedLabel(label.key, label.name, threshold) for label in LABELS))


def make_model(**changes: Any) -> ServedModel:
    """Return a model of 56 pixels, 49 image tokens and 16 embedding values, with changes."""
    facts = {"fingerprint": FINGERPRINT, "text_mode": "full", "decisions": make_decisions()}
    sizes = {"max_length": 64, "image_size": 56, "embedding_size": 16, "grid": 7}
    return ServedModel(**{**facts, **sizes, **changes})


def make_config(
    model: str = "predict_study", *, outputs: Collection[str] | None = None, **changes: str
) -> dict[str, Any]:
    """Return the configuration of a served model as Triton's JSON, with changes to its parameters.

    Args:
        model: The served model.
        outputs: Names of its outputs; None: those of the tensor table.
        changes: Name -> value of parameters.
    """
    parameters = {
        "fingerprint": FINGERPRINT,
        "decisions": json.dumps(make_decisions().describe()),
        "text_mode": "full",
        "max_length": "64",
        "image_size": "56",
        "embedding_size": "16",
        "image_tokens_grid": "7",
        **changes,
    }
    names = [spec.name for spec in MODELS[model].outputs] if outputs is None else outputs
    return {
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
        "output": [{"name": name} for name in names],
    }


@dataclass(frozen=True)
class Call:
    """One request that reached the server."""

    model: str
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...]

    @property
    def batch(self) -> int:
        """Number of cases."""
        [size] = {len(array) for array in self.inputs.values()}
        return size

    @property
    def images(self) -> list[bytes]:
        """The files of the first case."""
        return (
            [bytes(data) for data in self.inputs[IMAGE_BYTES.name][0]]
            if IMAGE_BYTES.name in self.inputs
            else []
        )

    @property
    def reports(self) -> list[bytes]:
        """The report of each case."""
        return [bytes(data) for [data] in self.inputs.get(REPORT.name, ())]


class FakeTriton:
    """Serves one version of every model. Unless a test says otherwise, it answers with zeros and empty notes.

    Like a real one, it refuses more images than its model reads together, and outputs that its model lacks.

    Attributes:
        models: Version -> model.
        version: The version that is served.
        switches: Versions to which the server switches, one after each answer.
        outputs: Name -> value of an output, or a function that makes it from the `Call`.
        refuse: A function that raises the error of a `Call`, if it has one.
        read_error: The error of reading a model.
        trouble: What `check_ready` returns.
        calls: The requests so far.
        reads: (model, version) of each model that was read.
    """

    url = "host:1"

    def __init__(self, model: ServedModel | None = None) -> None:
        self.models = {"1": model or make_model()}
        self.version = "1"
        self.switches: list[str] = []
        self.outputs: dict[str, Any] = {}
        self.refuse: Callable[[Call], None] = lambda _: None
        self.read_error: Exception | None = None
        self.trouble: str | None = None
        self.calls: list[Call] = []
        self.reads: list[tuple[str, str]] = []

    @property
    def model(self) -> ServedModel:
        """The model that is served."""
        return self.models[self.version]

    @model.setter
    def model(self, model: ServedModel) -> None:
        self.models[self.version] = model

    def read_model(self, timeout_s, model="predict_study", version="", *, calls=None) -> ServedModel:
        assert timeout_s > 0
        self.reads.append((model, version))
        if self.read_error is not None:
            raise self.read_error
        if version not in ("", self.version):
            raise ServerError("no such version")
        # The configuration of a model without an output says nothing about it.
        outputs = MODELS[model].outputs
        silent = {"tells_view": LATERAL, "tells_share": IMAGE_SHARE}
        return replace(self.model, **{name: None for name, spec in silent.items() if spec not in outputs})

    def infer(self, model, inputs, outputs, timeout_s, *, calls=None) -> Answer:
        assert timeout_s > 0
        for spec in MODELS[model].inputs:
            spec.check(inputs[spec.name])
        call = Call(model, dict(inputs), tuple(outputs))
        assert call.batch <= MAX_BATCH_SIZE
        self.calls.append(call)
        if len(call.images) > self.model.most_views:
            raise InputError(f"unexpected shape for input 'image_bytes' for model '{model}'")
        for name, tells in (
            (LATERAL.name, self.model.tells_view),
            (IMAGE_SHARE.name, self.model.tells_share),
        ):
            if name in outputs and tells is False:
                raise InputError(f"unexpected inference output '{name}' for model '{model}'")
        self.refuse(call)
        answer = Answer({name: self._make_output(name, call) for name in outputs}, self.version)
        if self.switches:
            self.version = self.switches.pop(0)
        return answer

    def check_ready(self, _timeout_s: float) -> str | None:
        return self.trouble

    def close(self) -> None:
        pass

    def _make_output(self, name: str, call: Call) -> np.ndarray:
        [spec] = [spec for spec in MODELS[call.model].outputs if spec.name == name]
        dtype = NUMPY_DTYPES[spec.dtype]
        if name in self.outputs:
            value = self.outputs[name]
            return np.array(value(call) if callable(value) else value, dtype)
        model, views = self.model, max(1, len(call.images))
        tokens = model.grid**2
        sizes = {"S": model.image_size, "N": tokens, "C": 32, "D": model.embedding_size}
        ids = call.inputs.get(INPUT_IDS.name)
        of_call = {"V": views, "I": views * tokens, "L": TOKENS if ids is None else ids.shape[1]}
        dims = zip(spec.shape, spec.dims(sizes), strict=True)
        shape = (call.batch, *(of_call.get(str(letter), size) for letter, size in dims))
        notes = {"image_notes": ImageNotes().to_json(), "report_notes": ReportNotes(TOKENS).to_json()}
        if name == "report_text":
            return np.array(call.reports, dtype).reshape(shape)
        return np.full(shape, notes[name], dtype) if name in notes else np.zeros(shape, dtype)


class FakeTritonClient:
    """Serves one configuration under every version. `code` is the gRPC status code of a failure to name the server."""

    def __init__(
        self,
        *,
        outputs: Collection[str] | None = None,
        name: str = "triton",
        code: str = "",
        **parameters: str,
    ) -> None:
        self.name, self.code, self.metadata_calls = name, code, 0
        self._outputs, self._parameters = outputs, parameters

    def get_model_config(self, model: str, _version: str, **_: Any) -> dict[str, Any]:
        return {"config": make_config(model, outputs=self._outputs, **self._parameters)}

    def get_server_metadata(self, client_timeout: float) -> SimpleNamespace:
        assert client_timeout > 0
        self.metadata_calls += 1
        if self.code:
            raise InferenceServerException("no", status=f"StatusCode.{self.code}")
        return SimpleNamespace(name=self.name)


class FakeRetrieval:
    """Stands for `client.retrieval.RetrievalTransport`: it stores nothing, and every search returns `cases`.

    Attributes:
        exact: Whether the searches were exact.
        info: The facts about every index, or the error of reading them.
        added: Fingerprint and number of cases of each request to store some.
    """

    url = "host:2"

    def __init__(self) -> None:
        self.cases: list[SimilarCase] = []
        self.exact = True
        self.info: IndexInfo | Exception = IndexInfo("", 0, 0, "flat")
        self.added: list[tuple[str, int]] = []

    def search(self, *_: Any) -> Found:
        return Found(self.cases, self.exact)

    def read_info(self, _timeout_s: float, _fingerprint: str = "") -> IndexInfo:
        if isinstance(self.info, Exception):
            raise self.info
        return self.info

    def add(self, fingerprint: str, cases: list[StoredCase], _timeout_s: float) -> Stored:
        self.added.append((fingerprint, len(cases)))
        return Stored(len(cases), 0)

    def close(self) -> None:
        pass
