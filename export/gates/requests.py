"""The requests of the gates, and random requests for the gate at the server.

The random requests come from a fixed seed, so they are the same for every model of the same sizes. They hold no patient
data, so a published repository may hold the answers to them. Pixels are grey blocks with noise. Token ids are random
ids of the vocabulary. Such inputs are no radiographs or reports, but every weight of the model takes part in the
answers. Some studies have several views, up to `MAX_VIEWS`.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from contract.runtime.walk import Arrays
from contract.tensors import ATTENTION_MASK, INPUT_IDS, LENGTH_BUCKETS, MAX_VIEWS, PIXELS

Kind = Literal["study", "image", "text"]
_SEED: Final = 20_260_701
_BLOCKS: Final = 8  # on each side of an image
_NOISE: Final = 24  # largest change of a grey level
_IMAGES: Final = MAX_VIEWS  # in the batch of images, and of the study with the most views
_TEXTS: Final = 2  # in the batch of each length: the first without padding, the second with padding


@dataclass(frozen=True)
class Request:
    """One request: its kind and its batched tensors by name."""

    kind: Kind
    inputs: Arrays

    @property
    def batch_size(self) -> int:
        """The number of cases."""
        return len(next(iter(self.inputs.values())))

    @property
    def views(self) -> int:
        """The number of images of each case; 0 if the request has none."""
        return int(self.inputs[PIXELS.name].shape[1]) if PIXELS.name in self.inputs else 0


def draw_requests(image_size: int, vocabulary_size: int, max_length: int) -> list[Request]:
    """Return random requests of every kind, with one case and with several, and texts of every length bucket.

    The last ones hold studies of several views: of 2 to `MAX_VIEWS` alone, and of 2 in a batch.

    Args:
        image_size: Side of an image in pixels, S.
        vocabulary_size: Number of token ids.
        max_length: Largest number of tokens that the model reads.
    """
    # numpy promises that the stream of RandomState never changes.
    draw = np.random.RandomState(_SEED)
    images = _draw_images(draw, image_size)
    lengths = [*(bucket for bucket in LENGTH_BUCKETS if bucket < max_length), max_length]
    texts = [_draw_texts(draw, vocabulary_size, length) for length in lengths]
    single = {name: array[:1] for name, array in texts[0].items()}
    requests = [Request("image", {PIXELS.name: images[:1]}), Request("image", {PIXELS.name: images})]
    for batch in (single, *texts):
        pixels = images[: len(batch[INPUT_IDS.name])]
        requests += [Request("text", batch), Request("study", {PIXELS.name: pixels, **batch})]
    alone = [images[None, :count, 0] for count in range(2, MAX_VIEWS + 1)]
    pairs = images.reshape(_TEXTS, 2, *images.shape[2:])  # a batch of studies with two views each
    for pixels, batch in (*((views, single) for views in alone), (pairs, texts[-1])):
        requests += [
            Request("image", {PIXELS.name: pixels}),
            Request("study", {PIXELS.name: pixels, **batch}),
        ]
    return requests


def _draw_images(draw: np.random.RandomState, size: int) -> NDArray[np.uint8]:
    """Return pixels, (4, 1, S, S)."""
    block_of_pixel = np.arange(size) * _BLOCKS // size
    blocks = draw.randint(0, 256, (_IMAGES, _BLOCKS, _BLOCKS), dtype=np.int64)
    noise = draw.randint(-_NOISE, _NOISE + 1, (_IMAGES, size, size), dtype=np.int64)
    images = blocks[:, block_of_pixel[:, None], block_of_pixel[None, :]] + noise
    return np.clip(images, 0, 255).astype(np.uint8)[:, None]


def _draw_texts(draw: np.random.RandomState, vocabulary_size: int, length: int) -> Arrays:
    """Return token ids and attention mask, both (2, L) int64."""
    ids = draw.randint(0, vocabulary_size, (_TEXTS, length), dtype=np.int64)
    mask = np.ones_like(ids)
    mask[1, max(1, 2 * length // 3) :] = 0
    return {INPUT_IDS.name: ids * mask, ATTENTION_MASK.name: mask}
