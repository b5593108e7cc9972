"""Every config in git says what the tensor table says, and the ensembles are wired without a loose end."""

from itertools import combinations
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import model_repository
from contract.tensors import FUSED, LAYOUTS, MAX_BATCH_SIZE, MODELS
from export.fuse import fuse_ensemble

TEMPLATES = Path(model_repository.__file__).parent
TEMPLATED = {**MODELS, **FUSED}
ENSEMBLES = [name for name, spec in MODELS.items() if spec.backend == "ensemble"]
OTHERS = [name for name in TEMPLATED if name not in ENSEMBLES]
in_both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def read_config(name):
    text = (TEMPLATES / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read_ensemble(layout, name):
    """Return an ensemble as it is published: only the split layout is in git, the other is made of it."""
    config = read_config(name)
    return config if layout == "split" else fuse_ensemble(config, name.split("_")[1])


def describe(entries):
    types = model_config_pb2.DataType
    return [(x.name, types.Name(x.data_type).removeprefix("TYPE_"), tuple(x.dims)) for x in entries]


def expect(tensors):
    return [(x.name, "STRING" if x.dtype == "BYTES" else x.dtype, x.dims()) for x in tensors]


def test_there_is_one_directory_for_each_model():
    assert sorted(path.parent.name for path in TEMPLATES.glob("*/config.pbtxt")) == sorted(TEMPLATED)


@pytest.mark.parametrize("name", TEMPLATED)
def test_config_agrees_with_the_tensor_table(name):
    config, spec = read_config(name), TEMPLATED[name]
    assert config.name == name
    assert config.max_batch_size == MAX_BATCH_SIZE
    assert describe(config.input) == expect(spec.inputs)
    assert describe(config.output) == expect(spec.outputs)
    assert not config.parameters  # stamped when published, never in git


@pytest.mark.parametrize("name", OTHERS)
def test_template_leaves_to_the_targets_what_they_set(name):
    """`export/targets.toml` is the one place for it; tests/export/test_targets.py reads what comes of it."""
    config = read_config(name)
    assert config.backend == TEMPLATED[name].backend
    assert not config.platform
    assert not config.instance_group
    assert not config.model_warmup
    assert not config.HasField("dynamic_batching")
    assert not config.HasField("optimization")
    assert not config.HasField("version_policy")


@in_both_layouts
@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensemble_runs_its_steps(layout, name):
    config = read_ensemble(layout, name)
    assert config.platform == "ensemble"
    assert not config.backend
    assert not config.instance_group
    assert not config.HasField("dynamic_batching")
    steps = config.ensemble_scheduling.step
    assert sorted(step.model_name for step in steps) == sorted(LAYOUTS[layout][name].steps)
    assert all(step.model_version == -1 for step in steps)


@in_both_layouts
@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensemble_is_wired_without_a_loose_end(layout, name):
    models, config = LAYOUTS[layout], read_ensemble(layout, name)
    spec = models[name]
    steps = {step.model_name: step for step in config.ensemble_scheduling.step}
    known = {tensor.name: tensor for tensor in spec.inputs}
    used = set()
    for step_name in spec.steps:  # in the order of the data; Triton runs a step when its inputs are there
        step, model = steps[step_name], models[step_name]
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


def prune(config, requested):
    """Return the names of the steps that Triton 2.51 runs for a request of some outputs.

    As its ensemble scheduler does it, with its fault: a tensor that no step makes, that is an input of the
    ensemble, counts as an output of the first step.
    """
    steps = list(config.ensemble_scheduling.step)
    maker = {tensor: number for number, step in enumerate(steps) for tensor in step.output_map.values()}
    readers = {}
    for number, step in enumerate(steps):
        for tensor in step.input_map.values():
            readers.setdefault(tensor, set()).add(number)
    wanted_outputs = [len(step.output_map) for step in steps]
    ignored, pruned = {output.name for output in config.output} - set(requested), set()
    while ignored:
        following = set()
        for tensor in sorted(ignored):
            number = maker.get(tensor, 0)
            wanted_outputs[number] -= 1
            if wanted_outputs[number] == 0:
                pruned.add(number)
                for source in steps[number].input_map.values():
                    readers[source].discard(number)
                    following |= set() if readers[source] else {source}
        ignored = following
    return {step.model_name for number, step in enumerate(steps) if number not in pruned}


def find_needed(config, requested):
    """Return the names of the steps that the outputs are made by, directly or not."""
    steps = list(config.ensemble_scheduling.step)
    needed, found = set(requested), set()
    for _ in steps:
        for step in steps:
            if needed & set(step.output_map.values()):
                found.add(step.model_name)
                needed |= set(step.input_map.values())
    return found


@in_both_layouts
@pytest.mark.parametrize("name", ENSEMBLES)
def test_any_outputs_may_be_asked_for(layout, name):
    """Triton runs every step that makes what was asked for, and no other."""
    config = read_ensemble(layout, name)
    names = [output.name for output in config.output]
    for count in range(1, len(names) + 1):
        for requested in combinations(names, count):
            assert prune(config, requested) == find_needed(config, requested), requested


def test_the_rehearsed_pruning_shows_what_triton_does_wrong():
    """The order of the data, and an output that a later step reads: both end in "unexpected deadlock"."""
    config = read_config("predict_study")
    steps = {step.model_name: step for step in config.ensemble_scheduling.step}
    ordered = model_config_pb2.ModelConfig()
    ordered.CopyFrom(config)
    del ordered.ensemble_scheduling.step[:]
    ordered.ensemble_scheduling.step.extend(steps[name] for name in MODELS["predict_study"].steps)
    assert "preprocess_image" not in prune(ordered, ["image_notes"])
    config.output.add(name="text_tokens")
    assert "text_encoder" not in prune(config, ["probabilities"])


def test_the_fused_step_comes_first_for_a_reason():
    """Behind preprocessing, the report that is not needed would cost the image step its one wanted output."""
    config = read_ensemble("fused", "predict_study")
    assert config.ensemble_scheduling.step[0].model_name == "fused_study"
    fused, *others = config.ensemble_scheduling.step
    turned = model_config_pb2.ModelConfig()
    turned.CopyFrom(config)
    del turned.ensemble_scheduling.step[:]
    turned.ensemble_scheduling.step.extend([*others, fused])
    assert prune(config, ["image_notes"]) == {"preprocess_image"}
    assert "preprocess_image" not in prune(turned, ["image_notes"])
