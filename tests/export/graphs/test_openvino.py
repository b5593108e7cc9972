"""OpenVINO in float32 answers as ONNX Runtime does, where it once did not."""

from dataclasses import replace

import numpy as np
import pytest

from contract.runtime.session import open_session
from contract.tensors import MODELS
from export.profiles import load_profile


def open_both(path):
    """Return the sessions of a graph on ONNX Runtime and on OpenVINO."""
    plain = load_profile("fp32")
    accelerated = replace(plain, accelerator="openvino", parameters={"precision": "fp32"})
    return [
        open_session(path, {"optimization": profile.make_optimization()}) for profile in (plain, accelerated)
    ]


def test_pairs_of_words_are_hashed_alike(make_model):
    """OpenVINO 2026.4 takes remainders in float32: with products beyond 2^24, other pairs were looked up."""
    pytest.importorskip("openvino")
    _, graphs = make_model(1)
    rng = np.random.default_rng(0)
    feeds = {
        "text_tokens": rng.normal(size=(4, 32, 32)).astype(np.float32),
        "input_ids": rng.integers(600, 2000, (4, 32)),
        "attention_mask": np.ones((4, 32), np.int64),
    }
    assert set(feeds) == {tensor.name for tensor in MODELS["fusion_text"].inputs}
    expected, found = (
        session.run(["probabilities"], feeds)[0] for session in open_both(graphs["fusion_text"])
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
