"""The calls of hostile traffic: every kind of good call, and every kind of call that must be refused."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.faults.hostile import Call
from bench.load.inputs import Arrays
from contract.report.tokens import TokenLimits
from contract.steps import pack
from contract.tensors import LAYOUTS

CASE_INPUTS: Final = ("image_bytes", "report", "pixels", "input_ids", "attention_mask")
_GRAPHS: Final = {
    "split": ("text_encoder",),
    "fused": ("fused_study", "fused_text"),
}  # clients can call them too


def list_good_calls(cases: Sequence[Arrays]) -> list[Call]:
    """Return every kind of call for each case, without the answers.

    Args:
        cases: `CASE_INPUTS` by name, each with a batch of one. With files of equal size and texts of equal length, a
            byte of another request is noticed.
    """
    names = [name for name, spec in LAYOUTS["split"].items() if spec.backend == "ensemble"]
    return [
        Call(f"{name} {number}", name, _pick(name, case))
        for number, case in enumerate(cases)
        for name in names
    ]


def list_bad_calls(layout: str, case: Arrays, limits: TokenLimits) -> list[Call]:
    """Return calls that a server must refuse as the caller's error: files, reports, ids and masks.

    Args:
        layout: How the model is served, a key of `contract.tensors.LAYOUTS`.
        case: A good case (`CASE_INPUTS`). Each bad call changes it.
        limits: Limits of the served model's token ids.
    """
    file = bytes(case["image_bytes"].item())
    bad_images = {
        "a text": b"no image " * 20,
        "nothing": b"",
        "half a file": file[: len(file) // 2],
        "a PDF": b"%PDF-1.7\n" + bytes(500),
        "noise": np.random.default_rng(0).bytes(len(file)),
    }
    bad_reports = {
        "blanks": b"   ",
        "broken XML": b"<eCitation><MedlineCitation>",
        "no text": b"\xff\xfe\x00",
    }
    return [
        *(
            Call(f"{what} as image", model, _pick(model, {**case, "image_bytes": pack([data])}))
            for what, data in bad_images.items()
            for model in ("predict_study", "predict_study", "predict_image")
        ),
        *(
            Call(f"{what} as report", model, _pick(model, {**case, "report": pack([data])}))
            for what, data in bad_reports.items()
            for model in ("predict_study", "predict_study", "predict_text")
        ),
        Call("nothing right", "predict_study", {"image_bytes": pack([b"no image"]), "report": pack([b" "])}),
        *_list_bad_ids(layout, case, limits),
    ]


def _list_bad_ids(layout: str, case: Arrays, limits: TokenLimits) -> list[Call]:
    """Return calls with token ids and masks that no tokenizer makes, for every model that takes ids."""
    ids, mask = case["input_ids"], case["attention_mask"]
    changes: dict[str, dict[str, NDArray[Any]]] = {
        "an id of 10^6": {"input_ids": np.full_like(ids, 10**6)},
        "negative ids": {"input_ids": np.full_like(ids, -1)},
        "a mask of 7": {"attention_mask": np.full_like(mask, 7)},
        "an empty mask": {"attention_mask": np.zeros_like(mask)},
        "padding first": {
            "attention_mask": np.concatenate([np.zeros_like(mask[:, :1]), mask[:, 1:]], axis=1)
        },
        "no tokens": {"input_ids": ids[:, :0], "attention_mask": mask[:, :0]},
        "a token too many": _make_ids(limits.max_length + 1),
        "a huge array": _make_ids(100_000),
        "unequal lengths": {"attention_mask": np.ones((1, ids.shape[1] + 1), np.int64)},
    }
    if limits.vocabulary_size is not None:
        changes["the first id that is none"] = {"input_ids": np.full_like(ids, limits.vocabulary_size)}
    models = ("predict_study_tensors", "predict_text_tensors", "check_text", *_GRAPHS[layout])
    return [
        Call(f"{what} to {model}", model, _pick(model, {**case, **change}))
        for what, change in changes.items()
        for model in models
    ]


def _make_ids(length: int) -> Arrays:
    return {"input_ids": np.full((1, length), 5, np.int64), "attention_mask": np.ones((1, length), np.int64)}


def _pick(model: str, values: Arrays) -> Arrays:
    specs = {name: spec for layout in LAYOUTS.values() for name, spec in layout.items()}
    return {tensor.name: values[tensor.name] for tensor in specs[model].inputs}
