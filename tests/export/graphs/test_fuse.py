"""Fused graphs answer as the graphs they are made of, and an ensemble runs one in the place of those."""

import numpy as np
import onnx
import pytest
from tritonclient.grpc import model_config_pb2

from contract.errors import ArtifactError, ConfigError, FingerprintError
from contract.report.text import ReportTokenizer
from contract.runtime.session import open_session
from contract.runtime.walk import bind_sessions, walk_graphs
from contract.tensors import FUSED, FUSED_PARTS, GRAPHS, LAYOUTS
from export.configs import read_template
from export.graphs import from_torch as graphs_module
from export.graphs import fuse as fuse_module
from export.graphs.checks import FINGERPRINT_KEY, check_graph, read_sizes
from export.graphs.fuse import fuse_ensemble, fuse_graphs

OPENVINO_BF16 = {"cpu_execution_accelerator": [{"name": "openvino", "parameters": {"precision": "bf16"}}]}
KINDS = ("study", "image", "text")


@pytest.fixture(scope="module")
def fused(graphs, tmp_path_factory):
    return fuse_graphs(graphs, tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="module")
def own_graphs(graphs, tmp_path_factory):
    """A function that returns the graphs with one of them changed by hand."""
    root = tmp_path_factory.mktemp("changed")

    def change(name, edit):
        model = onnx.load(graphs[name])
        edit(model)
        path = root / f"{name}.onnx"
        onnx.save(model, path)
        return {**graphs, name: path}

    return change


def make_inputs(bundle, cases, batch, words, views=1):
    """Return real pixels and reports of a few lengths, the last shortened so that it is mostly padding.

    Further views are the first one turned upside down.
    """
    texts = [" ".join((case.text * 20).split()[:words]) for case in cases][:batch]
    texts[-1] = " ".join(texts[-1].split()[:3])
    tokens = ReportTokenizer.load(bundle.tokenizer_path).encode(texts, 256)
    pixels = [case.pixels if case.pixels is not None else cases[0].pixels[:, ::-1] for case in cases]
    return {
        "pixels": np.stack(
            [np.concatenate([first, first[:, ::-1], first][:views]) for first in pixels[:batch]]
        ),
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
    }


def open_both(graphs, fused, name, optimization):
    config = {"optimization": {"execution_accelerators": optimization}}
    sessions = {part: open_session(graphs[part], config) for part in FUSED_PARTS[name]}
    return sessions, open_session(fused[name], config)


def run_both(sessions, session, name, inputs):
    spec = FUSED[name]
    names = [tensor.name for tensor in spec.outputs]
    feeds = {tensor.name: inputs[tensor.name] for tensor in spec.inputs}
    answers = dict(zip(names, session.run(names, feeds), strict=True))
    chained = walk_graphs(FUSED_PARTS[name], bind_sessions(sessions), feeds)
    return answers, chained[FUSED_PARTS[name][-1]]


@pytest.mark.parametrize("name", FUSED)
def test_fused_graph_fits_the_tensor_table(name, fused, bundle):
    check_graph(fused[name], FUSED[name], read_sizes(bundle), bundle.fingerprint)
    model = onnx.load(fused[name])
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties == {FINGERPRINT_KEY: bundle.fingerprint, "graph": name}
    types = {value.name: value.type.tensor_type for value in model.graph.input}
    assert {key: entry.elem_type for key, entry in types.items()} == {
        tensor.name: {"UINT8": onnx.TensorProto.UINT8, "INT64": onnx.TensorProto.INT64}[tensor.dtype]
        for tensor in FUSED[name].inputs
    }
    axes = {key: [dim.dim_param for dim in entry.shape.dim] for key, entry in types.items()}
    assert all(names[0] == "batch" for names in axes.values())
    assert all(axes[key][1] == "length" for key in axes if key != "pixels")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", graphs_module.OPSET)]


@pytest.mark.parametrize("name", FUSED)
def test_each_weight_is_there_once(name, fused, graphs):
    weights = [entry.name for entry in onnx.load(fused[name]).graph.initializer]
    assert len(weights) == len(set(weights))
    parts = [onnx.load(graphs[part]).graph.initializer for part in FUSED_PARTS[name]]
    assert len(weights) == sum(len(part) for part in parts)
    assert fused[name].stat().st_size <= 1.05 * sum(graphs[part].stat().st_size for part in FUSED_PARTS[name])


