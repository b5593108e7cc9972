from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from contract.bundle import WEIGHTS, Bundle
from contract.errors import ArtifactError, ConfigError
from contract.tensors import GRAPHS, MODELS
from training.config import PRESETS, make_config, read_model_config
from training.model import CxrModel, graph_modules, load_model


@pytest.fixture(scope="module")
def model(small_config):
    torch.manual_seed(0)
    return CxrModel(replace(small_config, image_stem="conv")).eval()


def _draw(model, batch, length):
    torch.manual_seed(1)
    sizes = model.sizes
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, length // 2 :] = 0
    return {
        "pixels": torch.randint(0, 256, (batch, 1, sizes["S"], sizes["S"]), dtype=torch.uint8),
        "input_ids": torch.randint(0, 60, (batch, length)),
        "attention_mask": mask,
        "image_tokens": torch.randn(batch, sizes["N"], sizes["C"]),
        "text_tokens": torch.randn(batch, length, sizes["C"]),
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_answer_as_the_tensor_table_says(model, name):
    spec = MODELS[name]
    drawn = _draw(model, 3, 32)
    with torch.inference_mode():
        outputs = graph_modules(model)[name](*(drawn[tensor.name] for tensor in spec.inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for tensor, output in zip(spec.outputs, outputs, strict=True):
        tensor.check(output.numpy(), model.sizes)
        assert torch.isfinite(output).all()


def test_attention_sums_to_one_within_each_modality_and_skips_padding(model):
    drawn = _draw(model, 3, 32)
    with torch.inference_mode():
        out = model(drawn["pixels"], drawn["input_ids"], drawn["attention_mask"])
    torch.testing.assert_close(out.image_attention.sum(-1), torch.ones(3, 22))
    torch.testing.assert_close(out.text_attention.sum(-1), torch.ones(3, 22))
    assert (out.text_attention[0, :, 16:] == 0).all()
    torch.testing.assert_close(out.embedding.norm(dim=-1), torch.ones(3))


def test_padding_and_neighbours_change_nothing(model):
    drawn = _draw(model, 2, 32)
    short = {name: drawn[name][:1, :16] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        padded = model(drawn["pixels"], drawn["input_ids"], drawn["attention_mask"])
        alone = model(drawn["pixels"][:1], **short)
    torch.testing.assert_close(padded.logits[:1], alone.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.embedding[:1], alone.embedding, atol=1e-5, rtol=0)


def test_text_of_padding_alone_gives_finite_answers(model):
    drawn = _draw(model, 2, 32)
    with torch.inference_mode():
        out = model(None, drawn["input_ids"], torch.zeros_like(drawn["attention_mask"]))
    assert torch.isfinite(out.logits).all()
    assert torch.isfinite(out.embedding).all()


def test_each_modality_alone_and_both_together_answer_differently(model):
    drawn = _draw(model, 2, 32)
    text = {name: drawn[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        logits = [model(drawn["pixels"]).logits, model(**text).logits, model(drawn["pixels"], **text).logits]
    assert not torch.allclose(logits[0], logits[2])
    assert not torch.allclose(logits[1], logits[2])
    assert model(drawn["pixels"]).text_attention is None


def test_encoder_reads_words_as_bert_does(model):
    drawn = _draw(model, 2, 32)
    encoder = model.text_encoder
    with torch.inference_mode():
        hidden = encoder.bert(drawn["input_ids"], drawn["attention_mask"]).last_hidden_state
        expected = encoder.project(hidden)
        found = encoder(drawn["input_ids"], drawn["attention_mask"])
    kept = drawn["attention_mask"].bool()
    torch.testing.assert_close(found[kept], expected[kept], atol=1e-5, rtol=1e-5)


def test_calibration_moves_probabilities_of_its_own_kind_only(model):
    drawn = _draw(model, 2, 32)
    before = model.fusion.forward_image(drawn["image_tokens"])[0]
    model.fusion.bias_text.fill_(3.0)
    torch.testing.assert_close(model.fusion.forward_image(drawn["image_tokens"])[0], before)
    logits = model.fusion(None, drawn["text_tokens"], drawn["attention_mask"]).logits
    found = model.fusion.forward_text(drawn["text_tokens"], drawn["attention_mask"])[0]
    torch.testing.assert_close(found, torch.sigmoid(logits + 3.0))
    model.fusion.bias_text.zero_()


def test_bundle_weights_load_into_an_equal_model(model, tmp_path):
    save_file(model.state_dict(), tmp_path / WEIGHTS)
    bundle = Bundle(tmp_path, "0" * 64, {"model": asdict(model.config)}, (), {})
    loaded = load_model(bundle)
    drawn = _draw(model, 2, 32)
    torch.testing.assert_close(loaded(drawn["pixels"]).logits, model(drawn["pixels"]).logits)
    other = asdict(replace(model.config, width=64))
    with pytest.raises(ArtifactError, match="do not fit"):
        load_model(Bundle(tmp_path, "0" * 64, {"model": other}, (), {}))


def test_presets_hold_together_and_have_a_square_grid():
    for name, preset in PRESETS.items():
        preset.check()
        assert preset.preset == name
        assert preset.model.sizes["N"] == 49
    assert read_model_config(asdict(PRESETS["base"].model)) == PRESETS["base"].model


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("huge", {}, "no preset"),
        ("demo", {"epoch": 3}, "Unknown setting epoch"),
        ("demo", {"epochs": 0}, "above 0"),
        ("demo", {"model": {"image_size": 100}}, "multiple of"),
        ("demo", {"max_length": 600}, "max_length"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(preset, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(preset, changes)
