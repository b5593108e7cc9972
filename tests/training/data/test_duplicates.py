"""Nearly equal reports: which pairs belong together, and that none is overlooked."""

import itertools

import numpy as np
import pytest

from training.data.duplicates import group_texts, join_rows, make_shingles, number_similar

REPORT = (
    "The heart is normal in size. The mediastinum is unremarkable. There is no pleural effusion, pneumothorax or "
    "focal airspace disease. The bones are intact. No acute disease."
)


def compare(one: str, other: str) -> float:
    first, second = make_shingles(one), make_shingles(other)
    return len(first & second) / len(first | second)


@pytest.mark.parametrize(
    "other",
    [
        REPORT.upper(),
        REPORT.replace(".", " ;").replace(",", ""),
        REPORT.replace("The bones", "XXXX The bones"),
        REPORT.replace("acute disease", "acute process"),
    ],
    ids=["case", "punctuation", "de-identified", "one word"],
)
def test_alike(other):
    assert group_texts([REPORT, "Large pleural effusion on the left.", other]) == [[0, 2]]


@pytest.mark.parametrize("mark", ["XXXX", "XXXXX.", "XXXX, XXXX"])
def test_marks_of_removed_words_do_not_count(mark):
    marked = REPORT.replace("is ", f"is {mark} ")
    assert group_texts([REPORT, marked], similarity=1) == [[0, 1]]


@pytest.mark.parametrize(
    "other",
    [
        "",
        "Normal.",
        REPORT.replace(
            "The mediastinum is unremarkable.", "Large right pleural effusion. Calcified granuloma."
        ),
    ],
)
def test_different(other):
    assert group_texts([REPORT, other]) == []


def test_short_texts_are_alike_only_when_equal():
    texts = [
        "Normal.",
        "normal",
        "Normal chest",
        "",
        "",
        " ",
        "XXXX",
        "?",
        "?",
        "!",
        "Chest pain",
        "chest  PAIN.",
    ]
    assert group_texts(texts) == [[0, 1], [7, 8], [10, 11]]


def test_likeness_reaches_through_others():
    words = [f"w{number}" for number in range(40)]
    chain = [" ".join(words[start : start + 30]) for start in range(0, 11, 2)]  # each begins two words later
    assert compare(chain[0], chain[1]) >= 0.8 > compare(chain[0], chain[-1])
    assert group_texts(chain) == [[0, 1, 2, 3, 4, 5]]
    assert group_texts(chain, similarity=1) == []


def test_groups_are_ordered_by_size_then_row():
    assert group_texts(["a", "b", "c", "b", "a", "b"]) == [[1, 3, 5], [0, 4]]


@pytest.mark.parametrize("similarity", [0.7, 0.8, 0.9, 1])
def test_no_pair_is_overlooked(similarity):
    """The same groups as comparing every text with every other, which the hashing is to save."""
    generator = np.random.default_rng(1)
    words = np.array([f"w{number}" for number in range(60)])
    bases = [generator.choice(words, 40) for _ in range(20)]
    texts = []
    for row in range(300):
        text = bases[row % 20].copy()
        changed = generator.integers(0, 40, generator.integers(0, 6))
        text[changed] = generator.choice(words, len(changed))
        texts.append(" ".join(text))
    pairs = itertools.combinations(enumerate(map(make_shingles, texts)), 2)
    links = [(a, b) for (a, one), (b, other) in pairs if len(one & other) / len(one | other) >= similarity]
    wanted = sorted(rows for rows in join_rows(300, links) if len(rows) > 1)
    assert len(wanted) > 10
    assert sorted(group_texts(texts, similarity)) == wanted


@pytest.mark.parametrize("similarity", [1.0, 0.8])
def test_numbers_of_a_batch_tell_the_same_groups(similarity):
    words = [f"word{place}" for place in range(60)]
    texts = [" ".join([*words[:55], f"other{change}", *words[56:]]) for change in range(3)]
    texts = [*texts, texts[0], "", "", "short", " ".join(reversed(words))]
    numbers = number_similar(texts, similarity)
    groups = [np.flatnonzero(numbers == number).tolist() for number in np.unique(numbers)]
    assert [rows for rows in groups if len(rows) > 1] == group_texts(texts, similarity)
    assert len(group_texts(texts, similarity)[0]) == (2 if similarity == 1 else 4)


def test_join_rows():
    assert join_rows(6, [(4, 1), (1, 2), (5, 5)]) == [[0], [1, 2, 4], [3], [5]]
    assert join_rows(2, []) == [[0], [1]]
    assert join_rows(0, []) == []


def test_real_reports_do_not_flow_together(real_texts):
    """Templates of normal chests are many small groups, not one that swallows the collection."""
    groups = group_texts(real_texts)
    assert (len(groups), sum(map(len, groups)), len(groups[0])) == (161, 1080, 58)
    equal = group_texts(real_texts, similarity=1)
    assert (len(equal), sum(map(len, equal)), len(equal[0])) == (156, 955, 53)
