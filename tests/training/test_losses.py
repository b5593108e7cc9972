import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from training.config.settings import LossConfig
from training.losses import (
    compute_positive_weights,
    contrastive_loss,
    find_alike,
    focal_loss,
    label_loss,
)

EXTREME = torch.tensor([[-200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0]])


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return 3 * torch.randn(5, 22), (torch.rand(5, 22) > 0.5).float()


def mark_known(labelled):
    """Return (B, 22): all labels are known of the studies that are labelled, and none of the others."""
    return torch.tensor(labelled)[:, None].repeat(1, 22)


def differentiate(function, logits):
    """Return the values of a loss and the gradient of their sum."""
    logits = logits.clone().requires_grad_()
    values = function(logits)
    values.sum().backward()
    return values.detach(), logits.grad


def cross_entropy(logits, targets):
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def assert_same(one, other, logits):
    """Compare two losses by values and by gradients."""
    for found, expected in zip(differentiate(one, logits), differentiate(other, logits), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_focal_loss_weighs_by_the_probability_of_the_true_value():
    logits = torch.tensor([[2.0, 2.0]])
    targets = torch.tensor([[1.0, 0.0]])
    p = torch.sigmoid(torch.tensor(2.0))
    expected = torch.stack([(1 - p) ** 2 * -torch.log(p), p**2 * -torch.log(1 - p)])
    torch.testing.assert_close(focal_loss(logits, targets, 2.0)[0], expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_loss_is_that_of_torchvision(batch, gamma):
    logits, targets = batch
    assert_same(
        lambda x: focal_loss(x, targets, gamma),
        lambda x: sigmoid_focal_loss(x, targets, alpha=-1, gamma=gamma, reduction="none"),
        logits,
    )


def test_focal_loss_without_focus_is_cross_entropy(batch):
    logits, targets = batch
    assert_same(lambda x: focal_loss(x, targets, 0.0), lambda x: cross_entropy(x, targets), logits)


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 4.0])
def test_losses_of_extreme_logits_are_finite(target, gamma):
    targets = torch.full_like(EXTREME, target)
    for found in differentiate(lambda x: focal_loss(x, targets, gamma), EXTREME):
        assert found.isfinite().all()


def test_the_worst_mistakes_keep_their_gradient():
    _, gradient = differentiate(lambda x: focal_loss(x, torch.ones(1, 7), 2.0), EXTREME)
    torch.testing.assert_close(gradient[0, :2], torch.tensor([-1.0, -1.0]))


def test_unlabelled_studies_give_neither_loss_nor_gradient():
    logits = torch.randn(3, 22, requires_grad=True)
    targets, weights = torch.zeros(3, 22), torch.ones(22)
    label_loss(logits, targets, mark_known([True, False, True]), weights, LossConfig()).backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0] != 0).all()
    nobody = mark_known([False] * 3)
    for count in (None, torch.tensor(0.0)):
        assert label_loss(logits, targets, nobody, weights, LossConfig(), count=count) == 0
    assert label_loss(logits[:0], targets[:0], nobody[:0], weights, LossConfig()) == 0


def test_unknown_labels_give_neither_loss_nor_gradient(batch):
    config = LossConfig()
    logits, targets = batch
    known = torch.rand(5, 22, generator=torch.Generator().manual_seed(3)) > 0.4
    weights = torch.linspace(1, 5, 22)

    def compute(values, truth):
        return label_loss(values, truth, known, weights, config)

    found, gradient = differentiate(lambda x: compute(x, targets), logits)
    turned = torch.where(known, targets, 1 - targets)
    assert compute(logits, turned) == found
    assert (gradient[~known] == 0).all()
    assert (gradient[known] != 0).all()
    each = [
        label_loss(logits, targets, one.reshape(5, 22), weights, config)
        for one in torch.eye(110, dtype=torch.bool)[known.flatten()]
    ]
    torch.testing.assert_close(found, torch.stack(each).mean())


def test_positive_weights_count_what_is_known():
    targets = torch.zeros(100, 22, dtype=torch.bool)
    targets[:10, 0] = True
    known = torch.zeros_like(targets)
    known[:30, 0] = True
    assert compute_positive_weights(targets, known, 9.0)[:2].tolist() == [2.0, 1.0]
    targets[50:, 0] = True
    assert compute_positive_weights(targets, known, 9.0)[0] == 2.0


def test_label_loss_mixes_weighted_cross_entropy_and_focal_loss(batch):
    logits, targets = batch
    weights = torch.linspace(1, 5, 22)
    weighted = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    expected = 0.6 * weighted + 0.4 * focal_loss(logits, targets, 1.5).mean()
    config = LossConfig(bce_share=0.6, focal_gamma=1.5)
    everybody = mark_known([True] * 5)
    torch.testing.assert_close(label_loss(logits, targets, everybody, weights, config), expected)


