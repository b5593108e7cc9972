"""Losses: weighted BCE plus focal loss on the labels, and InfoNCE between the embeddings."""

import torch
from torch import Tensor
from torch.nn import functional as F

from training.config import TrainConfig


def compute_positive_weights(targets: Tensor, limit: float) -> Tensor:
    """Return negatives / positives of each label, between 1 and `limit`.

    Unclamped, a label with three cases would weigh a thousand times the others and drown them.

    Args:
        targets: (M, K) bool, the labelled training studies.
        limit: The largest weight.
    """
    positives = targets.sum(0).float()
    return ((len(targets) - positives) / positives.clamp(min=1.0)).clamp(1.0, limit)


def focal_loss(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return (1 - p_t)^gamma times BCE for each entry, with p_t the probability of the *true* value.

    Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4. Shapes are (B, K) throughout.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (1.0 - torch.exp(-entropy)) ** gamma * entropy


def label_loss(
    logits: Tensor, targets: Tensor, labelled: Tensor, weights: Tensor, config: TrainConfig
) -> Tensor:
    """Return the mean label loss of the labelled studies of a batch; 0 when there are none.

    Args:
        logits: (B, K).
        targets: (B, K) float of 0 and 1.
        labelled: (B,) bool; the others have no known labels and count for nothing.
        weights: (K,) weight of the positives in the BCE part.
        config: Holds `bce_share` and `focal_gamma`.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
    focal = focal_loss(logits, targets, config.focal_gamma)
    mixed = config.bce_share * entropy + (1.0 - config.bce_share) * focal
    rows = labelled.to(mixed.dtype)
    return (mixed.mean(1) * rows).sum() / rows.sum().clamp(min=1.0)


def contrastive_loss(first: Tensor, second: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """Return symmetric InfoNCE between two sets of embeddings of the same studies.

    Studies of one group (equal report text) are positives of each other: pushing apart two cases whose
    reports read the same would teach noise. Radford et al. 2021 (arXiv:2103.00020), with several positives
    as in Khosla et al. 2020 (arXiv:2004.11362).

    Args:
        first: (B, D) of unit length.
        second: (B, D) of unit length, row by row of the same studies.
        groups: (B,) int64; equal values mark equal reports.
        temperature: Divides the cosine similarities.
    """
    similarity = first @ second.T / temperature  # (B, B)
    same = (groups[:, None] == groups[None, :]).to(similarity.dtype)
    wanted = same / same.sum(1, keepdim=True)
    forward = -(wanted * similarity.log_softmax(dim=1)).sum(1).mean()
    backward = -(wanted * similarity.T.log_softmax(dim=1)).sum(1).mean()
    return (forward + backward) / 2
