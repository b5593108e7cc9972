"""What is read of a batch for predictions and what for the loss."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training.batch import Batch
from training.config.settings import LossConfig
from training.model.fusion import FusionOutput
from training.model.model import CxrModel
from training.objective import Objective, read_batch


@pytest.fixture
def model(small_config):
    torch.manual_seed(0)
    model = CxrModel(replace(small_config, lexical_buckets=50)).eval()
    for table in (model.fusion.lexical.unigrams, model.fusion.lexical.bigrams, model.fusion.lexical.bias):
        table.copy_(torch.rand(table.shape) + 1)
    return model


def make_batch():
    """Four studies: image and report, report, image, image and report."""
    torch.manual_seed(1)
    image_rows, text_rows = torch.tensor([True, False, True, True]), torch.tensor([True, True, False, True])
    return Batch(
        pixels=torch.randint(0, 256, (3, 1, 56, 56), dtype=torch.uint8),
        changes=torch.zeros(3, 1),
        input_ids=torch.randint(5, 100, (3, 20)),
        attention_mask=torch.ones(3, 20, dtype=torch.int64),
        image_rows=image_rows,
        second_rows=torch.zeros(3, dtype=torch.bool),
        text_rows=text_rows,
        silent_rows=torch.zeros(4, dtype=torch.bool),
        targets=torch.randint(0, 2, (4, 22)).float(),
        known=torch.ones(4, 22, dtype=torch.bool),
        groups=torch.arange(4),
        wordings=torch.arange(4),
        heading_ids=torch.randint(5, 100, (2, 6)),
        heading_mask=torch.ones(2, 6, dtype=torch.int64),
        heading_rows=torch.tensor([True, True, False, False]),
        heading_groups=torch.tensor([0, 1, 2, 2]),
    )


def make_texts(heading_rows):
    """Reports without images, some with headings."""
    count, rows = len(heading_rows), torch.tensor(heading_rows)
    torch.manual_seed(2)
    return Batch(
        pixels=torch.zeros(0, 1, 56, 56, dtype=torch.uint8),
        changes=torch.zeros(0, 1),
        input_ids=torch.randint(5, 100, (count, 20)),
        attention_mask=torch.ones(count, 20, dtype=torch.int64),
        image_rows=torch.zeros(count, dtype=torch.bool),
        second_rows=torch.zeros(0, dtype=torch.bool),
        text_rows=torch.ones(count, dtype=torch.bool),
        silent_rows=torch.zeros(count, dtype=torch.bool),
        targets=torch.eye(count, 22),
        known=torch.ones(count, 22, dtype=torch.bool),
        groups=torch.arange(count),
        wordings=torch.arange(count),
        heading_ids=torch.randint(5, 100, (int(rows.sum()), 6)),
        heading_mask=torch.ones(int(rows.sum()), 6, dtype=torch.int64),
        heading_rows=rows,
        heading_groups=torch.arange(count),
    )


class FixedModel(nn.Module):
    """A model whose embedding of a text is given by the text's first id."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = torch.tensor(embeddings)
        self.config = SimpleNamespace(embedding_size=self.embeddings.shape[1])

    def text_encoder(self, ids, mask):
        return self.embeddings[ids]

    def fusion(self, image, text, mask, input_ids=None):
        return FusionOutput(torch.zeros(len(text), 22), text[:, 0], None, None)


def compute_losses(model, batch, **settings):
    """Return the losses of a batch of reports alone."""
    objective = Objective(model, torch.ones(22), LossConfig(**{"headings_weight": 0.1, **settings}))
    return objective(batch, batch.pixels, {"text": float(batch.known.sum())})


def test_predictions_hold_the_lexical_part_of_each_text(model):
    batch = make_batch()
    with torch.inference_mode():
        added = model.fusion.lexical(batch.input_ids, batch.attention_mask)
        found, plain = read_batch(model, batch), read_batch(model, batch, lexical=False)
    rows = {"image": torch.zeros(3, 22), "text": added, "study": added[[0, 2]]}
    for way, expected in rows.items():
        torch.testing.assert_close(found[way][0].logits, plain[way][0].logits + expected)


def test_the_loss_is_that_of_the_rest_alone(model):
    batch, counts = make_batch(), {"study": 2.0, "image": 3.0, "text": 3.0}
    objective = Objective(model, torch.ones(22), LossConfig())
    with_part = objective(batch, batch.pixels, counts)
    model.fusion.lexical = None
    without = objective(batch, batch.pixels, counts)
    assert set(with_part) == {"loss", "labels/study", "labels/image", "labels/text", "contrastive"}
    for name, value in without.items():
        torch.testing.assert_close(with_part[name], value)


