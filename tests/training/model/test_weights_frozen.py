"""Frozen encoders do not change, whatever the mode; checkpointed ones learn the same from less memory."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from training.config.settings import WeightsConfig
from training.model.model import CxrModel
from training.model.weights import (
    enable_checkpointing,
    freeze_encoders,
    set_training_mode,
)


@pytest.fixture
def training_model(small_config):
    """A model with everything that training changes at random or on the way: BatchNorm, dropout, drop path."""
    torch.manual_seed(0)
    config = replace(small_config, image_stem="conv", dropout=0.2, image_drop_path=0.3)
    return CxrModel(replace(config, text_layers=3))


def draw_batch():
    torch.manual_seed(3)
    mask = torch.ones(4, 20, dtype=torch.int64)
    mask[0, 12:] = 0
    return torch.randint(0, 256, (4, 1, 56, 56), dtype=torch.uint8), torch.randint(0, 120, (4, 20)), mask


def train_step(model, seed=4):
    """Return the gradients of one step and the bytes that its forward pass kept for the backward pass."""
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model(*draw_batch()).logits.square().mean()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, kept


@pytest.mark.parametrize("frozen", [("image",), ("text",), ("image", "text")])
def test_frozen_encoders_do_not_change(training_model, frozen):
    wrapped = nn.ModuleDict({"module": training_model})
    freeze_encoders(wrapped, WeightsConfig(freeze=frozen))
    set_training_mode(wrapped, frozen)
    encoders = {"image": training_model.image_encoder.backbone, "text": training_model.text_encoder.bert}
    before = {kind: copy.deepcopy(encoder.state_dict()) for kind, encoder in encoders.items()}
    gradients, _ = train_step(training_model)
    for kind, encoder in encoders.items():
        assert {parameter.grad is None for parameter in encoder.parameters()} == {kind in frozen}
        assert encoder.training == (kind not in frozen)
    assert training_model.training
    assert training_model.fusion.blocks[0].dropout.training
    for name in ("text_encoder.project.weight", "image_encoder.project.weight"):
        assert gradients[name] is not None
    for kind in frozen:
        torch.testing.assert_close(encoders[kind].state_dict(), before[kind], rtol=0, atol=0)


def test_a_frozen_image_encoder_gives_the_same_features_always(training_model):
    pixels, _, _ = draw_batch()
    set_training_mode(training_model, ("image",))
    first, second = (training_model.image_encoder(pixels) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    set_training_mode(training_model, ())
    first, second = (training_model.image_encoder(pixels) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("frozen", [(), ("text",), ("image", "text")])
def test_checkpointing_keeps_gradients_and_saves_memory(training_model, frozen):
    freeze_encoders(training_model, WeightsConfig(freeze=frozen))
    set_training_mode(training_model, frozen)
    names = list(training_model.state_dict())
    other = copy.deepcopy(training_model)
    expected, kept = train_step(other)
    enable_checkpointing(training_model, frozen)
    found, kept_less = train_step(training_model)
    assert list(training_model.state_dict()) == names
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    # Of encoders that are frozen nothing is kept anyway.
    assert kept_less < {(): 0.5, ("text",): 0.9}.get(frozen, 1.0 + 1e-9) * kept
    # BatchNorm has seen the batch once.
    torch.testing.assert_close(dict(training_model.named_buffers()), dict(other.named_buffers()))


def test_each_text_layer_is_checkpointed(training_model):
    text = training_model.text_encoder.train()
    embeddings, mask = torch.randn(2, 20, 32, requires_grad=True), torch.ones(2, 20, dtype=torch.int64)
    runs = []
    for layer in text.bert.encoder.layer:
        layer.attention.register_forward_hook(lambda *_: runs.append(1))
    enable_checkpointing(training_model)
    forward = text.bert.encoder.layer[0].forward
    enable_checkpointing(training_model)
    assert text.bert.encoder.layer[0].forward is forward  # not checkpointed twice over
    text.encode(embeddings, mask).sum().backward()
    assert len(runs) == 2 * 3


def test_a_copy_of_a_checkpointed_model_computes_with_its_own_weights(training_model):
    enable_checkpointing(training_model)
    average = copy.deepcopy(training_model).eval()
    with torch.no_grad():
        for parameter in training_model.parameters():
            parameter.zero_()
        assert average(*draw_batch()).logits.abs().max() > 0
    gradients, _ = train_step(average)
    assert gradients["text_encoder.bert.encoder.layer.0.output.dense.weight"] is not None
    assert training_model.text_encoder.bert.encoder.layer[0].output.dense.weight.grad is None
