"""Studies become batches: which view, which text, and what is left out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contract.errors import ConfigError
from contract.text import ReportTokenizer, train_tokenizer
from training.data import StudySet, augment, draw_batches, encode_texts, load_images, make_batch, read_studies

TEXTS = (
    "small effusion on the left",
    "",
    "the heart is large and the aorta is tortuous",
    "small effusion on the left",
)
IMPRESSIONS = ("effusion", "", "large heart", "")


@pytest.fixture(scope="module")
def studies() -> StudySet:
    pixels = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(8, 2).repeat(8, 3)
    return StudySet(
        study_ids=("a", "b", "c", "d"),
        patient_ids=("a", "b", "c", "d"),
        texts=TEXTS,
        impressions=IMPRESSIONS,
        wordings=(TEXTS, TEXTS),
        views=((0, 1), (2,), (), (3,)),
        pixels=pixels,
        targets=np.eye(4, 22, dtype=bool),
        labelled=np.array([True, True, True, False]),
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    train_tokenizer([text for text in TEXTS if text] * 4, path, 200)
    return encode_texts(ReportTokenizer.load(path), (*TEXTS, *IMPRESSIONS), 64)


def test_batch_holds_only_the_rows_that_have_an_image_or_a_text(studies, tokens):
    batch = make_batch(studies, tokens, np.arange(4))
    assert batch.image_rows.tolist() == [True, True, False, True]
    assert batch.text_rows.tolist() == [True, False, True, True]
    assert batch.pixels[:, 0, 0, 0].tolist() == [0, 2, 3]  # the first view of each
    assert len(batch.input_ids) == len(batch.attention_mask) == 3
    assert batch.groups[0] == batch.groups[3]  # equal texts
    assert len(set(batch.groups.tolist())) == 3
    assert batch.labelled.tolist() == [True, True, True, False]


@pytest.mark.parametrize(("share", "expected"), [(0.0, {0}), (1.0, {1}), (0.5, {0, 1})])
def test_lateral_share_picks_the_view(studies, tokens, share, expected):
    generator = np.random.default_rng(0)
    rows = np.zeros(64, dtype=np.int64)
    batch = make_batch(studies, tokens, rows, generator, lateral_share=share)
    assert set(batch.pixels[:, 0, 0, 0].tolist()) == expected


def test_impression_share_reads_the_impression_where_there_is_one(studies, tokens):
    generator = np.random.default_rng(0)
    full = make_batch(studies, tokens, np.array([0, 2, 3]))
    short = make_batch(studies, tokens, np.array([0, 2, 3]), generator, impression_share=1.0)
    full_lengths, short_lengths = full.attention_mask.sum(1), short.attention_mask.sum(1)
    assert (short_lengths[:2] < full_lengths[:2]).all()
    assert short_lengths[2] == full_lengths[2]  # it has no impression
    assert full.groups[0] == full.groups[2]
    assert short.groups[0] != short.groups[2]  # no longer the same words


def test_dropped_text_leaves_the_images(studies, tokens):
    batch = make_batch(studies, tokens, np.arange(4)).drop_text()
    assert not batch.text_rows.any()
    assert len(batch.input_ids) == len(batch.attention_mask) == 0
    assert len(batch.pixels) == 3
    text_only = make_batch(studies, tokens, np.array([2]))
    assert text_only.drop_text() is text_only


def test_every_row_is_drawn_once(tokens):
    batches = draw_batches(np.arange(4), tokens, 3, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == [0, 1, 2, 3]
    assert max(map(len, batches)) == 3


def test_unreadable_images_are_left_out_and_told(tmp_path: Path, caplog):
    Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image of MRN-4711")
    paths = [str(tmp_path / name) for name in ("bad.png", "good.png", "missing.png")]
    seen = []
    pixels, places = load_images(paths, 16, lambda done, total: seen.append((done, total)))
    assert places == [None, 0, None]
    assert pixels.shape == (1, 1, 16, 16)
    assert seen[-1] == (3, 3)
    assert "bad.png" in caplog.text
    assert "No such file" in caplog.text
    assert "MRN-4711" not in caplog.text


def test_many_unreadable_images_do_not_flood_the_log(caplog):
    pixels, places = load_images([f"missing-{number}.png" for number in range(100)], 16)
    assert pixels.shape == (0, 1, 16, 16)
    assert places == [None] * 100
    assert len(caplog.messages) == 6
    assert caplog.messages[-1] == "Leaving out 95 more images."


def test_augmented_images_stay_in_range_and_differ():
    pixels = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    first, second = (augment(pixels, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert first.shape == pixels.shape
    assert first.min() >= 0
    assert first.max() <= 255
    assert not torch.equal(first, second)
    assert torch.equal(first, augment(pixels, torch.Generator().manual_seed(0)))


def test_a_missing_table_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="cxr data table"):
        read_studies(tmp_path / "none.parquet", "findings", 32)
