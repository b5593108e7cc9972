"""Model text to token ids."""

import json
import subprocess
import sys

import numpy as np
import pytest

from contract.errors import ArtifactError, InputError
from contract.report.text import SPECIAL_TOKENS, Report, ReportTokenizer, select_text, train_tokenizer
from contract.tensors import LENGTH_BUCKETS

TEXTS = [
    "The heart is enlarged. There is a left pleural effusion.",
    "The lungs are clear. No pneumothorax.",
    "Calcified granuloma in the right upper lobe.",
]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(TEXTS * 3, path, vocab_size=200)
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return ReportTokenizer.load(tokenizer_path)


def test_training_is_deterministic(tokenizer_path, tmp_path):
    train_tokenizer(reversed(TEXTS * 3), tmp_path / "other.json", vocab_size=200)
    assert (tmp_path / "other.json").read_bytes() == tokenizer_path.read_bytes()
    script = (
        "import pathlib, sys; from contract.report.text import train_tokenizer; "
        f"train_tokenizer({TEXTS!r} * 3, pathlib.Path(sys.argv[1]), vocab_size=200)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "process.json")], check=True)
    assert (tmp_path / "process.json").read_bytes() == tokenizer_path.read_bytes()


def test_vocabulary_starts_with_the_special_tokens(tokenizer, tokenizer_path):
    vocabulary = json.loads(tokenizer_path.read_text())["model"]["vocab"]
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (0, 2, 3, 4)
    assert tokenizer.vocabulary_size == len(vocabulary) <= 200


def test_a_full_disk_is_an_os_error(monkeypatch, tmp_path):
    """So that `contract.bundle.write_directory` reports it."""
    pytest.importorskip("tokenizers")
    with pytest.raises(OSError, match="No such file"):
        train_tokenizer(TEXTS, tmp_path / "missing" / "tokenizer.json")


@pytest.mark.parametrize("content", [None, "", "{}", "no json", '{"model": null}'])
def test_no_tokenizer_file(tmp_path, content):
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtifactError, match=r"tokenizer"):
        ReportTokenizer.load(path)


def test_missing_special_tokens_are_named(tokenizer_path, tmp_path):
    content = json.loads(tokenizer_path.read_text())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != "[MASK]"]
    vocabulary = content["model"]["vocab"]
    vocabulary["unused"] = vocabulary.pop("[MASK]")
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"lacks the special tokens \[MASK\]\.$"):
        ReportTokenizer.load(tmp_path / "tokenizer.json")


def test_tokens_are_framed_and_padded(tokenizer):
    batch = tokenizer.encode(TEXTS)
    assert batch.input_ids.shape == batch.attention_mask.shape == (3, 32)
    assert batch.spans.shape == (3, 32, 2)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
    assert batch.spans.dtype == np.int32
    assert batch.truncated == (False, False, False)
    for ids, mask, spans in zip(batch.input_ids, batch.attention_mask, batch.spans, strict=True):
        length = mask.sum()
        assert mask[:length].all()
        assert ids[0] == tokenizer.cls_id
        assert ids[length - 1] == tokenizer.sep_id
        assert (ids[length:] == tokenizer.pad_id).all()
        assert (ids[1 : length - 1] > 4).all()
        assert not spans[0].any()
        assert not spans[length - 1 :].any()


@pytest.mark.parametrize("text", [*TEXTS, "\u00c9panchement \u2014 c\u0153ur \u5fc3", "HEART  heart"])
def test_spans_point_at_the_text(tokenizer, text):
    batch = tokenizer.encode([text])
    length = batch.attention_mask[0].sum()
    pieces = [text[start:end] for start, end in batch.spans[0, 1 : length - 1]]
    assert all(pieces)
    assert "".join(pieces) == "".join(text.split())


def test_masked_words_are_one_mask_token(tokenizer):
    text = select_text(Report(findings="The heart is enlarged."), "findings_masked")
    ids = tokenizer.encode([text]).input_ids[0]
    assert (ids == tokenizer.mask_id).sum() == 1
    assert not (ids == 1).any()  # [UNK]


@pytest.mark.parametrize(
    ("words", "max_length", "length", "truncated"),
    [
        (1, 256, 32, False),
        (30, 256, 32, False),
        (31, 256, 64, False),
        (62, 256, 64, False),
        (63, 256, 128, False),
        (126, 256, 128, False),
        (127, 256, 256, False),
        (254, 256, 256, False),
        (255, 256, 256, True),
        (999, 256, 256, True),
        (30, 32, 32, False),
        (31, 32, 32, True),
        (40, 100, 64, False),
        (70, 100, 100, False),
        (98, 100, 100, False),
        (99, 100, 100, True),
        (300, 512, 512, False),
    ],
)
def test_buckets_and_truncation(tokenizer, words, max_length, length, truncated):
    batch = tokenizer.encode([" ".join(["heart"] * words)], max_length)
    assert batch.input_ids.shape == (1, length)
    assert batch.truncated == (truncated,)
    assert batch.attention_mask.sum() == min(words + 2, length)
    assert batch.input_ids[0, batch.attention_mask.sum() - 1] == tokenizer.sep_id
    assert length in LENGTH_BUCKETS or length == max_length


def test_a_text_has_the_same_tokens_alone_and_in_a_batch(tokenizer):
    texts = ["heart", "heart " * 40, ""]
    batch = tokenizer.encode(texts)
    assert batch.input_ids.shape == (3, 64)
    for row, text in enumerate(texts):
        alone = tokenizer.encode([text])
        count = alone.attention_mask.sum()
        assert np.array_equal(batch.input_ids[row, :count], alone.input_ids[0, :count])
        assert batch.attention_mask[row].sum() == count
    assert batch.attention_mask[2].sum() == 2


def test_one_text_is_no_series_of_texts(tokenizer, tmp_path):
    with pytest.raises(InputError, match="texts must be a list of strings, not one string"):
        tokenizer.encode("The lungs are clear.")
    with pytest.raises(InputError, match="not one string"):
        train_tokenizer("The lungs are clear.", tmp_path / "tokenizer.json")
    assert not list(tmp_path.iterdir())
