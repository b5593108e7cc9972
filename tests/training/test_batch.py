"""Studies become batches: which views, which text, and what is left out."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from contract.report.text import ReportTokenizer, train_tokenizer
from training.batch import choose_batch, draw_batch, draw_order, draw_rows, iterate_in_order, make_batch
from training.config.settings import DataConfig
from training.data.studies import StudySet

TEXTS = (
    "small effusion on the left. heart is large.",
    "",
    "the heart is large and the aorta is tortuous",
    "small effusion on the left. heart is large.",
)
IMPRESSIONS = ("effusion", "", "large heart", "")
PLAIN = DataConfig(lateral_share=0.0, max_length=64)
HIDDEN = "[MASK]"


@pytest.fixture(scope="module")
def studies() -> StudySet:
    pixels = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(8, 2).repeat(8, 3)
    return StudySet(
        study_ids=("a", "b", "c", "d"),
        patient_ids=("a", "b", "c", "d"),
        texts=TEXTS,
        impressions=IMPRESSIONS,
        indications=("cough", "fever", "pain", "fall"),
        wordings=(TEXTS, TEXTS),
        views=((0, 1), (2,), (), (3,)),
        laterals=((False, True), (None,), (), (False,)),
        pixels=pixels,
        targets=np.eye(4, 22, dtype=bool),
        known=np.array([True, True, True, False])[:, None].repeat(22, 1),
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ReportTokenizer:
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    train_tokenizer([text for text in TEXTS if text] * 4, path, 200)
    return ReportTokenizer.load(path)


def draw(studies, rows, config, seed=0):
    return draw_batch(studies, np.asarray(rows), config, np.random.default_rng(seed))


def test_a_batch_holds_only_the_rows_that_have_an_image_or_a_text(studies, tokenizer):
    batch = make_batch(studies, tokenizer, choose_batch(studies, np.arange(4), PLAIN), PLAIN)
    assert batch.image_rows.tolist() == [True, True, False, True]
    assert batch.text_rows.tolist() == [True, False, True, True]
    assert batch.pixels[:, 0, 0, 0].tolist() == [0, 2, 3]  # the first view of each
    assert not batch.second_rows.any()
    assert len(batch.input_ids) == len(batch.attention_mask) == 3
    assert batch.input_ids.shape[1] == int(batch.attention_mask.sum(1).max())  # no longer than the longest
    assert batch.groups[0] == batch.groups[3]  # equal texts
    assert len(set(batch.groups.tolist())) == 3
    assert batch.known.all(1).tolist() == batch.known.any(1).tolist() == [True, True, True, False]


def test_two_views_come_behind_all_first_ones(studies, tokenizer):
    batch = make_batch(studies, tokenizer, choose_batch(studies, np.arange(4), PLAIN, views=2), PLAIN)
    assert batch.pixels[:, 0, 0, 0].tolist() == [0, 2, 3, 1]
    assert batch.second_rows.tolist() == [True, False, False]
    assert len(batch.changes) == len(batch.pixels)


@pytest.mark.parametrize(
    ("views", "share", "expected"),
    [(1, 0.0, {(0, -1)}), (1, 1.0, {(1, -1)}), (1, 0.5, {(0, -1), (1, -1)}), (2, 0.0, {(0, 1)})],
)
def test_lateral_share_picks_the_views(studies, views, share, expected):
    config = replace(PLAIN, views=views, lateral_share=share)
    seen = draw(studies, np.zeros(64, np.int64), config).views
    assert {tuple(row) for row in seen.tolist()} == expected


def test_two_views_are_seen_together_first_alone_and_second_alone(studies):
    seen = draw(studies, np.zeros(600, np.int64), replace(PLAIN, views=2, lateral_share=0.25)).views.tolist()
    shares = [np.mean([row == wanted for row in seen]) for wanted in ([0, 1], [0, -1], [1, -1])]
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.07)


def test_impressions_are_read_where_there_are_some(studies):
    config = replace(PLAIN, impression_share=1.0)
    found = draw(studies, [0, 2, 3], config)
    assert found.texts == ("effusion", "large heart", TEXTS[3])
    assert len(set(found.groups.tolist())) == 3  # no longer the same words


def test_masked_and_shuffled_texts(studies):
    assert draw(studies, [2], replace(PLAIN, masked_share=1.0)).texts == (
        f"the heart is large and the {HIDDEN} is {HIDDEN}",
    )
    config = replace(PLAIN, shuffled_share=1.0)
    seen = {draw(studies, [0], config, seed).texts[0] for seed in range(20)}
    assert seen == {TEXTS[0], "heart is large. small effusion on the left."}


def test_word_dropout_hides_word_pieces_and_nothing_else(studies, tokenizer):
    config = replace(PLAIN, word_dropout=0.5)
    rows = np.zeros(50, np.int64)
    plain = make_batch(studies, tokenizer, draw(studies, rows, PLAIN), PLAIN)
    hidden = make_batch(studies, tokenizer, draw(studies, rows, config), config)
    changed = plain.input_ids != hidden.input_ids
    assert (hidden.input_ids[changed] == tokenizer.mask_id).all()
    ends = (plain.input_ids == tokenizer.cls_id) | (plain.input_ids == tokenizer.sep_id)
    assert not changed[ends].any()
    assert 0.4 < float(changed[~ends].float().mean()) < 0.6
    chosen = choose_batch(studies, rows, config)
    assert (make_batch(studies, tokenizer, chosen, config).input_ids == plain.input_ids).all()


def test_dropped_text_leaves_the_images_and_never_a_text_alone(studies, tokenizer):
    config = replace(PLAIN, text_dropout=1.0)
    batch = make_batch(studies, tokenizer, draw(studies, np.arange(4), config), config)
    assert not batch.text_rows.any()
    assert len(batch.input_ids) == len(batch.attention_mask) == 0
    assert len(batch.pixels) == 3
    assert draw(studies, [2], config).texts == (TEXTS[2],)


def test_a_silent_text_stands_beside_an_image_alone(studies):
    config = replace(PLAIN, silent_share=1.0)
    seen = set()
    for seed in range(60):
        found = draw(studies, [0, 1, 2, 3], config, seed)
        assert found.silent.tolist() == [True, False, False, True]  # "b" has no text, "c" no image
        assert found.texts[1:3] == TEXTS[1:3]
        seen.add(found.texts[0])
    strangers = {TEXTS[2], TEXTS[3]}  # the last is equal to its own text
    parts = {"", "small effusion on the left.", "heart is large."}
    assert seen == {"cough"} | strangers | parts
    assert not draw(studies, [0, 1, 2, 3], PLAIN).silent.any()
    assert draw(studies, [0], config, 1).texts[0] in {"cough"} | parts  # nobody else is in the batch


def test_a_share_of_the_texts_is_silent(studies):
    config = replace(PLAIN, silent_share=0.25)
    counts = [draw(studies, [0, 3], config, seed).silent.sum() for seed in range(400)]
    assert 0.2 < np.mean(counts) / 2 < 0.3


def test_words_are_compared_where_asked_for(studies):
    first = "the heart is large and the aorta is tortuous and calcified and long"
    texts = (first, first.replace("long", "wide"), "small effusion on the left", "")
    changed = replace(studies, texts=texts)
    rows = np.arange(4)
    plain = draw_batch(changed, rows, PLAIN, np.random.default_rng(0))
    compared = draw_batch(changed, rows, PLAIN, np.random.default_rng(0), compare_words=True)
    assert len(set(plain.wordings.tolist())) == 4
    assert compared.wordings[0] == compared.wordings[1]
    assert len(set(compared.wordings.tolist())) == 3
    assert compared.texts == plain.texts
    np.testing.assert_array_equal(compared.changes, plain.changes)


def test_studies_with_a_rare_label_are_drawn_more_often():
    """Of 1000 studies 4 have the first label, known of 400; 40 have the second one, and 500 the third."""
    targets, known = np.zeros((1000, 22), bool), np.ones((1000, 22), bool)
    targets[:4, 0] = targets[100:140, 1] = targets[500:, 2] = True
    known[400:, 0] = False
    targets[900, 0] = True  # unknown, so it does not count
    studies = SimpleNamespace(targets=targets, known=known)
    rows = np.arange(1000)
    drawn = [draw_rows(rows, studies, 0.04, np.random.default_rng(seed)) for seed in range(200)]
    assert all(len(one) == 1000 and (np.diff(one) >= 0).all() for one in drawn)
    counts = np.stack([np.bincount(one, minlength=1000) for one in drawn])
    # A share of 1 % against 4 % is drawn twice as often, the rest once: 1004 in all for 1000 places.
    expected = np.where(rows < 4, 2.0, 1.0) / 1004 * 1000
    assert np.abs(counts.mean(0) - expected).max() < 0.15
    assert counts.max() == 2
    assert draw_rows(rows, studies, 0.0, np.random.default_rng(0)) is rows
    again = draw_rows(rows, studies, 0.04, np.random.default_rng(3))
    assert (again == drawn[3]).all()


def test_shares_of_a_draw_are_the_draw(studies, tokenizer):
    whole = draw(studies, np.arange(4), replace(PLAIN, word_dropout=0.3))
    parts = whole.split(3)
    assert [part.rows.tolist() for part in parts] == [[0, 3], [1], [2]]
    assert sorted(name for part in parts for name in part.groups.tolist()) == sorted(whole.groups.tolist())
    assert parts[0].groups[0] == parts[0].groups[1]
    np.testing.assert_array_equal(parts[0].changes, whole.changes[[0, 3]])
    assert len(draw(studies, [0, 1], PLAIN).split(5)) == 2


def test_every_row_is_drawn_once(studies):
    batches = draw_order(np.arange(4), studies, 3, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == [0, 1, 2, 3]
    assert max(map(len, batches)) == 3
    assert [rows.tolist() for rows in iterate_in_order(np.arange(5), 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("most", "length"), [(256, 256), (512, 402)])
def test_as_many_word_pieces_are_read_as_the_config_says(studies, tokenizer, most, length):
    long = replace(studies, texts=("heart " * 400, "", "", ""))
    config = replace(PLAIN, max_length=most)
    assert make_batch(long, tokenizer, choose_batch(long, np.arange(1), config), config).input_ids.shape == (
        1,
        length,
    )
