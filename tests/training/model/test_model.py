from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from contract.bundle import WEIGHTS, Bundle
from contract.errors import ArtifactError
from contract.labels import LABELS
from contract.tensors import GRAPHS, MODELS
from training.config.toml_file import list_configs, load_config, read_model_config
from training.model.backbone import read_sizes
from training.model.model import CxrModel, graph_modules, load_model


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


@pytest.mark.parametrize("name", ["text_encoder", "fusion_study", "fusion_text"])
def test_graphs_read_an_unknown_id_as_padding_and_others_as_the_model_does(model, name):
    """In training an unknown id is an error; where it is served it must not cost the neighbours their answers."""
    spec, drawn = MODELS[name], _draw(model, 3, 32)
    graph = graph_modules(model)[name]
    part = {"text_encoder": model.text_encoder}.get(name) or getattr(
        model.fusion, name.replace("fusion", "forward")
    )

    def ask(answer, ids):
        outputs = answer(*({**drawn, "input_ids": ids}[tensor.name] for tensor in spec.inputs))
        return outputs if isinstance(outputs, tuple) else (outputs,)

    with torch.inference_mode():
        good = ask(graph, drawn["input_ids"])
        for found, expected in zip(good, ask(part, drawn["input_ids"]), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        for bad in (model.config.vocabulary_size, -1, 2**62):
            ids = drawn["input_ids"].clone()
            ids[1, 4] = bad
            for found, expected in zip(ask(graph, ids), good, strict=True):
                torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=0, atol=0)
                assert torch.isfinite(found).all()


def test_attention_sums_to_one_within_each_modality_and_skips_padding(model):
    drawn = _draw(model, 3, 32)
    with torch.inference_mode():
        out = model(drawn["pixels"], drawn["input_ids"], drawn["attention_mask"])
    torch.testing.assert_close(out.image_attention.sum(-1), torch.ones(3, 22))
    torch.testing.assert_close(out.text_attention.sum(-1), torch.ones(3, 22))
    assert (out.text_attention[0, :, 16:] == 0).all()
    torch.testing.assert_close(out.embedding.norm(dim=-1), torch.ones(3))


def test_the_share_of_the_image_joins_both_attentions_into_the_one_of_the_logit(model):
    drawn = _draw(model, 3, 32)
    seen = []
    with torch.inference_mode():
        hook = model.fusion.pooling.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        out = model(drawn["pixels"], drawn["input_ids"], drawn["attention_mask"])
        hook.remove()
        [state], pooling = seen, model.fusion.pooling
        means = {
            "image": out.image_attention @ pooling.value(state["image"].values),
            "text": out.text_attention @ pooling.value(state["text"].values),
        }  # (B, K, C)
        share = out.image_share[..., None]
        mixed = share * means["image"] + (1 - share) * means["text"]
        logits = (mixed * pooling.weight).sum(-1) + pooling.bias
        logits += (
            model.fusion.lexical(drawn["input_ids"], drawn["attention_mask"]) if model.fusion.lexical else 0
        )
    assert out.image_share.shape == (3, 22)
    assert ((out.image_share > 0) & (out.image_share < 1)).all()
    torch.testing.assert_close(logits, out.logits, atol=1e-5, rtol=1e-5)
    assert model(drawn["pixels"]).image_share is None
    assert model(None, drawn["input_ids"], drawn["attention_mask"]).image_share is None


