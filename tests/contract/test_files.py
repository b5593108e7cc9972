"""Output files: whole or not at all, links followed, devices and pipes written into, nothing left behind."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from contract import files
from contract.errors import ArtifactError, ConfigError
from contract.files import write_file


def list_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def make_device(path: Path, number: tuple[int, int]) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(*number))
        path.open("wb").close()
    except PermissionError:
        pytest.skip("making a device needs root and a file system that allows devices")


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "new" / "deep" / "a.txt", "größer")
        write_file(tmp_path / "run.sh", b"#!/bin/sh\n", mode=0o777)
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == "größer".encode()
    assert stat.S_IMODE((tmp_path / "new" / "deep" / "a.txt").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "run.sh").stat().st_mode) == 0o750
    assert list_names(tmp_path / "new" / "deep") == ["a.txt"]


def test_an_existing_file_keeps_its_mode_and_is_another_file_afterwards(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o604)
    os.link(path, tmp_path / "b")  # a reader that has the old one open keeps it whole
    write_file(path, b"new")
    assert (path.read_bytes(), (tmp_path / "b").read_bytes()) == (b"new", b"old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert list_names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("kind", ["relative", "absolute", "chain", "dangling"])
def test_a_link_stays_and_its_target_is_written(kind, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "here" / "link"
    if kind != "dangling":
        target.write_bytes(b"old")
    if kind == "chain":
        (tmp_path / "middle").symlink_to("there/target")
        link.symlink_to("../middle")
    else:
        link.symlink_to(target if kind == "absolute" else "../there/target")
    write_file(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()
    assert (list_names(tmp_path / "here"), list_names(tmp_path / "there")) == (["link"], ["target"])


def test_a_device_is_written_into_and_stays_one(tmp_path):
    null, full = tmp_path / "null", tmp_path / "full"
    make_device(null, (1, 3))
    make_device(full, (1, 7))
    (tmp_path / "link").symlink_to("null")
    for path in (null, tmp_path / "link"):
        write_file(path, b"gone")
    with pytest.raises(ArtifactError, match=r"Could not write .*full: No space left on device\."):
        write_file(full, b"gone")
    assert [stat.S_ISCHR(path.stat().st_mode) for path in (null, full)] == [True, True]
    assert list_names(tmp_path) == ["full", "link", "null"]


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"x" * 200_000)
    reader.join(60)
    assert read == [b"x" * 200_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_whose_reader_leaves_is_one_sentence(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: os.close(os.open(pipe, os.O_RDONLY)))
    reader.start()
    with pytest.raises(ArtifactError, match=r"pipe: Broken pipe\."):
        write_file(pipe, b"x" * 1_000_000)
    reader.join(60)


_WRITE = """
import sys
from pathlib import Path
from contract.files import write_file
print("before")
write_file(Path(sys.argv[1]), b"content\\n")
print("after")
"""


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("into", ["file", "pipe"])
def test_standard_output_is_written_behind_what_was_printed(path, into, tmp_path):
    if not Path("/proc/self/fd").is_dir() and path.startswith("/proc"):
        pytest.skip("no /proc here")
    (tmp_path / "link").symlink_to("/dev/stdout")
    out = tmp_path / "out.txt"
    with out.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", _WRITE, path.replace("link", str(tmp_path / "link"))],
            stdout=file if into == "file" else subprocess.PIPE,
            check=True,
        )
    written = out.read_bytes() if into == "file" else done.stdout
    assert written == b"before\ncontent\nafter\n"
    assert (tmp_path / "link").is_symlink()


def test_paths_that_refuse_are_one_sentence_with_the_path(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"in the way")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in {
        "file/a": "Not a directory",
        "file/a/b": "Not a directory",
        "loop": "symbolic links",
        "n" * 300: "File name too long",
    }.items():
        with pytest.raises(ArtifactError, match=words) as info:
            write_file(tmp_path / name, b"new")
        assert str(info.value).count("\n") == 0
        assert name in str(info.value)
    with pytest.raises(ArtifactError, match="null"):
        write_file(Path("a\0b"), b"new")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, Path(), Path(".."), Path("/")):
        with pytest.raises(ConfigError, match=r"is a directory\. Give the path of a file\."):
            write_file(path, b"new")
    assert list_names(tmp_path) == ["file", "loop"]


def test_a_name_of_255_bytes_and_one_that_starts_with_a_dot(tmp_path):
    for name in ("é" * 127, "a" * 255, ".hidden"):
        write_file(tmp_path / name, b"new")
        write_file(tmp_path / name, b"newer")
    assert len(list_names(tmp_path)) == 3


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_or_ctrl_c_leaves_everything_as_it_was(before, error, step, tmp_path, monkeypatch):
    path = tmp_path / "new" / "deep" / "page.html"
    if before:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises((ArtifactError, KeyboardInterrupt)) as info:
        write_file(path, b"new")
    if isinstance(error, OSError):
        assert str(info.value) == f"Could not write {path}: No space left on device."
    if before:
        assert path.read_bytes() == b"old"
        assert list_names(path.parent) == ["page.html"]
    else:
        assert list_names(tmp_path) == []  # the directories that it made are gone, too


_AS_NOBODY = """
import os, sys
from pathlib import Path
from contract.errors import ArtifactError
from contract.files import write_file
os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    try:
        write_file(Path(path), b"new")
        print("written")
    except ArtifactError as error:
        print(error)
"""


def test_without_the_permission_nothing_is_replaced(tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can become somebody without the permission")
    for parent in (tmp_path, *tmp_path.parents[:3]):  # with that of a worker
        parent.chmod(parent.stat().st_mode | 0o111)
    shared, closed = tmp_path / "shared", tmp_path / "closed"
    shared.mkdir()
    closed.mkdir()
    shared.chmod(0o777)
    protected = shared / "protected"
    protected.write_bytes(b"old")
    protected.chmod(0o444)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, protected, closed / "a", shared / "free"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        f"Could not write {protected}: the file is write-protected.",
        f"Could not write {closed / 'a'}: Permission denied.",
        "written",
    ]
    assert protected.read_bytes() == b"old"
    assert (list_names(shared), list_names(closed)) == (["free", "protected"], [])


def test_a_descriptor_of_another_process_is_no_own_one():
    assert files._find_descriptor(Path(f"/proc/{os.getpid()}/fd/2")) == 2
    assert files._find_descriptor(Path("/proc/1/fd/2")) is None
    assert files._find_descriptor(Path("/dev/null")) is None
