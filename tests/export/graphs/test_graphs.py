"""The exporter: every graph fits the tensor table, for any batch and length."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from contract.errors import ArtifactError, FingerprintError, ParityError
from contract.tensors import EMBEDDING, GRAPHS, MAX_VIEWS, MODELS, NUMPY_DTYPES
from export.graphs import from_torch as graphs_module
from export.graphs.checks import check_graph, find_unread_inputs, read_fingerprint, read_sizes
from export.graphs.from_torch import export_graphs
from training.model.model import load_model


def make_feed(spec, sizes, batch, length, views=1):
    known = {**sizes, "L": length, "V": views, "I": views * sizes["N"]}
    feed = {}
    for tensor in spec.inputs:
        shape = (batch, *(known.get(size, size) for size in tensor.shape))
        feed[tensor.name] = np.ones(shape, NUMPY_DTYPES[tensor.dtype])
    return feed


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_answers_any_batch_and_length(name, graphs, bundle):
    sizes = read_sizes(bundle)
    session = onnxruntime.InferenceSession(str(graphs[name]), providers=["CPUExecutionProvider"])
    for batch, length, views in ((1, 32, 1), (3, 32, 4), (1, 128, 2), (3, 256, 3)):
        answers = session.run(None, make_feed(MODELS[name], sizes, batch, length, views))
        for tensor, answer in zip(MODELS[name].outputs, answers, strict=True):
            tensor.check(answer, sizes)
            assert len(answer) == batch
            known = {"L": length, "V": views, "I": views * sizes["N"]}
            for letter, size in zip(tensor.shape, answer.shape[1:], strict=True):
                assert size == known.get(letter, size)


@pytest.mark.parametrize("name", ["image_encoder", "fusion_image", "fusion_study"])
@pytest.mark.parametrize("target", ["plain", "gpu"])
def test_graph_reads_the_views_of_each_study_as_the_model_does(name, target, graphs, bundle, optimized):
    """As in training, where the second image's tokens stand behind the first one's, marked."""
    model, sizes = load_model(bundle).eval(), read_sizes(bundle)
    session = onnxruntime.InferenceSession(
        str({"plain": graphs, "gpu": optimized.paths}[target][name]), providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 2, sizes["S"], sizes["S"]), dtype=torch.uint8, generator=generator)
    feed = make_feed(MODELS[name], sizes, 3, 32, 2)
    with torch.inference_mode():
        first, second = (model.image_encoder(view) for view in pixels.split(1, dim=1))
        tokens, _ = model.fusion.join_views(first, second, torch.ones(3, dtype=bool))
        feed |= {"pixels": pixels.numpy(), "image_tokens": torch.cat([first, second], dim=1).numpy()}
        if name == "image_encoder":
            expected = (torch.cat([first, second], dim=1),)
        else:
            text = [torch.from_numpy(feed[key]) for key in ("text_tokens", "attention_mask") if key in feed]
            ids = torch.from_numpy(feed["input_ids"]) if "input_ids" in feed else None
            out = model.fusion(tokens, *(text or (None, None)), input_ids=ids)
            laterals = torch.cat([model.fusion.lateral(view) for view in (first, second)], dim=1)
            probabilities = model.fusion.calibrate(out.logits, name.removeprefix("fusion_"))
            labels = 0.75**0.5 * probabilities / probabilities.norm(dim=1, keepdim=True)
            embedding = torch.cat([0.5 * out.embedding, labels], dim=1)
            given = (embedding, out.image_attention, out.text_attention, laterals, out.image_share)
            expected = (probabilities, *(part for part in given if part is not None))
    wanted = {tensor.name for tensor in MODELS[name].inputs}
    answers = session.run(None, {key: value for key, value in feed.items() if key in wanted})
    for tensor, answer, right in zip(MODELS[name].outputs, answers, expected, strict=True):
        np.testing.assert_allclose(answer, right.numpy(), atol=2e-4, err_msg=tensor.name)
    assert model.fusion.view.abs().max() > 0.01  # the mark says something
    assert not np.allclose(answers[0][0], answers[0][1])


@pytest.mark.parametrize("name", ["image_encoder", "fusion_image"])
def test_more_images_than_a_study_has_are_an_error(name, graphs, bundle):
    session = onnxruntime.InferenceSession(str(graphs[name]), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=r"(?i)broadcast|shape|dimension"):
        session.run(None, make_feed(MODELS[name], read_sizes(bundle), 1, 32, MAX_VIEWS + 1))


def test_graph_without_a_lexical_part_reads_the_same_inputs(
    write_bundle, small_config, tmp_path, monkeypatch
):
    """One contract for every bundle; `export_graphs` holds names and shapes to the table, and that each is read."""
    given = {"seed": 1, "texts": ["Lungs are clear."], "thresholds": [0.5] * 22}
    plain = write_bundle(tmp_path / "bundle", small_config, **given)
    monkeypatch.setattr(graphs_module, "GRAPHS", ("fusion_text",))
    path = export_graphs(plain, tmp_path)["fusion_text"]
    assert find_unread_inputs(onnx.load(path).graph) == []
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = make_feed(MODELS["fusion_text"], read_sizes(plain), 3, 20)
    assert [entry.name for entry in session.get_inputs()] == list(feed)
    feed["text_tokens"] = np.random.default_rng(0).normal(size=feed["text_tokens"].shape).astype(np.float32)
    first = session.run(["embedding"], feed)[0]
    feed["input_ids"][1, 3] = 120  # the first id that its vocabulary does not have
    second = session.run(["embedding"], feed)[0]
    np.testing.assert_array_equal(first[[0, 2]], second[[0, 2]])
    assert not np.allclose(first[1], second[1])


def test_an_input_that_no_output_depends_on_is_refused(graphs, bundle, tmp_path):
    """A node that reads it is not enough: a runtime leaves out what leads nowhere."""
    model = onnx.load(graphs["fusion_text"])
    ids = model.graph.input[1].name
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == ids:
                node.input[place] = "attention_mask"
    model.graph.node.append(onnx.helper.make_node("Identity", [ids], ["nowhere"], name="leads_nowhere"))
    onnx.save(model, tmp_path / "unread.onnx")
    spec = MODELS["fusion_text"]
    with pytest.raises(ParityError, match=r"unread\.onnx declares the input input_ids, but no output"):
        check_graph(tmp_path / "unread.onnx", spec, read_sizes(bundle), bundle.fingerprint)


def test_an_input_that_a_branch_reads_is_read():
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    flag = onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    branch = onnx.helper.make_graph([], "branch", [], [value])
    inner = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["w"], ["z"])], "other", [], [inner])
    node = onnx.helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=other)
    inputs = [flag, value, onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1])]
    assert find_unread_inputs(onnx.helper.make_graph([node], "g", inputs, [out])) == []
    assert find_unread_inputs(onnx.helper.make_graph([], "g", inputs, [value])) == ["flag", "w"]


@pytest.mark.parametrize("name", ["text_encoder", "fusion_study", "fusion_text"])
@pytest.mark.parametrize("target", ["plain", "gpu"])
def test_an_unknown_id_harms_its_own_text_alone(name, target, graphs, bundle, optimized):
    """No backend may fail a batch, or mix up its texts, for the ids that one client sent."""
    files = {"plain": graphs, "gpu": optimized.paths}[target]
    session = onnxruntime.InferenceSession(str(files[name]), providers=["CPUExecutionProvider"])
    feed, size = make_feed(MODELS[name], read_sizes(bundle), 4, 32), bundle.config["model"]["vocabulary_size"]
    generator = np.random.default_rng(0)
    feed["input_ids"] = generator.integers(0, size, (4, 32))
    for key in [key for key in feed if key.endswith("_tokens")]:
        feed[key] = generator.normal(size=feed[key].shape).astype(np.float32)
    feed["attention_mask"][2, 20:] = 0
    good = session.run(None, feed)
    for bad in (size, -1, 2**62, -(2**63)):
        ids = feed["input_ids"].copy()
        ids[1, 5] = bad
        answers = session.run(None, {**feed, "input_ids": ids})
        for answer, expected in zip(answers, good, strict=True):
            np.testing.assert_array_equal(answer[[0, 2, 3]], expected[[0, 2, 3]])
            assert np.isfinite(answer).all()


def test_graph_carries_the_fingerprint_and_an_old_enough_opset(graphs, bundle):
    for path in graphs.values():
        assert read_fingerprint(path) == bundle.fingerprint
        model = onnx.load(path)
        assert model.opset_import[0].version == 18
        assert model.ir_version <= 10  # what ONNX Runtime 1.18 and later read
        assert list(path.parent.glob(f"{path.name}.data")) == []


def test_embedding_has_unit_length_and_attention_sums_to_one(graphs, bundle):
    session = onnxruntime.InferenceSession(str(graphs["fusion_text"]), providers=["CPUExecutionProvider"])
    feed = make_feed(MODELS["fusion_text"], read_sizes(bundle), 2, 32)
    feed["text_tokens"] = np.random.default_rng(0).normal(size=feed["text_tokens"].shape).astype(np.float32)
    feed["attention_mask"][1, 5:] = 0
    probabilities, embedding, attention = session.run(None, feed)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    assert (attention[1, :, 5:] == 0).all()


def test_export_is_quiet_and_tells_its_progress(bundle, tmp_path, capfd, monkeypatch, caplog):
    seen = []
    monkeypatch.setattr(graphs_module, "GRAPHS", ("fusion_image",))
    export_graphs(bundle, tmp_path / "new" / "graphs", lambda done, total: seen.append((done, total)))
    assert seen == [(0, 1), (1, 1)]
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


def test_large_weights_lie_beside_the_graph(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs_module, "GRAPHS", ("fusion_image",))
    monkeypatch.setattr(graphs_module, "EXTERNAL_DATA_FROM_BYTES", 1000)
    path = export_graphs(bundle, tmp_path)["fusion_image"]
    assert (tmp_path / "fusion_image.onnx.data").stat().st_size > path.stat().st_size
    (tmp_path / "1").mkdir()
    shutil.copy(path, tmp_path / "1" / "model.onnx")
    shutil.copy(f"{path}.data", tmp_path / "1")
    onnxruntime.InferenceSession(
        str(tmp_path / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )  # finds its weights under the new name of the graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: replace(spec, outputs=spec.outputs[:-1]), "must have the outputs"),
        (lambda spec: replace(spec, inputs=(EMBEDDING,)), "must have the inputs"),
        (
            lambda spec: replace(spec, inputs=(replace(spec.inputs[0], dtype="INT64"),)),
            "image_tokens must be INT64, not FLOAT",
        ),
        (
            lambda spec: replace(spec, inputs=(replace(spec.inputs[0], shape=("I", 7)),)),
            r"image_tokens must have shape \[-1, -1, 7\], not \[-1, -1, 128\]",
        ),
    ],
)
def test_graph_that_differs_from_the_table_is_refused(change, message, graphs, bundle):
    spec = change(MODELS["fusion_image"])
    with pytest.raises(ArtifactError, match=message):
        check_graph(graphs["fusion_image"], spec, read_sizes(bundle), bundle.fingerprint)


def test_fixed_batch_is_refused(graphs, bundle, tmp_path):
    model = onnx.load(graphs["fusion_image"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(ArtifactError, match=r"not \[2, -1, 128\]"):
        check_graph(tmp_path / "fixed.onnx", MODELS["fusion_image"], read_sizes(bundle), bundle.fingerprint)


def test_foreign_and_broken_files_are_refused(graphs, bundle, tmp_path):
    spec, sizes = MODELS["fusion_image"], read_sizes(bundle)
    with pytest.raises(FingerprintError, match=bundle.fingerprint[:12]):
        check_graph(graphs["fusion_image"], spec, sizes, "0" * 64)
    (tmp_path / "noise.onnx").write_bytes(b"\x89PNG not a graph")
    for path in (tmp_path / "noise.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(ArtifactError, match=path.name):
            read_fingerprint(path)


@pytest.mark.parametrize("sizes", [None, {"S": 112, "N": 49, "C": 128}, {"S": 0, "N": 1, "C": 1, "D": 1}])
def test_bundle_without_sizes_is_refused(sizes, bundle):
    with pytest.raises(ArtifactError, match="lacks the sizes"):
        read_sizes(replace(bundle, config={"sizes": sizes}))


def test_graphs_say_nothing_of_the_machine_that_made_them(graphs):
    for path in graphs.values():
        content = path.read_bytes()
        for word in (b"stack_trace", b"site-packages", str(Path(__file__).parents[3]).encode()):
            assert word not in content, (path.name, word)
