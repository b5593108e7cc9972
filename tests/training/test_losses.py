import numpy as np
import torch
from torch.nn import functional as F

from training.config import TrainConfig
from training.losses import compute_positive_weights, contrastive_loss, focal_loss, label_loss


def test_focal_loss_weighs_by_the_probability_of_the_true_value():
    logits = torch.tensor([[2.0, 2.0]])
    targets = torch.tensor([[1.0, 0.0]])
    p = torch.sigmoid(torch.tensor(2.0))
    expected = torch.stack([(1 - p) ** 2 * -torch.log(p), p**2 * -torch.log(1 - p)])
    torch.testing.assert_close(focal_loss(logits, targets, 2.0)[0], expected)


def test_focal_loss_without_focus_is_cross_entropy():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 22), (torch.rand(5, 22) > 0.5).float()
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(focal_loss(logits, targets, 0.0), expected)


def test_unlabelled_studies_give_neither_loss_nor_gradient():
    logits = torch.randn(3, 22, requires_grad=True)
    targets, weights = torch.zeros(3, 22), torch.ones(22)
    label_loss(logits, targets, torch.tensor([True, False, True]), weights, TrainConfig()).backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0] != 0).all()
    assert label_loss(logits, targets, torch.zeros(3, dtype=torch.bool), weights, TrainConfig()) == 0


def test_positive_weights_are_clamped():
    targets = torch.zeros(100, 22, dtype=torch.bool)
    targets[:50, 0] = True
    targets[:1, 1] = True
    targets[:90, 2] = True
    weights = compute_positive_weights(targets, 5.0)
    assert weights[:4].tolist() == [1.0, 5.0, 1.0, 5.0]


def test_contrastive_loss_prefers_matching_pairs():
    torch.manual_seed(0)
    first = F.normalize(torch.randn(6, 8), dim=-1)
    groups = torch.arange(6)
    matched = contrastive_loss(first, first, groups, 0.1)
    shuffled = contrastive_loss(first, first.roll(1, 0), groups, 0.1)
    assert matched < shuffled
    torch.testing.assert_close(matched, F.cross_entropy(first @ first.T / 0.1, groups))


def test_equal_reports_are_not_pushed_apart():
    same = torch.eye(4)[[0, 0, 1, 2]]
    distinct = contrastive_loss(same, same, torch.arange(4), 0.05)
    grouped = contrastive_loss(same, same, torch.tensor([0, 0, 1, 2]), 0.05)
    torch.testing.assert_close(grouped, torch.tensor(np.log(2) / 2, dtype=torch.float32), atol=1e-4, rtol=0)
    torch.testing.assert_close(distinct, grouped)
    apart = torch.eye(4)
    assert contrastive_loss(apart, apart, torch.tensor([0, 0, 1, 2]), 0.05) > 1.0
