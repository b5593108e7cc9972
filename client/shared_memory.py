"""Shared memory between this client and a Triton on the same host: tensors that no socket carries.

A region is made by this process under a random name, readable by its user only, registered at Triton once and
used by one call at a time. Its content is overwritten with zeros before it is given up, and its name is removed.

This process keeps a lock (flock(2)) on the file of each region. The kernel gives it back however the process ends, so
a server that can have the lock knows that the region has no owner: `cxr serve` then has Triton forget it and removes
it (`serving.regions`). A process id would not do: a container has its own. A child made by fork shares the lock.

A call that ends without an answer (deadline, cancellation, lost connection) may still be read from and written to by
the server: its region is retired, never used again, and unregistered once the server no longer holds it (Triton
2.51 refuses to unregister a region in use with INTERNAL; older ones could crash, Triton issue 3207).

The registration calls are Triton's extension of KServe v2:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as system_memory

from contract.errors import ConfigError
from contract.grpc_status import strip_code

_DIRECTORY: Final = "/dev/shm"  # noqa: S108
_LOCKED_PREFIX: Final = "cxr_client_locked_"  # what `serving.regions` sweeps
_ALIGNMENT: Final = 64  # bytes: a cache line, and enough for any data type
_SMALLEST: Final = 2**20
_LARGEST: Final = 2**29
_CONTROL_TIMEOUT_S: Final = 1.0  # of registering and unregistering, which take well under 1 ms
_CLOSE_S: Final = 2.0  # how long `close` waits for calls that the server still works on
_SWEEP_S: Final = 0.2
_TRANSIENT: Final = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}

Client = Any  # tritonclient.grpc.InferenceServerClient


class RegionError(Exception):
    """No region can be had here; the call goes over gRPC."""


class Region(Protocol):
    """Memory that this process and Triton see."""

    name: str
    byte_size: int
    holds_outputs: bool

    def write(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Copy arrays into the region one after another, from its start."""

    def read(self, dtype: DTypeLike, shape: Sequence[int], offset: int) -> NDArray[Any]:
        """Return a copy of an array that lies `offset` bytes from the start."""

    def register(self, client: Client) -> None:
        """Make the region known to the server."""

    def unregister(self, client: Client) -> None:
        """Make the server forget the region."""

    def destroy(self) -> None:
        """Overwrite the content and give the memory back."""


class SystemRegion:
    """A region in POSIX shared memory (/dev/shm), mode 0600."""

    holds_outputs = True

    def __init__(self, byte_size: int) -> None:
        """Make a region; RegionError where there is no room for it."""
        self.name = f"{_LOCKED_PREFIX}{secrets.token_hex(16)}"
        self.byte_size = byte_size
        try:
            # Triton's python backend lives off the same file system: half of what is free stays free.
            if shutil.disk_usage(_DIRECTORY).free < 2 * byte_size:
                raise RegionError
            self._handle = system_memory.create_shared_memory_region(
                self.name, f"/{self.name}", byte_size, create_only=True
            )
        except (OSError, system_memory.SharedMemoryException) as error:
            raise RegionError from error
        try:
            self._file: int | None = _commit(self.name, byte_size)
        except OSError as error:
            system_memory.destroy_shared_memory_region(self._handle)
            raise RegionError from error

    def write(self, arrays: Sequence[NDArray[Any]]) -> None:
        """See `Region.write`."""
        system_memory.set_shared_memory_region(self._handle, list(arrays))

    def read(self, dtype: DTypeLike, shape: Sequence[int], offset: int) -> NDArray[Any]:
        """See `Region.read`; a copy, because the next call overwrites the region."""
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
    """A region in the memory of GPU 0; for inputs that are numbers, which then never pass the server's CPU."""

    holds_outputs = False

    def __init__(self, byte_size: int) -> None:
        """Make a region; ConfigError where the package or the GPU is missing."""
        self.name = f"cxr_client_{secrets.token_hex(16)}"
        self.byte_size = byte_size
        try:
            from tritonclient.utils import cuda_shared_memory

            self._memory = cuda_shared_memory
            self._handle = cuda_shared_memory.create_shared_memory_region(self.name, byte_size, 0)
        except Exception as error:  # the CUDA binding raises errors of many unrelated types
            raise ConfigError(
                "CUDA shared memory needs a GPU and `pip install 'tritonclient[cuda]'` here: use "
                "transport='auto' instead."
            ) from error

    def write(self, arrays: Sequence[NDArray[Any]]) -> None:
        """See `Region.write`."""
        self._memory.set_shared_memory_region(self._handle, list(arrays))

    def read(self, dtype: DTypeLike, shape: Sequence[int], offset: int) -> NDArray[Any]:
        """Not used: tritonclient reads a CUDA region whole, and the outputs are small."""
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


