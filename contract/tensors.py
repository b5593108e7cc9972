"""Every tensor that crosses a process: its name, data type and shape, and the models that exchange them.

The exporter, the config.pbtxt checks, the serving backend, the client and the tests all read this table.

Shape letters (per item, the batch dimension is never written): V views, which are the images of one study, S side of
the square image in pixels, N tokens (patches) of one image, I = V N tokens of all images, image after image, L text
tokens, C token width, D embedding size, K number of labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from contract.errors import TensorError
from contract.labels import LABELS

DataType = Literal["BYTES", "UINT8", "INT32", "INT64", "FP32"]
Size = int | Literal["V", "S", "N", "I", "L", "C", "D", "K"]

MAX_BATCH_SIZE: Final = 32
MAX_VIEWS: Final = 4  # images of one study that are read together
LENGTH_BUCKETS: Final = (32, 64, 128, 256)  # tokens; a model that reads more has its own most as one more
NUMPY_DTYPES: Final[dict[DataType, np.dtype]] = {  # type: ignore[type-arg]
    "BYTES": np.dtype(np.object_),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP32": np.dtype(np.float32),
}
_OF_A_REQUEST: Final = ("L", "V", "I")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: Triton data type and per-item shape in numbers and shape letters."""

    name: str
    dtype: DataType
    shape: tuple[Size, ...]

    def dims(self, sizes: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """Per-item dimensions as Triton writes them; letters without a size in `sizes` are -1.

        L, V and I differ from request to request: they are -1 always.
        """
        known = {"K": len(LABELS), **(sizes or {})}
        return tuple(
            size if isinstance(size, int) else -1 if size in _OF_A_REQUEST else known.get(size, -1)
            for size in self.shape
        )

    def check(self, array: NDArray[np.generic], sizes: Mapping[str, int] | None = None) -> None:
        """Check a batched array (B, *shape) against this entry.

        Raises:
            TensorError: The data type, the rank or a known dimension differs; the message holds both.
        """
        if array.dtype != NUMPY_DTYPES[self.dtype]:
            raise TensorError(f"Tensor {self.name} must be {self.dtype}, not {array.dtype}.")
        expected = (-1, *self.dims(sizes))
        fits = len(expected) == array.ndim and all(
            want in (-1, have) for want, have in zip(expected, array.shape, strict=True)
        )
        if not fits:
            raise TensorError(
                f"Tensor {self.name} must have shape {list(expected)}, not {list(array.shape)}."
            )


# How far the outputs of one model may differ between PyTorch, its ONNX graphs and a server: see `export.gates.parity`.
TOLERANCES: Final[dict[str, float]] = {
    "image_tokens": 1e-3,
    "text_tokens": 1e-3,
    "probabilities": 1e-4,
    "embedding": 1e-5,
    "image_attention": 1e-4,
    "text_attention": 1e-4,
    "lateral": 1e-4,
    "image_share": 1e-4,
}

IMAGE_BYTES: Final = TensorSpec(
    "image_bytes", "BYTES", ("V",)
)  # 1 to MAX_VIEWS files, the frontal view first
REPORT: Final = TensorSpec("report", "BYTES", (1,))
PIXELS: Final = TensorSpec("pixels", "UINT8", (1, "S", "S"))  # of a caller who preprocesses: one image
VIEWS: Final = TensorSpec("pixels", "UINT8", ("V", "S", "S"))
INPUT_IDS: Final = TensorSpec("input_ids", "INT64", ("L",))
ATTENTION_MASK: Final = TensorSpec("attention_mask", "INT64", ("L",))
IMAGE_NOTES: Final = TensorSpec("image_notes", "BYTES", ("V",))  # JSON of contract.notes.ImageNotes
REPORT_NOTES: Final = TensorSpec("report_notes", "BYTES", (1,))  # JSON of contract.notes.ReportNotes
REPORT_TEXT: Final = TensorSpec("report_text", "BYTES", (1,))  # the part of the report that the model reads
TOKEN_SPANS: Final = TensorSpec("token_spans", "INT32", ("L", 2))  # character range of each token in it
IMAGE_TOKENS: Final = TensorSpec("image_tokens", "FP32", ("I", "C"))
TEXT_TOKENS: Final = TensorSpec("text_tokens", "FP32", ("L", "C"))
PROBABILITIES: Final = TensorSpec("probabilities", "FP32", ("K",))  # calibrated
EMBEDDING: Final = TensorSpec("embedding", "FP32", ("D",))  # unit length
IMAGE_ATTENTION: Final = TensorSpec("image_attention", "FP32", ("K", "I"))  # rows sum to 1 over all views
TEXT_ATTENTION: Final = TensorSpec("text_attention", "FP32", ("K", "L"))  # rows sum to 1, 0 on padding
# Probability that an image is a lateral view, of each by itself; 0.5 of every image from a model without a fitted view
# head.
LATERAL: Final = TensorSpec("lateral", "FP32", ("V",))
# Of each label, the part of its attention that lies on the images of a study; the rest lies on the report.
IMAGE_SHARE: Final = TensorSpec("image_share", "FP32", ("K",))
# A repository of an older version lacks these outputs and is served all the same.
ADDED_OUTPUTS: Final = (LATERAL.name, IMAGE_SHARE.name)


@dataclass(frozen=True)
class ModelSpec:
    """One served model; `steps` names the models an ensemble runs, in the order of the data, and is empty otherwise."""

    name: str
    backend: Literal["python", "onnxruntime", "ensemble"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[str, ...] = ()


_TEXT_INPUTS = (INPUT_IDS, ATTENTION_MASK)
_STUDY_OUTPUTS = (PROBABILITIES, EMBEDDING, IMAGE_ATTENTION, TEXT_ATTENTION, LATERAL, IMAGE_SHARE)
_IMAGE_OUTPUTS = (PROBABILITIES, EMBEDDING, IMAGE_ATTENTION, LATERAL)
_TEXT_OUTPUTS = (PROBABILITIES, EMBEDDING, TEXT_ATTENTION)
# What preprocessing says beside what later steps read. No step may read these: Triton 2.51 prunes a step whose
# outputs a request does not ask for, even where another step reads them, and ends in "unexpected deadlock".
_READING = (REPORT_TEXT, TOKEN_SPANS, REPORT_NOTES)

# Every ensemble is a chain: its first step alone reads the request, and no two steps are ever ready at once. Triton
# before 26.02 (core pull request 466) survives nothing else. Where one of two steps that run side by side fails or is
# cancelled, it answers while the other one runs: what that one still reads of the request is freed or given to the
# next request, its end is never counted, and a lock that the request's own thread holds is taken in the other order.
# A study's two encoders need nothing of each other, so a step between them hands the token ids on once the image is
# encoded. One fused graph (`FUSED`) needs no such step.
TEXT_GATE: Final = "text_gate"

_SPECS: tuple[ModelSpec, ...] = (
    ModelSpec("preprocess_image", "python", (IMAGE_BYTES,), (VIEWS, IMAGE_NOTES)),
    ModelSpec("preprocess_text", "python", (REPORT,), (*_TEXT_INPUTS, *_READING)),
    ModelSpec(
        "preprocess_study",
        "python",
        (IMAGE_BYTES, REPORT),
        (VIEWS, IMAGE_NOTES, *_TEXT_INPUTS, *_READING),
    ),
    # They hand on what they were given, under the same names, once it is checked.
    ModelSpec("check_study", "python", (PIXELS, *_TEXT_INPUTS), (PIXELS, *_TEXT_INPUTS)),
    ModelSpec("check_text", "python", _TEXT_INPUTS, _TEXT_INPUTS),
    ModelSpec(TEXT_GATE, "python", (IMAGE_TOKENS, *_TEXT_INPUTS), _TEXT_INPUTS),
    ModelSpec("image_encoder", "onnxruntime", (VIEWS,), (IMAGE_TOKENS,)),
    ModelSpec("text_encoder", "onnxruntime", _TEXT_INPUTS, (TEXT_TOKENS,)),
    ModelSpec("fusion_study", "onnxruntime", (IMAGE_TOKENS, TEXT_TOKENS, *_TEXT_INPUTS), _STUDY_OUTPUTS),
    ModelSpec("fusion_image", "onnxruntime", (IMAGE_TOKENS,), _IMAGE_OUTPUTS),
    ModelSpec("fusion_text", "onnxruntime", (TEXT_TOKENS, *_TEXT_INPUTS), _TEXT_OUTPUTS),
    ModelSpec(
        "predict_study",
        "ensemble",
        (IMAGE_BYTES, REPORT),
        (*_STUDY_OUTPUTS, IMAGE_NOTES, *_READING),
        ("preprocess_study", "image_encoder", TEXT_GATE, "text_encoder", "fusion_study"),
    ),
    ModelSpec(
        "predict_image",
        "ensemble",
        (IMAGE_BYTES,),
        (*_IMAGE_OUTPUTS, IMAGE_NOTES),
        ("preprocess_image", "image_encoder", "fusion_image"),
    ),
    ModelSpec(
        "predict_text",
        "ensemble",
        (REPORT,),
        (*_TEXT_OUTPUTS, *_READING),
        ("preprocess_text", "text_encoder", "fusion_text"),
    ),
    ModelSpec(
        "predict_study_tensors",
        "ensemble",
        (PIXELS, *_TEXT_INPUTS),
        _STUDY_OUTPUTS,
        ("check_study", "image_encoder", TEXT_GATE, "text_encoder", "fusion_study"),
    ),
    ModelSpec(
        "predict_image_tensors", "ensemble", (PIXELS,), _IMAGE_OUTPUTS, ("image_encoder", "fusion_image")
    ),
    ModelSpec(
        "predict_text_tensors",
        "ensemble",
        _TEXT_INPUTS,
        _TEXT_OUTPUTS,
        ("check_text", "text_encoder", "fusion_text"),
    ),
)

MODELS: Final[dict[str, ModelSpec]] = {spec.name: spec for spec in _SPECS}
GRAPHS: Final[tuple[str, ...]] = tuple(spec.name for spec in _SPECS if spec.backend == "onnxruntime")

# The encoders and the fusion of one kind of question as ONE graph (`export.graphs.fuse`): fused graph -> its parts.
FUSED_PARTS: Final[dict[str, tuple[str, ...]]] = {
    "fused_study": ("image_encoder", "text_encoder", "fusion_study"),
    "fused_image": ("image_encoder", "fusion_image"),
    "fused_text": ("text_encoder", "fusion_text"),
}
FUSED: Final[dict[str, ModelSpec]] = {
    spec.name: spec
    for spec in (
        ModelSpec("fused_study", "onnxruntime", (VIEWS, *_TEXT_INPUTS), _STUDY_OUTPUTS),
        ModelSpec("fused_image", "onnxruntime", (VIEWS,), _IMAGE_OUTPUTS),
        ModelSpec("fused_text", "onnxruntime", _TEXT_INPUTS, _TEXT_OUTPUTS),
    )
}


CHECKS: Final = ("check_study", "check_text")


def drop_checks(models: Mapping[str, ModelSpec]) -> dict[str, ModelSpec]:
    """Return the models of the fused layout without the steps that check token ids.

    For graphs on a backend that checks every request itself before it batches (`serving.backends.onnxruntime`): the
    graph is then the first step, and the request is still read by one step alone.
    """
    return {
        name: replace(spec, steps=tuple(step for step in spec.steps if step not in CHECKS))
        for name, spec in models.items()
        if name not in CHECKS
    }


def _fuse_steps(spec: ModelSpec) -> ModelSpec:
    """Return an ensemble with the one fused graph in the place of its encoders, their gate and its fusion."""
    fused = f"fused_{spec.name.split('_')[1]}"
    kept = tuple(step for step in spec.steps if step not in (*FUSED_PARTS[fused], TEXT_GATE))
    return replace(spec, steps=(*kept, fused))


# What a repository holds, by how its graphs are laid out. Clients call the same `predict_*` in both.
Layout = Literal["split", "fused"]
LAYOUTS: Final[dict[Layout, dict[str, ModelSpec]]] = {
    "split": MODELS,
    "fused": {
        **{name: spec for name, spec in MODELS.items() if spec.backend == "python" and name != TEXT_GATE},
        **FUSED,
        **{name: _fuse_steps(spec) for name, spec in MODELS.items() if spec.backend == "ensemble"},
    },
}
