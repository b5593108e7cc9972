"""Gather rows from all processes of a data-parallel run, with gradients, for a loss over pairs of studies."""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def gather_rows(tensor: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks. Without other processes return the tensor.

    This is a collective call: every process of the default group must make it, in the same order, even without rows.

    The gradient is exact if every process computes *the same* loss from the gathered rows, and the gradients of all
    processes are then averaged, as `DistributedDataParallel` does. A row gets its gradient only on its own process, so
    the gradient is multiplied by the number of processes there. The backward pass does not communicate, so a process
    whose rows need no gradient does not block the others.

    Args:
        tensor: (B, ...), equal in dtype, device type and all sizes but B in every process; B may be 0.

    Returns:
        (sum of all B, ...).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    return _gather(tensor)


@torch.compiler.disable
def _gather(tensor: Tensor) -> Tensor:
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    """Replaces `torch.distributed.nn.functional.all_gather`, which needs equal row counts and is deprecated."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        counts = _count_rows(tensor)
        ctx.own = slice(sum(counts[: dist.get_rank()]), sum(counts[: dist.get_rank() + 1]))
        padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[ctx.own] * dist.get_world_size()


def _count_rows(tensor: Tensor) -> list[int]:
    own = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    return [int(count) for count in torch.cat(counts).tolist()]