def test_padding_and_neighbours_change_nothing(model):
    drawn = _draw(model, 2, 32)
    short = {name: drawn[name][:1, :16] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        padded = model(drawn["pixels"], drawn["input_ids"], drawn["attention_mask"])
        alone = model(drawn["pixels"][:1], **short)
    torch.testing.assert_close(padded.logits[:1], alone.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.image_share[:1], alone.image_share, atol=1e-5, rtol=0)
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
    texts = (drawn[name] for name in ("text_tokens", "input_ids", "attention_mask"))
    found = model.fusion.forward_text(*texts)[0]
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


def test_named_configs_have_a_square_grid_of_tokens_and_come_back_from_a_bundle():
    for name in list_configs():
        model = load_config(name).model
        assert read_sizes(model)["N"] == {"dinov2": 37, "base-384": 12}.get(name, 7) ** 2
        assert read_model_config(asdict(model)) == model


def test_a_second_view_counts_where_there_is_one(model):
    drawn = _draw(model, 3, 32)
    first, second = drawn["image_tokens"], torch.randn_like(drawn["image_tokens"])
    fusion, text = model.fusion, (drawn["text_tokens"], drawn["attention_mask"])
    with torch.inference_mode():
        tokens, mask = fusion.join_views(first, second, torch.tensor([True, True, False]))
        both = fusion(tokens, *text, mask)
        alone = fusion(first, *text)
        swapped = fusion(*fusion.join_views(second, first, torch.ones(3, dtype=bool))[:1], *text)
    assert both.image_attention.shape == (3, 22, 2 * model.sizes["N"])
    assert (both.image_attention[2, :, model.sizes["N"] :] == 0).all()
    torch.testing.assert_close(both.logits[2], alone.logits[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(both.embedding[2], alone.embedding[2], atol=1e-5, rtol=0)
    assert not torch.allclose(both.logits[:2], alone.logits[:2], atol=1e-4)
    assert torch.allclose(both.logits[:2], swapped.logits[:2], atol=1e-4)  # no view embedding learned yet
    with torch.no_grad():
        fusion.view.fill_(1.0)
        tokens, _ = fusion.join_views(first, second, torch.ones(3, dtype=bool))
        fusion.view.zero_()
    torch.testing.assert_close(tokens[:, model.sizes["N"] :], second + 1.0)


def test_the_lexical_part_is_added_where_a_text_is_read_with_its_ids(small_config):
    torch.manual_seed(0)
    model = CxrModel(replace(small_config, lexical_buckets=50)).eval()
    drawn = _draw(model, 2, 32)
    pixels, ids, mask = (drawn[name] for name in ("pixels", "input_ids", "attention_mask"))
    fusion, tokens = model.fusion, (drawn["text_tokens"], mask)
    with torch.inference_mode():
        empty = fusion(None, *tokens, input_ids=ids).logits
        assert torch.equal(empty, fusion(None, *tokens).logits)  # a new part says nothing
        for table in (fusion.lexical.unigrams, fusion.lexical.bigrams, fusion.lexical.bias):
            table.copy_(torch.rand(table.shape))
        added = fusion.lexical(ids, mask)
        assert torch.equal(fusion(None, *tokens).logits, empty)
        torch.testing.assert_close(fusion(None, *tokens, input_ids=ids).logits, empty + added)
        torch.testing.assert_close(
            fusion.forward_text(drawn["text_tokens"], ids, mask)[0], torch.sigmoid(empty + added)
        )
        both = fusion(drawn["image_tokens"], *tokens)
        found = fusion.forward_study(drawn["image_tokens"], drawn["text_tokens"], ids, mask)
        torch.testing.assert_close(found[0], torch.sigmoid(both.logits + added))
        torch.testing.assert_close(
            found[1][:, :16] * 2, both.embedding
        )  # the square root of 1 - .75 is a half
        alone = model(pixels).logits
        torch.testing.assert_close(alone, fusion(model.image_encoder(pixels), None, None).logits)
        torch.testing.assert_close(
            model(None, ids, mask).logits, fusion(None, model.text_encoder(ids, mask), mask).logits + added
        )
    assert added.abs().min() > 0.01
    assert not dict(fusion.lexical.named_parameters())


def test_the_label_part_makes_its_share_of_the_similarity(small_config):
    torch.manual_seed(0)
    model = CxrModel(replace(small_config, label_share=0.6)).eval()
    drawn = _draw(model, 3, 32)
    inputs = (drawn["text_tokens"], drawn["input_ids"], drawn["attention_mask"])
    model.fusion.scale_text[5] = model.fusion.bias_text[5] = (
        0  # as calibrated where no training study states it
    )
    with torch.inference_mode():
        joint = model.fusion(None, drawn["text_tokens"], drawn["attention_mask"]).embedding
        probabilities, embedding, _ = model.fusion.forward_text(*inputs)
        model.fusion.label_share = 0.0
        without = model.fusion.forward_text(*inputs)[1]
    assert embedding.shape == (3, model.sizes["D"]) == (3, 16 + len(LABELS))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    assert probabilities[:, 5].eq(0.5).all()
    stated = torch.cat([probabilities[:, :5], probabilities[:, 6:]], dim=1)
    labels = stated / stated.norm(dim=1, keepdim=True)
    torch.testing.assert_close(embedding @ embedding.T, 0.4 * joint @ joint.T + 0.6 * labels @ labels.T)
    torch.testing.assert_close(without, joint)


def test_mean_pooling_gives_every_label_the_same_attention(small_config):
    torch.manual_seed(0)
    model = CxrModel(replace(small_config, pooling="mean")).eval()
    drawn = _draw(model, 2, 32)
    with torch.inference_mode():
        out = model(drawn["pixels"], drawn["input_ids"] % 100, drawn["attention_mask"])
    torch.testing.assert_close(out.image_attention, torch.full_like(out.image_attention, 1 / 49))
    torch.testing.assert_close(out.text_attention[0, :, :16], torch.full((22, 16), 1 / 16))
    assert (out.text_attention[0, :, 16:] == 0).all()


def test_a_label_that_one_way_leaves_out_is_left_out_in_all(small_config):
    """A run on images alone fits the calibration of images alone; the others stay as the start bundle's were."""
    torch.manual_seed(0)
    model = CxrModel(small_config).eval()
    drawn = _draw(model, 2, 32)
    model.fusion.scale_image[3] = model.fusion.bias_image[3] = 0
    with torch.inference_mode():
        text = model.fusion.forward_text(drawn["text_tokens"], drawn["input_ids"], drawn["attention_mask"])[1]
        image = model.fusion.forward_image(drawn["image_tokens"])[1]
    assert text[:, 16 + 3].eq(0).all()
    assert image[:, 16 + 3].eq(0).all()
    assert (text[:, 16:] > 0).sum(1).eq(len(LABELS) - 1).all()
