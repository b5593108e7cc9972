"""The model as a function of the pixels and of the embedded words of one case."""

from typing import NamedTuple

from client.explain.baselines import BLACK, draw_baseline
from client.explain.case import Inputs
from contract.bundle import Bundle
from contract.errors import ConfigError

try:
    import torch
    from torch import Tensor

    from training.model.fusion import FusionOutput
    from training.model.model import CxrModel, load_model
except (ModuleNotFoundError, ConfigError) as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error

Points = tuple[Tensor, ...]  # pixels (B, 1, S, S), embedded tokens (B, L, text width), or both in this order


class Tokens(NamedTuple):
    """What the encoders give for a batch of points."""

    image: Tensor | None  # (B, N, C); of a study of several images (B, V N, C)
    text: Tensor | None  # (B, L, C)
    mask: Tensor | None  # (B, L) int64


def open_model(bundle: Bundle) -> CxrModel:
    """Load the model of a bundle for explanations, on the GPU if there is one.

    Raises:
        ArtifactError: The weights do not fit the config.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: CxrModel = load_model(bundle).requires_grad_(False).to(device)
    return model


def find_device(model: CxrModel) -> torch.device:
    """Return the device of a model."""
    device: torch.device = next(model.parameters()).device
    return device


def make_path_ends(model: CxrModel, inputs: Inputs, baseline: str = BLACK) -> tuple[Points, Points]:
    """Return both ends of a path, the case and the baseline: pixels, embedded tokens, or both.

    The text baseline is [PAD] in the place of every word.

    Args:
        model: The model.
        inputs: The case.
        baseline: Key of the baseline of the image, as in `client.explain.baselines`.
    """
    ends: list[tuple[Tensor, Tensor]] = []
    if inputs.pixels is not None:
        ends.append((inputs.pixels, draw_baseline(inputs, baseline)))
    if inputs.input_ids is not None:
        embed = model.text_encoder.embed
        with torch.no_grad():
            ends.append((embed(inputs.input_ids), embed(inputs.baseline_ids)))
    values, baselines = zip(*ends, strict=True)
    return values, baselines


def encode_points(model: CxrModel, inputs: Inputs, points: Points) -> Tokens:
    """Encode a batch of points between the baseline and the case."""
    parts = iter(points)
    image = None if inputs.pixels is None else model.image_encoder(next(parts))
    if image is not None and inputs.views is not None:
        image = inputs.views.join(model, image)
    if inputs.attention_mask is None:
        return Tokens(image, None, None)
    embeddings = next(parts)  # (B, L, text width)
    mask = inputs.attention_mask.expand(len(embeddings), -1)
    return Tokens(image, model.text_encoder.encode(embeddings, mask), mask)


def fuse_points(model: CxrModel, inputs: Inputs, points: Points) -> FusionOutput:
    """Run the model, without its lexical part, on a batch of points."""
    output: FusionOutput = model.fusion(*encode_points(model, inputs, points))
    return output


class Probe:
    """The logit of one label as a function of the pixels alone. The report and the other images stay as they are.

    The lexical part is left out: it reads no pixels.
    """

    def __init__(self, model: CxrModel, inputs: Inputs, index: int) -> None:
        """Encode the report once.

        Args:
            model: The model, in evaluation mode.
            inputs: A case with an image, on the device of the model.
            index: Index of the label, 0 to K - 1.

        Raises:
            ConfigError: The case has no image.
        """
        if inputs.pixels is None:
            raise ConfigError("A map needs an image, and the case has none.")
        self.model, self.inputs, self.index = model, inputs, index
        self.pixels: Tensor = inputs.pixels
        self._text: Tensor | None = None
        if inputs.input_ids is not None:
            with torch.no_grad():
                self._text = model.text_encoder(inputs.input_ids, inputs.attention_mask)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits (B,) of pixels (B, 1, S, S), 0 to 255."""
        return self.fuse(self.model.image_encoder(pixels)).logits[:, self.index]

    def fuse(self, image_tokens: Tensor) -> FusionOutput:
        """Fuse image tokens (B, N, C) with the other images and the report."""
        count = len(image_tokens)
        if self.inputs.views is not None:
            image_tokens = self.inputs.views.join(self.model, image_tokens)
        text = mask = None
        if self._text is not None and self.inputs.attention_mask is not None:
            text = self._text.expand(count, -1, -1)
            mask = self.inputs.attention_mask.expand(count, -1)
        output: FusionOutput = self.model.fusion(image_tokens, text, mask)
        return output
