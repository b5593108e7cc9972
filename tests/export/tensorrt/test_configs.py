"""The configs with which Triton serves a plan."""

from pathlib import Path
from typing import ClassVar

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract import ngc
from contract.bundle import Bundle
from contract.errors import ConfigError
from contract.tensors import GRAPHS, MODELS
from export.configs import Deployment, fill_config
from export.tensorrt.configs import CONTAINER, CONTAINER_RELEASE, to_plan_config
from export.tensorrt.operators import RELEASE

EXPORT_PAGE = Path(__file__).resolve().parents[3] / "docs" / "export.md"


class TestPlanConfig:
    """`to_plan_config`."""

    kept: ClassVar = ("name", "max_batch_size", "input", "output", "dynamic_batching", "model_warmup")

    @pytest.mark.parametrize("name", GRAPHS)
    @pytest.mark.parametrize("target", ["cpu", "gpu", "tensorrt"])
    def test_every_graph(self, bundle: Bundle, name: str, target: str) -> None:
        config = fill_config(bundle, MODELS[name], Deployment(target=target))
        config.parameters["intra_op_thread_count"].string_value = "2"
        before = config.SerializeToString()
        changed = to_plan_config(config, 3)
        assert config.SerializeToString() == before
        parsed = text_format.Parse(text_format.MessageToString(changed), model_config_pb2.ModelConfig())
        assert parsed == changed
        assert not changed.HasField("optimization")
        assert (changed.platform, changed.backend) == ("tensorrt_plan", "")
        assert changed.default_model_filename == "model.plan"
        assert list(changed.version_policy.specific.versions) == [3]
        assert "intra_op_thread_count" not in changed.parameters
        assert changed.parameters["fingerprint"].string_value == bundle.fingerprint
        assert {group.kind for group in changed.instance_group} == {
            model_config_pb2.ModelInstanceGroup.KIND_GPU
        }
        for field in self.kept:
            assert getattr(changed, field) == getattr(config, field)

    def test_the_policy_stays_without_a_version(self, bundle: Bundle) -> None:
        config = fill_config(bundle, MODELS["fusion_image"])
        assert to_plan_config(config).version_policy == config.version_policy

    def test_what_is_no_graph_is_refused(self, bundle: Bundle) -> None:
        with pytest.raises(ConfigError, match="predict_image is served by ensemble"):
            to_plan_config(fill_config(bundle, MODELS["predict_image"]))
        with pytest.raises(ConfigError, match="preprocess_image is served by python"):
            to_plan_config(fill_config(bundle, MODELS["preprocess_image"]))

    def test_larger_batches_are_refused(self, bundle: Bundle) -> None:
        config = fill_config(bundle, MODELS["fusion_image"])
        config.max_batch_size = 64
        with pytest.raises(ConfigError, match="batches of 64, but a plan has at most 32"):
            to_plan_config(config)

    def test_a_data_type_that_tensorrt_has_not_is_refused(self, bundle: Bundle) -> None:
        config = fill_config(bundle, MODELS["fusion_image"])
        config.input[0].data_type = model_config_pb2.TYPE_FP64
        with pytest.raises(ConfigError, match=r"no tensors of TYPE_FP64 \(image_tokens\)"):
            to_plan_config(config)


def test_the_image_that_builds_and_the_image_that_serves_have_one_tensorrt() -> None:
    assert ngc.DEFAULT.tag == CONTAINER_RELEASE
    assert CONTAINER.endswith(f"/tensorrt:{CONTAINER_RELEASE}-py3")
    assert (CONTAINER_RELEASE, RELEASE) == ("26.07", (11, 1))  # TRT_VERSION=11.1.0.106 in that image
    assert f"NGC {CONTAINER_RELEASE} (TensorRT 11.1)" in EXPORT_PAGE.read_text(encoding="utf-8")
