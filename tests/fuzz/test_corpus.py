"""Every file of the fuzzing corpus keeps the promises of its reader; the fuzzer itself runs for some seconds."""

import importlib.util
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")
pytest.importorskip("pyarrow")

import mutate
import targets
from mutate_dicom import find_layout

HERE = Path(__file__).parent
FILES = sorted(path.relative_to(HERE / "corpus") for path in HERE.glob("corpus/*/*"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_promises_are_kept(path, capfd):
    started = time.process_time()  # of this process alone, however busy the machine is
    targets.run_target(path.parts[0], (HERE / "corpus" / path).read_bytes())
    assert time.process_time() - started < 10
    written = capfd.readouterr()
    assert written.out == written.err == "", "a decoder writes to the terminal"


def test_corpus_is_small():
    assert 40 <= len(FILES) <= 120
    assert sum((HERE / "corpus" / path).stat().st_size for path in FILES) < 300_000
    assert {path.parts[0] for path in FILES} == set(targets.TARGETS)


def test_broken_promise_is_found(monkeypatch):
    """The target itself works: a reader that raises, warns or names the patient does not pass."""
    for change in (lambda data, size: 1 / 0, lambda data, size: None):
        monkeypatch.setattr(targets, "load_radiograph", change)
        with pytest.raises((ZeroDivisionError, AttributeError)):
            targets.run_target("image", b"")

    def name_patient(data: bytes, *, size: int) -> None:
        raise targets.ImageError("The image of Zoe Quincy is damaged.")

    monkeypatch.setattr(targets, "load_radiograph", name_patient)
    with pytest.raises(targets.PromiseBroken, match="patient"):
        targets.run_target("image", b"")


def flip(data: bytes, max_size: int) -> bytes:
    """Stand in for libFuzzer's mutation."""
    return (bytes([data[0] ^ 1]) + data[1:] if data else b"x")[:max_size]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_mutations_repeat_and_keep_the_size(path):
    data = (HERE / "corpus" / path).read_bytes()
    changes = {"image": mutate.mutate_image, "text": mutate.mutate_text, "archive": mutate.mutate_archive}
    change = changes[path.parts[0]]
    made = [change(data, 2**14, random.Random(seed), flip) for seed in range(40)]
    assert made == [change(data, 2**14, random.Random(seed), flip) for seed in range(40)]
    assert all(len(one) <= 2**14 for one in made)
    assert sum(one != data for one in made) > 20


@pytest.mark.parametrize(
    "name", ["uncompressed-little-endian", "uncompressed-implicit-vr", "uncompressed-big-endian"]
)
def test_mutator_finds_the_elements_that_pydicom_finds(name):
    from pydicom import dcmread

    path = HERE / "corpus" / "image" / f"{name}.dcm"
    dataset = dcmread(path)
    expected = [(tag.group, tag.element) for tag in [*dataset.file_meta, *dataset] for tag in [tag.tag]]
    elements, big = find_layout(path.read_bytes())
    assert [element.tag for element in elements] == expected
    assert big == (name == "uncompressed-big-endian")


@pytest.mark.slow
@pytest.mark.parametrize("target", targets.TARGETS)
def test_fuzzer_finds_nothing(target, tmp_path):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris has no wheel for this platform")
    command = [sys.executable, str(HERE / "run.py"), target, "--seconds", "30", "--work", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "stat::number_of_executed_units" in result.stderr
