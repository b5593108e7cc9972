"""Muon in float32 does what PyTorch's does in bfloat16, and is chosen where bfloat16 products are put together."""

import pytest
import torch
from torch import nn, optim
from torch.optim import _muon

from training import muon
from training.muon import Float32Muon, make_muon, orthogonalise

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_the_iteration_is_that_of_pytorch(shape):
    update = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalise(update, COEFFICIENTS, 5, 1e-7)
    expected = _muon._zeropower_via_newtonschulz(update.clone(), COEFFICIENTS, 5, 1e-7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=0.05, rtol=0.05)  # bfloat16 has three digits
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() < values.max() < 1.3


def test_steps_follow_those_of_pytorch():
    torch.manual_seed(2)
    start = torch.randn(12, 20)
    ends = []
    for kind in (optim.Muon, Float32Muon):
        weight = nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.05, adjust_lr_fn="match_rms_adamw")
        for _ in range(5):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()
        ends.append(weight.detach())
    assert (ends[0] - start).norm() > 1
    torch.testing.assert_close(*ends, atol=0.02, rtol=0.02)
    assert _muon._zeropower_via_newtonschulz is not orthogonalise  # others get PyTorch's own


@pytest.mark.parametrize(("able", "kind"), [(True, optim.Muon), (False, Float32Muon)])
def test_float32_is_for_processors_without_bfloat16(able, kind, monkeypatch):
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda: able)
    assert type(make_muon([{"params": [nn.Parameter(torch.zeros(2, 2))], "lr": 0.1}])) is kind
