"""Several images of one study: each is explained while the others, like the report, stay as they are."""

from collections.abc import Sequence
from typing import NamedTuple

from contract.errors import ConfigError

try:
    import torch
    from torch import Tensor

    from training.model.model import CxrModel
except (ModuleNotFoundError, ConfigError) as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error


class Views(NamedTuple):
    """The place of the explained image among the images of its study, and the tokens of the others."""

    place: int  # 0 to V - 1
    tokens: Tensor  # (1, V, N, C); the row of the explained image is not used

    @property
    def total(self) -> int:
        """Number of images of the study, V."""
        return int(self.tokens.shape[1])

    def join(self, model: CxrModel, image_tokens: Tensor) -> Tensor:
        """Return the tokens (B, V N, C) of the whole study, marked as the served model marks them.

        Args:
            model: The model.
            image_tokens: (B, N, C) of the explained image.
        """
        others = self.tokens.expand(len(image_tokens), -1, -1, -1)
        parts = [others[:, : self.place], image_tokens[:, None], others[:, self.place + 1 :]]
        joined: Tensor = model.fusion.mark_views(torch.cat(parts, dim=1))
        return joined

    def cut(self, values: Tensor) -> Tensor:
        """Return the part (..., N) of values (..., V N) that belongs to the explained image."""
        size = values.shape[-1] // self.total
        return values[..., self.place * size : (self.place + 1) * size]


def encode_views(model: CxrModel, pixels: Sequence[Tensor]) -> Tensor:
    """Return the tokens (1, V, N, C) of the images (1, 1, S, S) of a study."""
    with torch.no_grad():
        tokens: Tensor = model.image_encoder(torch.cat(list(pixels)))
    return tokens[None]
