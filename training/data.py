"""The studies table as arrays: pixels (uint8, in memory or a cache), token ids, targets; and batches of them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from contract.errors import ConfigError
from contract.labels import LABEL_INDEX, LABELS
from contract.text import ReportTokenizer, TextMode
from training.cache import open_cache
from training.decode import DecodedFile, decode_file
from training.openi import read_table, read_text

Progress = Callable[[int, int], None]
logger = logging.getLogger(__name__)
_NAMED_REFUSALS = 5
_ROWS_PER_POOL = 8  # batches: studies are sorted by text length inside a pool, so that padding stays small


@dataclass(frozen=True)
class StudySet:
    """All studies of a table; M studies, P images.

    Attributes:
        study_ids: M names.
        patient_ids: M names.
        texts: What the model reads of each report; "" where there is nothing to read.
        impressions: The same where the report had no findings section; often shorter, as a sentence asked for.
        wordings: Two readings of M texts, from `read_wordings`.
        views: For each study the rows of `pixels` that show it, frontal first; empty without images.
        pixels: (P, 1, S, S) uint8; of a cache, on the disk and with images of other studies too.
        targets: (M, K) bool.
        labelled: (M,) bool; False where nobody indexed the report, so that no label means nothing.
        unreadable: How many image files could not be read.
    """

    study_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    texts: tuple[str, ...]
    impressions: tuple[str, ...]
    wordings: tuple[tuple[str, ...], ...]
    views: tuple[tuple[int, ...], ...]
    pixels: NDArray[np.uint8]
    targets: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.study_ids)

    def get_text(self, place: int) -> str:
        """Return the text of a row of `Tokens`: a report's, or behind them all an impression's."""
        return self.texts[place] if place < len(self) else self.impressions[place - len(self)]

    def has(self, kind: str) -> NDArray[np.bool_]:
        """Return (M,) bool: which studies can be read as "image", "text" or "study" (both)."""
        image = np.array([bool(rows) for rows in self.views], dtype=bool)
        text = np.array([bool(words) for words in self.texts], dtype=bool)
        return {"image": image, "text": text, "study": image & text}[kind]


@dataclass(frozen=True)
class Tokens:
    """Token ids and mask of M texts and then of M impressions, (2 M, L) int64; those of "" hold no token."""

    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class Batch:
    """B studies; the image tensors hold only the rows that have one, and the same for text.

    `image_rows` and `text_rows` (bool, (B,)) say which rows those are.
    """

    pixels: Tensor  # (B_image, 1, S, S) uint8
    input_ids: Tensor  # (B_text, L)
    attention_mask: Tensor  # (B_text, L)
    image_rows: Tensor
    text_rows: Tensor
    targets: Tensor  # (B, K) float
    labelled: Tensor  # (B,) bool
    groups: Tensor  # (B,) int64, equal for equal texts

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def drop_text(self) -> "Batch":
        """Return the batch with its images alone, or unchanged where it has none."""
        if not len(self.pixels):
            return self
        return replace(
            self,
            input_ids=self.input_ids[:0],
            attention_mask=self.attention_mask[:0],
            text_rows=torch.zeros_like(self.text_rows),
        )


def read_studies(
    table: Path, mode: TextMode, size: int, progress: Progress | None = None, *, cache: Path | None = None
) -> StudySet:
    """Read a studies table and every image it names.

    Args:
        table: Parquet file made by `training.openi.write_table`.
        mode: Which part of the reports the model reads.
        size: Side of the square images, in pixels.
        progress: Called with images read and images in all.
        cache: Directory made by `training.cache.fill_cache`, to map images from instead of decoding them.

    Raises:
        ConfigError: No study of the table has anything to read, none of its images can be read, or the cache
            lacks one.
        ArtifactError: The table or the cache is damaged.
    """
    rows = [row for row in read_texts(table, mode) if row["image_paths"] or row["text"]]
    if not rows:
        raise ConfigError(f"{table} holds no study with an image or a report.")
    paths = [path for row in rows for path in row["image_paths"]]
    if cache is None:
        pixels, places = load_images(paths, size, progress)
    else:
        opened = open_cache(cache, size)
        pixels, places = opened.pixels, opened.find_rows(paths)
    if paths and all(place is None for place in places):
        raise ConfigError(
            f"None of the {len(paths):,} images of {table} can be read, the first being {paths[0]}."
        )
    places_left = iter(places)
    views = [[next(places_left) for _ in row["image_paths"]] for row in rows]
    return StudySet(
        study_ids=tuple(row["study_id"] for row in rows),
        patient_ids=tuple(row["patient_id"] for row in rows),
        texts=tuple(row["text"] for row in rows),
        impressions=tuple(read_text({**row, "findings": ""}, mode) for row in rows),
        wordings=read_wordings(rows),
        views=tuple(tuple(place for place in study if place is not None) for study in views),
        pixels=pixels,
        targets=make_targets([row["labels"] for row in rows]),
        labelled=np.array([row["labelled"] for row in rows], dtype=bool),
        unreadable=sum(place is None for place in places),
    )


def read_wordings(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the findings and the whole reports of rows of a studies table.

    Studies that are nearly equal in either belong on one side of a split, whichever part the model reads: equal
    findings are equal inputs, and equal reports come from one template.
    """
    return (
        tuple(read_text(row, "findings") for row in rows),
        tuple(read_text(row, "full") for row in rows),
    )


