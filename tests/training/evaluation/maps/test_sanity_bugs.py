"""Each sanity check fails when the bug that it guards against is put back into the real methods."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from contract.labels import LABEL_INDEX, LABELS

torch = pytest.importorskip("torch")
pytest.importorskip("captum")

from cli.evaluate_maps import make_measured_map  # noqa: E402
from client.explain.case import lengthen, read_inputs  # noqa: E402
from client.explain.network import open_model  # noqa: E402
from training.evaluation.maps.gate import find_fault  # noqa: E402
from training.evaluation.maps.sanity import cascade, compare_findings, compare_inputs  # noqa: E402
from training.evaluation.maps.subject import Map, Subject  # noqa: E402
from training.evaluation.maps.twin import make_twin  # noqa: E402

KEY = "integrated_gradients"
CHECKS = ("randomised", "alike", "padding", "inverted", "missing")
REPORT = "The heart is enlarged. There is a small left effusion."


@pytest.fixture(scope="module")
def bundle(write_bundle, small_config, tmp_path_factory: pytest.TempPathFactory):
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "small",
        small_config,
        seed=5,
        texts=[REPORT],
        thresholds=[0.5] * len(LABELS),
    )


@pytest.fixture(scope="module")
def model(bundle):
    return open_model(bundle).cpu()


make = partial(make_measured_map, steps=32)


def read_subjects(bundle, image: bytes) -> list[Subject]:
    """Two findings of one case."""
    inputs = read_inputs(bundle, image=image, report=REPORT)
    case = {"study_id": "1", "patient_id": "1", "inputs": inputs, "frame": inputs.frame}
    return [
        Subject(**case, label=LABEL_INDEX[key], boxes=((1.0, 1.0, 9.0, 9.0),), image=Path("chest.dcm"))
        for key in ("cardiac", "pleural")
    ]


def measure(bundle, model, image: bytes, make_map=make, checks=CHECKS) -> dict[str, float | None]:
    """Some of the sanity checks of `cxr evaluate explain` on one case."""
    subjects = read_subjects(bundle, image)
    inputs = subjects[0].inputs
    compare = partial(compare_inputs, model, subjects[0], make_map, KEY)
    measures = {
        "randomised": lambda: float(cascade(model, subjects, make_map, KEY)[1][:, -1].mean()),
        "alike": lambda: compare_findings(
            [make_map(model, inputs, one.label, KEY).shown for one in subjects]
        ),
        "padding": lambda: compare(lengthen(inputs, 2 * inputs.input_ids.shape[1])),
        "inverted": lambda: compare(read_inputs(bundle, image=make_twin(image), report=REPORT)),
        "missing": lambda: make_map(model, inputs, subjects[0].label, KEY).delta,
    }
    return {name: measures[name]() for name in checks}


@pytest.fixture(scope="module")
def sane(bundle, model, chest_files) -> dict[str, float | None]:
    """All checks of the real method."""
    return measure(bundle, model, chest_files["frontal"])


def test_integrated_gradients_fail_no_check(sane):
    assert find_fault(sane) == ""
    assert sane["inverted"] == 0  # the reader tells the polarities apart by no rounding


def ignore_weights(_model, inputs, _label, _key) -> Map:
    values = np.abs(np.gradient(inputs.pixels[0, 0].numpy()))[0]
    return Map(values, values / values.max(), 0.0)


def ignore_finding(model, inputs, _label, key) -> Map:
    return make(model, inputs, 0, key)


def ignore_mask(model, inputs, label, key) -> Map:
    return make(model, inputs._replace(attention_mask=torch.ones_like(inputs.attention_mask)), label, key)


@pytest.mark.parametrize(
    ("make_map", "check", "reason"),
    [
        (ignore_weights, "randomised", "the same when the weights of the model are random"),
        (ignore_finding, "alike", "the same for different findings"),
        (ignore_mask, "padding", "with the length of the padding"),
    ],
)
def test_a_map_that_ignores_what_it_must_depend_on(bundle, model, chest_files, sane, make_map, check, reason):
    found = measure(bundle, model, chest_files["frontal"], make_map, [check])
    assert reason in find_fault(sane | found)


def test_a_reader_that_ignores_the_polarity(bundle, model, chest_files, sane, monkeypatch):
    for place in ("contract.image.read", "contract.image.grey"):
        monkeypatch.setattr(f"{place}.is_inverted", lambda _: False)
    found = measure(bundle, model, chest_files["frontal"], checks=["inverted"])
    assert "when the image is stored inverted" in find_fault(sane | found)


def test_gradients_that_are_not_multiplied_by_the_path(bundle, model, chest_files, sane, monkeypatch):
    monkeypatch.setattr("client.explain.gradients._multiply_by_path", lambda gradients, _: tuple(gradients))
    found = measure(bundle, model, chest_files["frontal"], checks=["missing"])
    assert "its sum misses" in find_fault(sane | found)