@pytest.mark.parametrize("name", FUSED)
def test_fused_graph_answers_as_its_parts(name, fused, graphs, bundle, cases):
    sessions, session = open_both(graphs, fused, name, {})
    lengths = set()
    for batch, words, views in ((1, 9, 1), (3, 12, 2), (2, 90, 1), (3, 250, 3)):
        inputs = make_inputs(bundle, cases, batch, words, views)
        lengths.add(inputs["input_ids"].shape)
        answers, chained = run_both(sessions, session, name, inputs)
        for tensor in FUSED[name].outputs:
            tensor.check(answers[tensor.name], read_sizes(bundle))
            assert len(answers[tensor.name]) == batch
            np.testing.assert_allclose(answers[tensor.name], chained[tensor.name], rtol=0, atol=2e-6)
    assert len({length for _, length in lengths}) > 1


@pytest.mark.parametrize("name", FUSED)
def test_fused_graph_answers_as_its_parts_in_bfloat16(name, fused, graphs, bundle, cases):
    """Bfloat16 keeps 8 bits: the two differ as each differs from float32, where a token is rounded in between."""
    pytest.importorskip("openvino")
    try:
        sessions, session = open_both(graphs, fused, name, OPENVINO_BF16)
    except ConfigError as error:
        pytest.skip(str(error))
    for batch, words in ((1, 9), (3, 90)):
        inputs = make_inputs(bundle, cases, batch, words)
        answers, chained = run_both(sessions, session, name, inputs)
        for output, expected in chained.items():
            if output == "embedding":
                assert ((answers[output] * expected).sum(-1) > 1 - 1e-3).all()
            else:
                np.testing.assert_allclose(answers[output], expected, rtol=0, atol=2e-2)


def test_fused_graph_tells_inputs_apart(fused, bundle, cases):
    """What the image shows, what the text says and what is padding all matter."""
    session = open_session(fused["fused_study"], {})
    inputs = make_inputs(bundle, cases, 2, 12)
    (first,) = session.run(["probabilities"], inputs)
    for name in ("pixels", "input_ids", "attention_mask"):
        changed = {**inputs, name: inputs[name][::-1].copy()}
        (second,) = session.run(["probabilities"], changed)
        assert np.abs(first - second).max() > 1e-4, name


def test_large_weights_lie_beside_the_graph(graphs, fused, bundle, cases, tmp_path, monkeypatch):
    monkeypatch.setattr(fuse_module, "EXTERNAL_DATA_FROM_BYTES", 1_000_000)
    sizes = []
    for _ in range(2):  # a second run writes anew, not behind the first
        paths = fuse_graphs(graphs, tmp_path)
        sizes.append((tmp_path / "fused_text.onnx.data").stat().st_size)
    assert sizes[0] == sizes[1] > 1_000_000
    assert paths["fused_text"].stat().st_size < 1_000_000
    assert_same_answers(paths, fused, make_inputs(bundle, cases, 2, 12))


def assert_same_answers(first, second, inputs):
    for name, spec in FUSED.items():
        feeds = {tensor.name: inputs[tensor.name] for tensor in spec.inputs}
        names = [tensor.name for tensor in spec.outputs]
        answers = [open_session(paths[name], {}).run(names, feeds) for paths in (first, second)]
        for one, other in zip(*answers, strict=True):
            np.testing.assert_array_equal(one, other)


def test_parts_may_have_their_weights_beside_them(graphs, fused, bundle, cases, tmp_path):
    parts = {}
    for name in GRAPHS:
        parts[name] = tmp_path / f"{name}.onnx"
        model = onnx.load(graphs[name])
        onnx.save(model, parts[name], save_as_external_data=True, location=f"{name}.onnx.data")
    paths = fuse_graphs(parts, tmp_path / "fused")
    assert_same_answers(paths, fused, make_inputs(bundle, cases, 2, 12))


def test_a_missing_part(graphs, tmp_path):
    some = {name: graphs[name] for name in GRAPHS if name != "text_encoder"}
    with pytest.raises(ArtifactError, match=r"fused_study cannot be composed: .* text_encoder\.$"):
        fuse_graphs(some, tmp_path)


