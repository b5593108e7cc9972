"""Models run in sequence, each on the given tensors and the outputs before it. Tensors are stand-ins here."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

import pytest

from contract.errors import ArtifactError, ServerError
from contract.runtime.walk import Step, list_graphs, sort_steps, walk, walk_graphs
from contract.tensors import FUSED, MODELS

SPECS = MODELS | FUSED


def run_graph(graph, inputs):
    """Stands for a graph: each output tells the graph and what it read."""
    assert set(inputs) == {tensor.name for tensor in SPECS[graph].inputs}
    return {tensor.name: (graph, tensor.name, *inputs.values()) for tensor in SPECS[graph].outputs}


def make_inputs(kind):
    return {tensor.name: object() for tensor in FUSED[f"fused_{kind}"].inputs}


@pytest.mark.parametrize("kind", ["study", "image", "text"])
def test_the_fusion_reads_the_tokens_of_the_encoders_uncopied(kind):
    inputs = make_inputs(kind)
    answers = walk_graphs(list_graphs(kind), run_graph, inputs)
    *encoders, fusion = list_graphs(kind)
    assert list(answers) == [*encoders, fusion]
    tokens = {name: value for encoder in encoders for name, value in answers[encoder].items()}
    given = inputs | tokens
    _, _, *read = answers[fusion]["probabilities"]
    expected = [given[tensor.name] for tensor in MODELS[fusion].inputs]
    assert [id(value) for value in read] == [id(value) for value in expected]


@pytest.mark.parametrize("kind", ["study", "image", "text"])
def test_the_fused_layout_has_one_graph(kind):
    assert list_graphs(kind, "fused") == (f"fused_{kind}",)
    answers = walk_graphs(list_graphs(kind, "fused"), run_graph, make_inputs(kind))
    assert list(answers[f"fused_{kind}"]) == [tensor.name for tensor in FUSED[f"fused_{kind}"].outputs]


def test_a_graph_of_an_older_version_may_lack_outputs():
    def run_older(graph, inputs):
        return {name: value for name, value in run_graph(graph, inputs).items() if name != "lateral"}

    answers = walk_graphs(list_graphs("image"), run_older, make_inputs("image"))
    assert "probabilities" in answers["fusion_image"]
    assert "lateral" not in answers["fusion_image"]


def add(name, inputs, output):
    """A step that adds its inputs."""
    return Step(name, lambda given: {"sum": sum(given.values())}, inputs, {"sum": output})


FIRST = add("first", {"x": "a"}, "b")
LEFT = add("left", {"x": "b"}, "c")
RIGHT = add("right", {"x": "b", "y": "a"}, "d")
LAST = add("last", {"x": "c", "y": "d"}, "e")


def test_steps_are_sorted_into_stages_and_renamed_tensors_are_followed():
    stages = sort_steps([LAST, RIGHT, LEFT, FIRST], source="It")
    assert [[step.name for step in stage] for stage in stages] == [["first"], ["right", "left"], ["last"]]
    assert walk(stages, {"a": 1}) == {"a": 1, "b": 1, "c": 1, "d": 2, "e": 3}


def test_a_step_that_lacks_an_output_is_named():
    step = Step("lungs", lambda given: {"sum": given["x"]}, {"x": "a"}, {"sum": "b", "mean": "c"})
    with pytest.raises(ServerError, match="The step lungs answered without the output mean"):
        walk([[step]], {"a": 1})


def test_steps_that_wait_for_each_other_are_refused():
    loop = [FIRST, add("left", {"x": "e"}, "c"), RIGHT, LAST]
    with pytest.raises(ArtifactError, match=r"It cannot run, because its steps last, left read each other's"):
        sort_steps(loop, source="It")


def test_an_executor_runs_the_steps_of_a_stage_at_the_same_time():
    barrier = Barrier(2)

    def wait(given):
        barrier.wait(timeout=5)
        return {"sum": given["x"]}

    stage = [Step(name, wait, {"x": "a"}, {"sum": name}) for name in ("b", "c")]
    with ThreadPoolExecutor(2) as executor:
        assert walk([stage], {"a": 1}, executor) == {"a": 1, "b": 1, "c": 1}
    barrier = Barrier(2)
    barrier_of_one_thread = Step(
        "b", lambda given: {"sum": barrier.wait(timeout=0.05)}, {"x": "a"}, {"sum": "b"}
    )
    with pytest.raises(BrokenBarrierError):
        walk([[barrier_of_one_thread, *stage]], {"a": 1})
