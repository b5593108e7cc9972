"""Made-up studies, and a predictor at the seam that answers by a rule."""

from collections.abc import Sequence

import numpy as np
import pytest

from contract.labels import LABEL_INDEX, LABELS
from training.evaluation.plan import Case, Studies, select_studies
from training.evaluation.predict import Answers

SIZE = 48  # of a drawn image, in pixels
WORDS = {"cardiac": "heart enlarged", "pleural": "effusion left", "normal": "lungs clear"}


def make_row(number: int, *, image: bool = True, **changes: object) -> dict[str, object]:
    """A row of a studies table; the labels go round, the report states them."""
    key = list(WORDS)[number % 3]
    header = {
        "photometric": ("MONOCHROME1", "MONOCHROME2")[number % 2],
        "bits": 12,
        "window": number % 4 == 0,
    }
    return {
        "study_id": f"CXR{number}",
        "patient_id": str(number),
        "image_ids": [f"CXR{number}_1"],
        "image_paths": [f"{number}.dcm"] if image else [],
        "views": [("PA", "LATERAL")[number % 2]] if image else [],
        "headers": [{**header, "voi_lut": False}] if image else [],
        "indication": f"cough number {number}" if number % 5 else "",
        "comparison": "",
        "findings": f"the {WORDS[key]} film {number}",
        "impression": f"summary {number % 7}",
        "labels": [key],
        "labelled": True,
        "unknown_labels": [],
        **changes,
    }


def make_studies(numbers: Sequence[int], **changes: object) -> Studies:
    rows = [make_row(number, **changes) for number in numbers]
    return select_studies(rows, [row["study_id"] for row in rows])


def draw_pixels(path: str) -> np.ndarray:
    """A noisy square, (1, 48, 48) uint8, brighter in a corner that tells the label (`make_row`)."""
    number = int(path.split(".", maxsplit=1)[0])
    pixels = np.random.default_rng(number).integers(90, 110, (SIZE, SIZE))
    row, column = divmod(number % 3, 2)
    pixels[row * 24 : row * 24 + 12, column * 24 : column * 24 + 12] += 60
    return pixels[None].astype(np.uint8)


class RulePredictor:
    """Reads the label in the words, or else in the number of the image's file; refuses what it is told to."""

    fingerprint = "f" * 64
    text_mode = "findings"
    label_part = 0

    def __init__(self, refused: Sequence[str] = (), noise: float = 0.0):
        self.refused, self.noise = set(refused), noise
        self.asked: list[Case] = []

    def ask(self, cases, progress=None):
        self.asked += cases
        answers = Answers.prepare(len(cases), len(LABELS))
        for row, case in enumerate(cases):
            if case.image in self.refused:
                continue
            keys = [key for key, words in WORDS.items() if case.text and words in case.text]
            if not keys and case.image:
                keys = [list(WORDS)[int(case.image.split(".")[0]) % 3]]
            place = LABEL_INDEX[keys[0]] if keys else 0
            answers.probabilities[row] = 0.1 + self.noise
            answers.probabilities[row, place] = 0.9
            answers.embeddings[row] = np.eye(len(LABELS), dtype=np.float32)[place]
            if progress:
                progress(row + 1, len(cases))
        return answers


@pytest.fixture
def parts() -> dict[str, Studies]:
    return {
        "train": make_studies(range(60)),
        "validation": make_studies(range(60, 90)),
        "test": make_studies(range(90, 150)),
    }
