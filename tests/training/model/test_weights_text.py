"""Pretrained text weights: sizes, hidden states and tokenizer are the original's, and whatever does not fit is refused.

The originals are made here by transformers, at random and small, and stored as it stores them.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertForPreTraining, BertTokenizerFast

from contract.errors import ConfigError
from training.config.settings import DataConfig, TrainConfig, WeightsConfig
from training.model.model import CxrModel, make_bert_config
from training.model.weights import (
    adopt_text_model,
    load_text_weights,
    save_text_tokenizer,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "heart", "lung", "clear", "##s", "."]


@pytest.fixture
def model(small_config):
    torch.manual_seed(0)
    return CxrModel(small_config).eval()


@pytest.fixture
def bert(small_config, tmp_path) -> Path:
    """A hub directory of a BERT with its pre-training heads, of other sizes than the config, and its tokenizer."""
    config = replace(
        small_config, text_width=24, text_heads=3, text_layers=2, vocabulary_size=11, text_positions=128
    )
    torch.manual_seed(2)
    path = tmp_path / "bert"
    BertForPreTraining(make_bert_config(config)).save_pretrained(path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    tokenizer.backend_tokenizer.enable_padding(length=8)  # as stored by some, and not to be taken over
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS))
    return path


@pytest.fixture
def config(small_config, bert) -> TrainConfig:
    return TrainConfig(
        model=small_config, weights=WeightsConfig(text=str(bert)), data=DataConfig(max_length=64)
    )


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_sizes_of_the_text_encoder_are_adopted(config):
    model = adopt_text_model(config).model
    assert (model.text_width, model.text_heads, model.text_layers) == (24, 3, 2)
    assert (model.vocabulary_size, model.text_positions, model.text_feedforward) == (11, 128, 64)
    assert (model.width, model.image_width) == (config.model.width, config.model.image_width)


def test_without_text_weights_the_config_stays(small_config):
    config = TrainConfig(model=small_config)
    assert adopt_text_model(config) is config


@pytest.mark.parametrize("form", ["directory", "file", "early names"])
def test_text_weights_give_the_hidden_states_of_the_original(config, bert, form):
    original = BertForPreTraining.from_pretrained(bert, attn_implementation="eager").eval()
    source = bert / "model.safetensors" if form == "file" else bert
    if form == "early names":
        state = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in original.state_dict().items()
        }
        torch.save(
            {**state, "bert.embeddings.position_ids": torch.arange(128)[None]}, bert / "pytorch_model.bin"
        )
        (bert / "model.safetensors").unlink()
    model = CxrModel(adopt_text_model(replace(config, weights=WeightsConfig(text=str(source)))).model).eval()
    loaded = load_text_weights(model, str(source))
    ids, mask = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.inference_mode():
        found = model.text_encoder.read_hidden(model.text_encoder.embed(ids), mask)
        expected = original.bert(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (loaded.kind, loaded.absent, loaded.resized) == ("text", (), ())
    assert loaded.loaded == len(list(model.text_encoder.bert.parameters()))
    assert {"bert.pooler.dense.weight", "cls.predictions.bias"} <= set(loaded.ignored)
    assert all(name.startswith(("bert.pooler.", "cls.")) for name in loaded.ignored)


def test_a_cxr_bert_is_read_as_the_bert_that_it_is(config, bert, tmp_path):
    """Its config.json names code of its own, which is not run; its weights have another head."""
    auto = {"AutoConfig": "configuration_cxrbert.CXRBertConfig"}
    change_json(bert / "config.json", model_type="cxr-bert", projection_size=16, auto_map=auto)
    change_json(bert / "tokenizer_config.json", tokenizer_class="CXRBertTokenizer", auto_map=auto)
    state = load_file(bert / "model.safetensors")
    save_file({**state, "cls_projection_head.dense.bias": torch.zeros(16)}, bert / "model.safetensors")
    model = CxrModel(adopt_text_model(config).model)
    loaded = load_text_weights(model, str(bert))
    assert loaded.absent == ()
    assert "cls_projection_head.dense.bias" in loaded.ignored
    save_text_tokenizer(str(bert), tmp_path / "tokenizer.json")
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("heart clear.").ids == [2, 5, 7, 9, 3]


def test_a_tokenizer_without_word_pieces_is_refused(bert, tmp_path):
    state = json.loads((bert / "tokenizer.json").read_text())
    state["model"] = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    state["post_processor"] = None
    (bert / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="is a BPE; this model reads word pieces"):
        save_text_tokenizer(str(bert), tmp_path / "tokenizer.json")


def test_text_weights_of_other_sizes_are_refused(model, bert, check_sentence):
    with pytest.raises(ConfigError) as info:
        load_text_weights(model, str(bert))
    check_sentence(info)
    assert "encoder.layer.1." in str(info.value)
    narrower = CxrModel(replace(model.config, text_layers=2))
    with pytest.raises(ConfigError, match=r"\(11, 24\).* \(120, 32\)"):
        load_text_weights(narrower, str(bert))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "roberta"}, "model_type roberta"),
        ({"model_type": "electra"}, "model_type electra"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"max_position_embeddings": 32}, "max_length"),
        ({"num_attention_heads": 5}, "text_width 24"),
        ({"hidden_size": "wide"}, "config.json"),
    ],
)
def test_another_text_model_is_refused(config, bert, values, words):
    change_json(bert / "config.json", **values)
    with pytest.raises(ConfigError, match=words):
        adopt_text_model(config)


@pytest.mark.parametrize("content", ["", "[]", "{}", "\xff"])
def test_a_damaged_text_config_is_refused(config, bert, check_sentence, content):
    (bert / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError) as info:
        adopt_text_model(config)
    check_sentence(info)


def test_a_text_file_without_its_config_is_refused(config, bert):
    (bert / "config.json").unlink()
    weights = WeightsConfig(text=str(bert / "model.safetensors"))
    with pytest.raises(ConfigError, match=r"no config.json"):
        adopt_text_model(replace(config, weights=weights))


@pytest.mark.parametrize("kept", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("lower", [True, False])
def test_tokenizer_is_written_as_one_file(bert, tmp_path, kept, lower):
    (bert / ({"tokenizer.json", "vocab.txt"} - {kept}).pop()).unlink()
    if kept == "vocab.txt":
        (bert / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    save_text_tokenizer(str(bert), tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("heart clear.").ids == [2, 5, 7, 9, 3]
    if lower or kept == "vocab.txt":
        assert tokenizer.encode("Lungs").ids == ([2, 6, 8, 3] if lower else [2, 1, 3])
    assert (tokenizer.padding, tokenizer.truncation) == (None, None)


def test_a_damaged_or_absent_tokenizer_is_refused(bert, tmp_path, check_sentence):
    (bert / "tokenizer.json").write_text("4711")
    with pytest.raises(ConfigError) as info:
        save_text_tokenizer(str(bert), tmp_path / "out.json")
    check_sentence(info)
    for name in ("tokenizer.json", "vocab.txt"):
        (bert / name).unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer.json or vocab.txt"):
        save_text_tokenizer(str(bert), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