def test_a_count_below_one_is_taken_as_it_is(batch):
    logits, targets = batch
    one = mark_known([False] * 5)
    one[0, 3] = True
    weights = torch.ones(22)
    alone = label_loss(logits, targets, one, weights, LossConfig())
    shared = label_loss(logits, targets, one, weights, LossConfig(), count=torch.tensor(0.5))
    torch.testing.assert_close(shared, 2 * alone)


def test_positive_weights_are_clamped():
    targets = torch.zeros(100, 22, dtype=torch.bool)
    targets[:50, 0] = True
    targets[:1, 1] = True
    targets[:90, 2] = True
    weights = compute_positive_weights(targets, torch.ones_like(targets), 5.0)
    assert weights[:4].tolist() == [1.0, 5.0, 1.0, 5.0]


def test_contrastive_loss_prefers_matching_pairs():
    torch.manual_seed(0)
    first = F.normalize(torch.randn(6, 8), dim=-1)
    groups = torch.arange(6)
    matched = contrastive_loss(first, first, groups, 0.1)
    shuffled = contrastive_loss(first, first.roll(1, 0), groups, 0.1)
    assert matched < shuffled
    torch.testing.assert_close(matched, F.cross_entropy(first @ first.T / 0.1, groups))


def test_contrastive_loss_reads_both_ways():
    torch.manual_seed(0)
    first, second = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    places = torch.arange(6)
    similarity = first @ second.T / 0.1
    expected = (F.cross_entropy(similarity, places) + F.cross_entropy(similarity.T, places)) / 2
    torch.testing.assert_close(contrastive_loss(first, second, places, 0.1), expected)


def test_contrastive_loss_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    first, second = (F.normalize(torch.randn(16, 32), dim=-1) for _ in range(2))
    expected = contrastive_loss(first, second, torch.arange(16), 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(first, second, torch.arange(16), 0.05)
    assert torch.equal(found, expected)


def test_equal_reports_are_not_pushed_apart():
    same = torch.eye(4)[[0, 0, 1, 2]]
    distinct = contrastive_loss(same, same, torch.arange(4), 0.05)
    grouped = contrastive_loss(same, same, torch.tensor([0, 0, 1, 2]), 0.05)
    torch.testing.assert_close(grouped, torch.tensor(np.log(2) / 2, dtype=torch.float32), atol=1e-4, rtol=0)
    torch.testing.assert_close(distinct, grouped)
    apart = torch.eye(4)
    assert contrastive_loss(apart, apart, torch.tensor([0, 0, 1, 2]), 0.05) > 1.0


def test_alike_studies_are_neither_drawn_together_nor_pushed_apart():
    torch.manual_seed(0)
    first, second = (F.normalize(torch.randn(5, 8), dim=-1).requires_grad_() for _ in range(2))
    alike = torch.zeros(5, 5, dtype=torch.bool)
    alike[0, 1] = alike[1, 0] = True
    places = torch.arange(5)
    loss = contrastive_loss(first, second, places, 0.1, alike)
    # The pair is missing from the sums, which those of a matrix without it show.
    similarity = (first @ second.T / 0.1).detach()
    terms = []
    for table in (similarity, similarity.T):
        for row in range(5):
            others = [column for column in range(5) if not alike[row, column]]
            terms.append(torch.logsumexp(table[row, others], 0) - table[row, row])
    torch.testing.assert_close(loss.detach(), torch.stack(terms).sum() / 10)
    loss.backward()
    assert torch.isfinite(first.grad).all()
    # A study stays its own positive, and one of an equal report stays a positive though it is alike.
    everything = torch.ones(5, 5, dtype=torch.bool)
    assert contrastive_loss(first, second, places, 0.1, everything) == 0
    groups = torch.tensor([0, 0, 1, 2, 3])
    torch.testing.assert_close(
        contrastive_loss(first, second, groups, 0.1, alike), contrastive_loss(first, second, groups, 0.1)
    )


def test_studies_are_alike_by_all_labels_or_by_their_words():
    targets = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0], [0, 0]]).float()
    known = torch.tensor([[1, 1], [1, 1], [1, 1], [0, 0], [0, 0]])
    found = find_alike(targets, known, torch.tensor([0, 1, 2, 3, 4]))
    expected = torch.eye(5, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(found, expected)  # of the last two nothing is known
    partly = find_alike(targets[:2], torch.tensor([[1, 1], [1, 0]]), torch.tensor([0, 1]))
    assert not partly[0, 1]
    assert find_alike(targets, known, torch.tensor([0, 1, 7, 3, 7]))[2, 4]
