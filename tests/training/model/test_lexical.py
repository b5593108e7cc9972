"""The lexical part is scikit-learn's logistic regression on binary TF-IDF, inside the model."""

from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from contract.errors import ConfigError
from training.config.settings import LexicalConfig, ModelConfig
from training.model.lexical import LexicalHead, fit_lexical

PAD, CLS, SEP, MASK = 0, 1, 2, 3
VOCABULARY, BUCKETS, LABELS = 40, 101, 4


def make_texts(count, seed, longest=30):
    """Return (count, longest + 2) ids and mask of random texts; the first one is empty."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((count, longest + 2), PAD)
    mask = torch.zeros_like(ids)
    for row in range(count):
        words = int(torch.randint(1, longest, (), generator=generator)) if row else 0
        ids[row, 0], ids[row, words + 1] = CLS, SEP
        ids[row, 1 : words + 1] = torch.randint(4, VOCABULARY, (words,), generator=generator)
        mask[row, : words + 2] = 1
        if row % 3 == 1:
            ids[row, 1] = MASK  # a third of the texts has a hidden word
    return ids, mask


def make_targets(ids, mask):
    """Return (B, LABELS) bool: a word, a pair of words in this order, nobody, everybody."""
    targets = torch.zeros(len(ids), LABELS, dtype=torch.bool)
    targets[:, 0] = (ids == 7).any(1)
    targets[:, 1] = ((ids[:, :-1] % 3 == 0) & (ids[:, 1:] == 9)).any(1)
    targets[:, 3] = True
    return targets


def name_ngrams(ids, mask, buckets=BUCKETS):
    """Return the words and hashed pairs of each text, as strings separated by spaces; written out slowly."""
    texts = []
    for row, real in zip(ids.tolist(), mask.sum(1).tolist(), strict=True):
        words = row[1 : max(real - 1, 1)]
        pairs = [f"p{(a * 31_337 + b) % buckets}" for a, b in pairwise(words)]
        texts.append(" ".join([*(f"w{word}" for word in words), *pairs]))
    return texts


@pytest.fixture(scope="module")
def fitted():
    head = LexicalHead(VOCABULARY, BUCKETS, LABELS)
    texts = make_texts(300, 0)
    fit_lexical(head, *texts, make_targets(*texts), mask_id=MASK, C=3.0)
    return head


def test_logits_are_those_of_scikit_learn_on_unseen_texts(fitted):
    """Texts with hidden words by regressions of their own."""
    train, unseen = make_texts(300, 0), make_texts(100, 1)
    logits = fitted(*unseen)
    assert logits.shape == (100, LABELS)
    assert logits.dtype == torch.float32
    seen, asked = ((ids == MASK).any(1).numpy() for ids, _ in (train, unseen))
    targets = make_targets(*train)
    for hidden in (False, True):
        vectorizer = TfidfVectorizer(binary=True, min_df=2, token_pattern=r"\S+")
        features = vectorizer.fit_transform(np.array(name_ngrams(*train))[seen == hidden])
        questions = vectorizer.transform(np.array(name_ngrams(*unseen))[asked == hidden])
        for label in (0, 1):
            model = LogisticRegression(C=3.0, solver="liblinear", class_weight="balanced")
            model.fit(features, targets[seen == hidden, label].numpy())
            expected = model.decision_function(questions)
            assert np.ptp(expected) > 1
            np.testing.assert_allclose(logits[asked == hidden, label].numpy(), expected, atol=1e-4)
    assert (logits[:, 2:] == 0).all()  # nobody and everybody: the other part decides


def test_rare_ngrams_are_left_out():
    ids = torch.tensor([[CLS, 5, 6, SEP], [CLS, 6, 7, SEP], [CLS, 6, 5, SEP]])
    head = LexicalHead(VOCABULARY, BUCKETS, 1)
    fit_lexical(head, ids, torch.ones_like(ids), torch.tensor([[True], [False], [True]]), mask_id=MASK)
    assert head.unigrams[:, -1].nonzero().flatten().tolist() == [5, 6]
    assert head.unigrams[:, 0].nonzero().flatten().tolist() == [5, 6]
    assert not head.bigrams.any()
    assert float(head.unigrams[6, -1]) == pytest.approx(1.0)  # in every text
    assert float(head.unigrams[5, -1]) == pytest.approx((np.log(4 / 3) + 1) ** 2)


def test_weight_scales_the_logits_and_equal_texts_give_equal_tables(fitted):
    texts = make_texts(300, 0)
    half, again = (LexicalHead(VOCABULARY, BUCKETS, LABELS) for _ in range(2))
    fit_lexical(half, *texts, make_targets(*texts), mask_id=MASK, C=3.0, weight=0.5)
    fit_lexical(again, *texts, make_targets(*texts), mask_id=MASK, C=3.0)
    torch.testing.assert_close(half(*texts), fitted(*texts) / 2)
    for name, table in fitted.state_dict().items():
        assert torch.equal(table, again.state_dict()[name])


def test_what_tokens_add_sums_to_the_logits(fitted):
    ids, mask = make_texts(20, 2)
    added = fitted.attribute(ids, mask)
    torch.testing.assert_close(added.sum(1) + fitted.find_bias(ids), fitted(ids, mask))
    special = (ids == CLS) | (ids == SEP) | (ids == PAD)
    assert not added[special].any()


def test_a_pair_counts_half_for_each_token_and_a_repeated_ngram_once():
    head = LexicalHead(VOCABULARY, BUCKETS, 1)
    ids = torch.tensor([[CLS, 5, 6, 5, 6, 6, SEP]])
    mask = torch.ones_like(ids)
    head.unigrams[5] = torch.tensor([8.0, 4.0])
    head.bigrams[(5 * 31_337 + 6) % BUCKETS] = torch.tensor([2.0, 12.0])
    # The squares add up to 16, so the vector has length 4.
    torch.testing.assert_close(head.attribute(ids, mask)[0, :, 0], torch.tensor([0, 2.25, 0.25, 0, 0, 0, 0]))
    torch.testing.assert_close(head(ids, mask), torch.tensor([[2.5]]))


def test_a_new_head_and_a_text_of_padding_say_nothing(fitted):
    ids, mask = make_texts(3, 0)
    assert torch.equal(LexicalHead(VOCABULARY, BUCKETS, LABELS)(ids, mask), torch.zeros(3, LABELS))
    for kept in (torch.zeros_like(mask), mask * (torch.arange(mask.shape[1]) < 2)):
        assert torch.equal(fitted(ids, kept), fitted.find_bias(ids))
    assert torch.equal(fitted(ids[:, :1], mask[:, :1]), fitted.bias[0].expand(3, LABELS))


def test_padding_changes_nothing_whatever_it_holds(fitted):
    ids, mask = make_texts(5, 3)
    longer = torch.cat([ids, torch.randint(4, VOCABULARY, (5, 40))], dim=1)
    padded = torch.cat([mask, torch.zeros(5, 40, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(fitted(longer, padded), fitted(ids, mask))


def test_too_few_texts_are_refused():
    ids = torch.tensor([[CLS, 5, 6, SEP], [CLS, 7, 8, SEP]])
    targets = torch.tensor([[True], [False]])
    head = LexicalHead(VOCABULARY, BUCKETS, 1)
    with pytest.raises(ConfigError, match="share no word"):
        fit_lexical(head, ids, torch.ones_like(ids), targets, mask_id=MASK)


def test_a_single_text_with_hidden_words_is_left_to_the_rest_of_the_model():
    ids, mask = make_texts(60, 0)
    ids[ids == MASK] = 4
    ids[5, 1] = MASK
    head, plain = (LexicalHead(VOCABULARY, BUCKETS, LABELS) for _ in range(2))
    fit_lexical(head, ids, mask, make_targets(ids, mask), mask_id=MASK)
    others = [row for row in range(60) if row != 5]
    fit_lexical(plain, ids[others], mask[others], make_targets(ids, mask)[others], mask_id=MASK)
    assert not head(ids[5:6], mask[5:6]).any()
    assert torch.equal(head(ids[:5], mask[:5]), plain(ids[:5], mask[:5]))


@pytest.mark.filterwarnings("ignore")  # the exporter's advice to its developers
def test_the_head_converts_with_any_batch_and_length(fitted, tmp_path):
    ids, mask = make_texts(2, 4)
    axes = {0: "batch", 1: "length"}
    torch.onnx.export(
        fitted,
        (ids, mask),
        tmp_path / "head.onnx",
        input_names=["input_ids", "attention_mask"],
        dynamic_shapes=(axes, axes),
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    for count, longest in ((1, 30), (7, 62), (3, 254)):
        ids, mask = make_texts(count, 5, longest)
        [found] = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        np.testing.assert_allclose(found, fitted(ids, mask).numpy(), atol=1e-5)


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="lexical_buckets must not be negative"):
        ModelConfig(lexical_buckets=-1).check()
    for name in ("C", "weight"):
        with pytest.raises(ConfigError, match=f"lexical.{name} must be above 0"):
            LexicalConfig(**{name: 0.0}).check()
