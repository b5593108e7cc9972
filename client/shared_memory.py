"""Shared-memory regions of this client and a Triton on the same host, so that tensors do not pass through a socket.

This process creates a region with a random name and mode 0600, and registers it at Triton once. One request at a time
uses it. Before the region is removed, its content is overwritten with zeros.

This process holds a lock (flock(2)) on the file of each region. The kernel releases it when the process ends in any
way, so a region without a lock has no owner. `cxr serve` then unregisters the region and removes its file
(`serving.regions`). A process id would not do, because each container has its own ids. A forked child shares the lock.
It forgets the regions: only the process that made a region may overwrite or remove it.

If a request ends without an answer (deadline, cancellation, lost connection), the server may still read and write its
region. Such a region is retired: no other request uses it, and it is removed when the server no longer uses it. Triton
2.51 refuses to unregister a region in use (INTERNAL). Older versions could crash (Triton issue 3207).

The registration calls are Triton's extension of KServe v2:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as system_memory

from contract.errors import ConfigError
from contract.grpc_status import strip_code

_DIRECTORY: Final = "/dev/shm"  # noqa: S108
_LOCKED_PREFIX: Final = "cxr_client_locked_"  # `serving.regions` looks for this prefix
_SMALLEST: Final = 2**20  # bytes of a region
_LARGEST: Final = 2**29
_CONTROL_TIMEOUT_S: Final = 1.0  # for registering and unregistering, which take well under 1 ms
_CLOSE_S: Final = 2.0  # `close` waits so long for requests that the server still works on
_SWEEP_S: Final = 0.2  # least time between two attempts to remove retired regions
_TRANSIENT: Final = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}

Client = Any  # tritonclient.grpc.InferenceServerClient


class RegionError(Exception):
    """A region cannot be created. The request uses gRPC instead."""


class Region(Protocol):
    """Memory that this process and Triton can access."""

    name: str
    byte_size: int
    holds_outputs: bool

    def write(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Copy arrays into the region, one after another from its start."""

    def read(self, dtype: DTypeLike, shape: Sequence[int], offset: int) -> NDArray[Any]:
        """Return a copy of the array that starts at `offset`, in bytes."""

    def register(self, client: Client) -> None:
        """Register the region at the server."""

    def unregister(self, client: Client) -> None:
        """Unregister the region at the server."""

    def destroy(self) -> None:
        """Overwrite the content with zeros and free the memory."""


class SystemRegion:
    """A region in POSIX shared memory (/dev/shm), mode 0600."""

    holds_outputs = True

    def __init__(self, byte_size: int) -> None:
        """Create a region. RegionError: there is not enough memory."""
        self.name = f"{_LOCKED_PREFIX}{secrets.token_hex(16)}"
        self.byte_size = byte_size
        try:
            # Triton's python backend needs the same file system, so half of the free memory remains free.
            if shutil.disk_usage(_DIRECTORY).free < 2 * byte_size:
                raise RegionError
            self._handle = system_memory.create_shared_memory_region(
                self.name, f"/{self.name}", byte_size, create_only=True
            )
        except (OSError, system_memory.SharedMemoryException) as error:
            raise RegionError from error
        try:
            self._file: int | None = _lock_and_allocate(self.name, byte_size)
        except OSError as error:
            system_memory.destroy_shared_memory_region(self._handle)
            raise RegionError from error

    def write(self, arrays: Sequence[NDArray[Any]]) -> None:
        """See `Region.write`."""
        system_memory.set_shared_memory_region(self._handle, list(arrays))

    def read(self, dtype: DTypeLike, shape: Sequence[int], offset: int) -> NDArray[Any]:
        """See `Region.read`. The result is a copy, because the next request overwrites the region."""
        return np.array(system_memory.get_contents_as_numpy(self._handle, dtype, list(shape), offset))

    def register(self, client: Client) -> None:
        """See `Region.register`."""
        client.register_system_shared_memory(
            self.name, f"/{self.name}", self.byte_size, client_timeout=_CONTROL_TIMEOUT_S
        )

    def unregister(self, client: Client) -> None:
        """See `Region.unregister`."""
        client.unregister_system_shared_memory(self.name, client_timeout=_CONTROL_TIMEOUT_S)

    def destroy(self) -> None:
        """See `Region.destroy`."""
        self.write([np.zeros(self.byte_size, np.uint8)])
        with contextlib.suppress(BufferError, FileNotFoundError):
            system_memory.destroy_shared_memory_region(self._handle)
        if self._file is not None:
            os.close(self._file)
            self._file = None


