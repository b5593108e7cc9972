"""Every config in git says what the tensor table says, and the ensembles are wired without a loose end."""

from itertools import combinations
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import model_repository
from contract.tensors import FUSED, LAYOUTS, MAX_BATCH_SIZE, MODELS, PIXELS, VIEWS, drop_checks
from export.graphs.fuse import drop_check, fuse_ensemble

TEMPLATES = Path(model_repository.__file__).parent
TEMPLATED = {**MODELS, **FUSED}
ENSEMBLES = [name for name, spec in MODELS.items() if spec.backend == "ensemble"]
OTHERS = [name for name in TEMPLATED if name not in ENSEMBLES]
UNCHECKED = "fused, checked by the graphs' backend"
MODELS_OF = {**LAYOUTS, UNCHECKED: drop_checks(LAYOUTS["fused"])}
in_all_layouts = pytest.mark.parametrize("layout", MODELS_OF)


def read_config(name):
    text = (TEMPLATES / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read_ensemble(layout, name):
    """Return an ensemble as it is published: only the split layout is in git, the others are made of it."""
    config = read_config(name)
    if layout == "split":
        return config
    fused = fuse_ensemble(config, name.split("_")[1])
    return drop_check(fused) if layout == UNCHECKED else fused


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


@in_all_layouts
@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensemble_runs_its_steps(layout, name):
    config = read_ensemble(layout, name)
    assert config.platform == "ensemble"
    assert not config.backend
    assert not config.instance_group
    assert not config.HasField("dynamic_batching")
    steps = config.ensemble_scheduling.step
    assert sorted(step.model_name for step in steps) == sorted(MODELS_OF[layout][name].steps)
    assert all(step.model_version == -1 for step in steps)


@in_all_layouts
@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensemble_is_wired_without_a_loose_end(layout, name):
    models, config = MODELS_OF[layout], read_ensemble(layout, name)
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
            assert source == tensor or (source, tensor) == (PIXELS, VIEWS)  # one image of a caller's own
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


def list_ready(config, requested):
    """Return, wave by wave, the steps that are ready at once, for a request of some outputs."""
    run = prune(config, requested)
    waiting = [step for step in config.ensemble_scheduling.step if step.model_name in run]
    there, waves = {entry.name for entry in config.input}, []
    while waiting:
        ready = [step for step in waiting if set(step.input_map.values()) <= there]
        assert ready, "the steps wait for each other"
        waves.append([step.model_name for step in ready])
        there |= {tensor for step in ready for tensor in step.output_map.values()}
        waiting = [step for step in waiting if step not in ready]
    return waves


def list_requests(config):
    names = [output.name for output in config.output]
    return [some for count in range(1, len(names) + 1) for some in combinations(names, count)]


@in_all_layouts
@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensemble_is_a_chain(layout, name):
    """What keeps Triton 2.51 alive when a step fails or is cancelled; contract/tensors.py says why."""
    config = read_ensemble(layout, name)
    for requested in list_requests(config):
        waves = list_ready(config, requested)
        assert all(len(ready) == 1 for ready in waves), (requested, waves)


@in_all_layouts
@pytest.mark.parametrize("name", ENSEMBLES)
def test_only_the_first_step_reads_the_request(layout, name):
    config = read_ensemble(layout, name)
    given = {entry.name for entry in config.input}
    readers = [step for step in config.ensemble_scheduling.step if given & set(step.input_map.values())]
    assert [step.model_name for step in readers] == [MODELS_OF[layout][name].steps[0]]
    assert set(readers[0].input_map.values()) == given
    made = {tensor for step in config.ensemble_scheduling.step for tensor in step.output_map.values()}
    assert not given & made


def test_the_rule_of_the_chain_finds_what_breaks_it():
    """The ensemble as it once was: a step for the file and one for the report, and two encoders."""
    config = read_config("predict_study")
    first, _, gate, text, _ = config.ensemble_scheduling.step
    assert list_ready(config, ["probabilities"]) == [[x] for x in MODELS["predict_study"].steps]
    text.input_map.update({name: name for name in gate.output_map})
    del config.ensemble_scheduling.step[2]
    assert list_ready(config, ["probabilities"])[1] == ["image_encoder", "text_encoder"]
    image_step = config.ensemble_scheduling.step.add(model_name="preprocess_image")
    image_step.input_map["image_bytes"] = "image_bytes"
    for name in ("pixels", "image_notes"):
        image_step.output_map[name] = first.output_map.pop(name)
    del first.input_map["image_bytes"]
    assert list_ready(config, ["probabilities"])[0] == ["preprocess_study", "preprocess_image"]


@in_all_layouts
@pytest.mark.parametrize("name", ENSEMBLES)
def test_any_outputs_may_be_asked_for(layout, name):
    """Triton runs every step that makes what was asked for, and no other."""
    config = read_ensemble(layout, name)
    for requested in list_requests(config):
        assert prune(config, requested) == find_needed(config, requested), requested


def test_the_rehearsed_pruning_shows_what_triton_does_wrong():
    """An output of the ensemble that a later step reads: it ends in "unexpected deadlock"."""
    config = read_config("predict_study")
    config.output.add(name="text_tokens")
    assert "text_encoder" not in prune(config, ["probabilities"])


@in_all_layouts
@pytest.mark.parametrize("name", ENSEMBLES)
def test_the_order_of_the_steps_does_not_matter(layout, name):
    """One step reads the request, so no input of it is left out while a step runs."""
    config = read_ensemble(layout, name)
    steps = list(config.ensemble_scheduling.step)
    turned = model_config_pb2.ModelConfig()
    turned.CopyFrom(config)
    for shift in range(len(steps)):
        del turned.ensemble_scheduling.step[:]
        turned.ensemble_scheduling.step.extend(steps[shift:] + steps[:shift])
        for requested in list_requests(config):
            assert prune(turned, requested) == prune(config, requested)
