"""A flipped bit in the file of the cases is told of, or changes nothing; wrong data is never handed out in silence."""

import random
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ArtifactError
from retrieval.store import CaseStore

CASES = 60


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A file with cases that were added, replaced and deleted, closed cleanly."""
    from retrieval.cases import CaseRecord

    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(CASES, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    names = [f"case-{number}" for number in range(CASES)]
    records = [
        CaseRecord(name, f"study {name}", ("normal",), f"Report {name}. " * 20, "x.dcm") for name in names
    ]
    directory = tmp_path_factory.mktemp("flips")
    with CaseStore(directory) as store:
        store.put("a" * 64, records, vectors)
        store.put("a" * 64, records[:5], vectors[:5])
        store.delete(names[5:10])
    return directory / "cases.sqlite"


def read_everything(directory: Path) -> tuple[list, str]:
    """Return all that a server would hand out, and what it would tell of damage."""
    with CaseStore(directory) as store:
        parts = list(store.read_vectors())
        answers: list = [(store.fingerprint, store.dimension)]
        for part in parts:
            records = store.get_versions(part.sequences)
            for row, sequence in enumerate(part.sequences):
                record = records[sequence]
                found = store.get(record.id)
                vector = part.embeddings[row].tobytes()
                answers.append((sequence, part.ids[row], part.study_ids[row], vector, record, found))
        return answers, store.describe_damage()


def check_flip(data: bytes, bit: int, expected: list, directory: Path) -> str:
    """Return what became of one flipped bit; fail where something else was handed out, or less, in silence."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    for path in directory.iterdir():
        path.unlink()
    (directory / "cases.sqlite").write_bytes(changed)
    try:
        answers, told = read_everything(directory)
    except ArtifactError:
        return "refused"
    assert {entry[0] for entry in answers[1:]} <= {entry[0] for entry in expected[1:]}, bit
    assert all(entry in expected for entry in answers), bit
    if told:
        return "told"
    assert answers == expected, bit
    return "harmless"


@pytest.mark.parametrize("seed", range(3))
def test_random_flips(seed, written, tmp_path):
    """Ten flips in content, then 140 anywhere."""
    data, (expected, told) = written.read_bytes(), read_everything(written.parent)
    assert (told, len(expected)) == ("", 1 + CASES - 5)
    generator = random.Random(seed)
    work = tmp_path / "work"
    work.mkdir()
    texts = [at for at in range(len(data)) if data[at : at + 13] == b"Report case-4"]  # none was ever deleted
    bits = [8 * generator.choice(texts) + generator.randrange(8 * 13) for _ in range(10)]
    assert "harmless" not in {check_flip(data, bit, expected, work) for bit in bits}
    bits = [generator.randrange(8 * len(data)) for _ in range(140)]
    seen = [check_flip(data, bit, expected, work) for bit in bits]
    assert seen.count("told") + seen.count("refused") > seen.count("harmless") / 4


def test_every_bit_of_the_file_header_and_the_schema(written, tmp_path):
    """The first page says how all others are read."""
    data, (expected, _) = written.read_bytes(), read_everything(written.parent)
    work = tmp_path / "work"
    work.mkdir()
    first = [*range(0, 112), *range(112, 6400, 40), *range(6400, 8192, 5)]
    for at in first:
        check_flip(data, 8 * at + at % 8, expected, work)