class RegionPool:
    """The regions of one transport, each lent to one call at a time; may be used by several threads at once."""

    def __init__(self, make: Callable[[int], Region], connect: Callable[[], Client]) -> None:
        """Describe the pool; nothing is made yet.

        Args:
            make: Makes a region of so many bytes.
            connect: Returns a new client, through which regions are registered.
        """
        self._make = make
        self._connect = connect
        self._connection: Client | None = None
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self._retired: list[Region] = []
        self._swept_at = 0.0
        self.refused = False  # the server does not take regions: it runs elsewhere, or is told not to

    def lease(self, byte_size: int) -> Region | None:
        """Return a registered region of at least `byte_size` bytes, or None where the call should go over gRPC."""
        if self.refused or byte_size > _LARGEST:
            return None
        self._sweep()
        with self._lock:
            for region in reversed(self._free):  # the one used last is in the cache
                if region.byte_size >= byte_size:
                    self._free.remove(region)
                    return region
            outgrown = self._free.pop() if self._free else None
        if outgrown is not None:
            self.retire(outgrown)
        return self._add(byte_size)

    def give_back(self, region: Region) -> None:
        """Take back the region of a call that was answered."""
        with self._lock:
            self._free.append(region)

    def retire(self, *regions: Region) -> None:
        """Give up regions that the server may still hold."""
        with self._lock:
            self._retired += regions
            self._swept_at = 0.0
        self._sweep()

    def retire_free(self) -> None:
        """Give up all regions that no call uses: the server forgot them, as after a restart."""
        with self._lock:
            free, self._free = self._free, []
        self.retire(*free)

    def close(self) -> None:
        """Zero and remove every region that no call uses; waits up to 2 s for those that the server still holds."""
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

    def _add(self, byte_size: int) -> Region | None:
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
        """Destroy retired regions that the server no longer holds; return whether the server answered."""
        with self._lock:
            if not self._retired or time.monotonic() - self._swept_at < _SWEEP_S:
                return True
            self._swept_at = time.monotonic()
            retired, self._retired = self._retired, []
        for number, region in enumerate(retired):
            try:
                region.unregister(self._client())
            except InferenceServerException as error:
                code = strip_code(error.status())
                if code in _TRANSIENT:
                    with self._lock:
                        self._retired += retired[number:]
                    return False
                if code != "NOT_FOUND":  # in use
                    with self._lock:
                        self._retired.append(region)
                    continue
            region.destroy()
        return True


def place(arrays: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], list[tuple[int, int]], int]:
    """Lay out input tensors for a region.

    Args:
        arrays: Batched arrays; objects are bytes, or str that is sent as UTF-8.

    Returns:
        What to write one after another; (offset, size) of each array in bytes; and the first free byte, aligned.
        A BYTES tensor is its elements, each after its length as a little-endian 32-bit number (KServe v2).
    """
    pieces: list[NDArray[Any]] = []
    places: list[tuple[int, int]] = []
    offset = 0
    for array in arrays:
        mine = _split_bytes(array) if array.dtype == np.object_ else [array]
        size = sum(len(piece.item()) if piece.dtype == np.object_ else piece.nbytes for piece in mine)
        places.append((offset, size))
        padding = -(offset + size) % _ALIGNMENT
        pieces += [*mine, np.zeros(padding, np.uint8)] if padding else mine
        offset += size + padding
    return pieces, places, offset


def measure(array: NDArray[Any]) -> int:
    """Return the size of a tensor on its way, in bytes."""
    if array.dtype != np.object_:
        return array.nbytes
    return sum(4 + len(element) for element in array.ravel())


def align(byte_size: int) -> int:
    """Round up to where the next tensor may start."""
    return byte_size + -byte_size % _ALIGNMENT


def _split_bytes(array: NDArray[Any]) -> list[NDArray[Any]]:
    pieces = []
    for element in array.ravel():
        data = element.encode() if isinstance(element, str) else bytes(element)
        pieces += [np.array(struct.pack("<I", len(data)), np.object_), np.array(data, np.object_)]
    return pieces


def _commit(name: str, byte_size: int) -> int:
    """Lock a region's file, return it open, and have the memory given now.

    A page that the file system cannot give later would kill the process (SIGBUS).
    """
    file = os.open(f"{_DIRECTORY}/{name}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.posix_fallocate(file, 0, byte_size)
    except BaseException:
        os.close(file)
        raise
    return file
