"""Statistics of image files and reports, the same for the reference and for what is served now."""

from dataclasses import astuple
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.errors import ImageError
from contract.image.read import Radiograph, load_radiograph
from contract.image.view import VIEWS
from contract.report.text import Report, ReportTokenizer, clean_text

_WHITE: Final = 255


class ImageReader:
    """Reads image files for a predictor, and keeps the statistics of each. It may be called by several threads."""

    def __init__(self, size: int) -> None:
        """Set the side of the squares, in pixels."""
        self.statistics: dict[str, dict[str, float]] = {}  # path -> statistics of a readable image
        self._size = size

    def __call__(self, path: str) -> NDArray[np.uint8]:
        """Return the pixels (1, S, S) of an image file.

        Raises:
            ImageError: The file cannot be read.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}.") from error
        radiograph = load_radiograph(data, size=self._size)
        self.statistics[path] = describe_image(radiograph)
        return radiograph.pixels


def describe_image(radiograph: Radiograph) -> dict[str, float]:
    """Return the statistics of `training.monitoring.sample.IMAGE_STATISTICS`.

    Args:
        radiograph: A radiograph that was read from a file.
    """
    pixels, frame = radiograph.pixels[0], radiograph.frame
    if frame is None:
        raise ValueError("The radiograph has no frame.")
    rows, columns = frame.cut(frame.size)
    grey = pixels[rows, columns]
    shown = grey / _WHITE
    return {
        "grey": float(shown.mean()),
        "contrast": float(shown.std()),
        "clipped": float(((grey == 0) | (grey == _WHITE)).mean()),
        "aspect": frame.columns / frame.rows,
        "view": float(VIEWS.index(radiograph.header.view)),
    }


class ReportReader:
    """Counts the tokens and the sections of reports."""

    def __init__(self, bundle: Bundle) -> None:
        """Read the tokenizer of a bundle."""
        self._tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
        self._max_length = int(bundle.config["max_length"])

    def describe(self, report: Report, text: str) -> dict[str, float]:
        """Return the statistics of `training.monitoring.sample.REPORT_STATISTICS`.

        Args:
            report: The whole report.
            text: The part of it that the model reads.
        """
        batch = self._tokenizer.encode([text], self._max_length)
        ids = batch.input_ids[0][batch.attention_mask[0] == 1]
        return {
            "tokens": float(len(ids)),
            "unknown": float((ids == self._tokenizer.unk_id).mean()),
            "sections": float(sum(bool(clean_text(part)) for part in astuple(report))),
        }
