"""A small phantom data set, drawn once for all tests, and single pictures of single findings."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from training.phantom import draw_dataset
from training.phantom.draw import BOXES, IMAGES, REPORTS, StudyPlan, draw_picture, plan_studies
from training.phantom.finding import Finding
from training.phantom.findings import KIND_BY_NAME
from training.phantom.headers import Header

SEED, SCALE = 3, 0.05  # among the 60 studies of this seed some have no indexing, and some no images


@dataclass(frozen=True)
class PhantomSet:
    """A data set on disk and the plans that it was drawn from."""

    directory: Path
    plans: list[StudyPlan]
    seed: int = SEED
    scale: float = SCALE

    @property
    def boxes(self) -> dict[str, list[dict]]:
        """boxes.json: image id -> boxes."""
        return json.loads((self.directory / BOXES).read_text())

    def list_images(self) -> dict[str, Path]:
        """Image id -> file, by the names in Open-i."""
        paths = sorted((self.directory / IMAGES).rglob("*.dcm"))
        return {f"CXR{path.stem}": path for path in paths}

    def get_report(self, number: int) -> bytes:
        """The XML of one study."""
        return (self.directory / REPORTS / f"{number}.xml").read_bytes()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> PhantomSet:
    """60 studies, drawn by one process."""
    directory = tmp_path_factory.mktemp("phantom") / "set"
    draw_dataset(directory, studies=60, seed=SEED, scale=SCALE, workers=1)
    return PhantomSet(directory, plan_studies(60, SEED))


class Artist:
    """Draws one patient, with or without a finding."""

    def make_header(self, *, lateral=False, window=None, many=False, name="1001", **fields) -> Header:
        """A header of the commonest size; fields as in headers.json."""
        known = {"PhotometricInterpretation": "MONOCHROME2", "BitsStored": "12", "Modality": "CR"}
        known |= {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1"}
        return Header(known | fields, window, many, 2828, 2320, lateral, name)

    def choose(self, kind: str, number: int) -> Finding:
        """The finding of a kind that patient `number` could have."""
        return KIND_BY_NAME[kind].choose(np.random.default_rng(number))

    def draw(self, number: int, *findings: Finding, lateral=False, scale=0.06):
        """The picture, (rows, columns), and its boxes."""
        plan = StudyPlan(number, findings, indexed=True, with_images=True)
        return draw_picture(plan, self.make_header(lateral=lateral), SEED, scale, int(lateral))


@pytest.fixture(scope="session")
def artist() -> Artist:
    """Draws single pictures."""
    return Artist()
