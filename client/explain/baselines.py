"""Where the path of Integrated Gradients starts in the image: a picture that stands for "nothing here".

Each choice is blind to something (Sturmfels, Lundberg and Lee 2020, doi:10.23915/distill.00022): a pixel that is equal
in the radiograph and the baseline gets nothing. So the mean over several baselines is less blind than each.
"""

from collections.abc import Sequence
from typing import Final

from client.explain.case import Inputs
from client.explain.maps import import_cv2
from contract.errors import ConfigError

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error

BLACK: Final = "black"
BASELINES: Final[dict[str, str]] = {  # key -> what it is
    BLACK: "a black image",
    "grey": "an even image of the radiograph's mean grey",
    "blurred": "a strongly blurred copy of the radiograph",
    "uniform": "an image of random greys",
}
BLUR: Final = 0.1  # standard deviation of the blur, as a share of the side
SEED: Final = 0


def require_baselines(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of baselines, each once. Raise ConfigError if there is none, or one does not exist."""
    for key in keys:
        if key not in BASELINES:
            raise ConfigError(f"There is no baseline {key!r}. Choose one of {', '.join(BASELINES)}.")
    if not keys:
        raise ConfigError(f"Give at least one baseline: {', '.join(BASELINES)}.")
    return tuple(dict.fromkeys(keys))


def draw_baseline(inputs: Inputs, key: str) -> Tensor:
    """Return the baseline of a case with an image: (1, 1, S, S) float32, 0 to 255. The padding stays black.

    Equal cases have equal baselines.

    Args:
        inputs: The case.
        key: Key of the baseline, as in `BASELINES`.
    """
    pixels = inputs.pixels
    if pixels is None:
        raise ConfigError("A baseline of the image needs an image, and the case has none.")
    baseline = torch.zeros_like(pixels)
    if key == BLACK:
        return baseline
    size = pixels.shape[-1]
    rows, columns = (slice(0, size),) * 2 if inputs.frame is None else inputs.frame.cut(size)
    baseline[..., rows, columns] = _fill(pixels[..., rows, columns], key)
    return baseline


def _fill(shown: Tensor, key: str) -> Tensor:
    if key == "grey":
        return torch.full_like(shown, float(shown.mean()))
    if key == "uniform":
        generator = torch.Generator().manual_seed(SEED)
        return (255 * torch.rand(shown.shape, generator=generator)).to(shown)
    cv2 = import_cv2()
    picture = shown[0, 0].cpu().numpy()
    blurred = cv2.GaussianBlur(picture, (0, 0), BLUR * max(picture.shape), borderType=cv2.BORDER_REPLICATE)
    return torch.from_numpy(blurred)[None, None].to(shown)
