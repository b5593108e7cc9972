"""What is read of a batch for predictions and what for the loss."""

from dataclasses import replace

import pytest
import torch

from training.batch import Batch
from training.config.settings import LossConfig
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
    )


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
