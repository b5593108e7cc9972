"""The plan of an evaluation: the labelled studies of a split, and the ways to read each of them.

A way is an input: the image, a part of the report, or both. In swapped ways, one of the two comes from another
patient. A model that is equally good with another patient's image does not use images.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from contract.report.text import TEXT_MODES, TextMode
from training.data.openi import read_table, read_text
from training.data.split_file import read_split_file
from training.data.studies import make_known, make_targets
from training.known_studies import find_known

MODE_TITLES: Final[dict[str, str]] = {
    "indication": "indication",
    "findings": "findings",
    "findings_masked": "masked findings",
    "full": "full report",
}


@dataclass(frozen=True)
class Case:
    """One input: an image file, the text to read of a report, or both."""

    study_id: str
    image: str | None = None
    text: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Way:
    """A way to read a study. `text` is the part of the report, `swapped` the input from another patient."""

    image: bool
    text: TextMode | None
    swapped: str = ""  # "", "image" or "report"

    @property
    def key(self) -> str:
        """Name in files, such as "image+findings" or "image+findings/swapped_image"."""
        inputs = "+".join(name for name in ("image" if self.image else "", self.text or "") if name)
        return f"{inputs}/swapped_{self.swapped}" if self.swapped else inputs

    @property
    def kind(self) -> str:
        """The way whose decisions apply: "study", "image" or "text"; see `contract.decisions`."""
        return "study" if self.image and self.text else "image" if self.image else "text"

    @property
    def title(self) -> str:
        """Display name."""
        image = "another's image" if self.swapped == "image" else "image"
        text = MODE_TITLES[self.text] if self.text else ""
        if self.swapped == "report":
            text = f"another's {text}"
        return " + ".join(name for name in (image if self.image else "", text) if name)


@dataclass(frozen=True)
class Studies:
    """M labelled studies of one part of a split.

    Attributes:
        rows: Rows of the studies table.
        texts: Text mode -> M texts; "" if that part of the report has no words.
        targets: (M, K), False if unknown.
        known: (M, K), whether the collection states the target.
    """

    rows: tuple[dict[str, Any], ...]
    texts: Mapping[str, tuple[str, ...]]
    targets: NDArray[np.bool_]
    known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def study_ids(self) -> tuple[str, ...]:
        """M ids."""
        return tuple(row["study_id"] for row in self.rows)

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """M ids."""
        return tuple(row["patient_id"] for row in self.rows)

    def get_image(self, row: int) -> str | None:
        """Return the file of a study's first (frontal) image."""
        paths = self.rows[row]["image_paths"]
        return paths[0] if paths else None

    def has_image(self) -> NDArray[np.bool_]:
        """Return (M,), whether a study has an image."""
        return np.array([bool(row["image_paths"]) for row in self.rows], dtype=bool)

    def has_text(self, mode: TextMode) -> NDArray[np.bool_]:
        """Return (M,), whether a study has words in that part of the report."""
        return np.array([bool(text) for text in self.texts[mode]], dtype=bool)

    def take(self, rows: NDArray[np.int64]) -> "Studies":
        """Return some of the studies."""
        texts = {mode: tuple(texts[row] for row in rows) for mode, texts in self.texts.items()}
        return Studies(tuple(self.rows[row] for row in rows), texts, self.targets[rows], self.known[rows])


def read_parts(table: Path, split_path: Path) -> dict[str, Studies]:
    """Read the labelled studies of every part of a split.

    Raises:
        ConfigError: The split belongs to another table.
    """
    rows = read_table(table).to_pylist()
    split = read_split_file(split_path, [row["study_id"] for row in rows])
    return {part: select_studies(rows, ids) for part, ids in split.items()}


def read_external(table: Path, known_ids: Collection[str] = ()) -> dict[str, Studies]:
    """Read the labelled studies of an external table as the test part. There is no other part.

    Args:
        table: Studies table.
        known_ids: Ids of studies that the model was trained or calibrated on. They and all other studies of their
            patients are left out.

    Raises:
        ConfigError: The table holds no such study.
    """
    rows = read_table(table).to_pylist()
    study_ids, patient_ids = ([row[name] for row in rows] for name in ("study_id", "patient_id"))
    known = find_known(known_ids, study_ids, patient_ids)
    studies = select_studies(rows, [study_ids[row] for row in np.flatnonzero(~known)])
    if not len(studies):
        others = " beside those that the model was trained or calibrated on" if known.any() else ""
        raise ConfigError(f"{table} holds no labelled study{others}, so a model cannot be evaluated on it.")
    return {"test": studies}


