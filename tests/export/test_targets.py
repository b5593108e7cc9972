"""Every config of every target and variant agrees with the tensor table and holds what `targets.toml` says."""

import itertools
from types import SimpleNamespace

import onnx
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from contract.errors import ConfigError
from contract.tensors import IMAGE_BYTES, LAYOUTS, LENGTH_BUCKETS, MAX_BATCH_SIZE, MODELS
from export.configs import Deployment, fill_config
from export.graphs.checks import read_sizes
from export.profiles import load_profile
from export.publish import publish
from export.targets import TARGETS, VARIANTS, find_role, is_rate_limited, make_optimization

KIND = model_config_pb2.ModelInstanceGroup.Kind
CASES = list(itertools.product(TARGETS, VARIANTS, LAYOUTS))


def fill_all(bundle, target, variant, layout, profile=None, cores=2):
    deployment = Deployment(target, variant, "fp32", layout, make_optimization(target, profile), cores)
    for name, spec in LAYOUTS[layout].items():
        config = fill_config(bundle, spec, deployment)
        text = text_format.MessageToString(config)  # as it lies on disk
        yield name, spec, text_format.Parse(text, model_config_pb2.ModelConfig())


def describe(entries):
    types = model_config_pb2.DataType
    return [(x.name, types.Name(x.data_type).removeprefix("TYPE_"), tuple(x.dims)) for x in entries]


def expect(tensors, sizes):
    return [(x.name, "STRING" if x.dtype == "BYTES" else x.dtype, x.dims(sizes)) for x in tensors]


@pytest.mark.parametrize(("target", "variant", "layout"), CASES)
def test_config_agrees_with_the_tensor_table(target, variant, layout, bundle):
    sizes = read_sizes(bundle)
    for name, spec, config in fill_all(bundle, target, variant, layout):
        assert (config.name, config.max_batch_size) == (name, MAX_BATCH_SIZE)
        assert describe(config.input) == expect(spec.inputs, sizes)
        assert describe(config.output) == expect(spec.outputs, sizes)
        assert [step.model_name for step in config.ensemble_scheduling.step] != [] or not spec.steps
        assert (config.backend or config.platform) == spec.backend


@pytest.mark.parametrize(("target", "variant", "layout"), CASES)
def test_batching_queues_and_instances(target, variant, layout, bundle):
    for _, spec, config in fill_all(bundle, target, variant, layout):
        if spec.backend == "ensemble":
            assert not config.instance_group
            assert not config.HasField("dynamic_batching")
            continue
        (group,) = config.instance_group
        on_gpu = target != "cpu" and spec.backend == "onnxruntime"
        assert KIND.Name(group.kind) == ("KIND_GPU" if on_gpu else "KIND_CPU")
        assert 1 <= group.count <= 4
        batching = config.dynamic_batching
        assert batching.max_queue_delay_microseconds <= (500 if variant == "latency" else 10_000)
        assert all(size <= MAX_BATCH_SIZE for size in batching.preferred_batch_size)
        assert config.HasField("dynamic_batching")
        # With any policy Triton lets one request in a hundred wait for half a second.
        if variant == "latency":
            assert not batching.priority_levels
            assert not batching.HasField("default_queue_policy")
            continue
        assert (batching.priority_levels, batching.default_priority_level) == (2, 1)
        person, job = batching.default_queue_policy, batching.priority_queue_policy[2]
        for policy in (person, job):
            assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
            assert policy.allow_timeout_override
            assert MAX_BATCH_SIZE <= policy.max_queue_size <= 1024
        assert 0 < person.default_timeout_microseconds <= 10_000_000 < job.default_timeout_microseconds


@pytest.mark.parametrize(("target", "variant", "layout"), CASES)
def test_who_reads_images_takes_them_one_by_one_and_follows_the_cores(target, variant, layout, bundle):
    counts = {}
    for cores in (1, 3, 8, 64):
        for name, spec, config in fill_all(bundle, target, variant, layout, cores=cores):
            if spec.backend == "python":
                counts[name, cores] = config.instance_group[0].count
                alone = list(config.dynamic_batching.preferred_batch_size) == [1]
                assert alone is (IMAGE_BYTES in spec.inputs)
                assert config.dynamic_batching.max_queue_delay_microseconds == 0
    most = 4 if target == "cpu" else 16
    for name in ("preprocess_image", "preprocess_study"):
        least = counts["preprocess_text", 1]  # what the target has for every core
        assert [counts[name, cores] for cores in (1, 3, 8, 64)] == [
            max(least, min(cores, most)) for cores in (1, 3, 8, 64)
        ]
    assert len({counts["preprocess_text", cores] for cores in (1, 3, 8, 64)}) == 1


