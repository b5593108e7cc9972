"""Let torch's exporter read its table of ONNX operators once for all graphs of a bundle.

`torch.onnx.export` parses the source of some 500 functions for this table on every call, which takes about a second.
The table depends on the opset alone, and the exporter only reads it as long as no operators of ours are given.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

_MAKE: Final = "from_torchlib"


@contextmanager
def keep_registry() -> Iterator[None]:
    """Make `torch.onnx.export` use one table of operators for all its calls inside.

    The class is not part of torch's public interface. Where a version of torch has another one, every call makes its
    table as before.
    """
    owner = _find_class()
    if owner is None:
        yield
        return
    original = vars(owner)[_MAKE]
    setattr(owner, _MAKE, staticmethod(cache(getattr(owner, _MAKE))))
    try:
        yield
    finally:
        setattr(owner, _MAKE, original)


def _find_class() -> Any:
    """Return the class that makes the table, or None if this version of torch does not have it."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return None
    return ONNXRegistry if isinstance(vars(ONNXRegistry).get(_MAKE), classmethod) else None
