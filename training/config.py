"""Every setting of a model and of its training, and the presets that have names.

cxr train studies.parquet --preset demo      small Swin + small BERT, from scratch, phantom data, 2 CPU cores
cxr train studies.parquet --preset reports   larger BERT from scratch, for studies without images
cxr train studies.parquet --preset tiny      Swin-T + BERT-base, one GPU; give --image-weights, --text-weights
cxr train studies.parquet --preset base      Swin-B + BERT-base, the size of the published model, one GPU
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from contract.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; a bundle's config.json holds it under "model".

    Sizes are in pixels (`image_size`), tokens (`text_positions`) or channels (`*_width`, `embedding_size`).
    """

    image_size: int = 112
    image_stem: str = "conv"  # "patch" as published, or "conv", which learns from few images
    image_patch: int = 8
    image_width: int = 64  # channels of the first Swin stage; each later stage doubles them
    image_depths: tuple[int, ...] = (2, 2)
    image_heads: tuple[int, ...] = (4, 8)
    image_window: int = 7
    image_drop_path: float = 0.05
    pixel_mean: float = 0.449  # of 0..1 intensities: the mean of ImageNet's three channels
    pixel_std: float = 0.226
    vocabulary_size: int = 4000
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_feedforward: int = 512
    text_positions: int = 256
    width: int = 128  # C
    embedding_size: int = 128  # D
    fusion_layers: int = 1
    fusion_heads: int = 4
    adapter_rank: int = 16
    dropout: float = 0.1

    @property
    def grid(self) -> int:
        """Image tokens along one side of the image."""
        return self.image_size // (self.image_patch * 2 ** (len(self.image_depths) - 1))

    @property
    def sizes(self) -> dict[str, int]:
        """The shape letters of `contract.tensors` that this model decides."""
        return {"S": self.image_size, "N": self.grid**2, "C": self.width, "D": self.embedding_size}

    def check(self) -> None:
        """Raise ConfigError where sizes do not fit each other."""
        if self.image_stem not in {"patch", "conv"}:
            raise ConfigError(f"image_stem must be patch or conv, not {self.image_stem!r}.")
        if self.image_stem == "conv" and self.image_patch not in {2, 4, 8, 16}:
            raise ConfigError(f"A conv stem makes patches of 2, 4, 8 or 16 pixels, not {self.image_patch}.")
        stride = self.image_patch * 2 ** (len(self.image_depths) - 1)
        if self.image_size % stride or (self.image_size // stride) % self.image_window:
            raise ConfigError(
                f"image_size {self.image_size} must be a multiple of {stride * self.image_window} "
                f"(patch {self.image_patch}, {len(self.image_depths)} stages, window {self.image_window})."
            )
        for name, width, heads in (
            ("width", self.width, self.fusion_heads),
            ("text_width", self.text_width, self.text_heads),
        ):
            if width % heads:
                raise ConfigError(f"{name} {width} must be a multiple of its {heads} heads.")


@dataclass(frozen=True)
class TrainConfig:
    """One training run; `epochs` counts passes over the training studies.

    `image_weights` is a file of Swin weights or a hub id, `text_weights` a directory or hub id of a BERT
    model. `text_mode` names the part of the report that is read (`contract.text`).
    Each batch is read with image and report, by image alone and by report alone; with probability
    `text_dropout` only its images are read. `lateral_share` is how often another view than the first (frontal) one
    of a study is seen, where it has one, `impression_share` how often its impression is read alone, so that a
    single sentence is no stranger to the model.
    Losses: `bce_share` of BCE and the rest of focal loss on the labels, plus `contrastive_weight` times
    InfoNCE between the image, text and study embeddings.
    """

    preset: str = "demo"
    model: ModelConfig = field(default_factory=ModelConfig)
    text_mode: str = "findings"
    max_length: int = 256
    image_weights: str | None = None
    text_weights: str | None = None
    epochs: int = 30
    batch_size: int = 32
    optimizer: str = "adamw"  # or "muon" (training.optimizer)
    learning_rate: float = 1e-3
    encoder_rate: float = 1.0  # learning rate of the two encoders, relative to the rest
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    text_dropout: float = 0.0
    lateral_share: float = 0.5
    impression_share: float = 0.0
    bce_share: float = 0.7
    focal_gamma: float = 2.0
    positive_weight_limit: float = 5.0
    contrastive_weight: float = 0.1
    temperature: float = 0.125
    validate_every: int = 2
    bfloat16: bool | None = None  # None: where the processor computes in it
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError for a value out of its range."""
        self.model.check()
        for name in ("epochs", "batch_size", "learning_rate", "temperature", "validate_every", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}.")
        for name in ("bce_share", "text_dropout", "lateral_share", "impression_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie between 0 and 1, not {getattr(self, name)}.")
        if self.optimizer not in {"adamw", "muon"}:
            raise ConfigError(f"optimizer must be adamw or muon, not {self.optimizer!r}.")
        if not 32 <= self.max_length <= self.model.text_positions:
            raise ConfigError(
                f"max_length must lie between 32 and {self.model.text_positions}, not {self.max_length}."
            )


_REPORTS = ModelConfig(text_width=256, text_layers=4, text_heads=4, text_feedforward=1024)
_TINY = ModelConfig(
    image_size=224,
    image_stem="patch",
    image_patch=4,
    image_width=96,
    image_depths=(2, 2, 6, 2),
    image_heads=(3, 6, 12, 24),
    image_drop_path=0.1,
    vocabulary_size=28996,
    text_width=768,
    text_layers=12,
    text_heads=12,
    text_feedforward=3072,
    text_positions=512,
    width=512,
    embedding_size=256,
    fusion_layers=3,
    fusion_heads=8,
    adapter_rank=32,
)
_BASE = replace(
    _TINY,
    image_width=128,
    image_depths=(2, 2, 18, 2),
    image_heads=(4, 8, 16, 32),
    image_drop_path=0.2,
    width=1024,
    embedding_size=512,
    fusion_layers=5,
    adapter_rank=64,
)

PRESETS: Final[dict[str, TrainConfig]] = {
    "demo": TrainConfig(
        epochs=32,
        optimizer="muon",
        learning_rate=2e-3,
        text_dropout=0.6,
        lateral_share=0.2,
        impression_share=0.3,
        validate_every=4,
    ),
    "reports": TrainConfig(preset="reports", model=_REPORTS, epochs=4, optimizer="muon", learning_rate=2e-3),
    "tiny": TrainConfig(preset="tiny", model=_TINY, epochs=30, learning_rate=1e-4, encoder_rate=0.3),
    "base": TrainConfig(preset="base", model=_BASE, epochs=30, learning_rate=6e-5, encoder_rate=0.3),
}


def make_config(preset: str, changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return a preset with some settings changed.

    Args:
        preset: A key of `PRESETS`.
        changes: Values of `TrainConfig` fields (or, under "model", of `ModelConfig` fields) to replace.

    Raises:
        ConfigError: No such preset or setting, or a value out of its range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    values = dict(changes or {})
    base = PRESETS[preset]
    if isinstance(values.get("model"), Mapping):
        values["model"] = _replace_known(base.model, values["model"])
    config: TrainConfig = _replace_known(base, values)
    config.check()
    return config


def read_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Return the model config that a bundle's config.json holds under "model".

    Raises:
        ConfigError: A setting is unknown or sizes do not fit each other.
    """
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    config: ModelConfig = _replace_known(ModelConfig(), lists)
    config.check()
    return config


def _replace_known(base: Any, values: Mapping[str, Any]) -> Any:
    unknown = set(values) - {entry.name for entry in fields(base)}
    if unknown:
        raise ConfigError(f"Unknown setting {', '.join(sorted(unknown))} of {type(base).__name__}.")
    return replace(base, **values)
