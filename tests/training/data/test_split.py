"""Splits: nothing on two sides, the wanted shares, the same mix of labels everywhere."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array, csr_array

from contract.errors import ConfigError
from training.data.duplicates import SIMILARITY, group_texts, make_shingles
from training.data.split import FRACTIONS, split_studies


def make_studies(count=2000, seed=0):
    """Patients with one to three studies; some texts are shared, and rich studies have up to five labels."""
    generator = np.random.default_rng(seed)
    patients = [f"p{number}" for number in generator.integers(0, count // 2, count)]
    texts = [f"text {number}" for number in generator.integers(0, count * 3, count)]
    names = [f"l{number}" for number in range(12)]
    shares = np.geomspace(0.4, 0.01, len(names))
    labels = [
        [name for name, drawn in zip(names, row, strict=True) if drawn]
        for row in generator.random((count, 12)) < shares
    ]
    return patients, labels, texts


@pytest.fixture(scope="session")
def real(real_studies, real_texts):
    """(patients, labels, texts) of the collection."""
    return (
        [study.patient_id for study in real_studies],
        [study.labels for study in real_studies],
        real_texts,
    )


def find_parts(split, values) -> dict[str, set[str]]:
    """Return value -> the parts in which it occurs."""
    parts = {}
    for part, rows in split.items():
        for row in rows:
            parts.setdefault(values[row], set()).add(part)
    return parts


# --- nothing on two sides --------------------------------------------------------------------------------------

rows = st.tuples(
    st.integers(0, 99).map("p{}".format),
    st.one_of(st.sampled_from(["", " ", "a b", "A  b", "a c"]), st.integers(0, 99).map("t{}".format)),
    st.sets(st.sampled_from(["x", "y", "z"])),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(rows, min_size=20, max_size=60), st.integers(0, 5))
def test_studies_of_one_patient_or_text_stay_together(studies, seed):
    patients, texts, labels = ([row[column] for row in studies] for column in range(3))
    try:
        split = split_studies(patients, labels, seed, texts=[texts])
    except ConfigError:
        return
    assert sorted(row for part in split.values() for row in part) == list(range(len(studies)))
    assert all(part == sorted(part) and part for part in split.values())
    words = [" ".join(text.lower().split()) for text in texts]
    for values in (patients, words):
        parts = find_parts(split, values)
        parts.pop("", None)
        assert all(len(found) == 1 for found in parts.values())


def test_groups_reach_through_patients_and_texts():
    # 0-1 share a patient, 1-2 a text, 2-3 a patient: the four are one group.
    patients = ["a", "a", "b", "b", *(f"p{number}" for number in range(40))]
    texts = ["", "Clear lungs.", " clear  LUNGS. ", "", *(f"t{number}" for number in range(40))]
    for seed in range(20):
        split = split_studies(patients, [[]] * 44, seed, texts=[texts])
        assert any({0, 1, 2, 3} <= set(part) for part in split.values())


@pytest.mark.parametrize("texts", [(), (["", " \n"] * 50,)])
def test_no_text_is_equal_to_nothing(texts):
    split = split_studies([f"p{number}" for number in range(100)], [["x"]] * 100, 0, texts=texts)
    assert {part: len(found) for part, found in split.items()} == {"train": 80, "validation": 10, "test": 10}


def compare_all(texts) -> coo_array:
    """Return the similarity of every pair of texts that share a run of words."""
    shingles = [make_shingles(text) for text in texts]
    places = {run: place for place, run in enumerate(sorted(frozenset().union(*shingles)))}
    pairs = [(row, places[run]) for row, runs in enumerate(shingles) for run in runs]
    rows, columns = np.array(pairs).T
    holds = csr_array((np.ones(len(pairs)), (rows, columns)), shape=(len(texts), len(places)))
    shared = (holds @ holds.T).tocoo()
    sizes = np.array([len(runs) for runs in shingles])
    union = sizes[shared.row] + sizes[shared.col] - shared.data
    return coo_array((shared.data / union, (shared.row, shared.col)), shape=shared.shape)


def find_closest(split, similarities) -> float:
    """Return the largest similarity of two texts on different sides."""
    part_of = np.empty(similarities.shape[0], dtype=int)
    for number, part in enumerate(split.values()):
        part_of[part] = number
    return similarities.data[part_of[similarities.row] != part_of[similarities.col]].max()


def test_real_reports_share_nothing(real, real_splits):
    patients, labels, texts = real
    similarities = compare_all(texts)
    assert find_closest(real_splits[0], similarities) < SIMILARITY
    assert find_closest(split_studies(patients, labels, 0), similarities) == 1


def test_near_duplicates_stay_together():
    """Twelve templates; each study exchanges one word, so that no two texts are equal."""
    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in range(500)]
    templates = [list(generator.choice(words, 40, replace=False)) for _ in range(12)]
    texts = [" ".join([*templates[row % 12][:-1], f"n{row}"]) for row in range(120)]
    patients = [str(row) for row in range(120)]
    assert len(set(texts)) == 120
    for seed in range(5):
        split = split_studies(patients, [["x"]] * 120, seed, texts=[texts])
        assert all(len(parts) == 1 for parts in find_parts(split, [row % 12 for row in range(120)]).values())


def test_studies_that_are_equal_in_any_reading_stay_together():
    patients = [str(row) for row in range(60)]
    findings = [f"findings number {row // 2} of many" for row in range(60)]  # 0-1, 2-3, ...
    reports = [f"report number {row - (row % 4 == 2)} of many" for row in range(60)]  # 1-2, 5-6, ...
    for seed in range(5):
        split = split_studies(patients, [["x"]] * 60, seed, texts=[findings, reports])
        for values in (findings, reports):
            assert all(len(parts) == 1 for parts in find_parts(split, values).values())


# --- deterministic ---------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_splits():
    patients, labels, texts = make_studies(500)
    first = split_studies(patients, labels, 3, texts=[texts])
    assert split_studies(patients, labels, 3, texts=[texts]) == first
    # Nor does it depend on the order of a study's labels, which a set does not fix.
    assert split_studies(patients, [row[::-1] for row in labels], 3, texts=[texts]) == first
    assert split_studies(patients, labels, 4, texts=[texts]) != first


# --- shares ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real_splits(real):
    """Five splits of the collection; its texts are grouped once, as the groups do not depend on the seed."""
    patients, labels, texts = real
    groups = group_texts(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.data.split.group_texts", lambda _: groups)
        return [split_studies(patients, labels, seed, texts=[texts]) for seed in range(5)]


def test_real_splits_are_as_even_as_the_groups_allow(real, real_splits):
    """Limits a little above what was measured; the library alone misses all three by far (2.7 points, .15, .15).

    The largest of what was measured: a share by .00101 (four studies), labels by .0152, `normal` by .0045.
    """
    _, labels, _ = real
    counts = np.array([len(keys) for keys in labels])
    normal = np.array(["normal" in keys for keys in labels])
    for split in real_splits:
        for part, rows in split.items():
            assert len(rows) / len(labels) == pytest.approx(FRACTIONS[part], abs=0.0012)
            assert counts[rows].mean() == pytest.approx(counts.mean(), abs=0.02)
            assert normal[rows].mean() == pytest.approx(normal.mean(), abs=0.006)


def check_shares(split, labels, fractions=FRACTIONS):
    total = Counter(key for keys in labels for key in keys)
    for part, share in fractions.items():
        found = Counter(key for row in split[part] for key in labels[row])
        assert len(split[part]) / len(labels) == pytest.approx(share, abs=0.01)
        for key, count in total.items():
            assert found[key] == pytest.approx(share * count, abs=max(2, 0.02 * count)), key
            assert found[key] or count < 10, key
        # The parts hold equally complex cases, not only equally many of each label.
        assert sum(found.values()) / len(split[part]) == pytest.approx(
            sum(total.values()) / len(labels), rel=0.05
        )


def test_shares_of_the_real_reports(real, real_splits):
    _, labels, _ = real
    for split in real_splits:
        check_shares(split, labels)


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_made_up_studies(seed):
    patients, labels, texts = make_studies(seed=seed)
    check_shares(split_studies(patients, labels, seed, texts=[texts]), labels)


def test_other_fractions():
    patients, labels, texts = make_studies()
    fractions = {"one": 0.5, "two": 0.3, "three": 0.15, "four": 0.05}
    split = split_studies(patients, labels, 0, texts=[texts], fractions=fractions)
    assert list(split) == list(fractions)
    check_shares(split, labels, fractions)


def test_a_rare_label_is_in_every_part():
    labels = [["rare", "common"] if row < 10 else ["common"] for row in range(1000)]
    for seed in range(5):
        split = split_studies([str(row) for row in range(1000)], labels, seed)
        rare = {part: sum(row < 10 for row in found) for part, found in split.items()}
        assert rare == {"train": 8, "validation": 1, "test": 1}


def test_studies_without_labels_are_dealt_by_room():
    split = split_studies([str(row) for row in range(200)], [[]] * 200, 0)
    assert {part: len(found) for part, found in split.items()} == {"train": 160, "validation": 20, "test": 20}


# --- too few ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patients", "names"),
    [
        ([], "train, validation, test"),
        (["a"], "validation, test"),
        (["a"] * 50, "validation, test"),
        (["a", "b"], "validation, test"),
    ],
)
def test_too_few_studies(patients, names):
    with pytest.raises(ConfigError, match=rf"{len(patients)} studies are too few .* no study for {names}\.$"):
        split_studies(patients, [["x"]] * len(patients), 0)


def test_one_text_for_all_is_too_few():
    patients = [str(row) for row in range(50)]
    with pytest.raises(ConfigError, match="too few"):
        split_studies(patients, [[]] * 50, 0, texts=[["the same"] * 50])
