"""Train, validation and test: no patient and no report text on two sides, rare labels in every part."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from contract.errors import ConfigError

FRACTIONS: Final[Mapping[str, float]] = {"train": 0.8, "validation": 0.1, "test": 0.1}


def split_studies(
    patient_ids: Sequence[str],
    labels: Sequence[Sequence[str]],
    seed: int,
    *,
    texts: Sequence[str] | None = None,
    fractions: Mapping[str, float] = FRACTIONS,
) -> dict[str, list[int]]:
    """Split M studies.

    Studies of one patient, and studies whose texts are equal, form a group that stays together. Groups are
    dealt out label by label, the rarest first, each to the part that lacks most of it: Sechidis, Tsoumakas and
    Vlahavas 2011, On the Stratification of Multi-Label Data, applied to groups.

    Args:
        patient_ids: M names.
        labels: M collections of label keys; empty for a study without labels.
        seed: Decides ties; equal seeds give equal splits.
        texts: M texts, or None to group by patient alone; "" is equal to nothing.
        fractions: Part -> share of the studies; the shares sum to 1.

    Returns:
        Part -> rows (0 to M - 1), ascending.

    Raises:
        ConfigError: A part would be empty.
    """
    groups = _group_rows(patient_ids, texts)
    order = np.random.default_rng(seed).permutation(len(groups))
    counts = [Counter(key for row in group for key in labels[row]) for group in groups]
    total = sum(counts, Counter())
    lacking = {part: {key: share * total[key] for key in total} for part, share in fractions.items()}
    room = {part: share * len(patient_ids) for part, share in fractions.items()}
    found: dict[str, list[int]] = {part: [] for part in fractions}
    sizes = [len(group) for group in groups]
    for number in _order_groups(order.tolist(), counts, total, sizes):
        rarest = min(counts[number], key=lambda key: (total[key], key), default=None)
        part = max(
            fractions,
            key=lambda part: (lacking[part][rarest] if rarest else 0.0, room[part], fractions[part]),
        )
        found[part] += groups[number]
        room[part] -= len(groups[number])
        for key, count in counts[number].items():
            lacking[part][key] -= count
    if empty := [part for part, rows in found.items() if not rows]:
        raise ConfigError(
            f"{len(patient_ids)} studies are too few to split: no study for {', '.join(empty)}."
        )
    return {part: sorted(rows) for part, rows in found.items()}


def _group_rows(patient_ids: Sequence[str], texts: Sequence[str] | None) -> list[list[int]]:
    """Join rows that share a patient or a text, directly or through others (union-find)."""
    parent = list(range(len(patient_ids)))

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[tuple[str, str], int] = {}
    for row, patient in enumerate(patient_ids):
        keys = [("patient", patient)]
        if texts is not None and (text := " ".join(texts[row].lower().split())):
            keys.append(("text", text))
        for key in keys:
            parent[find(row)] = find(first.setdefault(key, row))
    groups: dict[int, list[int]] = defaultdict(list)
    for row in range(len(patient_ids)):
        groups[find(row)].append(row)
    return list(groups.values())


def _order_groups(
    order: list[int], counts: Sequence[Counter[str]], total: Counter[str], sizes: Sequence[int]
) -> list[int]:
    """Put groups with the rarest labels first, among equals those of several studies, then as in `order`.

    Not those of several labels: the first go to the largest part, whose studies would then differ in kind.
    """
    return sorted(
        order,
        key=lambda number: (
            min((total[key] for key in counts[number]), default=2**31),
            -sizes[number],
        ),
    )