def select_studies(rows: Sequence[Mapping[str, Any]], study_ids: Sequence[str]) -> Studies:
    """Return the labelled studies with these ids, in the order of the table."""
    chosen_ids = set(study_ids)
    chosen = tuple(dict(row) for row in rows if row["study_id"] in chosen_ids and row["labelled"])
    texts: dict[str, tuple[str, ...]] = {
        mode: tuple(read_text(row, mode) for row in chosen) for mode in TEXT_MODES
    }
    return Studies(chosen, texts, make_targets([row["labels"] for row in chosen]), make_known(chosen))


def choose_complete(studies: Studies, mode: TextMode) -> Studies:
    """Keep the studies that can be read in every way, so that all rows of a table are about the same studies.

    If some studies have images, a study needs an image. If some have texts, it needs the text that the model reads.

    Raises:
        ConfigError: No study is left.
    """
    images, texts = studies.has_image(), studies.has_text(mode)
    complete = (images if images.any() else True) & (texts if texts.any() else True)
    if not (images.any() or texts.any()) or not np.any(complete):
        raise ConfigError("No labelled study of this part of the split can be read.")
    return studies.take(np.flatnonzero(complete))


def split_by_image(studies: Studies) -> tuple[Studies, NDArray[np.int64]]:
    """Return one row for each image of M studies, and the study that it belongs to.

    If no study has an image file, the images that the reports name are used. If they name none, each study is one row.

    Returns:
        N rows, each with one image file or none, and (N,) rows of `studies`.
    """
    files = bool(studies.has_image().any())
    named = [row["image_paths"] if files else row.get("image_ids") or () for row in studies.rows]
    if not any(named):
        named = [[""]] * len(studies)
    owners = np.repeat(np.arange(len(studies)), [len(names) for names in named])
    images = studies.take(owners)
    paths: list[list[str]] = [[name] if files else [] for names in named for name in names]
    rows = tuple({**row, "image_paths": path} for row, path in zip(images.rows, paths, strict=True))
    return replace(images, rows=rows), owners


def list_ways(studies: Studies, mode: TextMode) -> tuple[Way, ...]:
    """Return the ways to read studies, swapped ways last. `mode` is the text mode that the model was trained with."""
    modes: tuple[TextMode, ...] = ("indication", "findings", "findings_masked", "full")
    texts = tuple(Way(False, text) for text in modes)
    if not studies.has_text(mode).any():
        return (Way(True, None), Way(True, None, "image"))
    if not studies.has_image().any():
        return (*texts, Way(False, mode, "report"))
    pairs = tuple(Way(True, text) for text in modes)
    controls = (Way(True, None, "image"), Way(True, mode, "image"), Way(True, mode, "report"))
    return (Way(True, None), *pairs, *texts, *controls)


def list_plain_ways(studies: Studies, mode: TextMode) -> tuple[Way, ...]:
    """Return the plain ways (study, image, report) for which the studies have inputs."""
    if not studies.has_text(mode).any():
        return (Way(True, None),)
    if not studies.has_image().any():
        return (Way(False, mode),)
    return (Way(True, mode), Way(True, None), Way(False, mode))


def make_cases(studies: Studies, way: Way, *, seed: int = 0) -> tuple[list[Case], NDArray[np.int64]]:
    """Return the cases of one way, and the rows of their studies.

    Studies without that part of the report are left out.
    """
    rows = np.flatnonzero(studies.has_text(way.text)) if way.text else np.arange(len(studies))
    strangers = draw_strangers([studies.patient_ids[row] for row in rows], seed)
    images = rows[strangers] if way.swapped == "image" else rows
    texts = rows[strangers] if way.swapped == "report" else rows
    cases = [
        Case(
            studies.study_ids[row],
            studies.get_image(int(image)) if way.image else None,
            studies.texts[way.text][int(text)] if way.text else None,
        )
        for row, image, text in zip(rows, images, texts, strict=True)
    ]
    return cases, rows


def draw_strangers(patient_ids: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Return for each of M studies the row of a study of another patient, each row once if possible."""
    order = np.random.default_rng(seed).permutation(len(patient_ids))
    _, first, patients = np.unique(
        np.asarray(patient_ids, np.str_)[order], return_index=True, return_inverse=True
    )
    order = order[np.argsort(first[patients], kind="stable")]
    # Studies of a patient are now adjacent. A step as long as the longest run leads to another patient.
    step = int(np.bincount(patients).max()) if len(order) else 0
    chosen = np.empty(len(order), np.int64)
    chosen[order] = np.roll(order, -step)
    return chosen
