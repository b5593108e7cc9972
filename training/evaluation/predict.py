"""Predictions of a bundle's PyTorch model, and the interface of all predictors."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.bundle import Bundle
from contract.errors import ConfigError, ImageError
from contract.image.read import load_pixels
from contract.labels import LABELS
from contract.report.text import Report, ReportTokenizer, TextMode, format_report, select_text
from training.data.cache import open_cache
from training.evaluation.plan import Case
from training.model.model import load_model

Progress = Callable[[int, int], None]
ReadPixels = Callable[[str], NDArray[np.uint8]]
_BATCH: Final = 32
_CACHE_BYTES: Final = 2**29  # of image tokens that are cached for the next way that reads them


@dataclass(frozen=True)
class Answers:
    """The predictions of a model for M cases; NaN for a refused case.

    Attributes:
        probabilities: (M, K) float32, calibrated.
        embeddings: (M, D) float32 of unit length.
    """

    probabilities: NDArray[np.float32]
    embeddings: NDArray[np.float32]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """(M,), whether a case was not refused."""
        return np.asarray(~np.isnan(self.probabilities).any(1))

    @staticmethod
    def prepare(count: int, size: int) -> "Answers":
        """Return answers filled with NaN for `count` cases, with embeddings of `size`."""
        return Answers(
            np.full((count, len(LABELS)), np.nan, np.float32), np.full((count, size), np.nan, np.float32)
        )


class Predictor(Protocol):
    """A model in this process or on a server."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model."""

    @property
    def text_mode(self) -> TextMode:
        """The part of a report that the model reads."""

    @property
    def label_part(self) -> int:
        """Length of the label part of its embeddings; see `contract.embedding`."""

    def ask(self, cases: Sequence[Case], progress: Progress | None = None) -> Answers:
        """Predict cases, which must all have the same kinds of inputs, in their order."""


def frame_report(text: str, mode: TextMode) -> Report:
    """Return a report from which a model with text mode `mode` reads exactly `text`."""
    return Report(indication=text) if mode == "indication" else Report(findings=text)


def frame_text(text: str, mode: TextMode) -> str:
    """Return `frame_report` in the form that a server reads."""
    return format_report(frame_report(text, mode))


def read_from_cache(directory: Path, size: int) -> ReadPixels:
    """Return a function that reads images from an image cache instead of decoding their files.

    Raises:
        ConfigError, ArtifactError: See `training.data.cache.open_cache`.
    """
    cache = open_cache(directory, size)

    def read_pixels(path: str) -> NDArray[np.uint8]:
        [row] = cache.find_rows([path])
        if row is None:
            raise ImageError(f"{path} was refused when the cache was filled.")
        return np.asarray(cache.pixels[row])

    return read_pixels


def read_from_files(size: int) -> ReadPixels:
    """Return a function that decodes image files to squares of `size` pixels."""

    def read_pixels(path: str) -> NDArray[np.uint8]:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}.") from error
        return load_pixels(data, size=size)

    return read_pixels


def read_images(paths: Sequence[str], read_pixels: ReadPixels) -> list[NDArray[np.uint8] | None]:
    """Return (1, S, S) pixels of each image file; None for an unreadable one. Files are read in parallel."""

    def read(path: str) -> NDArray[np.uint8] | None:
        try:
            return np.asarray(read_pixels(path))
        except ImageError:
            return None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, paths))