def load_images(
    paths: Sequence[str], size: int, progress: Progress | None = None
) -> tuple[NDArray[np.uint8], list[int | None]]:
    """Read images in parallel.

    Threads, not processes: NumPy, OpenCV and the codecs leave the interpreter free while they work, and
    nothing has to be copied between processes.

    Returns:
        (P, 1, size, size) uint8 of the images that could be read, and for each path its row, or None. The log names
        the first few of the others.
    """
    pixels = np.zeros((len(paths), 1, size, size), dtype=np.uint8)
    places: list[int | None] = []
    refused: list[DecodedFile] = []
    with ThreadPoolExecutor() as pool:
        for done, file in enumerate(pool.map(lambda path: decode_file(path, size), paths), start=1):
            if file.pixels is None:
                refused.append(file)
                places.append(None)
            else:
                places.append(done - 1 - len(refused))
                pixels[done - 1 - len(refused)] = file.pixels
            if progress is not None:
                progress(done, len(paths))
    for file in refused[:_NAMED_REFUSALS]:
        logger.warning("Leaving out %s: %s", file.path, file.reason)
    if len(refused) > _NAMED_REFUSALS:
        logger.warning("Leaving out %d more images.", len(refused) - _NAMED_REFUSALS)
    return pixels[: len(paths) - len(refused)], places


def make_targets(labels: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """Turn the label keys of M studies into (M, K) bool."""
    targets = np.zeros((len(labels), len(LABELS)), dtype=bool)
    for row, keys in enumerate(labels):
        targets[row, [LABEL_INDEX[key] for key in keys]] = True
    return targets


def encode_texts(tokenizer: ReportTokenizer, texts: Sequence[str], max_length: int) -> Tokens:
    """Encode all texts at once; a text of "" becomes a row without tokens."""
    encoded = tokenizer.encode([text or "none" for text in texts], max_length)
    mask = torch.from_numpy(encoded.attention_mask).clone()
    mask[[not text for text in texts]] = 0
    return Tokens(torch.from_numpy(encoded.input_ids).clone(), mask)


def draw_batches(
    rows: NDArray[np.int64], tokens: Tokens, batch_size: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Shuffle rows into batches whose texts have similar lengths."""
    lengths = tokens.attention_mask.sum(1).numpy()
    shuffled = generator.permutation(rows)
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(shuffled), batch_size * _ROWS_PER_POOL):
        pool = shuffled[start : start + batch_size * _ROWS_PER_POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[place] for place in generator.permutation(len(batches))]


def make_batch(
    studies: StudySet,
    tokens: Tokens,
    rows: NDArray[np.int64],
    generator: np.random.Generator | None = None,
    *,
    lateral_share: float = 0.5,
    impression_share: float = 0.0,
) -> Batch:
    """Gather the studies `rows`.

    Args:
        studies: All studies.
        tokens: Their encoded texts and impressions.
        rows: (B,) places in `studies`.
        generator: Picks one view of each study at random; without it the first (frontal) view is taken.
        lateral_share: How often another view than the first is picked, where there is one.
        impression_share: How often the impression is read in the place of the text, where there is one.
    """
    views = [studies.views[row] for row in rows]
    chosen = [_pick_view(view, generator, lateral_share) for view in views if view]
    read = np.array(
        [_pick_text(studies, int(row), generator, impression_share) for row in rows], dtype=np.int64
    )
    mask = tokens.attention_mask[read]
    text_rows = mask.sum(1) > 0
    length = max(int(mask.sum(1).max()), 1)
    names: dict[str, int] = {}
    words = [studies.get_text(place) or studies.study_ids[row] for place, row in zip(read, rows, strict=True)]
    groups = [names.setdefault(text, len(names)) for text in words]
    return Batch(
        pixels=torch.from_numpy(studies.pixels[chosen]),
        input_ids=tokens.input_ids[read][text_rows, :length],
        attention_mask=mask[text_rows, :length],
        image_rows=torch.tensor([bool(view) for view in views]),
        text_rows=text_rows,
        targets=torch.from_numpy(studies.targets[rows]).float(),
        labelled=torch.from_numpy(studies.labelled[rows]),
        groups=torch.tensor(groups),
    )


def _pick_text(
    studies: StudySet, row: int, generator: np.random.Generator | None, impression_share: float
) -> int:
    """Return the row of `Tokens` that is read of one study."""
    if generator is None or not studies.impressions[row] or generator.random() >= impression_share:
        return row
    return len(studies) + row


def _pick_view(view: tuple[int, ...], generator: np.random.Generator | None, lateral_share: float) -> int:
    if generator is None or len(view) == 1 or generator.random() >= lateral_share:
        return view[0]
    return view[int(generator.integers(1, len(view)))]


def iterate_in_order(rows: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield rows in batches, in their order."""
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, scale and expose (B, 1, S, S) images a little differently; returns float32 of 0 to 255.

    No mirroring: the heart lies on one side. Borders are filled with black, as `load_pixels` pads.
    """
    count = len(pixels)
    images = pixels.float() / 255.0
    draw = torch.rand((count, 6), generator=generator).to(pixels.device) * 2.0 - 1.0  # -1 to 1
    scale, turn = 1.0 + 0.1 * draw[:, 0], 0.09 * draw[:, 1]  # up to 10 % and 5 degrees
    cosine, sine = scale * torch.cos(turn), scale * torch.sin(turn)
    shift = 0.1 * draw[:, 2:4]
    matrix = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], dim=1).view(count, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    gamma = torch.exp(0.25 * draw[:, 4]).view(-1, 1, 1, 1)
    gain = (1.0 + 0.1 * draw[:, 5]).view(-1, 1, 1, 1)
    return (moved.clamp(1e-4, 1.0) ** gamma * gain).clamp(0.0, 1.0) * 255.0


def read_texts(table: Path, mode: TextMode) -> list[dict[str, Any]]:
    """Return the rows of a studies table, each with "text": what the model reads of its report, or ""."""
    return [{**row, "text": read_text(row, mode)} for row in read_table(table).to_pylist()]
