"""Check token ids and masks before they reach a graph, where a bad request would fail the whole batch.

A text is [CLS], word pieces, [SEP] and padding. The mask is 1 from the first token to the last one, and 0 after it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ArtifactError, TensorError
from contract.tensors import ATTENTION_MASK, INPUT_IDS, TEXT_TOKENS

Array = NDArray[Any]
LIMITS_FILE: Final = "token_limits.json"  # in the directory of a published version that reads token ids


@dataclass(frozen=True)
class TokenLimits:
    """The limits on the token ids of one model.

    Attributes:
        vocabulary_size: Ids are 0 to `vocabulary_size` - 1; None if unknown.
        max_length: Largest number of tokens of a text, L.
    """

    vocabulary_size: int | None
    max_length: int

    @classmethod
    def find(cls, directory: Path) -> "TokenLimits | None":
        """Return the limits in the directory of a published version; None if it has none.

        The limits belong to the version. They are not in config.pbtxt, which all versions of a model share.

        Raises:
            ArtifactError: The file is damaged.
        """
        path = directory / LIMITS_FILE
        try:
            values = json.loads(path.read_text(encoding="ascii"))
            return cls(int(values["vocabulary_size"]), int(values["max_length"]))
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read: {type(error).__name__}.") from error

    @classmethod
    def read(cls, directory: Path) -> "TokenLimits":
        """Like `find`, for a model that needs the limits. Raise ArtifactError if there are none."""
        if (limits := cls.find(directory)) is None:
            raise ArtifactError(
                f"There is no {directory / LIMITS_FILE}. Publish the model again with `cxr export`."
            )
        return limits

    def write(self, directory: Path) -> None:
        """Write the limits where `find` reads them."""
        (directory / LIMITS_FILE).write_text(f"{json.dumps(asdict(self))}\n", encoding="ascii")

    def check_inputs(self, tensors: Mapping[str, Array]) -> None:
        """Check the named inputs of one request to a graph that reads token ids, each of shape (B, ...).

        Raises:
            TensorError: See `check`; or the number of text tokens differs from the number of ids.
        """
        input_ids = tensors[INPUT_IDS.name]
        self.check(input_ids, tensors[ATTENTION_MASK.name])
        text_tokens = tensors.get(TEXT_TOKENS.name)  # (B, L, C)
        if text_tokens is not None and text_tokens.shape[:2] != input_ids.shape:
            raise TensorError(
                f"Tensor text_tokens must hold one token for each id of {list(input_ids.shape)}, not "
                f"{list(text_tokens.shape[:2])}."
            )

    def check(self, input_ids: Array, attention_mask: Array) -> None:
        """Check the ids and the mask of a batch, (B, L) int64 both.

        Raises:
            TensorError: The shapes differ, there is no token or too many, an id is outside the vocabulary, or a row of
                the mask is not one or more ones followed by zeros. The message holds sizes but no ids.
        """
        if input_ids.shape != attention_mask.shape:
            raise TensorError(
                f"Tensors input_ids and attention_mask must have one shape, not {list(input_ids.shape)} and "
                f"{list(attention_mask.shape)}."
            )
        if not 1 <= input_ids.shape[-1] <= self.max_length:
            raise TensorError(
                f"Tensor input_ids must hold 1 to {self.max_length} tokens of each text, not {input_ids.shape[-1]}."
            )
        end = np.iinfo(np.int64).max if self.vocabulary_size is None else self.vocabulary_size
        if not (int(input_ids.min(initial=0)) >= 0 and int(input_ids.max(initial=0)) < end):
            raise TensorError(f"Tensor input_ids must hold ids from 0 to {end - 1}, the model's vocabulary.")
        check_mask(attention_mask)


def check_mask(attention_mask: Array) -> None:
    """Raise TensorError unless each row of a mask, (B, L) int64, is one or more ones followed by zeros."""
    first, rest = attention_mask[..., :1], np.diff(attention_mask, axis=-1)
    is_binary = bool(((attention_mask == 0) | (attention_mask == 1)).all())
    if not (is_binary and bool((first == 1).all()) and bool((rest <= 0).all())):
        raise TensorError(
            "Tensor attention_mask must be 1 for each token of a text, at least one, and 0 for the padding after them."
        )
