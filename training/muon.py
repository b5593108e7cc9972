"""Muon for processors that do not multiply in bfloat16.

PyTorch's Muon always orthogonalises in bfloat16. A processor without bfloat16 multiplication (for example with only
AVX2) emulates it, 30 times slower than float32.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, optim
from torch.optim import _muon


def make_muon(groups: list[dict[str, Any]], **settings: Any) -> optim.Muon:
    """Return PyTorch's Muon for groups of matrices. On a processor without bfloat16 multiplication, use float32."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    slow = any(parameter.device.type == "cpu" for parameter in parameters) and not multiplies_bfloat16()
    return (Float32Muon if slow else optim.Muon)(groups, **settings)


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself (AVX512-BF16 or AMX)."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class Float32Muon(optim.Muon):
    """PyTorch's Muon with its Newton-Schulz iteration in float32. Its state is the same."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Perform one step, as `torch.optim.Muon` does."""
        with mock.patch.object(_muon, "_zeropower_via_newtonschulz", orthogonalise):
            return super().step(closure)


def orthogonalise(update: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return a matrix near the closest orthogonal one to `update`, like PyTorch's Muon but in the dtype of `update`.

    Args:
        update: (M, N).
        coefficients: a, b and c of the iteration X <- a X + b (X X^T) X + c (X X^T)^2 X (Jordan et al. 2024).
        steps: Number of iterations.
        eps: Smallest norm to divide by.

    Returns:
        (M, N); singular values of about 0.7 to 1.2.
    """
    first, second, third = coefficients
    wide = update.T if update.size(0) > update.size(1) else update
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=second, alpha=third), wide, beta=first)
    return wide.T if update.size(0) > update.size(1) else wide