def test_a_file_that_is_no_graph(graphs, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(ArtifactError, match=r"broken\.onnx"):
        fuse_graphs({**graphs, "image_encoder": tmp_path / "broken.onnx"}, tmp_path / "out")
    with pytest.raises(ArtifactError, match="There is no graph"):
        fuse_graphs({**graphs, "fusion_study": tmp_path / "none.onnx"}, tmp_path / "out")


def test_lost_weights(graphs, tmp_path):
    path = tmp_path / "image_encoder.onnx"
    model = onnx.load(graphs["image_encoder"])
    onnx.save(model, path, save_as_external_data=True, location="image_encoder.onnx.data")
    (tmp_path / "image_encoder.onnx.data").unlink()
    with pytest.raises(ArtifactError, match=r"image_encoder\.onnx cannot be read"):
        fuse_graphs({**graphs, "image_encoder": path}, tmp_path / "out")


def test_parts_of_two_bundles(own_graphs, tmp_path):
    changed = own_graphs(
        "text_encoder", lambda model: onnx.helper.set_model_props(model, {"fingerprint": "b"})
    )
    with pytest.raises(FingerprintError, match=r"text_encoder\.onnx"):
        fuse_graphs(changed, tmp_path)


def set_opset(model):
    model.opset_import[0].version = 17


def set_ir_version(model):
    model.ir_version = 9


def widen_tokens(model):
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 4096


def rename_output(model):
    model.graph.output[0].name = "tokens"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_opset, "another part has 1[78]|has version 1[78] of the operator set ai.onnx"),
        (set_ir_version, r"their IR versions differ, \[9, 10\]"),
        (widen_tokens, "C is 4096, but"),
        (rename_output, r"must have the outputs \['image_tokens'\], not \['tokens'\]"),
    ],
)
def test_parts_that_do_not_fit(edit, message, own_graphs, tmp_path):
    with pytest.raises(ArtifactError, match=message):
        fuse_graphs(own_graphs("image_encoder", edit), tmp_path)


def test_out_that_cannot_be_written(graphs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="Could not write"):
        fuse_graphs(graphs, tmp_path / "file")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["", "_tensors"])
def test_fused_ensemble_keeps_all_but_its_steps(kind, suffix):
    config = read_template(f"predict_{kind}{suffix}")
    for step in config.ensemble_scheduling.step:
        step.model_version = 7
    config.parameters["fingerprint"].string_value = "abc"
    before = config.SerializeToString(deterministic=True)
    result = fuse_ensemble(config, kind)
    assert config.SerializeToString(deterministic=True) == before
    steps = result.ensemble_scheduling.step
    assert [step.model_name for step in steps] == list(LAYOUTS["fused"][config.name].steps)
    assert {step.model_version for step in steps} == {7}
    for message in (config, result):
        del message.ensemble_scheduling.step[:]
    assert result == config


def test_fused_ensemble_follows_the_wiring_of_the_config():
    """Names inside an ensemble are free; the fused step reads and writes what the replaced steps did."""
    config = read_template("predict_text_tensors")
    check, encoder, fusion = config.ensemble_scheduling.step
    check.output_map["input_ids"] = encoder.input_map["input_ids"] = fusion.input_map["input_ids"] = "ids"
    fusion.output_map["embedding"] = "vector"
    first, step = fuse_ensemble(config, "text").ensemble_scheduling.step
    assert first == check
    assert dict(step.input_map) == {"input_ids": "ids", "attention_mask": "checked_attention_mask"}
    assert step.output_map["embedding"] == "vector"


def test_the_gate_between_the_encoders_goes_with_them():
    """What the gate handed on to the text encoder, the fused step reads where the gate read it."""
    config = read_template("predict_study_tensors")
    assert [x.model_name for x in config.ensemble_scheduling.step][2] == "text_gate"
    _, step = fuse_ensemble(config, "study").ensemble_scheduling.step
    names = ("pixels", "input_ids", "attention_mask")
    assert dict(step.input_map) == {name: f"checked_{name}" for name in names}


def test_ensembles_that_cannot_be_fused():
    config = read_template("predict_study_tensors")
    with pytest.raises(ConfigError, match="study, image or text, not audio"):
        fuse_ensemble(config, "audio")
    with pytest.raises(ConfigError, match="has no step fusion_image"):
        fuse_ensemble(config, "image")
    with pytest.raises(ConfigError, match="has no step image_encoder, text_encoder, fusion_study"):
        fuse_ensemble(model_config_pb2.ModelConfig(name="empty"), "study")
    config.ensemble_scheduling.step[1].model_version = 2
    with pytest.raises(ConfigError, match=r"different versions: \[-1, 2\]"):
        fuse_ensemble(config, "study")
    config.ensemble_scheduling.step[1].model_version = -1
    config.output.add(name="text_tokens")
    with pytest.raises(ConfigError, match="which has no output text_tokens"):
        fuse_ensemble(config, "study")
