"""Pre-training on a made-up language: each text repeats one of 8 pairs of words."""

import math
from dataclasses import replace

import pytest
import torch

from contract.errors import ConfigError
from training import pretrain
from training.config.settings import LoopConfig, ModelConfig, OptimizerConfig, PretrainingConfig, TrainConfig
from training.model.model import TextEncoder
from training.pretrain import draw_order, hide_pieces, pretrain_text
from training.watch import Silent

PAD, UNK, CLS, SEP, MASK = range(5)
PAIRS, VOCABULARY, LENGTH = 8, 5 + 16, 20
UNIGRAM_ENTROPY = math.log(2 * PAIRS)  # nats: the best loss of one who looks at no neighbour
CONFIG = TrainConfig(
    model=ModelConfig(
        vocabulary_size=VOCABULARY,
        text_width=32,
        text_layers=1,
        text_heads=2,
        text_feedforward=64,
        text_positions=LENGTH,
        width=16,
        dropout=0.0,
    ),
    loop=LoopConfig(batch_size=32),
    optimizer=OptimizerConfig(weight_decay=0.01),
    pretraining=PretrainingConfig(epochs=2, learning_rate=5e-3),
)


def make_texts(count=256):
    """Return (count, LENGTH) ids and mask: [CLS], a pair 3 to 9 times, [SEP], padding."""
    generator = torch.Generator().manual_seed(7)
    ids, mask = torch.full((count, LENGTH), PAD), torch.zeros(count, LENGTH, dtype=torch.int64)
    for row in range(count):
        pairs = int(torch.randint(3, 10, (), generator=generator))
        first = 5 + torch.randint(PAIRS, (1,), generator=generator).repeat(pairs)
        words = torch.stack([first, first + PAIRS], 1).flatten()
        text = torch.cat([torch.tensor([CLS]), words, torch.tensor([SEP])])
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return ids, mask


def make_encoder(config=CONFIG, seed=3):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return TextEncoder(config.model).eval()


def run(encoder=None, config=CONFIG, texts=None, **changes):
    encoder = make_encoder(config) if encoder is None else encoder
    options = {
        "special_ids": (PAD, UNK, CLS, SEP),
        "mask_id": MASK,
        "vocabulary_size": VOCABULARY,
        "device": torch.device("cpu"),
        "watcher": Silent(),
    } | changes
    losses = pretrain_text(encoder, *(texts or make_texts()), config, **options)
    return encoder, losses


def change(section, **values):
    return replace(CONFIG, **{section: replace(getattr(CONFIG, section), **values)})


def assert_same_weights(one, other):
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(weight, other.state_dict()[name], rtol=0, atol=0, msg=name)


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep tensors this small on one thread: more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def spy(monkeypatch):
    """Every draw of hidden pieces: the true ids, what may be hidden, and the draw."""
    drawn = []

    def hide(input_ids, may_hide, *rest):
        drawn.append((input_ids, may_hide, hide_pieces(input_ids, may_hide, *rest)))
        return drawn[-1][-1]

    monkeypatch.setattr(pretrain, "hide_pieces", hide)
    return drawn


def test_the_rule_of_a_language_is_learned():
    _, losses = run(config=change("pretraining", epochs=30))
    assert losses[0] > 0.8 * UNIGRAM_ENTROPY
    assert losses[-1] < 0.1 * UNIGRAM_ENTROPY


def test_the_words_learn_and_the_projection_does_not():
    before = make_encoder()
    after, _ = run(make_encoder())
    assert not torch.equal(
        after.bert.embeddings.word_embeddings.weight, before.bert.embeddings.word_embeddings.weight
    )
    assert torch.equal(after.project.weight, before.project.weight)
    assert torch.equal(after.project.bias, before.project.bias)
    assert set(after.state_dict()) == set(before.state_dict())  # the head is gone
    assert all(parameter.grad is None for parameter in after.parameters())


def test_special_tokens_and_padding_are_never_hidden(spy):
    ids, mask = make_texts()
    ids[:, 3] = MASK  # as texts with hidden label words have
    run(config=change("pretraining", masked_share=1.0, epochs=1), texts=(ids, mask))
    assert sum(len(true) for true, *_ in spy) == 256
    for true, _, (shown, chosen) in spy:
        assert torch.equal(chosen, true > MASK)
        assert torch.equal(shown[~chosen], true[~chosen])
        assert (shown[chosen] >= MASK).all()


def test_padding_is_never_hidden_whatever_it_holds(spy):
    ids, mask = make_texts(64)
    run(texts=(ids.masked_fill(mask == 0, 5), mask), config=change("pretraining", masked_share=1.0))
    assert sum(int(chosen.sum()) for *_, (_, chosen) in spy) == 2 * int((ids > MASK).sum())


def test_the_head_shares_the_word_embeddings():
    # [UNK] is in no text: only as a wrong answer of the head can its embedding learn anything
    before = make_encoder().bert.embeddings.word_embeddings.weight[UNK]
    after, _ = run(config=change("optimizer", weight_decay=0.0))
    assert not torch.equal(after.bert.embeddings.word_embeddings.weight[UNK], before)


