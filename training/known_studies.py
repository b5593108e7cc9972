"""Which studies of a table a model knows: those of its own split, and other studies of their patients."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from training.data.openi import read_collection


def list_known_ids(bundle: Bundle, table: Path, parts: Collection[str]) -> frozenset[str]:
    """Return the ids of the studies in some parts of a bundle's split.

    There are none for a table of another collection. Its studies are others, even with equal ids.
    """
    if read_collection(table) != bundle.manifest.get("data_source"):
        return frozenset()
    return frozenset(study_id for part in parts for study_id in bundle.split.get(part, ()))


def find_earlier_model(bundle: Bundle, table: Path) -> str | None:
    """Return the fingerprint of an earlier model of the table's collection, from which a bundle's training started.

    Its split is not recorded, so nobody can tell which studies of the table it knows. None if there is no such model.
    """
    collection, earlier = read_collection(table), bundle.manifest.get("started_from")
    while collection is not None and earlier is not None:
        if earlier.get("data_source") == collection:
            return str(earlier["fingerprint"])
        earlier = earlier.get("started_from")
    return None


def find_known(
    known_ids: Collection[str], study_ids: Sequence[str], patient_ids: Sequence[str]
) -> NDArray[np.bool_]:
    """Return (M,) bool: whether each of M studies, or another one of its patient, has a known id."""
    patients = {
        patient for study_id, patient in zip(study_ids, patient_ids, strict=True) if study_id in known_ids
    }
    return np.array([patient in patients for patient in patient_ids], dtype=bool)


def warn_of_known_studies(bundle: Bundle, table: Path, test_ids: Collection[str]) -> list[str]:
    """Return a sentence for each reason why the figures of these test studies are too good, or may be."""
    warnings = []
    if trained := list_known_ids(bundle, table, ("train",)).intersection(test_ids):
        warnings.append(
            f"The model was trained on {len(trained):,} of the {len(test_ids):,} test studies, so its figures are too "
            "good."
        )
    if earlier := find_earlier_model(bundle, table):
        warnings.append(
            f"The training started from model {earlier[:12]}, which was trained on studies of this collection. If "
            "these test studies are among them, the figures are too good."
        )
    return warnings
