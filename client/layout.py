"""The layout of tensors in a shared-memory region: where each tensor starts, and how many bytes it has.

A BYTES tensor consists of its elements, each after its length as a little-endian 32-bit number (KServe v2).
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ALIGNMENT: Final = 64  # bytes: a cache line, which suits every data type


def lay_out(arrays: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], list[tuple[int, int]], int]:
    """Lay out input tensors.

    Args:
        arrays: Batched arrays. The elements of an object array are bytes, or str, which is sent as UTF-8.

    Returns:
        The pieces to write one after another; (offset, size) of each array in bytes; and the aligned end in bytes.
    """
    pieces: list[NDArray[Any]] = []
    spans: list[tuple[int, int]] = []
    offset = 0
    for array in arrays:
        own = _split_bytes(array) if array.dtype == np.object_ else [array]
        size = sum(len(piece.item()) if piece.dtype == np.object_ else piece.nbytes for piece in own)
        spans.append((offset, size))
        padding = align(offset + size) - (offset + size)
        pieces += [*own, np.zeros(padding, np.uint8)] if padding else own
        offset += size + padding
    return pieces, spans, offset


def lay_out_outputs(sizes: Mapping[str, int], start: int) -> dict[str, tuple[int, int]]:
    """Return name -> (offset, size) in bytes of the output tensors.

    Args:
        sizes: Name -> size in bytes.
        start: Offset of the first output.
    """
    spans = {}
    for name, size in sizes.items():
        spans[name] = (start, size)
        start += align(size)
    return spans


def measure(array: NDArray[Any]) -> int:
    """Return the size of a tensor in a message or a region, in bytes."""
    if array.dtype != np.object_:
        return array.nbytes
    return sum(4 + len(element) for element in array.ravel())


def align(byte_size: int) -> int:
    """Return the next multiple of `ALIGNMENT`, where another tensor may start."""
    return byte_size + -byte_size % ALIGNMENT


def _split_bytes(array: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the elements of a BYTES tensor, each after its length."""
    pieces = []
    for element in array.ravel():
        data = element.encode() if isinstance(element, str) else bytes(element)
        pieces += [np.array(struct.pack("<I", len(data)), np.object_), np.array(data, np.object_)]
    return pieces