class CudaRegion:
    """A region in the memory of GPU 0, for inputs that are numbers. They do not pass through the server's CPU."""

    holds_outputs = False

    def __init__(self, byte_size: int) -> None:
        """Create a region. ConfigError: the package or the GPU is missing."""
        self.name = f"cxr_client_{secrets.token_hex(16)}"
        self.byte_size = byte_size
        try:
            from tritonclient.utils import cuda_shared_memory

            self._memory = cuda_shared_memory
            self._handle = cuda_shared_memory.create_shared_memory_region(self.name, byte_size, 0)
        except Exception as error:  # the CUDA binding raises errors of many unrelated types
            raise ConfigError(
                "transport='cuda_shared_memory' needs a GPU on this host and another package: pip install "
                "'tritonclient[cuda]', or use transport='auto'."
            ) from error

    def write(self, arrays: Sequence[NDArray[Any]]) -> None:
        """See `Region.write`."""
        self._memory.set_shared_memory_region(self._handle, list(arrays))

    def read(self, dtype: DTypeLike, shape: Sequence[int], offset: int) -> NDArray[Any]:
        """Not implemented: tritonclient can only read a whole CUDA region, and the outputs are small."""
        raise NotImplementedError

    def register(self, client: Client) -> None:
        """See `Region.register`."""
        client.register_cuda_shared_memory(
            self.name,
            self._memory.get_raw_handle(self._handle),
            0,
            self.byte_size,
            client_timeout=_CONTROL_TIMEOUT_S,
        )

    def unregister(self, client: Client) -> None:
        """See `Region.unregister`."""
        client.unregister_cuda_shared_memory(self.name, client_timeout=_CONTROL_TIMEOUT_S)

    def destroy(self) -> None:
        """See `Region.destroy`."""
        self.write([np.zeros(self.byte_size, np.uint8)])
        self._memory.destroy_shared_memory_region(self._handle)


_POOLS: Final["weakref.WeakSet[RegionPool]"] = weakref.WeakSet()


class RegionPool:
    """The regions of one transport. Each is lent to one request at a time. Several threads may use the pool at once."""

    def __init__(self, make: Callable[[int], Region], connect: Callable[[], Client]) -> None:
        """Start without regions.

        Args:
            make: Creates a region with the given number of bytes.
            connect: Returns a new client, which registers the regions.
        """
        self._make = make
        self._connect = connect
        self._connection: Client | None = None
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self._retired: list[Region] = []
        self._swept_at = 0.0
        self.refused = (
            False  # the server does not accept regions: it runs on another host, or its options forbid them
        )
        self._owner = os.getpid()
        _POOLS.add(self)

    def forget(self) -> None:
        """Let a forked child start without regions: those that it knows belong to its parent."""
        self._lock = threading.Lock()  # a thread of the parent may have held the old one
        self._free, self._retired, self._connection = [], [], None
        self._owner = os.getpid()

    def lease(self, byte_size: int) -> Region | None:
        """Return a registered region of at least `byte_size` bytes; None if the request should use gRPC."""
        if self.refused or byte_size > _LARGEST:
            return None
        self._sweep()
        with self._lock:
            for region in reversed(self._free):  # the region used last is in the CPU's cache
                if region.byte_size >= byte_size:
                    self._free.remove(region)
                    return region
            too_small = self._free.pop() if self._free else None
        if too_small is not None:
            self.retire(too_small)
        return self._create(byte_size)

    def give_back(self, region: Region) -> None:
        """Take back the region of a request that has its answer."""
        with self._lock:
            self._free.append(region)

    def retire(self, *regions: Region) -> None:
        """Take back regions that no request may use again. Each is removed when the server no longer uses it."""
        with self._lock:
            self._retired += regions
            self._swept_at = 0.0
        self._sweep()

    def retire_free(self) -> None:
        """Retire all regions that no request uses, for example after a restart of the server, which forgets them."""
        with self._lock:
            free, self._free = self._free, []
        self.retire(*free)

    def close(self) -> None:
        """Remove every region that no request uses. Wait up to 2 s for regions that the server still uses."""
        if os.getpid() != self._owner:
            self.forget()
            return
        self.retire_free()
        end = time.monotonic() + _CLOSE_S
        while self._retired and time.monotonic() < end:
            time.sleep(0.02)
            self._swept_at = 0.0
            if not self._sweep():
                break
        with self._lock:
            left, self._retired = self._retired, []
            connection, self._connection = self._connection, None
        for region in left:
            region.destroy()
        if connection is not None:
            connection.close()

    def _client(self) -> Client:
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
            return self._connection

    def _create(self, byte_size: int) -> Region | None:
        """Create and register a region; None if this host or the server refuses."""
        try:
            region = self._make(max(_SMALLEST, 1 << (byte_size - 1).bit_length()))
        except RegionError:
            return None
        try:
            region.register(self._client())
        except InferenceServerException as error:
            region.destroy()
            self.refused = strip_code(error.status()) not in _TRANSIENT
            return None
        except BaseException:
            region.destroy()
            raise
        return region

    def _sweep(self) -> bool:
        """Remove the retired regions that the server no longer uses. Return whether the server answered."""
        with self._lock:
            if not self._retired or time.monotonic() - self._swept_at < _SWEEP_S:
                return True
            self._swept_at = time.monotonic()
            retired, self._retired = self._retired, []
        for index, region in enumerate(retired):
            try:
                region.unregister(self._client())
            except InferenceServerException as error:
                code = strip_code(error.status())
                if code in _TRANSIENT:
                    with self._lock:
                        self._retired += retired[index:]
                    return False
                if code != "NOT_FOUND":  # the region is in use
                    with self._lock:
                        self._retired.append(region)
                    continue
            region.destroy()
        return True


def _forget_in_child() -> None:
    for pool in list(_POOLS):
        pool.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def _lock_and_allocate(name: str, byte_size: int) -> int:
    """Lock the file of a region, allocate all of its memory, and return the open file.

    Without the allocation, a page that the file system cannot provide later would kill the process (SIGBUS).
    """
    file = os.open(f"{_DIRECTORY}/{name}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.posix_fallocate(file, 0, byte_size)
    except BaseException:
        os.close(file)
        raise
    return file