def test_a_silent_text_is_read_beside_the_image_alone(model):
    batch = make_batch()
    silent = replace(batch, silent_rows=torch.tensor([True, False, False, False]))
    found = read_batch(model, silent)
    assert found["study"][1].tolist() == [True, False, False, True]
    assert found["image"][1].tolist() == [True, False, True, True]
    assert found["text"][1].tolist() == [False, True, False, True]
    whole = read_batch(model, batch)
    torch.testing.assert_close(found["text"][0].logits, whole["text"][0].logits[1:])
    torch.testing.assert_close(found["study"][0].logits, whole["study"][0].logits)
    objective = Objective(model, torch.ones(22), LossConfig())
    counts = {"study": 2.0, "image": 3.0, "text": 2.0}
    assert objective(batch, batch.pixels, counts)["contrastive"] > 0
    assert objective(silent, batch.pixels, counts)["contrastive"] == 0  # one pair alone has no negative
    nothing = replace(batch, silent_rows=batch.text_rows)
    assert set(read_batch(model, nothing)) == {"image", "study"}


def test_the_contrast_with_headings_is_the_one_worked_out_by_hand():
    """Two reports along the axes; headings (.6, .8) and (0, 1). Cosines over a temperature of 0.5: 1.2, 0; 1.6, 2."""
    model = FixedModel([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 1.0]])
    batch = replace(
        make_texts([True, True]),
        input_ids=torch.tensor([[0] * 20, [1] * 20]),
        heading_ids=torch.tensor([[2], [3]]),
    )
    losses = compute_losses(model, batch, temperature=0.5, headings_weight=0.2)
    reports = (math.log(1 + math.exp(-1.2)) + math.log(1 + math.exp(-0.4))) / 2  # each finds its headings
    headings = (math.log(1 + math.exp(0.4)) + math.log(1 + math.exp(-2.0))) / 2  # and the other way round
    assert losses["headings"].item() == pytest.approx((reports + headings) / 2, abs=1e-6)
    assert losses["loss"].item() == pytest.approx(
        (losses["labels/text"] + 0.2 * losses["headings"]).item(), abs=1e-6
    )
    same = replace(
        batch, heading_groups=torch.zeros(2, dtype=torch.int64)
    )  # equal headings are those of both reports
    rows = (math.log(1 + math.exp(-1.2)) + 0.6) + (math.log(1 + math.exp(-0.4)) + 0.2)
    columns = (math.log(1 + math.exp(0.4)) - 0.2) + (math.log(1 + math.exp(-2.0)) + 1.0)
    expected = (rows + columns) / 4
    assert compute_losses(model, same, temperature=0.5)["headings"].item() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        ({"groups": torch.zeros(2, dtype=torch.int64)}, {}),
        ({"targets": torch.zeros(2, 22)}, {"spare_alike": True}),
        ({"wordings": torch.zeros(2, dtype=torch.int64)}, {"spare_alike": True}),
    ],
    ids=["equal texts", "the same labels", "nearly the same words"],
)
def test_reports_that_are_alike_are_not_pushed_apart(changed, settings):
    model = FixedModel([[1.0, 0.0], [0.0, 1.0]])
    batch = replace(
        make_texts([True, True]),
        input_ids=torch.tensor([[0] * 20, [1] * 20]),
        heading_ids=torch.tensor([[1], [0]]),
    )
    assert compute_losses(model, batch, **settings)["headings"] > 1
    assert compute_losses(model, replace(batch, **changed), **settings)["headings"] == 0


def test_the_projection_of_a_model_without_images_is_trained(model):
    batch = make_texts([True, True, False, True])
    losses = compute_losses(model, batch)
    losses["loss"].backward()
    for layer in (model.fusion.project_text[0], model.fusion.project_text[2]):
        assert layer.weight.grad.abs().max() > 0
    assert model.text_encoder.project.weight.grad.abs().max() > 0


@pytest.mark.parametrize("rows", [[True], [False], [False, False, True], [False, False]])
def test_fewer_than_two_reports_with_headings_give_no_contrast(model, rows):
    losses = compute_losses(model, make_texts(rows))
    assert losses["headings"] == 0
    assert torch.isfinite(losses["loss"])
    losses["loss"].backward()
    assert all(torch.isfinite(each.grad).all() for each in model.parameters() if each.grad is not None)


def test_headings_count_where_asked_for(model):
    batch = make_texts([True, True])
    counts = {"text": 44.0}
    plain = Objective(model, torch.ones(22), LossConfig())(batch, batch.pixels, counts)
    assert set(plain) == {"loss", "labels/text", "contrastive"}
    assert set(compute_losses(model, batch)) == {"loss", "labels/text", "contrastive", "headings"}
