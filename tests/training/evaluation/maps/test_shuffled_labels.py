"""A model that learned shuffled labels must not localise, and one that learned the right ones must."""

from pathlib import Path

import numpy as np
import pytest

from contract.image.frame import Frame
from contract.labels import LABEL_INDEX

torch = pytest.importorskip("torch")
pytest.importorskip("captum")

from cli.evaluate_maps import make_measured_map  # noqa: E402
from client.explain.case import Inputs  # noqa: E402
from client.explain.network import Probe  # noqa: E402
from training.evaluation.maps.measure import Sizes, Task, measure_maps  # noqa: E402
from training.evaluation.maps.subject import MethodFacts, Subject  # noqa: E402
from training.model.model import CxrModel  # noqa: E402

SIZE, SIDE, STEPS = 56, 12, 500
LABEL = LABEL_INDEX["nodule_cyst"]


def draw(generator, *, positive: bool) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Patches of stripes on noise: upright ones near three corners, and one near the centre, which lies if positive.

    All are equally bright. So only the direction of the stripes shows the finding, and a map of what is bright finds
    the centre patch in one of four pictures.
    """
    picture = generator.uniform(40, 80, (SIZE, SIZE)).astype(np.float32)
    stripes = np.where(np.arange(SIDE) % 4 < 2, 220, 100).astype(np.float32)
    corners = [(1, 1), (1, SIZE - SIDE - 1), (SIZE - SIDE - 1, 1), (SIZE - SIDE - 1, SIZE - SIDE - 1)]
    for place in generator.choice(4, 3, replace=False):
        top, left = corners[place]
        picture[top : top + SIDE, left : left + SIDE] = stripes[None]
    top, left = np.clip(generator.normal(SIZE / 2 - SIDE / 2, 5, 2).round().astype(int), 14, 30)
    picture[top : top + SIDE, left : left + SIDE] = stripes[:, None] if positive else stripes[None]
    return picture, (left, top, left + SIDE, top + SIDE)


def train(config, *, shuffled: bool) -> CxrModel:
    torch.manual_seed(0)
    generator = np.random.default_rng(1)
    truth = np.arange(512) % 2 == 0
    pictures = np.stack([draw(generator, positive=bool(positive))[0] for positive in truth])
    labels = generator.permutation(truth) if shuffled else truth
    pixels, target = torch.from_numpy(pictures)[:, None], torch.from_numpy(labels).float()
    model = CxrModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        rows = torch.from_numpy(generator.integers(0, len(target), 32))
        logits = model(pixels[rows], None, None).logits[:, LABEL]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def make_subjects() -> list[Subject]:
    generator, frame = np.random.default_rng(2), Frame.fit(SIZE, SIZE, SIZE)
    subjects = []
    for number in range(48):
        picture, box = draw(generator, positive=True)
        inputs = Inputs(pixels=torch.from_numpy(picture)[None, None], frame=frame)
        subjects.append(Subject(str(number), str(number), LABEL, inputs, frame, (box,), Path("chest.png")))
    return subjects


@pytest.mark.slow  # 2 and 4 minutes of one processor
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shuffled", [False, True])
def test_only_the_right_labels_open_the_gate(small_config, shuffled):
    model = train(small_config, shuffled=shuffled)
    task = Task(
        model=model,
        subjects=make_subjects(),
        methods=[MethodFacts("integrated_gradients", "Integrated Gradients", signed=True, complete=True)],
        make_map=make_measured_map,
        make_quick_map=make_measured_map,
        probe=Probe,
        read_twin=lambda _: None,
        lengthen=lambda _: None,
    )
    few = Sizes(faithful=1, sensitive=1, randomised=4, twins=1, resamples=500)
    gate = measure_maps(task, few)["gate"]
    reason = gate["methods"]["integrated_gradients"]["reason"]
    if shuffled:
        assert gate["default"] is None
        assert "not find findings better than the centre" in reason
    else:
        assert gate["default"] == "integrated_gradients", reason
