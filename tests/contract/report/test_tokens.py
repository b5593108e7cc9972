"""Which token ids and masks are refused before they reach a graph."""

import numpy as np
import pytest

from contract.errors import ArtifactError, TensorError
from contract.report.tokens import TokenLimits

LIMITS = TokenLimits(vocabulary_size=120, max_length=64)


def make_ids(*shape: int, fill: int = 5) -> np.ndarray:
    return np.full(shape, fill, np.int64)


def make_mask(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


@pytest.mark.parametrize(
    ("input_ids", "mask"),
    [
        (make_ids(1, 1, fill=0), make_mask([1])),
        (make_ids(1, 64, fill=119), np.ones((1, 64), np.int64)),
        (make_ids(2, 4), make_mask([1, 0, 0, 0], [1, 1, 1, 1])),
        (make_ids(32, 33), np.ones((32, 33), np.int64)),
    ],
)
def test_what_a_tokenizer_makes_is_taken(input_ids, mask):
    LIMITS.check(input_ids, mask)


BAD = {
    "a negative id": (make_ids(1, 4, fill=-1), np.ones((1, 4), np.int64), "ids from 0 to 119"),
    "an id of the vocabulary's size": (
        make_ids(1, 4, fill=120),
        np.ones((1, 4), np.int64),
        "ids from 0 to 119",
    ),
    "the smallest id there is": (
        make_ids(1, 4, fill=-(2**63)),
        np.ones((1, 4), np.int64),
        "ids from 0 to 119",
    ),
    "one bad id among good ones": (
        np.array([[5, 5], [5, 10**6]]),
        np.ones((2, 2), np.int64),
        "ids from 0 to 119",
    ),
    "no token": (make_ids(1, 0), make_ids(1, 0), "1 to 64 tokens of each text, not 0"),
    "a token too many": (make_ids(1, 65), np.ones((1, 65), np.int64), "1 to 64 tokens of each text, not 65"),
    "a huge array": (make_ids(1, 10**6), np.ones((1, 10**6), np.int64), "not 1000000"),
    "a shorter mask": (make_ids(1, 4), np.ones((1, 3), np.int64), r"one shape, not \[1, 4\] and \[1, 3\]"),
    "a mask of sevens": (make_ids(1, 4), make_mask([7, 7, 7, 7]), "attention_mask must be 1"),
    "a negative mask": (make_ids(1, 4), make_mask([1, 1, -1, -1]), "attention_mask must be 1"),
    "an empty mask": (make_ids(2, 2), make_mask([1, 1], [0, 0]), "attention_mask must be 1"),
    "a mask with a hole": (make_ids(1, 4), make_mask([1, 0, 1, 0]), "attention_mask must be 1"),
    "padding first": (make_ids(1, 4), make_mask([0, 1, 1, 1]), "attention_mask must be 1"),
    "a mask that wraps round": (make_ids(1, 2), make_mask([-(2**63), 2**63 - 1]), "attention_mask must be 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_tokenizer_makes_is_refused(name):
    input_ids, mask, words = BAD[name]
    with pytest.raises(TensorError, match=words) as info:
        LIMITS.check(input_ids, mask)
    assert "1000000" not in str(info.value) or "huge" in name  # no id of a text in a message


def test_a_vocabulary_that_nobody_said_refuses_negative_ids():
    limits = TokenLimits(None, 64)
    limits.check(make_ids(1, 2, fill=10**9), np.ones((1, 2), np.int64))
    with pytest.raises(TensorError, match="ids from 0"):
        limits.check(make_ids(1, 2, fill=-1), np.ones((1, 2), np.int64))


def test_text_tokens_are_as_many_as_ids():
    tensors = {"input_ids": make_ids(1, 4), "attention_mask": np.ones((1, 4), np.int64)}
    LIMITS.check_inputs({**tensors, "text_tokens": np.zeros((1, 4, 8), np.float32)})
    with pytest.raises(TensorError, match="one token for each id"):
        LIMITS.check_inputs({**tensors, "text_tokens": np.zeros((1, 3, 8), np.float32)})


def test_limits_lie_in_the_directory_of_a_version(tmp_path):
    assert TokenLimits.find(tmp_path) is None
    with pytest.raises(ArtifactError, match=r"no .*token_limits\.json\. Publish the model again"):
        TokenLimits.read(tmp_path)
    LIMITS.write(tmp_path)
    assert TokenLimits.find(tmp_path) == TokenLimits.read(tmp_path) == LIMITS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"vocabulary_size": "x", "max_length": 1}', "\xe9"])
def test_damaged_limits_are_no_limits(tmp_path, text):
    (tmp_path / "token_limits.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"token_limits\.json cannot be read"):
        TokenLimits.find(tmp_path)
