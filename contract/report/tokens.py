"""Which token ids and masks the model can read; checked before they reach a graph, where a bad one costs the others.

The model reads a text as [CLS], word pieces, [SEP] and padding: the mask is 1 from the first token to the last one
and 0 behind it.
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
    """What bounds the token ids of one model.

    Attributes:
        vocabulary_size: Ids are 0 to `vocabulary_size` - 1; None where nobody said it.
        max_length: The most tokens of a text, L.
    """

    vocabulary_size: int | None
    max_length: int

    @classmethod
    def find(cls, directory: Path) -> "TokenLimits | None":
        """Return the limits that lie in the directory of a published version; None where there are none.

        They are the version's own: a config.pbtxt serves all versions of a model.

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
        """As `find`, of a model that cannot do without; ArtifactError where there are none."""
        if (limits := cls.find(directory)) is None:
            raise ArtifactError(
                f"There is no {directory / LIMITS_FILE}: publish the model again with `cxr export`."
            )
        return limits

    def write(self, directory: Path) -> None:
        """Write the limits where `find` reads them."""
        (directory / LIMITS_FILE).write_text(f"{json.dumps(asdict(self))}\n", encoding="ascii")

    def check_inputs(self, tensors: Mapping[str, Array]) -> None:
        """Check the named inputs of one request to a graph that reads token ids, each of shape (B, ...).

        Raises:
            TensorError: See `check`; or the text tokens are not as many as the ids.
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
            TensorError: They have different shapes, no token or too many, an id outside of the vocabulary, or a mask
                that is not ones and then zeros, at least one 1 in each row. The message holds sizes and no ids.
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
    """Raise TensorError unless each row of a mask, (B, L) int64, is ones and then zeros, at least one 1."""
    first, rest = attention_mask[..., :1], np.diff(attention_mask, axis=-1)
    is_binary = bool(((attention_mask == 0) | (attention_mask == 1)).all())
    if not (is_binary and bool((first == 1).all()) and bool((rest <= 0).all())):
        raise TensorError(
            "Tensor attention_mask must be 1 for each token of a text, at least one, and 0 for the padding behind them."
        )
