"""Regions in the real /dev/shm, and a server that only lists them."""

import os
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

import client.shared_memory as shared_memory
from client.layout import lay_out, measure
from client.shared_memory import CudaRegion, RegionError, RegionPool, SystemRegion
from contract.errors import ConfigError

SHM = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not SHM.is_dir(), reason="no /dev/shm")


class Server:
    """Keeps the names of registered regions; refuses or fails as told."""

    def __init__(self) -> None:
        self.regions: dict[str, int] = {}
        self.in_use: set[str] = set()
        self.code: str | None = None
        self.asked = 0
        self.closed = False

    def register_system_shared_memory(self, name, key, byte_size, client_timeout):
        self.asked += 1
        assert client_timeout <= 1
        if self.code:
            raise InferenceServerException("no", status=f"StatusCode.{self.code}")
        assert (SHM / key.lstrip("/")).stat().st_size == byte_size
        self.regions[name] = byte_size

    def unregister_system_shared_memory(self, name, client_timeout):
        if self.code:
            raise InferenceServerException("no", status=f"StatusCode.{self.code}")
        if name in self.in_use:
            raise InferenceServerException("in use", status="StatusCode.INTERNAL")
        if name not in self.regions:
            raise InferenceServerException("unknown", status="StatusCode.NOT_FOUND")
        del self.regions[name]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def pool(server, monkeypatch):
    monkeypatch.setattr(shared_memory, "_SWEEP_S", 0.0)
    monkeypatch.setattr(shared_memory, "_CLOSE_S", 0.1)
    pool = RegionPool(SystemRegion, lambda: server)
    yield pool
    pool.close()
    assert not list_files()


def list_files() -> list[str]:
    return [
        path.name for path in SHM.glob("cxr_client_*") if path.stat().st_uid == os.getuid() and is_mine(path)
    ]


def is_mine(path: Path) -> bool:
    return path.name in MADE


MADE: set[str] = set()


@pytest.fixture(autouse=True)
def _note_names(monkeypatch):
    MADE.clear()
    make = shared_memory.secrets.token_hex

    def note(count: int) -> str:
        token = make(count)
        MADE.add(f"cxr_client_locked_{token}")
        return token

    monkeypatch.setattr(shared_memory.secrets, "token_hex", note)


def test_a_region_is_registered_once_and_used_again(pool, server):
    first = pool.lease(100)
    assert (SHM / first.name).stat().st_mode & 0o777 == 0o600
    pool.give_back(first)
    assert pool.lease(1000) is first
    second = pool.lease(1000)  # the first is in use
    assert second is not first
    assert server.asked == 2
    pool.give_back(first)
    pool.give_back(second)
    assert pool.lease(5) is second
    pool.give_back(second)


def test_a_region_that_is_too_small_is_replaced(pool, server):
    small = pool.lease(10)
    pool.give_back(small)
    large = pool.lease(3 * 2**20)
    assert large.byte_size == 4 * 2**20
    assert list(server.regions) == [large.name] == list_files()
    pool.give_back(large)


def test_close_zeroes_unregisters_and_unlinks(server):
    pool = RegionPool(SystemRegion, lambda: server)
    region = pool.lease(2**20)
    region.write([np.full(2**20, 7, np.uint8)])
    with (SHM / region.name).open("rb", buffering=0) as file:
        assert file.read(2) == b"\7\7"
        pool.give_back(region)
        pool.close()
        file.seek(0)
        assert not any(file.read())  # still open here: what a process with the region mapped sees
    assert not server.regions
    assert not list_files()
    assert server.closed


def test_a_region_in_use_is_kept_until_the_server_lets_go(pool, server):
    region = pool.lease(10)
    server.in_use.add(region.name)
    pool.retire(region)
    assert list_files() == [region.name]
    other = pool.lease(10)
    assert other is not region  # the server may still write into the retired one
    server.in_use.clear()
    pool.give_back(other)
    pool.lease(10)
    assert list_files() == [other.name]
    pool.give_back(other)


def test_close_does_not_wait_for_ever(server, monkeypatch):
    monkeypatch.setattr(shared_memory, "_CLOSE_S", 0.05)
    pool = RegionPool(SystemRegion, lambda: server)
    region = pool.lease(10)
    server.in_use.add(region.name)
    pool.retire(region)
    pool.close()
    assert not list_files()


def test_a_server_that_is_gone_leaves_nothing_behind(server):
    pool = RegionPool(SystemRegion, lambda: server)
    pool.give_back(pool.lease(10))
    server.code = "UNAVAILABLE"
    pool.close()
    assert not list_files()


