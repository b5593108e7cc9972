"""Split studies into train, validation and test: no patient and no report text in two parts, labels balanced.

The method is iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, On the Stratification of Multi-Label
Data) from the library iterative-stratification. The library counts every sample once, but here a sample can be a
group of studies that must stay together, with up to 58 of the real reports. With the library alone, the share of a
part is off by up to 2.7 points. So the library assigns only single studies with several labels. Then the groups and
the studies with a single label follow, largest first, each to the part that it brings closest to its target shares.
"""

from collections import defaultdict
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
_DRAWS: Final = 10  # splits to draw, because the library breaks ties at random; the most even one is used

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

    Studies of one patient, and studies with nearly equal texts, form a group that stays together.

    Args:
        patient_ids: M patient ids.
        labels: M collections of label keys; empty for a study without labels.
        seed: Equal seeds give equal splits.
        texts: Lists of M texts. Studies with nearly equal texts in any of the lists stay together; "" is not similar to
            any text. Without a list, only patients stay together. See `training.data.duplicates`.
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
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))  # as the library needs it
    draws = (_deal_groups(counts, sizes, shares, random) for _ in range(_DRAWS))
    _, part_of = min(draws, key=lambda draw: draw[0])
    split = {
        part: sorted(row for group in np.flatnonzero(part_of == number) for row in groups[group])
        for number, part in enumerate(fractions)
    }
    if empty := [part for part, rows in split.items() if not rows]:
        raise ConfigError(
            f"{len(patient_ids)} studies are too few to split: there is no study for {', '.join(empty)}."
        )
    return split


def follow_split(
    named: Sequence[str | None],
    patient_ids: Sequence[str],
    labels: Sequence[Sequence[str]],
    seed: int,
    *,
    texts: Sequence[Sequence[str]] = (),
) -> dict[str, list[int]]:
    """Split M studies as their collection publishes it. A missing part is drawn from the training studies.

    Args:
        named: M parts; a study with None is left out.
        patient_ids: M patient ids. This and the next arguments are used to draw a part, as in `split_studies`.
        labels: M collections of label keys.
        seed: Seed for drawing.
        texts: Lists of M texts.

    Returns:
        Part -> rows (0 to M - 1), ascending.

    Raises:
        ConfigError: The collection names no training study, or too few to draw from; or a patient is in two parts.
    """
    parts_of: dict[str, set[str]] = defaultdict(set)
    for patient, name in zip(patient_ids, named, strict=True):
        if name is not None:
            parts_of[patient].add(name)
    if shared := sum(len(names) > 1 for names in parts_of.values()):
        raise ConfigError(
            f"The table's own split puts studies of one patient into different parts, for {shared:,} of "
            f"{len(parts_of):,} patients. Correct it, or give a split with --split-file."
        )
    parts = {part: [row for row, name in enumerate(named) if name == part] for part in FRACTIONS}
    pool = parts["train"]
    if not pool:
        raise ConfigError(
            "The table's own split has no readable training study. Give a split with --split-file."
        )
    if missing := [part for part, rows in parts.items() if not rows]:
        shares = {part: FRACTIONS[part] for part in ("train", *missing)}
        drawn = split_studies(
            [patient_ids[row] for row in pool],
            [labels[row] for row in pool],
            seed,
            texts=[[reading[row] for row in pool] for reading in texts],
            fractions={part: share / sum(shares.values()) for part, share in shares.items()},
        )
        parts |= {part: [pool[index] for index in indices] for part, indices in drawn.items()}
    return parts


def group_studies(patient_ids: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[int]]:
    """Group rows with the same patient or nearly equal texts, directly or through other rows."""
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
    """Assign G groups to parts at random.

    Args:
        counts: (G, K + 1) number of studies with each label, and without any.
        sizes: (G,) number of studies.
        shares: (P,) target shares of the parts.
        random: Generator for the order and for ties.

    Returns:
        The distance of the split from the shares (chi-square statistic), and the part of each group (G,).
    """
    measured = np.column_stack([counts, sizes, counts[:, :-1].sum(1)])
    targets = np.maximum(shares[:, None] * measured.sum(0), 1e-9)
    part_of = np.full(len(sizes), -1)
    order = random.permutation(len(sizes))
    mixed = order[((sizes == 1) & (counts.sum(1) > 1))[order]]
    part_of[mixed] = IterativeStratification(counts[mixed] > 0, shares, random)
    lacking = targets - [measured[part_of == part].sum(0) for part in range(len(shares))]
    unassigned = order[part_of[order] < 0]
    for group in unassigned[np.argsort(-sizes[unassigned], kind="stable")]:
        added = measured[group]
        part = ((2 * lacking - added) * added / targets).sum(1).argmax()  # where the statistic decreases most
        part_of[group] = part
        lacking[part] -= added
    return float((lacking**2 / targets).sum()), part_of
