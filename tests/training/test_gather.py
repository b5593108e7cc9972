"""Two processes against one, through the real DistributedDataParallel.

The first of the two is that of the test, the second runs this file as a script.
"""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from training.config.settings import LossConfig
from training.gather import gather_rows
from training.losses import contrastive_loss, label_loss

ROOT = Path(__file__).parents[2]
LABELLED = torch.tensor([False, True, True, False, True])
GROUPS = torch.tensor([0, 1, 2, 1, 3])  # rows 1 and 3 have equal reports, and never share a process
SPLITS = {"uneven": (3, 2), "one without rows": (5, 0), "the other without rows": (0, 5)}
CONFIGS = {"BCE and focal loss": LossConfig(), "BCE": LossConfig(bce_share=1.0)}


class Towers(nn.Module):
    """Logits and two embeddings of one batch; the same weights in every process."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.logits = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 22)

    def forward(self, values):
        embeddings = (F.normalize(layer(values), dim=-1) for layer in (self.first, self.second))
        return self.logits(values), *embeddings


def make_batch():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(5, 6, generator=generator)
    return values, (torch.rand(5, 22, generator=generator) > 0.7).float(), LABELLED, GROUPS


def compute(model, batch, config, count=None):
    """Return the losses, the gradients of the weights having been left in `model`."""
    values, targets, labelled, groups = batch
    logits, first, second = model(values)
    if not len(values):  # as of a process in whose rows the modality is missing
        first, second = torch.zeros(0, 4), torch.zeros(0, 4)
    labels = label_loss(
        logits, targets, labelled[:, None].expand(-1, 22), torch.full((22,), 2.0), config, count=count
    )
    rows = [gather_rows(tensor) for tensor in (first, second, groups)]
    contrast = contrastive_loss(*rows, 0.1)
    (labels + contrast).backward()
    return labels.detach(), contrast.detach()


def collect(model, losses):
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return {"losses": torch.stack(losses), **gradients}


def work(rank, store, out):
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    try:
        torch.save(compute_all(rank), out)
    finally:
        dist.destroy_process_group()


def compute_all(rank):
    """Return split/config -> losses and gradients of one of the two processes."""
    found = {}
    for split, counts in SPLITS.items():
        own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        for name, config in CONFIGS.items():
            model = Towers()
            wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
            batch = [part[own] for part in make_batch()]
            losses = compute(wrapped, batch, config, 22 * LABELLED.sum() / 2)
            found[f"{split}/{name}"] = collect(model, losses)
    return found


def run_two(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    files, store = [tmp_path / f"{rank}.pt" for rank in (0, 1)], tmp_path / "store"
    other = subprocess.Popen(
        [sys.executable, __file__, "1", store, files[1]],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        work(0, store, files[0])
        _, errors = other.communicate(timeout=120)
        assert other.returncode == 0, errors
    finally:
        other.kill()
        other.communicate()
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.filterwarnings("ignore:find_unused_parameters=True")  # some splits have no unused parameter
def test_two_processes_give_loss_and_gradients_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    found = run_two(tmp_path)
    for name, config in CONFIGS.items():
        model = Towers()
        expected = collect(model, compute(model, make_batch(), config))
        labels, contrast = expected.pop("losses")
        for split in SPLITS:
            here, there = (part[f"{split}/{name}"] for part in found)
            # the label losses average to the whole; the contrastive loss is the whole one in both
            torch.testing.assert_close((here["losses"][0] + there["losses"][0]) / 2, labels)
            torch.testing.assert_close(here["losses"][1], contrast)
            torch.testing.assert_close(there["losses"][1], contrast)
            for weight, gradient in expected.items():
                torch.testing.assert_close(here[weight], gradient, rtol=1e-4, atol=1e-6)
                assert torch.equal(here[weight], there[weight])


def test_a_process_on_its_own_gets_its_tensor_back():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2], sys.argv[3])
