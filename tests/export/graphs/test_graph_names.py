"""Two versions of one architecture have graphs of two names, in every layout and precision.

The TensorRT provider of ONNX Runtime names the file of an engine after the graph, the ONNX file and the outputs of the
nodes (`TRTGenerateId` and `GetSubGraph` in its sources). `read_provider_key` returns what it reads.
"""

import re
from pathlib import Path

import onnx
import onnxruntime
import pytest

from contract.errors import ArtifactError
from contract.tensors import LAYOUTS, MODELS
from export.configs import Deployment
from export.graphs.checks import check_graph, read_fingerprint, read_sizes, seal_graph
from export.graphs.convert import convert_graphs
from export.graphs.fuse import fuse_graphs
from export.profiles import load_profile
from export.publish import publish


def read_provider_key(path: Path) -> tuple[str, tuple]:
    """Return the graph's name as ONNX Runtime reads it, and all else that an engine's file is called after."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(path).graph
    inputs = tuple(value.name for value in graph.input)
    outputs = tuple(name for node in graph.node for name in node.output)
    return session.get_modelmeta().graph_name, (path.name, inputs, outputs)


def test_two_versions_share_everything_but_the_name_of_the_graph(make_model, tmp_path):
    (bundle, graphs), (other_bundle, other_graphs) = make_model(1), make_model(2)
    repository = publish(bundle, graphs, tmp_path / "repository", Deployment(target="tensorrt"))
    publish(other_bundle, other_graphs, repository, Deployment(target="tensorrt"))
    for name in graphs:
        first, second = (read_provider_key(repository / name / version / "model.onnx") for version in "12")
        assert first[1] == second[1], "then the name alone could not tell them apart"
        assert first[0] != second[0]
        for (found, _), given in ((first, bundle), (second, other_bundle)):
            assert re.fullmatch(rf"{name}_{given.fingerprint[:12]}_[0-9a-f]{{12}}", found)


def test_fused_graphs_have_names_of_their_own(make_model, tmp_path):
    (bundle, graphs), (other_bundle, other_graphs) = make_model(1), make_model(2)
    one, two = fuse_graphs(graphs, tmp_path / "1"), fuse_graphs(other_graphs, tmp_path / "2")
    for name in one:
        first, second = read_provider_key(one[name]), read_provider_key(two[name])
        assert first[1][1:] == second[1][1:]
        assert first[0].startswith(f"{name}_{bundle.fingerprint[:12]}_")
        assert second[0].startswith(f"{name}_{other_bundle.fingerprint[:12]}_")


@pytest.mark.parametrize(("profile", "target"), [("fp16", "gpu"), ("fp16", "tensorrt"), ("int8", "cpu")])
def test_a_converted_graph_has_another_name_than_its_source(bundle, graphs, tmp_path, profile, target):
    converted = convert_graphs(bundle, graphs, load_profile(profile), tmp_path, target=target)
    for name in converted.converted:
        found, source = (onnx.load(paths[name]).graph.name for paths in (converted.paths, graphs))
        assert found != source
        assert found.startswith(f"{name}_{bundle.fingerprint[:12]}_")


def test_a_rename_changes_nothing_else(bundle, graphs, tmp_path):
    path = tmp_path / "image_encoder.onnx"
    before = onnx.load(graphs["image_encoder"])
    onnx.save(before, path)
    seal_graph(path, MODELS["image_encoder"], read_sizes(bundle), bundle.fingerprint)
    after = onnx.load(path)
    assert after.graph.name != before.graph.name  # the hash is of the file as it was
    assert read_fingerprint(path) == bundle.fingerprint
    after.graph.name = before.graph.name
    assert after == before


def test_openvino_reads_a_renamed_graph(graphs):
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(graphs["fusion_text"])
    assert [value.any_name for value in model.inputs] == [x.name for x in MODELS["fusion_text"].inputs]
    assert [value.any_name for value in model.outputs] == [x.name for x in MODELS["fusion_text"].outputs]


def test_a_graph_without_its_name_is_refused(bundle, graphs, tmp_path):
    model = onnx.load(graphs["fusion_image"])
    model.graph.name = "main_graph"
    onnx.save(model, tmp_path / "fusion_image.onnx")
    with pytest.raises(ArtifactError, match=r"begin with fusion_image_[0-9a-f]{12}_, not main_graph"):
        check_graph(
            tmp_path / "fusion_image.onnx", MODELS["fusion_image"], read_sizes(bundle), bundle.fingerprint
        )


def test_every_published_graph_is_sealed(bundle, graphs, tmp_path):
    for layout, paths in (("split", graphs), ("fused", fuse_graphs(graphs, tmp_path / "graphs"))):
        repository = publish(bundle, paths, tmp_path / layout, Deployment(layout=layout))
        for spec in LAYOUTS[layout].values():
            if spec.backend == "onnxruntime":
                file = repository / spec.name / "1" / "model.onnx"
                assert onnx.load(file).graph.name.startswith(f"{spec.name}_{bundle.fingerprint[:12]}_")