def test_a_server_that_restarted_gets_new_regions(pool, server):
    old = pool.lease(10)
    pool.give_back(old)
    server.regions.clear()
    pool.retire_free()
    new = pool.lease(10)
    assert list(server.regions) == [new.name] == list_files()
    pool.give_back(new)


@pytest.mark.parametrize(
    ("code", "refused"), [("INTERNAL", True), ("UNIMPLEMENTED", True), ("UNAVAILABLE", False)]
)
def test_a_server_that_refuses_is_asked_once(pool, server, code, refused):
    server.code = code
    assert pool.lease(10) is None
    assert not list_files()
    assert pool.refused is refused
    server.code = None
    again = pool.lease(10)
    assert (again is None) is refused
    if again:
        pool.give_back(again)


def test_no_room_means_no_region(pool, monkeypatch):
    monkeypatch.setattr(shared_memory, "_LARGEST", 2**60)
    assert pool.lease(2**50) is None
    assert not pool.refused

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory.os, "posix_fallocate", fail)
    with pytest.raises(RegionError):
        SystemRegion(2**20)
    assert not list_files()


def test_inputs_are_laid_out_as_the_protocol_says():
    images = np.array([[b"abc"], [b""], ["é"]], np.object_)
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2]  # not contiguous
    pieces, places, end = lay_out([images, ids])
    region = SystemRegion(4096)
    region.write(pieces)
    offset, size = places[0]
    assert region.read(np.uint8, [size], offset).tobytes() == serialize_byte_tensor(images).item()
    offset, size = places[1]
    assert offset % 64 == 0
    np.testing.assert_array_equal(region.read(np.int64, [2, 2], offset), ids)
    assert end % 64 == 0
    assert [size for _, size in places] == [4 + 3 + 4 + 4 + 2, 32]
    assert measure(ids) == 32
    assert measure(np.array([[b"abc"], [b""]], np.object_)) == 11
    region.destroy()


def test_what_was_read_survives_the_region():
    region = SystemRegion(4096)
    region.write([np.arange(4, dtype=np.float32)])
    array = region.read(np.float32, [2, 2], 0)
    region.destroy()
    np.testing.assert_array_equal(array, [[0, 1], [2, 3]])


class Cuda:
    """Stands for tritonclient.utils.cuda_shared_memory on a machine with a GPU."""

    def __init__(self) -> None:
        self.memory: dict[str, list] = {}

    def create_shared_memory_region(self, name, byte_size, device):
        assert device == 0
        self.memory[name] = []
        return name

    def set_shared_memory_region(self, handle, arrays):
        self.memory[handle] = arrays

    def get_raw_handle(self, handle):
        return f"raw {handle}".encode()

    def destroy_shared_memory_region(self, handle):
        assert not np.any(self.memory.pop(handle)[0])


class CudaServer:
    regions: dict[str, bytes]

    def __init__(self) -> None:
        self.regions = {}

    def register_cuda_shared_memory(self, name, raw_handle, device, byte_size, client_timeout):
        self.regions[name] = raw_handle

    def unregister_cuda_shared_memory(self, name, client_timeout):
        del self.regions[name]

    def close(self) -> None:
        pass


def test_cuda_regions(monkeypatch):
    cuda, server = Cuda(), CudaServer()
    monkeypatch.setattr("tritonclient.utils.cuda_shared_memory", cuda, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.utils.cuda_shared_memory", cuda)
    pool = RegionPool(CudaRegion, lambda: server)
    region = pool.lease(10)
    region.write([np.ones(3, np.uint8)])
    assert server.regions == {region.name: f"raw {region.name}".encode()}
    pool.give_back(region)
    pool.close()
    assert not server.regions
    assert not cuda.memory


def test_cuda_regions_without_a_gpu_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.utils.cuda_shared_memory", None)
    with pytest.raises(ConfigError, match=r"tritonclient\[cuda\]"):
        CudaRegion(10)


def test_a_forked_child_leaves_the_regions_of_its_parent_alone(server):
    """A child that ends, or that drops the client, must not touch a region that a request of its parent uses."""
    pool = RegionPool(SystemRegion, lambda: server)
    region = pool.lease(2**20)
    pool.give_back(region)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pool.close()
            own = pool.lease(2**20)
            code = 0 if own is not None and own.name != region.name else 2
            pool.give_back(own)
            pool.close()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    region.write([np.full(4, 7, np.uint8)])
    assert region.read(np.uint8, [4], 0).tolist() == [7] * 4
    assert list_files() == [region.name]
    assert pool.lease(2**20) is region
    pool.give_back(region)
    pool.close()
    assert not list_files()