def test_the_shares_are_those_of_bert(spy):
    run(texts=make_texts(1024))
    true, may, shown, chosen = (
        torch.cat([tensor.flatten() for tensor in tensors])
        for tensors in zip(*((true, may, *hidden) for true, may, hidden in spy), strict=True)
    )
    count = int(chosen.sum())
    assert_share(count, int(may.sum()), 0.15)
    assert_share((shown[chosen] == MASK).sum(), count, 0.8)
    # a random piece is the true one once in 16 times
    assert_share((shown[chosen] == true[chosen]).sum(), count, 0.1 + 0.1 / 16)
    random = shown[chosen & (shown != MASK) & (shown != true)]
    assert len(random.unique()) == 2 * PAIRS


def assert_share(part, whole, share):
    sigma = math.sqrt(share * (1 - share) / whole)
    assert abs(float(part) / whole - share) < 4 * sigma


def test_masks_change_from_epoch_to_epoch(spy):
    run(texts=make_texts(32))
    (first, _, one), (second, _, two) = spy
    order, other = first.unique(dim=0, return_inverse=True)[1], second.unique(dim=0, return_inverse=True)[1]
    assert torch.equal(first[order.argsort(stable=True)], second[other.argsort(stable=True)])
    assert not torch.equal(one.chosen[order.argsort(stable=True)], two.chosen[other.argsort(stable=True)])


def test_equal_seeds_give_equal_weights_whatever_was_drawn_before():
    config = change("model", dropout=0.1)
    one, losses = run(make_encoder(config), config)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    two, again = run(make_encoder(config), config)
    assert torch.equal(torch.get_rng_state(), before)
    assert losses == again
    assert_same_weights(one, two)
    _, other = run(make_encoder(config), replace(config, seed=1))
    assert losses != other


def test_a_batch_in_parts_gives_the_same_weights():
    whole, losses = run(texts=make_texts(70))
    parts, found = run(config=change("loop", accumulate=4), texts=make_texts(70))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses))
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(weight, parts.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_padding_changes_nothing():
    ids, mask = make_texts(64)
    config = change("model", text_positions=2 * LENGTH)
    wide = [torch.cat([tensor, torch.zeros_like(tensor)], 1) for tensor in (ids, mask)]
    one, _ = run(make_encoder(config), config, (ids, mask))
    two, _ = run(make_encoder(config), config, wide)
    assert_same_weights(one, two)


def test_bfloat16_learns_too():
    _, losses = run(config=change("pretraining", epochs=6), bfloat16=True)
    assert losses[-1] < 0.8 * UNIGRAM_ENTROPY


def test_the_watcher_sees_every_step():
    reports = []

    class Watcher(Silent):
        def on_step(self, report):
            reports.append(report)

    encoder, losses = run(texts=make_texts(70), watcher=Watcher())
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.epoch for report in reports] == [1, 1, 1, 2, 2, 2]
    assert {(report.stage, report.steps) for report in reports} == {("pretraining", 6)}
    assert max(report.learning_rate for report in reports) <= CONFIG.pretraining.learning_rate
    assert min(report.studies_per_s for report in reports) > 0
    assert len(losses) == 2
    assert not encoder.training


def test_no_epochs_change_nothing():
    encoder, losses = run(config=change("pretraining", epochs=0))
    assert losses == []
    assert_same_weights(encoder, make_encoder())


def test_texts_without_words_are_left_out():
    ids, mask = make_texts(40)
    empty = torch.full_like(ids[:5], PAD)
    empty[:, :2] = torch.tensor([CLS, SEP])
    blank = torch.zeros_like(mask[:5])
    blank[:, :2] = 1
    one, _ = run(texts=(ids, mask))
    two, _ = run(texts=(torch.cat([ids, empty]), torch.cat([mask, blank])))
    assert_same_weights(one, two)
    with pytest.raises(ConfigError, match="has none"):
        run(texts=(empty, blank))
    with pytest.raises(ConfigError, match="has none"):
        run(texts=(ids[:0], mask[:0]))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="22 word pieces, but the text encoder knows 21"):
        run(vocabulary_size=VOCABULARY + 1)
    with pytest.raises(ConfigError, match="frozen"):
        run(make_encoder().requires_grad_(False))
    with pytest.raises(ConfigError, match=r"Lower pretraining\.learning_rate"):
        run(config=change("pretraining", learning_rate=1e30))


def test_batches_hold_texts_of_similar_lengths_once_each():
    lengths = torch.randint(1, 200, (1000,), generator=torch.Generator().manual_seed(0))
    batches = draw_order(lengths, 16, torch.Generator().manual_seed(1))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(1000))
    assert len(batches) == 63
    spread = torch.stack([lengths[batch].max() - lengths[batch].min() for batch in batches]).float().mean()
    assert spread < 40  # of shuffled texts it is about 175
    again = draw_order(lengths, 16, torch.Generator().manual_seed(1))
    assert all(torch.equal(one, two) for one, two in zip(batches, again, strict=True))
