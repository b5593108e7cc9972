"""The questions of the gate at the server: drawn from a fixed seed, the same for every model of the same sizes.

They hold nothing of any patient, so that their answers may lie in a published repository and be asked anywhere. Pixels
are blocks of grey with noise, token ids are any of the vocabulary. As radiographs or reports they mean nothing; that
every weight takes part in the answers is all that is asked of them.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from contract.runtime.walk import Arrays
from contract.tensors import ATTENTION_MASK, INPUT_IDS, LENGTH_BUCKETS, PIXELS

Kind = Literal["study", "image", "text"]
_SEED: Final = 20_260_701
_BLOCKS: Final = 8  # a side of the picture
_NOISE: Final = 24  # grey levels, up and down
_IMAGES: Final = 4  # in the batch of images
_TEXTS: Final = 2  # in the batch of each length: one that fills it, one with padding behind it


@dataclass(frozen=True)
class Question:
    """One request: its kind and its batched tensors by name."""

    kind: Kind
    inputs: Arrays

    @property
    def batch_size(self) -> int:
        """The number of cases."""
        return len(next(iter(self.inputs.values())))


def draw_questions(image_size: int, vocabulary_size: int, max_length: int) -> list[Question]:
    """Return every kind of question, a case alone and in batches, in every length of texts.

    Args:
        image_size: Side of the pixels, S.
        vocabulary_size: Token ids are below it.
        max_length: The most tokens of a text, L.
    """
    # RandomState, because numpy promises that its stream stays the same for ever.
    draw = np.random.RandomState(_SEED)
    images = _draw_images(draw, image_size)
    lengths = [*(bucket for bucket in LENGTH_BUCKETS if bucket < max_length), max_length]
    texts = [_draw_texts(draw, vocabulary_size, length) for length in lengths]
    alone = {name: array[:1] for name, array in texts[0].items()}
    questions = [Question("image", {PIXELS.name: images[:1]}), Question("image", {PIXELS.name: images})]
    for batch in (alone, *texts):
        pixels = images[: len(batch[INPUT_IDS.name])]
        questions += [Question("text", batch), Question("study", {PIXELS.name: pixels, **batch})]
    return questions


def _draw_images(draw: np.random.RandomState, size: int) -> NDArray[np.uint8]:
    """Return pixels, (4, 1, S, S)."""
    places = np.arange(size) * _BLOCKS // size
    blocks = draw.randint(0, 256, (_IMAGES, _BLOCKS, _BLOCKS), dtype=np.int64)
    noise = draw.randint(-_NOISE, _NOISE + 1, (_IMAGES, size, size), dtype=np.int64)
    pictures = blocks[:, places[:, None], places[None, :]] + noise
    return np.clip(pictures, 0, 255).astype(np.uint8)[:, None]


def _draw_texts(draw: np.random.RandomState, vocabulary_size: int, length: int) -> Arrays:
    """Return token ids and their mask, (2, L) both."""
    ids = draw.randint(0, vocabulary_size, (_TEXTS, length), dtype=np.int64)
    mask = np.ones_like(ids)
    mask[1, max(1, 2 * length // 3) :] = 0
    return {INPUT_IDS.name: ids * mask, ATTENTION_MASK.name: mask}
