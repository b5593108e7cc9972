"""Every config in git says what the tensor table says, and the ensembles are wired without a loose end."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import model_repository
from contract.tensors import MAX_BATCH_SIZE, MODELS

TEMPLATES = Path(model_repository.__file__).parent
ENSEMBLES = [name for name, spec in MODELS.items() if spec.backend == "ensemble"]
OTHERS = [name for name in MODELS if name not in ENSEMBLES]


def read_config(name):
    text = (TEMPLATES / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def describe(entries):
    types = model_config_pb2.DataType
    return [(x.name, types.Name(x.data_type).removeprefix("TYPE_"), tuple(x.dims)) for x in entries]


def expect(tensors):
    return [(x.name, "STRING" if x.dtype == "BYTES" else x.dtype, x.dims()) for x in tensors]


def test_there_is_one_directory_for_each_model():
    assert sorted(path.parent.name for path in TEMPLATES.glob("*/config.pbtxt")) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_config_agrees_with_the_tensor_table(name):
    config, spec = read_config(name), MODELS[name]
    assert config.name == name
    assert config.max_batch_size == MAX_BATCH_SIZE
    assert describe(config.input) == expect(spec.inputs)
    assert describe(config.output) == expect(spec.outputs)
    assert not config.parameters  # stamped when published, never in git


@pytest.mark.parametrize("name", OTHERS)
def test_model_batches_and_refuses_when_its_queue_is_full(name):
    config = read_config(name)
    assert config.backend == MODELS[name].backend
    assert not config.platform
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds <= 5_000
    policy = config.dynamic_batching.default_queue_policy
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    assert 0 < policy.default_timeout_microseconds <= 10_000_000
    assert policy.allow_timeout_override
    assert MAX_BATCH_SIZE <= policy.max_queue_size <= 1024


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensemble_runs_its_steps_in_order(name):
    config = read_config(name)
    assert config.platform == "ensemble"
    assert not config.backend
    assert not config.instance_group
    assert not config.HasField("dynamic_batching")
    steps = config.ensemble_scheduling.step
    assert tuple(step.model_name for step in steps) == MODELS[name].steps
    assert all(step.model_version == -1 for step in steps)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensemble_is_wired_without_a_loose_end(name):
    spec, config = MODELS[name], read_config(name)
    known = {tensor.name: tensor for tensor in spec.inputs}
    used = set()
    for step in config.ensemble_scheduling.step:
        model = MODELS[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in model.inputs}
        assert set(step.output_map) == {tensor.name for tensor in model.outputs}
        for tensor in model.inputs:
            source = known[step.input_map[tensor.name]]  # made by an earlier step or given
            assert (source.dtype, source.shape) == (tensor.dtype, tensor.shape)
            used.add(step.input_map[tensor.name])
        for tensor in model.outputs:
            assert step.output_map[tensor.name] not in known  # each tensor has one maker
            known[step.output_map[tensor.name]] = tensor
    for tensor in spec.outputs:
        assert known[tensor.name] == tensor
        used.add(tensor.name)
    assert used == set(known)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_any_output_may_be_asked_for_alone(name):
    """Triton drops a step none of whose outputs is asked for, even one whose output a later step reads."""
    steps = [MODELS[step] for step in MODELS[name].steps]
    read_by_a_step = {tensor.name for step in steps for tensor in step.inputs}
    for step in steps:
        made = {tensor.name for tensor in step.outputs}
        if made & read_by_a_step:
            assert not made <= {tensor.name for tensor in MODELS[name].outputs}
