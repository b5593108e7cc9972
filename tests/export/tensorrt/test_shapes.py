"""The shapes that plans and ONNX Runtime's provider are told: all that a request can have, each tuned for one."""

from dataclasses import replace

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract.bundle import Bundle
from contract.errors import ConfigError
from contract.tensors import LAYOUTS, MODELS
from export.configs import Deployment, fill_config
from export.graphs.checks import read_sizes
from export.targets import make_optimization
from export.tensorrt.configs import to_plan_config
from export.tensorrt.shapes import make_profile, make_profiles


def fill(
    bundle: Bundle, name: str, variant: str = "latency", layout: str = "split"
) -> model_config_pb2.ModelConfig:
    deployment = Deployment("tensorrt", variant, "fp32", layout, make_optimization("tensorrt"))
    return fill_config(bundle, deployment.models[name], deployment)


def read_accelerator(config: model_config_pb2.ModelConfig) -> dict[str, str]:
    (entry,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    return dict(entry.parameters)


def test_a_range_covers_every_batch_and_length(bundle: Bundle) -> None:
    text = make_profile(fill(bundle, "text_encoder"), 8)
    assert text["input_ids"] == ((1, 1), (8, 128), (32, 256)) == text["attention_mask"]
    pixels = make_profile(fill(bundle, "image_encoder"), 4)["pixels"]
    assert pixels == ((1, 1, 112, 112), (4, 1, 112, 112), (32, 4, 112, 112))
    tokens = make_profile(fill(bundle, "fusion_study"), 4)["image_tokens"]
    assert tokens == ((1, 49, 128), (4, 49, 128), (32, 4 * 49, 128))
    with pytest.raises(ConfigError, match="1 to 32, not 33"):
        make_profile(fill(bundle, "text_encoder"), 33)


@pytest.mark.parametrize(("limit", "typical"), [(64, 64), (100, 100), (20, 20)])
def test_a_range_ends_where_the_model_does(bundle: Bundle, limit: int, typical: int) -> None:
    short = replace(bundle, config={**bundle.config, "max_length": limit})
    assert make_profile(fill(short, "text_encoder"), 8)["input_ids"] == ((1, 1), (8, typical), (32, limit))


def test_the_second_profile_of_a_plan_is_batch_one(bundle: Bundle) -> None:
    config = fill(bundle, "fusion_text")
    whole, single = make_profiles(config, 8)
    assert whole["text_tokens"][1] == (8, 128, 128)
    assert single["text_tokens"] == ((1, 1, 128), (1, 128, 128), (1, 256, 128))
    assert len(make_profiles(config, 1)) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("variant", "typical"), [("latency", 1), ("throughput", 8)])
def test_the_provider_is_told_every_input_of_every_graph(
    bundle: Bundle, layout: str, variant: str, typical: int
) -> None:
    """A range for some inputs alone is an error of the provider, and without any it builds for each new shape."""
    sizes = read_sizes(bundle)
    for name, spec in LAYOUTS[layout].items():  # type: ignore[index]
        if spec.backend != "onnxruntime":
            continue
        parameters = read_accelerator(fill(bundle, name, variant, layout))
        for bound, batch, length, views in (("min", 1, 1, 1), ("opt", typical, 128, 1), ("max", 32, 256, 4)):
            known = {**sizes, "L": length, "V": views, "I": views * sizes["N"]}
            shapes = {
                tensor.name: [batch, *(known.get(str(size), size) for size in tensor.shape)]
                for tensor in spec.inputs
            }
            expected = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
            assert parameters[f"trt_profile_{bound}_shapes"] == expected


def test_the_accelerator_keeps_layer_norm_in_fp32_and_its_cache_out_of_tmp(bundle: Bundle) -> None:
    parameters = read_accelerator(fill(bundle, "text_encoder"))
    assert parameters["trt_layer_norm_fp32_fallback"] == "true"
    assert parameters["trt_engine_cache_enable"] == parameters["trt_timing_cache_enable"] == "true"
    for name in ("trt_engine_cache_path", "trt_timing_cache_path"):
        assert parameters[name] == "/var/cache/cxr-tensorrt"
    assert not {
        name for name in parameters if "prefix" in name
    }  # it would take the place of the graph's name


def test_the_largest_shape_is_warmed_first(bundle: Bundle) -> None:
    for target in ("cpu", "gpu", "tensorrt"):
        config = fill_config(bundle, MODELS["text_encoder"], Deployment(target))
        shapes = [(*sample.inputs["input_ids"].dims, sample.batch_size) for sample in config.model_warmup]
        assert shapes == sorted(shapes, reverse=True)


class TestCudaGraphs:
    """`to_plan_config` with profiles and CUDA graphs."""

    def test_small_shapes_of_the_warm_up_are_captured_when_asked(self, bundle: Bundle) -> None:
        changed = to_plan_config(fill(bundle, "text_encoder"), 1, profiles=2, cuda_graphs=True)
        changed = text_format.Parse(text_format.MessageToString(changed), model_config_pb2.ModelConfig())
        assert changed.optimization.cuda.graphs
        captured = {
            (spec.batch_size, *(tuple(spec.input[name].dim) for name in ("input_ids", "attention_mask")))
            for spec in changed.optimization.cuda.graph_spec
        }
        assert captured == {(size, (n,), (n,)) for size in (1, 8) for n in (32, 64, 128, 256)}

    def test_nothing_is_captured_otherwise(self, bundle: Bundle) -> None:
        changed = to_plan_config(fill(bundle, "text_encoder"), 1)
        assert not changed.HasField("optimization")

    def test_every_instance_runs_every_profile(self, bundle: Bundle) -> None:
        config = fill(bundle, "text_encoder")
        assert list(to_plan_config(config, 1, profiles=2).instance_group[0].profile) == ["0", "1"]
        assert not to_plan_config(config, 1).instance_group[0].profile