@pytest.mark.parametrize(("target", "variant", "layout"), CASES)
def test_the_lengths_that_cost_a_first_run_are_warmed_up(target, variant, layout, bundle):
    """ONNX Runtime on the processor needs the largest one alone; other runtimes prepare for each shape."""
    sizes, limit = read_sizes(bundle), bundle.config["max_length"]
    due = [bucket for bucket in LENGTH_BUCKETS if bucket <= limit] if target != "cpu" else [limit]
    for _, spec, config in fill_all(bundle, target, variant, layout):
        if spec.backend != "onnxruntime":
            assert not config.model_warmup
            continue
        seen = set()
        for sample in config.model_warmup:
            lengths = set()
            assert set(sample.inputs) == {tensor.name for tensor in spec.inputs}
            for tensor in spec.inputs:
                entry, dims = sample.inputs[tensor.name], tensor.dims(sizes)
                assert model_config_pb2.DataType.Name(entry.data_type) == f"TYPE_{tensor.dtype}"
                assert entry.zero_data
                assert len(entry.dims) == len(dims)
                one_image = {"V": 1, "I": sizes["N"]}
                for letter, wanted, found in zip(tensor.shape, dims, entry.dims, strict=True):
                    if letter == "L":
                        lengths.add(found)
                    else:
                        assert found == one_image.get(letter, wanted)
            assert len(lengths) <= 1  # every text tensor has the one length
            seen.add((sample.batch_size, *lengths))
        batch_sizes = {entry[0] for entry in seen}
        assert 1 in batch_sizes
        assert max(batch_sizes) <= MAX_BATCH_SIZE
        reads_text = any("L" in tensor.shape for tensor in spec.inputs)
        lengths = [(length,) for length in due] if reads_text else [()]
        assert seen == {(size, *length) for size in batch_sizes for length in lengths}
        assert len(config.model_warmup) == len(seen)


@pytest.mark.parametrize(("limit", "lengths"), [(64, {32, 64}), (100, {32, 64, 100}), (20, {20})])
def test_no_length_is_warmed_up_that_the_model_cannot_read(limit, lengths, bundle):
    from dataclasses import replace

    short = replace(bundle, config={**bundle.config, "max_length": limit})
    openvino = make_optimization("cpu", load_profile("int8"))
    for deployment in (Deployment(target="gpu"), Deployment(optimization=openvino)):
        config = fill_config(short, MODELS["text_encoder"], deployment)
        assert {sample.inputs["input_ids"].dims[0] for sample in config.model_warmup} == lengths


def test_configs_agree_with_the_onnx_files(bundle, graphs, tmp_path):
    """Names, data types and shapes as Triton's C++ backend compares them when it loads the file."""
    repository = publish(bundle, graphs, tmp_path / "repository")
    for name, spec in MODELS.items():
        if spec.backend != "onnxruntime":
            continue
        text = (repository / name / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        graph = onnx.load(repository / name / "1" / "model.onnx", load_external_data=False).graph
        for entries, values in ((config.input, graph.input), (config.output, graph.output)):
            found = {}
            for value in values:
                tensor = value.type.tensor_type
                dims = [dim.dim_value or -1 for dim in tensor.shape.dim]
                assert dims[0] == -1  # the batch
                found[value.name] = (onnx.TensorProto.DataType.Name(tensor.elem_type), dims[1:])
            expected = {
                entry.name: (
                    model_config_pb2.DataType.Name(entry.data_type)
                    .removeprefix("TYPE_")
                    .replace("FP32", "FLOAT"),
                    list(entry.dims),
                )
                for entry in entries
            }
            assert found == expected


def make_profile(**given):
    values = {"name": "x", "target": "cpu", "conversion": "none", "accelerator": {}, **given}
    return SimpleNamespace(make_optimization=lambda: values["accelerator"], **values)


def test_tensorrt_is_asked_of_the_onnxruntime_backend(bundle):
    for profile, precision in (
        (None, "FP32"),
        (make_profile(), "FP32"),
        (make_profile(target="gpu", conversion="fp16"), "FP16"),
    ):
        for _, spec, config in fill_all(bundle, "tensorrt", "latency", "split", profile):
            accelerators = config.optimization.execution_accelerators
            if spec.backend != "onnxruntime":
                assert not config.HasField("optimization")
                continue
            (entry,) = accelerators.gpu_execution_accelerator
            assert entry.name == "tensorrt"
            assert entry.parameters["precision_mode"] == precision
            assert not accelerators.cpu_execution_accelerator


def test_accelerator_of_a_profile_reaches_every_graph(bundle):
    entry = {"name": "openvino", "parameters": {"precision": "bf16"}}
    accelerator = {"execution_accelerators": {"cpu_execution_accelerator": [entry]}}
    for _, spec, config in fill_all(bundle, "cpu", "latency", "split", make_profile(accelerator=accelerator)):
        found = json_format.MessageToDict(config.optimization, preserving_proto_field_name=True)
        assert found == (accelerator if spec.backend == "onnxruntime" else {})


@pytest.mark.parametrize(
    ("target", "profile"),
    [
        ("gpu", make_profile(accelerator={"execution_accelerators": {}})),
        ("cpu", make_profile(target="gpu", conversion="fp16")),
        ("tensorrt", make_profile(conversion="int8")),
    ],
)
def test_profile_of_another_machine_is_refused(target, profile):
    with pytest.raises(ConfigError, match=rf"profile x runs on the .*not on the target {target}"):
        make_optimization(target, profile)


def test_rate_limits_are_announced_where_configs_hold_them(bundle):
    for target, variant in itertools.product(TARGETS, VARIANTS):
        limited = {
            find_role(spec)
            for layout in LAYOUTS
            for _, spec, config in fill_all(bundle, target, variant, layout)
            if any(group.rate_limiter.resources for group in config.instance_group)
        }
        assert bool(limited) is is_rate_limited(target, variant)
        assert limited <= {"encoder", "fused"}  # what waits for an encoder must not wait for its turn too


@pytest.mark.parametrize("names", [("tpu", "latency"), ("cpu", "speed")])
def test_unknown_names_are_refused(names, bundle):
    with pytest.raises(ConfigError, match=r"must be .*not (tpu|speed)"):
        fill_config(bundle, MODELS["text_encoder"], Deployment(*names))
