"""Batches: first draw which images and which text of each study are used (`Draw`), then make tensors (`Batch`)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.report.label_words import mask_label_words
from contract.report.text import ReportTokenizer
from training.augment import DRAWS
from training.config.settings import DataConfig
from training.data.duplicates import number_similar
from training.data.studies import StudySet

_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+")
_BATCHES_PER_POOL: Final = 8  # studies are sorted by text length inside a pool, which keeps padding small


@dataclass(frozen=True)
class Draw:
    """The random choices for a batch of B studies. They are cheap, and the same in every process.

    Every process of a data-parallel run draws the whole batch and computes only its own rows of it (`take`).

    Attributes:
        rows: (B,) int64 rows of the `StudySet`. texts: B texts to read; "" for none. silent: (B,) bool: whether the
        text does not describe the image. It is read together with the image, never alone. views: (B, 2) int64 rows of
        `StudySet.pixels`; -1 for none. groups: (B,) int64, equal for equal texts. wordings: (B,) int64, equal for
        nearly equal texts. changes: (B, 2, DRAWS) float32 in [0, 1) for `training.augment`. blanks: (B, max_length)
        float32 in [0, 1): word pieces below `word_dropout` are hidden.
    """

    rows: NDArray[np.int64]
    texts: tuple[str, ...]
    silent: NDArray[np.bool_]
    views: NDArray[np.int64]
    groups: NDArray[np.int64]
    wordings: NDArray[np.int64]
    changes: NDArray[np.float32]
    blanks: NDArray[np.float32]

    def take(self, selection: slice) -> "Draw":
        """Return some of the studies."""
        return Draw(**{name: values[selection] for name, values in vars(self).items()})

    def split(self, parts: int) -> "list[Draw]":
        """Split the studies into at most `parts` batches, none of them empty."""
        return [self.take(slice(part, None, parts)) for part in range(min(parts, len(self.rows)))]


@dataclass(frozen=True)
class Batch:
    """B studies as tensors. Image tensors hold only the B_image studies with an image; likewise for text."""

    pixels: Tensor  # (B_image + B_second, 1, S, S) uint8: the first views, then the second ones
    changes: Tensor  # (B_image + B_second, DRAWS) float32, for `training.augment`
    input_ids: Tensor  # (B_text, L)
    attention_mask: Tensor  # (B_text, L)
    image_rows: Tensor  # (B,) bool
    second_rows: Tensor  # (B_image,) bool: whether there is a second view
    text_rows: Tensor  # (B,) bool
    silent_rows: Tensor  # (B,) bool: texts that do not describe the image
    targets: Tensor  # (B, K) float
    known: Tensor  # (B, K) bool
    groups: Tensor  # (B,) int64, equal for equal texts
    wordings: Tensor  # (B,) int64, equal for nearly equal texts

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


def draw_rows(
    rows: NDArray[np.int64], studies: StudySet, rare_share: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the studies of an epoch: as many as there are, those with rare labels more often.

    The repeat factor of a label is sqrt(rare_share / share of the studies with the label), at least 1, and that of a
    study is the largest of its labels (Gupta et al. 2019, LVIS, arXiv:1908.03195, section 4). The epoch keeps its
    length, so common studies are drawn a little less often. The number of draws of a study is proportional to its
    factor, rounded up or down at random.

    Args:
        rows: (N,) rows of the training studies.
        studies: All studies. Unknown labels count neither as rare nor as common.
        rare_share: Share, 0 to 1, below which a label is rare; 0: every study once.
        generator: Source of the random choices.

    Returns:
        (N,) rows in their old order, some of them several times.
    """
    if not rare_share:
        return rows
    known = studies.known[rows]
    targets = studies.targets[rows] & known  # (N, K)
    shares = targets.sum(0) / known.sum(0).clip(min=1)
    factors = np.sqrt(rare_share / shares.clip(min=1e-9)).clip(min=1.0)  # (K,)
    counts = np.where(targets, factors, 1.0).max(1)  # (N,)
    edges = np.cumsum(counts / counts.sum())
    points = (np.arange(len(rows)) + generator.random()) / len(rows)
    return np.asarray(rows[np.searchsorted(edges, points).clip(max=len(rows) - 1)], np.int64)


