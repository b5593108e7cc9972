"""Find reports with nearly the same words. Radiologists, and even whole practices, write from templates.

Two texts are compared by their runs of three words ("shingles"), with the Jaccard similarity of Broder 1997, On the
Resemblance and Containment of Documents. MinHash and locality-sensitive hashing (datasketch) find candidate pairs.
Their similarity is then computed exactly, so the result does not depend on chance.

The threshold is 0.8, chosen on the real Open-i reports (findings and impression). Above it, most pairs are one template
with a changed word or an added sentence, and three of four pairs have the same labels. Below it, half of the pairs have
different labels: they share the phrases of a normal chest and differ in the findings.

    threshold                     1      .9     .8     .7     .6
    groups                        156    154    161    170    167
    studies in groups             955    970    1,080  1,309  1,526
    studies of the largest        53     53     58     69     74
    pairs with different labels   2 %    2 %    4 %    12 %   23 %
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from contract.report.text import clean_text

try:
    from datasketch import MinHash, MinHashLSH
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
except ModuleNotFoundError as error:
    raise ConfigError(
        "Comparing reports needs the 'train' extra: pip install 'cxr-serving[train]'."
    ) from error

SIMILARITY: Final = 0.8
_SHINGLE_WORDS: Final = 3
# 32 bands of 4 values miss a pair of similarity 0.8 once in 20 million, and one of 0.7 once in 7,000.
_BANDS: Final = (32, 4)

Shingles = frozenset[str]


def group_texts(texts: Sequence[str], similarity: float = SIMILARITY) -> list[list[int]]:
    """Find the texts that are nearly equal, directly or through others.

    Case, punctuation and de-identification marks are ignored. "" is not similar to any text.

    Args:
        texts: M texts.
        similarity: Smallest Jaccard similarity of two texts that belong together, 0.7 to 1. With 1, only texts with
            equal shingles belong together.

    Returns:
        Groups of two or more rows (0 to M - 1), the largest first; rows ascending.
    """
    rows_of: dict[Shingles, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        if shingles := make_shingles(text):
            rows_of[shingles].append(row)
    links = [(rows[0], row) for rows in rows_of.values() for row in rows[1:]]
    distinct = list(rows_of)
    if similarity < 1:
        near = _find_similar(distinct, similarity)
        links += [(rows_of[distinct[one]][0], rows_of[distinct[other]][0]) for one, other in near]
    groups = [rows for rows in join_rows(len(texts), links) if len(rows) > 1]
    return sorted(groups, key=lambda rows: (-len(rows), rows))


def number_similar(texts: Sequence[str], similarity: float = SIMILARITY) -> NDArray[np.int64]:
    """Return (M,) group numbers, equal for nearly equal texts, directly or through others; see `group_texts`.

    All pairs are compared, which is fast for the texts of one batch.
    """
    shingles = [make_shingles(text) for text in texts]
    links = [
        (one, other)
        for one, other in combinations(range(len(texts)), 2)
        if shingles[one] and shingles[other] and _compare(shingles[one], shingles[other]) >= similarity
    ]
    numbers = np.zeros(len(texts), np.int64)
    for number, rows in enumerate(join_rows(len(texts), links)):
        numbers[rows] = number
    return numbers


def make_shingles(text: str) -> Shingles:
    """Return all runs of three words of a text. A shorter text is one run."""
    cleaned = clean_text(text).lower()
    words = re.findall(r"\w+", cleaned) or cleaned.split()
    last = len(words) - _SHINGLE_WORDS
    return frozenset(" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(max(last, 0) + 1)) - {
        ""
    }


def join_rows(count: int, links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of rows (0 to count - 1) that are connected by links, ordered by their first rows.

    A row without a link is its own group.
    """
    pairs = np.array(list(links), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    groups: dict[int, list[int]] = defaultdict(list)
    if count:
        for row, number in enumerate(connected_components(graph, directed=False)[1]):
            groups[int(number)].append(row)
    return list(groups.values())


def _find_similar(distinct: Sequence[Shingles], similarity: float) -> Iterator[tuple[int, int]]:
    """Yield the indices of all pairs that are similar enough."""
    index = MinHashLSH(params=_BANDS, num_perm=_BANDS[0] * _BANDS[1])
    encoded = ([run.encode() for run in shingles] for shingles in distinct)
    for place, hashed in enumerate(MinHash.generator(encoded, num_perm=_BANDS[0] * _BANDS[1], seed=1)):
        for other in index.query(hashed):
            if _compare(distinct[place], distinct[other]) >= similarity:
                yield other, place
        index.insert(place, hashed)


def _compare(first: Shingles, second: Shingles) -> float:
    """Return the Jaccard similarity of two sets, 0 to 1."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)
