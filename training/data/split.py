"""Train, validation and test: no patient and no report text on two sides, the same mix of labels everywhere.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, On the Stratification of Multi-Label Data) by
the library iterative-stratification. It counts every sample once, while a sample here is a group that stays
together, of up to 58 of the real reports; dealt by the library alone, a part is up to 2.7 points off its share.
So the library deals the studies that stand alone and have several labels, for which it is made. Groups and
studies of a single label follow, the largest first, each to the part that it brings closest to its shares.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from training.data.duplicates import group_texts, join_rows

try:
    from iterstrat.ml_stratifiers import IterativeStratification
except ModuleNotFoundError as error:
    raise ConfigError("Splitting needs the 'train' extra: pip install 'cxr-serving[train]'.") from error

FRACTIONS: Final[Mapping[str, float]] = {"train": 0.8, "validation": 0.1, "test": 0.1}
_DRAWS: Final = (
    10  # the library breaks ties at random: as many splits are drawn, and the most even one is kept
)

Parts = NDArray[np.int64]


def split_studies(
    patient_ids: Sequence[str],
    labels: Sequence[Sequence[str]],
    seed: int,
    *,
    texts: Sequence[Sequence[str]] = (),
    fractions: Mapping[str, float] = FRACTIONS,
) -> dict[str, list[int]]:
    """Split M studies.

    Studies of one patient, and studies whose texts are nearly equal, form a group that stays together.

    Args:
        patient_ids: M names.
        labels: M collections of label keys; empty for a study without labels.
        seed: Equal seeds give equal splits.
        texts: Readings, each of M texts; studies that are nearly equal in any of them stay together, and "" is
            like nothing. Without a reading, patients alone do. See `training.data.duplicates`.
        fractions: Part -> share of the studies; the shares sum to 1.

    Returns:
        Part -> rows (0 to M - 1), ascending.

    Raises:
        ConfigError: A part would be empty.
    """
    groups = group_studies(patient_ids, texts)
    kinds = _make_kinds(labels)
    counts = np.array([kinds[rows].sum(0) for rows in groups]).reshape(len(groups), kinds.shape[1])
    sizes = np.array([len(rows) for rows in groups], dtype=np.int64)
    shares = np.array(list(fractions.values()))
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))  # what the library takes
    draws = (_deal_groups(counts, sizes, shares, random) for _ in range(_DRAWS))
    _, part_of = min(draws, key=lambda draw: draw[0])
    found = {
        part: sorted(row for group in np.flatnonzero(part_of == number) for row in groups[group])
        for number, part in enumerate(fractions)
    }
    if empty := [part for part, rows in found.items() if not rows]:
        raise ConfigError(
            f"{len(patient_ids)} studies are too few to split: no study for {', '.join(empty)}."
        )
    return found


def follow_split(
    named: Sequence[str | None],
    patient_ids: Sequence[str],
    labels: Sequence[Sequence[str]],
    seed: int,
    *,
    texts: Sequence[Sequence[str]] = (),
) -> dict[str, list[int]]:
    """Split M studies as their collection publishes it; a part that it lacks is drawn from its training studies.

    Args:
        named: M parts, None for a study of none, which is left out.
        patient_ids: M names; this and the others serve where a part is drawn, as in `split_studies`.
        labels: M collections of label keys.
        seed: Of the draw.
        texts: Readings, each of M texts.

    Returns:
        Part -> rows (0 to M - 1), ascending.

    Raises:
        ConfigError: The collection names no training study, or they are too few to draw from.
    """
    parts = {part: [row for row, name in enumerate(named) if name == part] for part in FRACTIONS}
    pool = parts["train"]
    if not pool:
        raise ConfigError(
            "The table's own split has no training study that can be read: give one by --split-file."
        )
    if lacking := [part for part, rows in parts.items() if not rows]:
        shares = {part: FRACTIONS[part] for part in ("train", *lacking)}
        drawn = split_studies(
            [patient_ids[row] for row in pool],
            [labels[row] for row in pool],
            seed,
            texts=[[reading[row] for row in pool] for reading in texts],
            fractions={part: share / sum(shares.values()) for part, share in shares.items()},
        )
        parts |= {part: [pool[place] for place in places] for part, places in drawn.items()}
    return parts


def group_studies(patient_ids: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[int]]:
    """Join rows that share a patient or nearly a text, directly or through others."""
    first: dict[str, int] = {}
    links = [(first.setdefault(patient, row), row) for row, patient in enumerate(patient_ids)]
    for rows in (rows for reading in texts for rows in group_texts(reading)):
        links += [(rows[0], row) for row in rows[1:]]
    return join_rows(len(patient_ids), links)


def _make_kinds(labels: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return (M, K + 1): the labels of each study, and whether it has none."""
    keys = sorted({key for row in labels for key in row})
    kinds = np.array([[key in row for key in keys] for row in labels], dtype=float)
    kinds = kinds.reshape(len(labels), len(keys))
    return np.column_stack([kinds, ~kinds.any(1)])


def _deal_groups(
    counts: NDArray[Any], sizes: NDArray[Any], shares: NDArray[Any], random: np.random.RandomState
) -> tuple[float, Parts]:
    """Deal G groups out at random.

    Args:
        counts: (G, K + 1) studies of each label, and without one.
        sizes: (G,) studies.
        shares: (P,) wanted shares of the parts.
        random: Decides the order and ties.

    Returns:
        How far the split is from the shares (chi-square statistic), and the part of each group (G,).
    """
    measured = np.column_stack([counts, sizes, counts[:, :-1].sum(1)])
    wanted = np.maximum(shares[:, None] * measured.sum(0), 1e-9)
    part_of = np.full(len(sizes), -1)
    order = random.permutation(len(sizes))
    mixed = order[((sizes == 1) & (counts.sum(1) > 1))[order]]
    part_of[mixed] = IterativeStratification(counts[mixed] > 0, shares, random)
    lacking = wanted - [measured[part_of == part].sum(0) for part in range(len(shares))]
    others = order[part_of[order] < 0]
    for group in others[np.argsort(-sizes[others], kind="stable")]:
        added = measured[group]
        part = ((2 * lacking - added) * added / wanted).sum(1).argmax()  # where the statistic falls most
        part_of[group] = part
        lacking[part] -= added
    return float((lacking**2 / wanted).sum()), part_of