def draw_order(
    rows: NDArray[np.int64], studies: StudySet, batch_size: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Shuffle rows into batches whose texts have similar lengths."""
    lengths = np.array([len(text) for text in studies.texts])
    shuffled = generator.permutation(rows)
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(shuffled), batch_size * _BATCHES_PER_POOL):
        pool = shuffled[start : start + batch_size * _BATCHES_PER_POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def draw_batch(
    studies: StudySet,
    rows: NDArray[np.int64],
    config: DataConfig,
    generator: np.random.Generator,
    *,
    compare_words: bool = False,
) -> Draw:
    """Draw the views, the text and the changes of each study for a training step.

    With `compare_words`, all pairs of texts are compared for `Draw.wordings`. Otherwise only equal texts are alike.
    """
    views = np.stack([_draw_views(studies.views[row], config, generator) for row in rows])
    texts = [_draw_text(studies, int(row), config, generator) for row in rows]
    if generator.random() < config.text_dropout and (views >= 0).any():
        texts = [""] * len(rows)
    silent = np.zeros(len(rows), bool)
    if config.silent_share:  # a share of the texts that come with an image
        both = np.array([bool(text) for text in texts], bool) & (views[:, 0] >= 0)
        silent = both & (generator.random(len(texts)) < config.silent_share)
        texts = _silence(studies, rows, texts, silent, generator)
    draw = _make_draw(studies, rows, views, texts, silent, config.max_length, generator)
    return (
        replace(draw, wordings=number_similar(_name_texts(studies, rows, texts))) if compare_words else draw
    )


def choose_batch(studies: StudySet, rows: NDArray[np.int64], config: DataConfig, *, views: int = 1) -> Draw:
    """Return studies for evaluation: the whole text, and the first view or (`views` = 2) both."""
    chosen = np.full((len(rows), 2), -1, np.int64)
    for index, row in enumerate(rows):
        views_of_study = studies.views[row][:views]
        chosen[index, : len(views_of_study)] = views_of_study
    texts, silent = [studies.texts[row] for row in rows], np.zeros(len(rows), bool)
    return _make_draw(studies, rows, chosen, texts, silent, config.max_length, None)


def _make_draw(
    studies: StudySet,
    rows: NDArray[np.int64],
    views: NDArray[np.int64],
    texts: Sequence[str],
    silent: NDArray[np.bool_],
    max_length: int,
    generator: np.random.Generator | None,
) -> Draw:
    shapes = ((len(rows), 2, DRAWS), (len(rows), max_length))
    changes, blanks = (
        np.ones(shape, np.float32) if generator is None else generator.random(shape, np.float32)
        for shape in shapes
    )
    groups = _number_equal(_name_texts(studies, rows, texts))
    return Draw(rows, tuple(texts), silent, views, groups, groups, changes, blanks)


def _number_equal(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return (B,), equal for equal texts."""
    names: dict[str, int] = {}
    return np.array([names.setdefault(text, len(names)) for text in texts], np.int64)


def _name_texts(studies: StudySet, rows: NDArray[np.int64], texts: Sequence[str]) -> list[str]:
    """Return the texts. A missing text is replaced by the study's id, which equals no other text."""
    return [text or studies.study_ids[row] for text, row in zip(texts, rows, strict=True)]


def _draw_views(
    available: Sequence[int], config: DataConfig, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the views of one study: (2,) rows of the pixels; -1 for none."""
    chance, other = generator.random(), int(generator.integers(1, max(2, len(available))))
    if not available:
        return np.array([-1, -1], np.int64)
    if len(available) > 1 and chance < config.lateral_share:
        return np.array([available[other], -1], np.int64)
    if len(available) == 1 or config.views == 1 or chance < 2 * config.lateral_share:
        return np.array([available[0], -1], np.int64)
    return np.array([available[0], available[other]], np.int64)


def _draw_text(studies: StudySet, row: int, config: DataConfig, generator: np.random.Generator) -> str:
    """Draw the text of one study."""
    impression, shuffled, masked = generator.random(3)
    text = studies.texts[row]
    if impression < config.impression_share:
        text = studies.impressions[row] or text
    if shuffled < config.shuffled_share:
        sentences = _SENTENCE_END.split(text)
        text = " ".join(sentences[index] for index in generator.permutation(len(sentences)))
    return mask_label_words(text) if masked < config.masked_share else text


def _silence(
    studies: StudySet,
    rows: NDArray[np.int64],
    texts: Sequence[str],
    silent: NDArray[np.bool_],
    generator: np.random.Generator,
) -> list[str]:
    """Replace each text to silence by some of its sentences, by the indication, or by another patient's text.

    Without such texts in training, a model trusts every text: a finding that the text does not mention is predicted as
    absent, whatever the image shows.
    """
    replaced = list(texts)
    for index in np.flatnonzero(silent):
        kind = generator.integers(3)
        if kind == 0:
            replaced[index] = _drop_sentences(texts[index], generator)
        elif kind == 1:
            replaced[index] = studies.indications[rows[index]]
        else:
            patient = studies.patient_ids[rows[index]]
            candidates = [
                text
                for row, text in zip(rows, texts, strict=True)
                if text and studies.patient_ids[row] != patient
            ]
            replaced[index] = candidates[generator.integers(len(candidates))] if candidates else ""
    return replaced


def _drop_sentences(text: str, generator: np.random.Generator) -> str:
    """Return some of the sentences of a text in their order, and leave out at least one."""
    sentences = _SENTENCE_END.split(text)
    count = generator.integers(len(sentences))
    indices = np.sort(generator.permutation(len(sentences))[:count])
    return " ".join(sentences[index] for index in indices)


def make_batch(studies: StudySet, tokenizer: ReportTokenizer, draw: Draw, config: DataConfig) -> Batch:
    """Return the studies of a draw as tensors."""
    image_rows, second_rows = draw.views[:, 0] >= 0, draw.views[:, 1] >= 0
    text_rows = np.array([bool(text) for text in draw.texts], bool)
    ids, mask = _encode(tokenizer, [text for text in draw.texts if text], draw.blanks[text_rows], config)
    pixel_rows = np.concatenate([draw.views[image_rows, 0], draw.views[second_rows, 1]])
    changes = np.concatenate([draw.changes[image_rows, 0], draw.changes[second_rows, 1]])
    return Batch(
        pixels=torch.from_numpy(studies.pixels[pixel_rows]),
        changes=torch.from_numpy(changes),
        input_ids=ids,
        attention_mask=mask,
        image_rows=torch.from_numpy(image_rows),
        second_rows=torch.from_numpy(second_rows[image_rows]),
        text_rows=torch.from_numpy(text_rows),
        silent_rows=torch.from_numpy(draw.silent),
        targets=torch.from_numpy(studies.targets[draw.rows]).float(),
        known=torch.from_numpy(studies.known[draw.rows]),
        groups=torch.from_numpy(draw.groups),
        wordings=torch.from_numpy(draw.wordings),
    )


def _encode(
    tokenizer: ReportTokenizer, texts: Sequence[str], blanks: NDArray[np.float32], config: DataConfig
) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B_text, L), with L as short as possible and some word pieces hidden."""
    if not texts:
        return torch.zeros((0, 1), dtype=torch.int64), torch.zeros((0, 1), dtype=torch.int64)
    encoded = tokenizer.encode(texts, config.max_length)
    length = int(encoded.attention_mask.sum(1).max())
    ids, mask = encoded.input_ids[:, :length].copy(), encoded.attention_mask[:, :length].copy()
    special = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id]
    ids[(blanks[:, :length] < config.word_dropout) & ~np.isin(ids, special)] = tokenizer.mask_id
    return torch.from_numpy(ids), torch.from_numpy(mask)


def iterate_in_order(rows: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield rows in batches, in their order."""
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]
