"""The image cache: the pixels of `load_pixels`, on whatever way it came to be; and what it refuses."""

import ctypes
import errno
import io
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract.errors import ArtifactError, ConfigError
from contract.image.read import load_pixels
from training.data import cache as cache_module
from training.data.cache import INDEX, PIXELS, REFUSED, fill_cache, open_cache
from training.data.decode import decode_files
from training.data.studies import read_studies

SIZE = 32
COUNT = 10


@pytest.fixture
def images(tmp_path) -> list[Path]:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{number}.png" for number in range(COUNT)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (50, 40), dtype=np.uint8)).save(path)
    return paths


def make_rows(paths) -> list[dict[str, object]]:
    """Two images a study."""
    return [
        {
            "image_ids": [path.stem for path in paths[place : place + 2]],
            "image_paths": [str(path) for path in paths[place : place + 2]],
            "labels": ["normal"],
            "labelled": True,
        }
        for place in range(0, len(paths), 2)
    ]


@pytest.fixture
def table(images, write_rows) -> Path:
    return write_rows(make_rows(images))


@pytest.fixture
def in_process(monkeypatch):
    """Decode here: starting processes takes a second, and what it has to do is tested once."""
    monkeypatch.setattr(
        cache_module,
        "decode_files",
        lambda paths, size, workers: (cache_module.decode_file(path, size) for path in paths),
    )


def check_cache(directory, paths) -> None:
    """The cache holds what decoding gives, byte for byte, and is a plain .npy file."""
    cache = open_cache(directory, SIZE)
    for path, row in zip(paths, cache.find_rows([str(path) for path in paths]), strict=True):
        assert np.array_equal(cache.pixels[row], load_pixels(path.read_bytes(), size=SIZE))
    pixels = np.load(directory / PIXELS, mmap_mode="r")
    assert isinstance(pixels, np.memmap)
    assert (pixels.dtype, pixels.shape[1:]) == (np.uint8, (1, SIZE, SIZE))
    assert (directory / PIXELS).stat().st_size == 128 + pixels.size


