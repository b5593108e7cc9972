"""The reference of a bundle: answers and inputs of its held-out studies, for later comparisons.

    reference.npz   for each way of reading: probabilities, embeddings, statistics of the inputs
    reference.json  the model, the studies they come from, and their numbers

Neither file holds an id or a text. The folder is beside the bundle, not inside it: `cxr export --hub-folder` publishes
everything inside a bundle, and embeddings of patients' studies are not for everybody.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import SPLIT, Bundle, compute_sha256, write_json
from contract.errors import ArtifactError, ConfigError
from contract.files import write_file
from contract.labels import LABEL_KEYS
from contract.report.names import SECTIONS
from contract.report.text import Report
from training.evaluation.plan import Studies, choose_complete, list_plain_ways, make_cases, read_parts
from training.evaluation.predict import Progress, TorchPredictor
from training.monitoring.inputs import ImageReader, ReportReader
from training.monitoring.sample import Sample, choose_rows, stack_inputs

ARRAYS: Final = "reference.npz"
FACTS: Final = "reference.json"
FORMAT: Final = 1
MOST_CASES: Final = 2_000  # studies in a reference
PARTS: Final[Mapping[str, Sequence[str]]] = {
    "validation": ("validation",),
    "test": ("test",),
    "all": ("validation", "test"),
}


@dataclass(frozen=True)
class Reference:
    """The reference of a model.

    Attributes:
        fingerprint: Fingerprint of the model.
        label_part: Length of the label part of its embeddings; see `contract.embedding`.
        source: One sentence about the studies.
        ways: "study", "image" or "text" -> its cases. A way for which there are no studies is missing.
    """

    fingerprint: str
    label_part: int
    source: str
    ways: Mapping[str, Sample]


def make_reference(
    bundle: Bundle, table: Path, *, part: str = "all", seed: int = 0, progress: Progress | None = None
) -> Reference:
    """Predict studies of the bundle's split in every way, in this process, and describe their inputs.

    Args:
        bundle: A verified bundle.
        table: The studies table that its split belongs to.
        part: A key of `PARTS`. The training studies are never used, because the model knows them.
        seed: Seed of the sample if there are more than `MOST_CASES` studies.
        progress: Is called with the number of predictions done, and their total.

    Raises:
        ConfigError: The split belongs to another table, or no study of the part can be read.
    """
    parts = read_parts(table, bundle.path / SPLIT)
    images, reports = ImageReader(bundle.config["sizes"]["S"]), ReportReader(bundle)
    predictor = TorchPredictor(bundle, read_pixels=images)
    studies = choose_complete(_join([parts[name] for name in PARTS[part]]), predictor.text_mode)
    studies = studies.take(choose_rows(len(studies), MOST_CASES, seed))
    plain = list_plain_ways(studies, predictor.text_mode)
    ways: dict[str, Sample] = {}
    for index, way in enumerate(plain):
        report = _shift(progress, index * len(studies), len(plain) * len(studies))
        cases, rows = make_cases(studies, way)
        answers = predictor.ask(cases, report)
        read = np.flatnonzero(answers.answered)
        described = []
        for place in read:
            case, row = cases[place], studies.rows[rows[place]]
            image = images.statistics[case.image] if case.image else {}
            text = reports.describe(_get_report(row), case.text) if case.text else {}
            described.append({**image, **text})
        if len(read):
            ways[way.kind] = Sample(
                answers.probabilities[read],
                answers.embeddings[read].astype(np.float16),
                stack_inputs(described),
            )
    if not ways:
        raise ConfigError(f"The model could read none of the {len(studies)} studies of the part {part!r}.")
    source = (
        f"Part {part!r} of the bundle's split, table {table.name} (SHA-256 {compute_sha256(table)[:12]})."
    )
    return Reference(bundle.fingerprint, bundle.label_part, source, ways)


def _join(parts: Sequence[Studies]) -> Studies:
    texts = {mode: tuple(text for part in parts for text in part.texts[mode]) for mode in parts[0].texts}
    return Studies(
        tuple(row for part in parts for row in part.rows),
        texts,
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.known for part in parts]),
    )


def _shift(progress: Progress | None, began: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(began + done, total)


def _get_report(row: Mapping[str, Any]) -> Report:
    return Report(**{name: row[name] or "" for name in SECTIONS})


def get_folder(bundle: Path) -> Path:
    """Return the folder beside a bundle where its reference is by default."""
    path = bundle.resolve()
    return path.with_name(f"{path.name}.monitoring")


def write_reference(reference: Reference, folder: Path) -> None:
    """Write a reference. An earlier one in the same folder is replaced.

    Raises:
        ArtifactError: The disk refused the write.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for way, sample in reference.ways.items():
        arrays |= {f"{way}/probabilities": sample.probabilities, f"{way}/embeddings": sample.embeddings}
        arrays |= {f"{way}/inputs/{name}": values for name, values in sample.inputs.items()}
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)  # type: ignore[arg-type]
    write_file(folder / ARRAYS, data.getvalue())
    facts = {
        "format": FORMAT,
        "fingerprint": reference.fingerprint,
        "label_part": reference.label_part,
        "source": reference.source,
        "ways": {way: len(sample) for way, sample in reference.ways.items()},
        "sha256": compute_sha256(folder / ARRAYS),
    }
    write_json(folder / FACTS, facts)


def read_reference(folder: Path) -> Reference:
    """Read a reference.

    Raises:
        ConfigError: There is none.
        ArtifactError: It is damaged, or of another format.
    """
    if not (folder / FACTS).is_file():
        raise ConfigError(f"There is no reference in {folder}. Make one: cxr monitor reference BUNDLE TABLE")
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT or facts["sha256"] != compute_sha256(folder / ARRAYS):
            raise ValueError("format")
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            ways = {way: _read_sample(arrays, way) for way in facts["ways"]}
        return Reference(facts["fingerprint"], facts["label_part"], facts["source"], ways)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"The reference in {folder} is damaged or of another version. Make it again: "
            "cxr monitor reference BUNDLE TABLE"
        ) from error


def _read_sample(arrays: Mapping[str, NDArray[Any]], way: str) -> Sample:
    start = f"{way}/inputs/"
    inputs = {name.removeprefix(start): arrays[name] for name in arrays if name.startswith(start)}
    sample = Sample(arrays[f"{way}/probabilities"], arrays[f"{way}/embeddings"], inputs)
    if sample.probabilities.shape[1:] != (len(LABEL_KEYS),):
        raise ValueError("labels")
    return sample
