"""Where int8 is beyond its limits, the products that cost the most stay in float32, and the report names them."""

import itertools
from dataclasses import replace

import numpy as np
import onnx
import pytest

from contract.errors import ParityError
from contract.tensors import GRAPHS
from export.gates.parity import ParityCase
from export.gates.precision import Gate
from export.profiles import load_profile
from export.sensitivity import Sensitivity, list_products
from export.settle import _list_counts, find_last, settle_graphs

pytest.importorskip("openvino")
LOOSE = replace(
    load_profile("int8").limits,
    probability_difference=1.0,
    embedding_cosine=0.9,
    flip_share=1.0,
    auroc_change=1.0,
    ap_change=1.0,
    neighbour_overlap=0.0,
)
WIDE = replace(load_profile("int8"), limits=LOOSE)


@pytest.fixture(scope="module")
def some(cases):
    """The three cases, and five more to be asked."""
    rng = np.random.default_rng(2)
    drawn = rng.integers(0, 256, (5, 1, 112, 112), dtype=np.uint8)
    return [*cases, *(ParityCase(pixels, cases[index % 3].text) for index, pixels in enumerate(drawn))]


@pytest.fixture(scope="module")
def settled(bundle, graphs, some, tmp_path_factory):
    return settle_graphs(bundle, graphs, WIDE, some, tmp_path_factory.mktemp("settled"))


def count_int8(path):
    return sum(value.data_type == onnx.TensorProto.INT8 for value in onnx.load(path).graph.initializer)


def find_products_in(path):
    """Return the nodes that multiply by a float32 weight."""
    graph = onnx.load(path).graph
    weights = {value.name for value in graph.initializer if len(value.dims) == 2}
    return {node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights}


def test_the_last_product_of_an_encoder_stays_in_float32(settled, graphs):
    converted, report = settled
    last = find_last(list_products(graphs))
    assert [product.graph for product in last] == ["image_encoder", "text_encoder"]
    assert report.kept == tuple(map(str, last))
    assert report.products == len(list_products(graphs)) > 60
    for product in last:
        assert find_products_in(converted.paths[product.graph]) == {product.node}
        assert count_int8(converted.paths[product.graph]) > 10
    for name in ("fusion_study", "fusion_image", "fusion_text"):
        assert find_products_in(converted.paths[name]) == set()
    table = report.to_markdown()
    assert f"2 of {report.products} products stay in float32: image_encoder/node_" in table
    assert "With these products alone" not in table
    assert report.to_sentence().endswith(f"2 of {report.products} products stay in float32")


@pytest.mark.slow
def test_what_costs_the_most_stays_too_until_the_limits_are_met(settled, bundle, graphs, some, tmp_path):
    rows = [row for row in settled[1].kinds if row.kind == "text"]
    missed = 1 - 0.7 * (1 - min(row.embedding_cosine for row in rows))
    strict = replace(WIDE, limits=replace(LOOSE, embedding_cosine=missed), kept_share=0.6)
    converted, report = settle_graphs(bundle, graphs, strict, some, tmp_path)
    assert report.passed
    assert report.kept[:2] == settled[1].kept
    assert len(report.kept) - 2 in (1, 2, 4, 8, 16, 32)
    assert len(set(report.kept)) == len(report.kept)
    assert report.beyond_with_fewer.startswith("embedding_cosine of ")
    assert f"With these products alone, {report.beyond_with_fewer}." in report.to_markdown()
    found = {name: find_products_in(converted.paths[name]) for name in GRAPHS}
    chosen = {(kept.partition("/")[0], kept.partition("/")[2].partition(" ")[0]) for kept in report.kept}
    assert {(name, node) for name, nodes in found.items() for node in nodes} == chosen


@pytest.mark.slow
def test_a_share_of_the_products_is_the_most_that_stays(bundle, graphs, some, tmp_path):
    perfect = replace(WIDE, limits=replace(LOOSE, embedding_cosine=1.0), kept_share=0.06)
    with pytest.raises(
        ParityError, match=r"int8 is not published: embedding_cosine of study, .* at least 1\."
    ):
        settle_graphs(bundle, graphs, perfect, some, tmp_path)
    none = replace(WIDE, kept_share=0.0)
    _, report = settle_graphs(bundle, graphs, none, some, tmp_path / "none")
    assert (report.kept, report.products) == ((), 0)
    assert "stay in float32" not in report.to_markdown()


def list_asked(graphs):
    """Return the products that take part in the answers to reports."""
    return [x for x in list_products(graphs) if x.graph in ("text_encoder", "fusion_text")]


def test_the_ranking_is_exact_where_the_differences_add_up(bundle, graphs, some, tmp_path, monkeypatch):
    sensitivity = Sensitivity(bundle, graphs, WIDE, {"text": some[:4]}, tmp_path)
    products = list_asked(graphs)
    together, *parts = (sensitivity.measure(part) for part in (products[:2], products[:1], products[1:2]))
    assert min(parts) > 0
    assert together == pytest.approx(sum(parts), rel=0.7)  # nearly the sum
    drawn = np.random.default_rng(3).permutation(len(products)).tolist()
    costs = dict(zip(products, drawn, strict=True))
    monkeypatch.setattr(sensitivity, "measure", lambda segment: sum(costs[product] for product in segment))
    ranked = list(sensitivity.rank(list_products(graphs)))  # the image's are not asked
    assert ranked == sorted(products, key=costs.__getitem__, reverse=True)


@pytest.mark.slow
def test_the_ranking_finds_what_trying_each_product_finds(bundle, graphs, some, tmp_path):
    sensitivity = Sensitivity(bundle, graphs, WIDE, {"text": some[:4]}, tmp_path)
    products = list_asked(graphs)
    ranked = list(sensitivity.rank(list_products(graphs)))
    assert sorted(map(str, ranked)) == sorted(map(str, products))  # each once; the image's are not asked
    alone = {product: sensitivity.measure([product]) for product in products}
    best = sorted(products, key=alone.__getitem__, reverse=True)
    assert set(ranked[:3]) <= set(best[:5])
    costs = [sum(alone[product] for product in ranked[start : start + 7]) for start in range(0, 21, 7)]
    assert costs == sorted(costs, reverse=True)


def test_one_case_that_is_far_off_is_among_the_worst(bundle, graphs, some, tmp_path):
    gate = Gate(bundle, some, reference=graphs)
    spoilt = onnx.load(graphs["fusion_image"])
    weight = next(value for value in spoilt.graph.initializer if value.name.endswith("pooling.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(spoilt, tmp_path / "spoilt.onnx")
    report = gate.measure({**graphs, "fusion_image": tmp_path / "spoilt.onnx"}, replace(load_profile("fp32")))
    image = next(row for row in report.kinds if row.kind == "image")
    worst = gate.find_worst("image", report.limits, 2)
    assert len(worst) == 2
    assert all(case.pixels is not None for case in worst)
    again = Gate(bundle, worst, reference=graphs).measure(
        {**graphs, "fusion_image": tmp_path / "spoilt.onnx"}, load_profile("fp32")
    )
    found = next(row for row in again.kinds if row.kind == "image")
    assert found.probability_difference == pytest.approx(image.probability_difference, abs=1e-4)


def test_counts_double_up_to_the_most():
    assert list(itertools.accumulate(_list_counts(11))) == [1, 2, 4, 8, 11]
    assert list(itertools.accumulate(_list_counts(2))) == [1, 2]
    assert list(_list_counts(0)) == []
