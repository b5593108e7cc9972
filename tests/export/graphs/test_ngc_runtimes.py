"""Every published graph answers as PyTorch does on the ONNX Runtime that NVIDIA's images hold.

The wheels of those versions go into directories of their own, and each runs in a process of its own. The graphs of the
target gpu run on the processor here: the file is the same.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomllib

from contract import ngc
from contract.tensors import FUSED, LENGTH_BUCKETS, MAX_BATCH_SIZE, MODELS, TOLERANCES
from export.targets import SETTINGS

TARGETS = ("cpu", "gpu")
RUN_GRAPHS = Path(__file__).with_name("run_graphs.py")


@pytest.fixture(scope="module")
def published(make_model, tmp_path_factory):
    """A bundle that reads long texts, and "target/graph" -> file of both layouts as `cxr export` makes them."""
    from export.graphs.convert import convert_graphs
    from export.graphs.fuse import fuse_graphs
    from export.profiles import load_profile

    root = tmp_path_factory.mktemp("published")
    bundle, plain = make_model(1)
    files = {}
    for target in TARGETS:
        paths = convert_graphs(bundle, plain, load_profile("fp32"), root / target, target=target).paths
        paths |= fuse_graphs(paths, root / target / "fused")
        files |= {f"{target}/{name}": path for name, path in paths.items()}
    return bundle, files


@pytest.fixture(scope="module")
def asked(published, tmp_path_factory):
    """A directory with the graphs and cases, and PyTorch's answers to each case.

    Each batch size comes with the shortest texts, each length with a batch of 1, and the largest with the longest.
    """
    from training.model.model import load_model

    bundle, files = published
    directory = tmp_path_factory.mktemp("cases")
    (directory / "graphs.json").write_text(json.dumps({key: str(path) for key, path in files.items()}))
    settings = tomllib.loads(SETTINGS.read_text())["target"]
    batches = {size for target in TARGETS for size in settings[target]["warm_up"]} | {MAX_BATCH_SIZE}
    shortest, *_, longest = LENGTH_BUCKETS
    cases = {(batch, shortest) for batch in batches} | {(1, length) for length in LENGTH_BUCKETS}
    model, expected = load_model(bundle), {}
    for batch, length in sorted(cases | {(MAX_BATCH_SIZE, longest)}):
        name = f"{batch:02}-{length:03}"
        inputs, expected[name] = ask_model(model, batch, length)
        np.savez(directory / f"case-{name}.npz", **inputs)
    return directory, expected


def ask_model(model, batch, length):
    """Return what all graphs read, padding included, and "graph output" -> PyTorch's answer."""
    import torch

    generator = np.random.default_rng(batch * 1000 + length)
    lengths = generator.integers(1, length + 1, batch)
    lengths[0] = length
    sizes = model.sizes
    drawn = {
        "pixels": generator.integers(0, 256, (batch, 1, sizes["S"], sizes["S"]), dtype=np.uint8),
        "input_ids": generator.integers(0, model.config.vocabulary_size, (batch, length)),
        "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int64),
    }
    tensors = {name: torch.from_numpy(array) for name, array in drawn.items()}
    with torch.inference_mode():
        tensors["image_tokens"] = model.image_encoder(tensors["pixels"])
        tensors["text_tokens"] = model.text_encoder(tensors["input_ids"], tensors["attention_mask"])
        answers = {
            f"{name} {name.replace('encoder', 'tokens')}": tensors[name.replace("encoder", "tokens")]
            for name in ("image_encoder", "text_encoder")
        }
        for kind in ("study", "image", "text"):
            spec = MODELS[f"fusion_{kind}"]
            outputs = getattr(model.fusion, f"forward_{kind}")(*(tensors[x.name] for x in spec.inputs))
            for tensor, output in zip(spec.outputs, outputs, strict=True):
                answers |= {f"fusion_{kind} {tensor.name}": output, f"fused_{kind} {tensor.name}": output}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return arrays, {name: tensor.numpy() for name, tensor in answers.items()}


@pytest.mark.parametrize("release", [ngc.OLDEST, ngc.DEFAULT], ids=lambda release: release.tag)
def test_every_published_graph_answers_as_pytorch_does(release, asked, install_aside):
    directory, expected = asked
    wheel, version = install_aside("onnxruntime", release.onnxruntime)
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    command = [sys.executable, RUN_GRAPHS, directory, version]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"onnxruntime {version}: {result.stderr[-2000:]}"
    graphs = {
        f"{target}/{name}"
        for target in TARGETS
        for name in (*FUSED, *(x.split()[0] for x in expected["01-032"]))
    }
    for name, answers in expected.items():
        mask = np.load(directory / f"case-{name}.npz")["attention_mask"].astype(bool)
        with np.load(directory / f"answers-{name}.npz") as found:
            assert {key.split()[0] for key in found} == graphs
            for key, array in found.items():
                graph, output = key.split()
                difference = measure(output, answers[f"{graph.split('/')[1]} {output}"], array, mask)
                assert difference <= TOLERANCES[output], (version, name, key, difference)


def measure(output, expected, found, mask):
    """Return how far two answers are apart, in the measure that the parity gate has for this output."""
    assert expected.shape == found.shape
    if output == "text_tokens":  # nothing reads those on padding
        expected, found = expected[mask], found[mask]
    if output == "embedding":
        return float((1 - (expected.astype(float) * found).sum(-1)).max())
    difference = float(np.abs(expected - found).max())  # NaN fails every comparison
    return difference / float(np.abs(expected).max()) if output.endswith("_tokens") else difference
