"""Losses: BCE with focal loss on the labels; InfoNCE between the embeddings.

Both are exact under data-parallel training, where every process has its own rows and the gradients of all processes are
averaged: `label_loss` uses `count`, and `contrastive_loss` uses rows from `training.gather.gather_rows`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from training.config.settings import LossConfig

_LEFT_OUT = -1e9  # similarity of an ignored pair


def compute_positive_weights(targets: Tensor, known: Tensor, limit: float) -> Tensor:
    """Return negatives / positives of each label, between 1 and `limit`.

    Without the limit, a label with three cases would have a weight of about a thousand and dominate the loss.

    Args:
        targets: (M, K) bool, the training studies.
        known: (M, K) bool, whether the label is stated. Other labels count neither as positive nor as negative.
        limit: The largest weight, at least 1.

    Returns:
        (K,) float32.
    """
    positives, stated = (targets & known).sum(0).float(), known.sum(0).float()
    return ((stated - positives) / positives.clamp(min=1.0)).clamp(1.0, limit)


def focal_loss(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return (1 - p_t)^gamma times BCE for each entry, with p_t the probability of the *true* value.

    Lin et al. 2017, Focal Loss for Dense Object Detection (arXiv:1708.02002), equation 4, without its alpha.
    `torchvision.ops.sigmoid_focal_loss` is the same but has NaN gradients for a gamma below 1 if p_t rounds to 1.

    Args:
        logits: (B, K) float.
        targets: (B, K) float of 0 and 1.
        gamma: Focusing parameter, at least 0; 0 gives BCE.

    Returns:
        (B, K) of the logits' dtype.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return _focus(-torch.expm1(-entropy), gamma) * entropy


def _focus(share: Tensor, gamma: float) -> Tensor:
    """Return share^gamma. A share of 0 is raised a little, because a power below 1 has an infinite gradient there."""
    return share.clamp(min=torch.finfo(share.dtype).tiny) ** gamma


def label_loss(
    logits: Tensor,
    targets: Tensor,
    known: Tensor,
    weights: Tensor,
    config: LossConfig,
    *,
    count: Tensor | None = None,
) -> Tensor:
    """Return the label loss: the sum over the known labels of all studies, divided by their count.

    Args:
        logits: (B, K) float32.
        targets: (B, K) float of 0 and 1.
        known: (B, K) bool; unknown labels are ignored and are not negatives.
        weights: (K,) weight of the positives in BCE.
        config: The share of BCE, and the focus of the focal loss.
        count: () number of known labels of all processes divided by the number of processes, so that the mean of the
            processes' losses and gradients is that of the whole batch. None: the known labels of this process.

    Returns:
        () loss; 0 if no label is known.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
    focal = focal_loss(logits, targets, config.focal_gamma)
    entries = config.bce_share * entropy + (1.0 - config.bce_share) * focal
    counted = known.to(entries.dtype)
    if count is None:
        count = counted.sum()
    # not clamped to 1, because one known label for two processes gives a count of 0.5
    return (entries * counted).sum() / torch.where(count > 0, count, 1.0)


def contrastive_loss(
    first: Tensor, second: Tensor, groups: Tensor, temperature: float, alike: Tensor | None = None
) -> Tensor:
    """Return symmetric InfoNCE between two sets of embeddings of the same studies.

    Studies of one group (equal report text) are positives of each other, because separating two cases with the
    same report would teach noise. Studies that are `alike` are neither positives nor negatives of each other. Radford
    et al. 2021 (arXiv:2103.00020), with several positives as in Khosla et al. 2020 (arXiv:2004.11362), equation 2.

    Under data-parallel training every process passes the rows of all processes, from `gather_rows`, and computes the
    loss of the whole batch. The computation is in float32: in bfloat16 a cosine has an error of up to 0.004, and a
    temperature of 0.1 makes it ten times larger.

    Args:
        first: (B, D) of unit length, B at least 1.
        second: (B, D) of unit length; row by row the same studies.
        groups: (B,) int64; equal values mark equal reports.
        temperature: Above 0; divides the cosine similarities.
        alike: (B, B) bool, symmetric: pairs that are not negatives; from `find_alike`. None: only equal reports.

    Returns:
        () float32 loss.
    """
    with torch.autocast(first.device.type, enabled=False):
        similarity = first.float() @ second.float().T / temperature  # (B, B)
        same = groups[:, None] == groups[None, :]
        if alike is not None:
            similarity = similarity.masked_fill(alike & ~same, _LEFT_OUT)
        targets = same / same.sum(1, keepdim=True)
        forward = -(targets * similarity.log_softmax(dim=1)).sum(1).mean()
        backward = -(targets * similarity.T.log_softmax(dim=1)).sum(1).mean()
        return (forward + backward) / 2


def find_alike(targets: Tensor, known: Tensor, wordings: Tensor) -> Tensor:
    """Return (B, B) bool: pairs of studies with the same labels, or with nearly the same words.

    Args:
        targets: (B, K) of 0 and 1.
        known: (B, K) of 0 and 1. Labels are the same if the same labels are known, at least one, and have equal values.
        wordings: (B,) int64; equal values mark nearly equal reports.
    """
    stated = known.to(targets.dtype)
    labels = torch.cat([stated, targets * stated], dim=1)
    equal = torch.cdist(labels, labels, p=1) < 0.5
    return (equal & known.any(1)) | (wordings[:, None] == wordings[None, :])