def test_worker_processes_give_the_pixels_of_load_pixels(table, images, tmp_path):
    seen = []
    summary = fill_cache(
        table,
        tmp_path / "cache",
        size=SIZE,
        workers=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (summary.images, summary.decoded, summary.refused) == (COUNT, COUNT, ())
    assert seen[-1] == (COUNT, COUNT)
    check_cache(tmp_path / "cache", images)
    assert len(open_cache(tmp_path / "cache", SIZE).pixels) == COUNT
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("in_process")
def test_rows_are_added(images, write_rows, tmp_path):
    few, all_images = write_rows(make_rows(images[:4]), "few.parquet"), write_rows(make_rows(images))
    assert fill_cache(few, tmp_path / "cache", size=SIZE).decoded == 4
    with pytest.raises(
        ConfigError,
        match=r"6 images of the table are not in the cache .* 0 have changed .* `cxr data cache TABLE --out",
    ):
        open_cache(tmp_path / "cache", SIZE).find_rows([str(path) for path in images])
    seen = []
    summary = fill_cache(
        all_images, tmp_path / "cache", size=SIZE, progress=lambda done, total: seen.append((done, total))
    )
    assert (summary.images, summary.decoded) == (COUNT, 6)
    assert seen == [(COUNT, COUNT)]
    check_cache(tmp_path / "cache", images)
    assert fill_cache(few, tmp_path / "cache", size=SIZE).decoded == 0
    check_cache(tmp_path / "cache", images)  # of the table that it was filled from before, too


@pytest.mark.usefixtures("in_process")
def test_a_changed_file_is_noticed(table, images, tmp_path):
    fill_cache(table, tmp_path / "cache", size=SIZE)
    Image.new("L", (50, 40), 77).save(images[3])
    with pytest.raises(
        ConfigError, match=r"0 images of the table are not in the cache .* 1 have changed since"
    ):
        open_cache(tmp_path / "cache", SIZE).find_rows([str(path) for path in images])
    assert fill_cache(table, tmp_path / "cache", size=SIZE).decoded == 1
    check_cache(tmp_path / "cache", images)
    touched = images[5].stat()
    os.utime(images[5], ns=(touched.st_atime_ns, touched.st_mtime_ns + 1))
    assert fill_cache(table, tmp_path / "cache", size=SIZE).decoded == 1


@pytest.mark.usefixtures("in_process")
def test_the_images_may_be_gone(table, images, tmp_path):
    fill_cache(table, tmp_path / "cache", size=SIZE)
    wanted = [load_pixels(path.read_bytes(), size=SIZE) for path in images]
    for path in images:
        path.unlink()
    for _ in range(2):
        cache = open_cache(tmp_path / "cache", SIZE)
        assert np.array_equal(cache.pixels[cache.find_rows([str(path) for path in images])], wanted)
        summary = fill_cache(table, tmp_path / "cache", size=SIZE)
        assert (summary.decoded, summary.refused) == (0, ())


@pytest.mark.usefixtures("in_process")
def test_refused_files_are_told_once_and_tried_again_when_they_change(table, images, tmp_path):
    good = images[2].read_bytes()
    images[2].write_bytes(b"no image of MRN-4711")
    images[7].unlink()
    summary = fill_cache(table, tmp_path / "cache", size=SIZE)
    assert [refusal.image_id for refusal in summary.refused] == ["2", "7"]
    assert "No such file" in summary.refused[1].reason
    report = json.loads((tmp_path / "cache" / REFUSED).read_text())
    assert [set(entry) for entry in report] == [{"image_id", "path", "reason"}] * 2
    assert "MRN-4711" not in json.dumps(report)
    again = fill_cache(table, tmp_path / "cache", size=SIZE)
    assert (again.decoded, again.refused) == (0, summary.refused)
    rows = open_cache(tmp_path / "cache", SIZE).find_rows([str(path) for path in images])
    assert [row is None for row in rows] == [place in {2, 7} for place in range(COUNT)]
    for path in (images[2], images[7]):
        path.write_bytes(good)
    assert fill_cache(table, tmp_path / "cache", size=SIZE).refused == ()
    check_cache(tmp_path / "cache", images)


# --- interrupts ------------------------------------------------------------------------------------------------

SCRIPT = """
import multiprocessing, signal, sys
from pathlib import Path
from training.data import cache

def report(done, total):
    print(done, *(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.readline()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    cache._ROWS_PER_COMMIT = 2
    table, directory, size = sys.argv[1:]
    try:
        cache.fill_cache(Path(table), Path(directory), size=int(size), workers=2, progress=report)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_cache_goes_on_where_it_was(sent, table, images, tmp_path):
    (tmp_path / "fill.py").write_text(SCRIPT)
    directory = tmp_path / "cache"
    command = [sys.executable, tmp_path / "fill.py", table, directory, str(SIZE)]
    environment = os.environ | {"PYTHONPATH": str(Path(cache_module.__file__).parents[2])}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True, env=environment, start_new_session=True) as process:
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
        done, *workers = map(int, process.stdout.readline().split())
        assert done == 4
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as Ctrl-C does: the workers get it too
        else:
            process.kill()
        assert process.wait(timeout=60) == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[sent]
        assert "Traceback" not in process.stderr.read()
    assert workers
    limit = time.monotonic() + 60
    while any(map(is_alive, workers)):
        assert time.monotonic() < limit, "a worker outlives its parent"
        time.sleep(0.05)
    with pytest.raises(ConfigError, match=r"was interrupted\. To continue, run `cxr data cache TABLE --out"):
        open_cache(directory, SIZE)
    assert fill_cache(table, directory, size=SIZE, workers=1).decoded == COUNT - 4
    check_cache(directory, images)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("step", ["write", "seal", "commit"])
def test_a_row_counts_only_when_it_is_written(step, table, images, tmp_path, monkeypatch):
    """The disk is full, or the power fails, at each step of adding rows."""
    monkeypatch.setattr(cache_module, "_ROWS_PER_COMMIT", 3)
    calls = []
    seal = cache_module._seal_pixels

    def fail_at_the_second(file, rows, size):
        calls.append(rows)
        if len(calls) == 2:
            if step == "write":
                file.seek(-SIZE, io.SEEK_END)
                file.truncate()
            if step == "commit":
                seal(file, rows, size)
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(file, rows, size)

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_seal_pixels", fail_at_the_second)
        with pytest.raises(ArtifactError, match=r"Cannot write the image cache .*: No space left on device"):
            fill_cache(table, tmp_path / "cache", size=SIZE)
    assert calls == [3, 6]
    with pytest.raises(ConfigError, match="incomplete"):
        open_cache(tmp_path / "cache", SIZE)
    images[-1].write_bytes(b"")  # one row less than was begun: nothing may be left behind the last
    if step == "commit":
        for path in images[4:]:
            path.write_bytes(b"")
    assert fill_cache(table, tmp_path / "cache", size=SIZE).decoded == COUNT - 3
    check_cache(tmp_path / "cache", images[:4] if step == "commit" else images[:-1])


@pytest.mark.usefixtures("in_process")
def test_adding_that_was_interrupted_leaves_an_incomplete_cache(images, write_rows, tmp_path, monkeypatch):
    few, table = write_rows(make_rows(images[:4]), "few.parquet"), write_rows(make_rows(images))
    fill_cache(few, tmp_path / "cache", size=SIZE)

    def stop(*_: object):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_seal_pixels", stop)
        with pytest.raises(KeyboardInterrupt):
            fill_cache(table, tmp_path / "cache", size=SIZE)
    with pytest.raises(ConfigError, match="incomplete, because filling it was interrupted"):
        open_cache(tmp_path / "cache", SIZE)


def test_a_killed_worker_is_told(monkeypatch):
    monkeypatch.setattr(
        "training.data.decode.decode_file", ctypes.string_at
    )  # of address 8: a segmentation fault
    with pytest.raises(ConfigError, match=r"was killed\. If memory is short, use fewer processes"):
        list(decode_files([8], SIZE, workers=1))


@pytest.mark.usefixtures("in_process")
def test_a_cache_of_refused_files_alone(table, images, tmp_path):
    for path in images:
        path.write_bytes(b"no image")
    assert len(fill_cache(table, tmp_path / "cache", size=SIZE).refused) == COUNT
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(
            ConfigError, match=r"None of the 10 images .* can be read\. The first one is .*0\.png"
        ):
            read_studies(table, "findings", SIZE, cache=cache)
    assert open_cache(tmp_path / "cache", SIZE).find_rows([str(path) for path in images]) == [None] * COUNT


# --- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_another_size_is_refused(table, tmp_path):
    fill_cache(table, tmp_path / "cache", size=SIZE)
    for use in (
        lambda: open_cache(tmp_path / "cache", 64),
        lambda: fill_cache(table, tmp_path / "cache", size=64),
    ):
        with pytest.raises(ConfigError, match="images of 32 pixels, not of 64"):
            use()


def test_no_cache_and_no_images(write_rows, tmp_path):
    with pytest.raises(ConfigError, match=r"no image cache .*\. Make one with `cxr data cache`"):
        open_cache(tmp_path / "none", SIZE)
    with pytest.raises(ConfigError, match="names no image"):
        fill_cache(write_rows([]), tmp_path / "cache", size=SIZE)
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("in_process")
def test_two_processes_do_not_fill_one_cache(table, tmp_path):
    (tmp_path / "cache").mkdir()
    with (
        cache_module._lock_directory(tmp_path / "cache"),
        pytest.raises(ConfigError, match="Another process"),
    ):
        fill_cache(table, tmp_path / "cache", size=SIZE)


@pytest.mark.usefixtures("in_process")
def test_damage_is_noticed(table, tmp_path):
    directory = tmp_path / "cache"
    fill_cache(table, directory, size=SIZE)
    pixels, index = (directory / PIXELS).read_bytes(), (directory / INDEX).read_bytes()
    for data in (b"", pixels[:-1], b"x" + pixels[1:]):
        (directory / PIXELS).write_bytes(data)
        with pytest.raises(ArtifactError, match=r"damaged: pixels\.npy cannot be read"):
            open_cache(directory, SIZE)
    np.save(directory / PIXELS, np.zeros((COUNT - 1, 1, SIZE, SIZE), np.uint8))
    with pytest.raises(
        ArtifactError, match=r"damaged: pixels\.npy holds uint8 .9, 1, 32, 32., .* names 10 images"
    ):
        open_cache(directory, SIZE)
    (directory / PIXELS).write_bytes(pixels)
    for data in (b"no database" * 100, index[:5000]):
        (directory / INDEX).write_bytes(data)
        with pytest.raises(ArtifactError, match="damaged"):
            open_cache(directory, SIZE)
    (directory / INDEX).write_bytes(index)
    with sqlite3.connect(directory / INDEX) as database:
        database.execute("UPDATE facts SET value = 2 WHERE name = 'version'")
    database.close()
    with pytest.raises(ArtifactError, match="has version 2, this software reads 1"):
        open_cache(directory, SIZE)


@pytest.mark.usefixtures("in_process")
def test_pixels_that_are_decoded_otherwise_by_now_are_refused(table, tmp_path, monkeypatch):
    fill_cache(table, tmp_path / "cache", size=SIZE)
    open_cache(tmp_path / "cache", SIZE)
    monkeypatch.setattr(
        "training.data.decode.load_pixels", lambda data, size: load_pixels(data, size=size) // 2
    )
    with pytest.raises(ArtifactError, match=r"holds other pixels for .* than this version decodes"):
        open_cache(tmp_path / "cache", SIZE)


# --- training --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_studies_come_from_the_cache(table, images, write_rows, tmp_path, monkeypatch):
    images[3].write_bytes(b"no image")
    plain = read_studies(table, "findings", SIZE)
    fill_cache(
        write_rows(make_rows(images[::-1]), "other.parquet"), tmp_path / "cache", size=SIZE
    )  # in another order
    monkeypatch.setattr("training.data.studies.decode_file", lambda *_, **__: pytest.fail("it was decoded"))
    cached = read_studies(table, "findings", SIZE, cache=tmp_path / "cache")
    assert cached.unreadable == plain.unreadable == 1
    assert [len(view) for view in cached.views] == [len(view) for view in plain.views] == [2, 1, 2, 2, 2]
    for one, other in zip(cached.views, plain.views, strict=True):
        assert np.array_equal(cached.pixels[list(one)], plain.pixels[list(other)])
    assert isinstance(cached.pixels.base, np.memmap), "the images must stay on the disk"
    with pytest.raises(ConfigError, match="pixels, not of 64"):
        read_studies(table, "findings", 64, cache=tmp_path / "cache")
