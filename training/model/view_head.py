"""The view head of the model: is an image a lateral view? One logistic regression on the mean of its image tokens.

It is fitted once, after the rest of the model is trained, on the training images whose view a trusted header or a
published list states (`contract.image.view.is_trusted`). So it does not change the rest of the model. It uses all
images of a study, whatever `data.lateral_share` is.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

PREFIX: Final = "fusion.lateral."  # prefix of its tensors in the weights of a model


class ViewHead(nn.Module):
    """Image tokens to the probability of a lateral view. It has buffers and no parameters.

    A head that is not fitted answers 0.5 to every image.
    """

    def __init__(self, width: int) -> None:
        """Make a head that is not fitted. `width` is C, the width of the tokens."""
        super().__init__()
        self.register_buffer("weight", torch.zeros(1, width))
        self.register_buffer("bias", torch.zeros(1))
        self.register_load_state_dict_pre_hook(_add_missing)

    @property
    def is_fitted(self) -> bool:
        """Whether the head was fitted."""
        return bool(self.weight.any())

    def forward(self, image_tokens: Tensor) -> Tensor:
        """Return the probability (B, 1), 0 to 1, that images of tokens (B, N, C) are laterals."""
        return torch.sigmoid(F.linear(image_tokens.mean(dim=1), self.weight, self.bias))


def _add_missing(head: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Add a head that is not fitted to the weights of older bundles, which have none."""
    own = {f"{prefix}{name}": torch.zeros_like(value) for name, value in head.named_buffers()}
    if not own.keys() & state.keys():
        state.update(own)


@torch.no_grad()
def fit_view_head(
    head: ViewHead, features: NDArray[np.float32], laterals: NDArray[np.bool_], C: float
) -> None:
    """Fit the logistic regression on standardised features and write it into the head.

    Args:
        head: Changed in place; equal inputs give equal weights.
        features: (M, C) mean image tokens.
        laterals: (M,), which images are laterals; both kinds occur.
        C: Inverse strength of the L2 penalty, above 0.
    """
    from sklearn.linear_model import LogisticRegression

    values = features.astype(np.float64)
    mean, deviation = values.mean(0), np.maximum(values.std(0), 1e-6)
    model = LogisticRegression(C=C, max_iter=1000).fit((values - mean) / deviation, laterals)
    weight = model.coef_[0] / deviation
    head.weight.copy_(torch.from_numpy(weight[None]))
    head.bias.copy_(torch.from_numpy(model.intercept_ - weight @ mean))


@torch.no_grad()
def clear_view_head(head: ViewHead) -> None:
    """Make a head answer 0.5 to every image."""
    head.weight.zero_()
    head.bias.zero_()