class TorchPredictor:
    """A bundle's model in this process, on the GPU if there is one."""

    def __init__(self, bundle: Bundle, *, read_pixels: ReadPixels | None = None) -> None:
        """Load the model.

        Args:
            bundle: A verified bundle.
            read_pixels: Image path -> (1, S, S) uint8, or ImageError; default: `read_from_files`.

        Raises:
            ArtifactError: The weights do not fit the config.
        """
        self.fingerprint = bundle.fingerprint
        self.text_mode: TextMode = bundle.config["text_mode"]
        self.label_part = bundle.label_part
        self._sizes: dict[str, int] = bundle.config["sizes"]
        self._max_length = int(bundle.config["max_length"])
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_model(bundle).to(self._device)
        self._tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
        self.read_pixels: ReadPixels = read_pixels or read_from_files(self._sizes["S"])
        self._image_tokens: dict[str, Tensor | None] = {}
        image_bytes = 4 * self._sizes["N"] * self._sizes["C"]
        self._most_images = max(_BATCH, _CACHE_BYTES // image_bytes)

    @torch.inference_mode()
    def ask(self, cases: Sequence[Case], progress: Progress | None = None) -> Answers:
        """Predict cases with the same kinds of inputs; see `Predictor`."""
        answers = Answers.prepare(len(cases), self._sizes["D"])
        for done, rows in self._draw_batches(cases):
            readable = [row for row in rows if self._is_readable(cases[row])]
            if readable:
                probabilities, embedding = self._answer([cases[row] for row in readable])
                answers.probabilities[readable] = probabilities.float().cpu().numpy()
                answers.embeddings[readable] = embedding.float().cpu().numpy()
            if progress is not None:
                progress(done, len(cases))
        return answers

    @property
    def tells_views(self) -> bool:
        """Whether the model has a fitted view head."""
        return self._model.fusion.lateral.is_fitted

    @torch.inference_mode()
    def tell_laterals(self, paths: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Return the probability (P,), 0 to 1, that each image is a lateral; NaN for an unreadable one.

        `progress` is called with the number of images read and their total.
        """
        answers = np.full(len(paths), np.nan, np.float32)
        for start in range(0, len(paths), _BATCH):
            some = list(paths[start : start + _BATCH])
            self._encode_images(some)
            for row, path in enumerate(some, start=start):
                if (tokens := self._image_tokens[path]) is not None:
                    answers[row] = float(self._model.fusion.lateral(tokens[None])[0, 0])
            if progress is not None:
                progress(start + len(some), len(paths))
        return answers

    @property
    def has_lexical(self) -> bool:
        """Whether the model has a lexical part."""
        return self._model.fusion.lexical is not None

    @torch.inference_mode()
    def score_parts(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the logits (M, K) of "transformer" and "lexical part" for M texts. Their sum is the model's logits.

        Only for a model with a lexical part. The logits are not calibrated.
        """
        scores = {
            name: np.empty((len(texts), len(LABELS)), np.float32) for name in ("transformer", "lexical part")
        }
        fusion = self._model.fusion
        for start in range(0, len(texts), _BATCH):
            rows = slice(start, start + _BATCH)
            ids, mask = self._encode(texts[rows])
            alone = fusion(None, self._model.text_encoder(ids, mask), mask)
            scores["transformer"][rows] = alone.logits.float().cpu().numpy()
            scores["lexical part"][rows] = fusion.lexical(ids, mask).float().cpu().numpy()
        return scores

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids and mask (B, L) of texts."""
        read = [select_text(frame_report(text, self.text_mode), self.text_mode) for text in texts]
        tokens = self._tokenizer.encode(read, self._max_length)
        ids, mask = (
            torch.from_numpy(array).to(self._device) for array in (tokens.input_ids, tokens.attention_mask)
        )
        return ids, mask

    def _draw_batches(self, cases: Sequence[Case]) -> Iterator[tuple[int, list[int]]]:
        """Yield the number of cases done after a batch, and the batch's rows. Its texts have similar lengths."""
        rows = sorted(range(len(cases)), key=lambda row: len(cases[row].text or ""))
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            self._encode_images([path for row in batch if (path := cases[row].image) is not None])
            yield start + len(batch), batch

    def _is_readable(self, case: Case) -> bool:
        return case.image is None or self._image_tokens[case.image] is not None

    def _answer(self, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        """Return probabilities (B, K) and embeddings (B, D)."""
        fusion = self._model.fusion
        images = [self._image_tokens[case.image] for case in cases if case.image is not None]
        image_tokens = torch.stack([tokens for tokens in images if tokens is not None]) if images else None
        texts = [case.text for case in cases if case.text is not None]
        if not texts:
            if image_tokens is None:
                raise ConfigError("A case has neither an image nor a text.")
            return fusion.forward_image(image_tokens)[:2]
        ids, mask = self._encode(texts)
        text_tokens = self._model.text_encoder(ids, mask)
        if image_tokens is None:
            return fusion.forward_text(text_tokens, ids, mask)[:2]
        return fusion.forward_study(image_tokens, text_tokens, ids, mask)[:2]

    def _encode_images(self, paths: Sequence[str]) -> None:
        """Put the tokens (N, C) of these images into the cache; None for an unreadable image."""
        missing = [path for path in dict.fromkeys(paths) if path not in self._image_tokens]
        if not missing:
            return
        if len(self._image_tokens) + len(missing) > self._most_images:
            self._image_tokens = {path: self._image_tokens[path] for path in paths if path not in missing}
        pixels = dict(zip(missing, read_images(missing, self.read_pixels), strict=True))
        readable = {path: image for path, image in pixels.items() if image is not None}
        self._image_tokens.update(dict.fromkeys(missing))
        if readable:
            batch = np.stack(list(readable.values()))  # (B, 1, S, S)
            encoded = self._model.image_encoder(torch.from_numpy(batch).to(self._device))
            self._image_tokens.update(zip(readable, encoded, strict=True))
