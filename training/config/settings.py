"""Every setting of a model and of its training, as frozen dataclasses; `toml_file.py` reads them from TOML.

A named config is a file in `training/configs/`. Its header states the training time and the results.
"""

import difflib
from dataclasses import dataclass, field
from typing import Any, Final

from contract.errors import ConfigError
from contract.labels import LABEL_KEYS
from contract.report.text import TEXT_MODES, TextMode

SWIN: Final = "swin"  # the backbone that the image_* sizes describe


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_shares(section: str, values: object, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        _require(0 <= value <= 1, f"{section}.{name} must lie between 0 and 1, not {value}.")


def _require_positive(section: str, values: object, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        _require(value > 0, f"{section}.{name} must be above 0, not {value}.")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a model, stored under "model" in a bundle's config.json.

    Sizes are in pixels (`image_size`), tokens (`text_positions`) or channels (`*_width`, `embedding_size`). The
    settings from `image_stem` to `image_window` are only for the Swin.
    """

    image_size: int = 112
    image_backbone: str = SWIN  # or any timm name; sizes then follow from it and from `image_arguments`
    image_arguments: dict[str, Any] = field(
        default_factory=dict
    )  # for timm.create_model, only with a timm backbone
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
    lexical_buckets: int = 0  # rows of the table of hashed pairs of word pieces; 0: no lexical part
    width: int = 128  # C
    embedding_size: int = 128  # of the joint space; the label part comes behind it (`contract.embedding`)
    label_share: float = 0.75  # of the label part in the similarity of two embeddings; 0: no label part
    fusion_layers: int = 1
    fusion_heads: int = 4
    adapter_rank: int = 16
    # A learned query per label; or "mean", the same mean of all tokens for every label.
    pooling: str = "queries"
    dropout: float = 0.1

    def check(self) -> None:
        """Raise ConfigError if sizes do not fit each other."""
        _require(self.image_size > 0, f"model.image_size must be above 0, not {self.image_size}.")
        _require_shares("model", self, "dropout", "image_drop_path")
        if self.image_backbone == SWIN:
            self._check_swin()
        _require(
            self.pooling in {"queries", "mean"},
            f"model.pooling must be queries or mean, not {self.pooling!r}.",
        )
        _require(
            0 <= self.label_share < 1,
            f"model.label_share must be at least 0 and below 1, not {self.label_share}.",
        )
        _require(
            self.lexical_buckets >= 0,
            f"model.lexical_buckets must not be negative, but is {self.lexical_buckets}.",
        )
        for name, width, heads in (
            ("width", self.width, self.fusion_heads),
            ("text_width", self.text_width, self.text_heads),
        ):
            _require(width % heads == 0, f"model.{name} {width} must be a multiple of its {heads} heads.")

    def _check_swin(self) -> None:
        _require(
            not self.image_arguments,
            "model.image_arguments are only for a timm backbone. Set model.image_backbone.",
        )
        _require(
            self.image_stem in {"patch", "conv"},
            f"model.image_stem must be patch or conv, not {self.image_stem!r}.",
        )
        _require(
            self.image_stem == "patch" or self.image_patch in {2, 4, 8, 16},
            f"A conv stem makes patches of 2, 4, 8 or 16 pixels, not {self.image_patch}.",
        )
        _require(
            len(self.image_depths) == len(self.image_heads),
            f"model.image_depths {self.image_depths} and image_heads {self.image_heads} differ in length.",
        )
        stride = self.image_patch * 2 ** (len(self.image_depths) - 1)
        _require(
            self.image_size % (stride * self.image_window) == 0,
            f"model.image_size {self.image_size} must be a multiple of {stride * self.image_window} "
            f"(patch {self.image_patch}, {len(self.image_depths)} stages, window {self.image_window}).",
        )


@dataclass(frozen=True)
class WeightsConfig:
    """Pretrained weights of the two encoders, and how they are trained.

    `image` is a weight file, a directory or a hub id of an image backbone, `text` a directory or hub id of a BERT
    model; None: from scratch.
    """

    image: str | None = None
    text: str | None = None
    freeze: tuple[str, ...] = ()  # of "image", "text": encoders that are not trained
    # Recompute the activations of the encoders in the backward pass: less memory, slower.
    checkpointing: bool = False

    def check(self) -> None:
        """Raise ConfigError for an unknown encoder."""
        unknown = set(self.freeze) - {"image", "text"}
        _require(not unknown, f"weights.freeze names image, text or both, not {', '.join(sorted(unknown))}.")


@dataclass(frozen=True)
class DataConfig:
    """The inputs of a study, and how training varies them at random.

    With two `views`, the first view alone and the other view alone are each used with the probability
    `lateral_share`, and both views otherwise. So the share must be below a half.
    """

    text_mode: TextMode = "findings"  # the part of a report that the model reads (`contract.report.text`)
    max_length: int = 256  # word pieces, [CLS] and [SEP] included; BERT reads up to 512
    views: int = 1  # images of a study that are fused; the first is the frontal one
    lateral_share: float = 0.5  # how often another view than the first is used alone, if there is one
    impression_share: float = 0.0  # how often the impression replaces the text
    masked_share: float = 0.0  # how often the words that state a label are hidden from the text
    shuffled_share: float = 0.0  # how often the sentences of the text are shuffled
    word_dropout: float = 0.0  # share of word pieces replaced by [MASK]
    silent_share: float = 0.0  # how often the text beside an image is shortened, or is another patient's
    text_dropout: float = 0.0  # share of batches in which only the images are used (modality dropout)
    # Share of the training studies below which a label is rare. Studies with rare labels are drawn more often. With 0,
    # all are drawn once per epoch.
    rare_share: float = 0.0
    # Labels that count as unknown in training, to measure zero-shot scores of them.
    held_out: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise ConfigError for a value out of its range."""
        _require(
            self.text_mode in TEXT_MODES,
            f"data.text_mode must be one of {', '.join(TEXT_MODES)}, not {self.text_mode!r}.",
        )
        self._check_held_out()
        _require(self.views in {1, 2}, f"data.views must be 1 or 2, not {self.views}.")
        shares = ("lateral_share", "impression_share", "masked_share", "shuffled_share", "word_dropout")
        _require_shares("data", self, *shares, "silent_share", "text_dropout", "rare_share")
        _require(
            self.views == 1 or self.lateral_share < 0.5,
            f"data.views 2 needs a data.lateral_share below 0.5, not {self.lateral_share}. Each "
            "view is used alone with that share, and both with the rest.",
        )

    def _check_held_out(self) -> None:
        for key in self.held_out:
            near = difflib.get_close_matches(key, LABEL_KEYS, 1)
            hint = f"; did you mean {near[0]}?" if near else f". Labels are {', '.join(LABEL_KEYS)}."
            _require(key in LABEL_KEYS, f"data.held_out names {key!r}, which is no label{hint}")
        _require(len(set(self.held_out)) < len(LABEL_KEYS), "data.held_out leaves no label to train on.")


@dataclass(frozen=True)
class AugmentConfig:
    """How radiographs are augmented in training (`training.augment`). 0 switches a change off.

    There is no mirroring by default, because the heart is on one side and a mirrored chest has another finding.
    """

    rotation_degrees: float = 5.0
    scale: float = 0.1  # up to 10 % larger or smaller
    shift: float = 0.05  # of the image's side
    gamma: float = 0.25  # exposure: an exponent between exp(-0.25) and exp(0.25)
    gain: float = 0.1
    noise: float = 0.0  # largest standard deviation of added noise, of the range 0 to 1
    flip: bool = False  # left-right; only for labels without a side

    def check(self) -> None:
        """Raise ConfigError for a value out of its range."""
        _require_shares("augment", self, "scale", "shift", "gain", "noise")
        _require(
            0 <= self.rotation_degrees <= 45,
            f"augment.rotation_degrees must lie between 0 and 45, not {self.rotation_degrees}.",
        )
        _require(0 <= self.gamma <= 2, f"augment.gamma must lie between 0 and 2, not {self.gamma}.")


@dataclass(frozen=True)
class LossConfig:
    """The losses for every way to read a batch (`training.losses`).

    On the labels: BCE with positive weights, weighted by `bce_share`, and focal loss with the rest. Added to it:
    `contrastive_weight` times InfoNCE between the image, text and study embeddings.
    """

    bce_share: float = 0.7
    positive_weight_limit: float = 5.0
    focal_gamma: float = 2.0
    contrastive_weight: float = 0.1
    # studies with the same labels or nearly the same words are not negatives of InfoNCE
    spare_alike: bool = False
    temperature: float = 0.125

    def check(self) -> None:
        """Raise ConfigError for a value out of its range."""
        _require_shares("loss", self, "bce_share")
        _require_positive("loss", self, "temperature")
        _require(
            self.positive_weight_limit >= 1,
            f"loss.positive_weight_limit must be at least 1, not {self.positive_weight_limit}.",
        )
        _require(
            min(self.contrastive_weight, self.focal_gamma) >= 0,
            "loss.contrastive_weight and loss.focal_gamma must not be negative.",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer. The learning rate warms up linearly and then falls along half a cosine."""

    name: str = "adamw"  # or "muon" (`training.optimizer`)
    learning_rate: float = 1e-3
    encoder_rate: float = 1.0  # learning rate of the encoders, relative to the rest
    layer_decay: float = 1.0  # rate of each layer of an encoder, relative to the layer above it
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    # Decay of an exponential moving average of the weights, which is then saved; 0: no average.
    ema_decay: float = 0.0

    def check(self) -> None:
        """Raise ConfigError for a value out of its range."""
        _require(self.name in {"adamw", "muon"}, f"optimizer.name must be adamw or muon, not {self.name!r}.")
        _require_positive("optimizer", self, "learning_rate", "encoder_rate", "layer_decay", "clip_norm")
        _require_shares("optimizer", self, "warmup_share")
        _require(
            self.weight_decay >= 0,
            f"optimizer.weight_decay must not be negative, but is {self.weight_decay}.",
        )
        _require(0 <= self.ema_decay < 1, f"optimizer.ema_decay must lie in [0, 1), not {self.ema_decay}.")


@dataclass(frozen=True)
class LoopConfig:
    """How long and how a model is trained; `epochs` counts passes over the training studies."""

    epochs: int = 30
    batch_size: int = 32  # studies in one step of all processes together
    accumulate: int = 1  # parts into which a batch is split (gradient accumulation), to save memory
    precision: str = "auto"  # "fp32", "bf16", "fp16"; auto: bf16 where the processor computes in it
    compile: bool = False  # torch.compile
    deterministic: bool = False  # refuse non-deterministic operations (only GPUs have some)
    validate_every: int = 2  # epochs
    patience: int = 0  # number of validations without a better score after which training stops; 0: never

    def check(self) -> None:
        """Raise ConfigError for a value out of its range."""
        _require_positive("loop", self, "epochs", "batch_size", "accumulate", "validate_every")
        precisions = ("auto", "fp32", "bf16", "fp16")
        _require(
            self.precision in precisions,
            f"loop.precision must be one of {', '.join(precisions)}, not {self.precision!r}.",
        )
        _require(self.patience >= 0, f"loop.patience must not be negative, but is {self.patience}.")
        _require(
            self.batch_size % self.accumulate == 0,
            f"loop.batch_size {self.batch_size} must be a multiple of loop.accumulate {self.accumulate}.",
        )


@dataclass(frozen=True)
class LexicalConfig:
    """How the lexical part is fitted (`training.model.lexical`), if `model.lexical_buckets` is above 0."""

    C: float = 10.0  # inverse strength of the L2 penalty of its logistic regressions
    weight: float = 1.0  # weight of its logits, relative to those of the rest of the model

    def check(self) -> None:
        """Raise ConfigError for a value out of its range."""
        _require_positive("lexical", self, "C", "weight")


@dataclass(frozen=True)
class ViewHeadConfig:
    """How the view head is fitted (`training.model.view_head`)."""

    C: float = 1.0  # inverse strength of the L2 penalty of its logistic regression; 0: no view head

    def check(self) -> None:
        """Raise ConfigError for a value out of its range."""
        _require(self.C >= 0, f"view_head.C must not be negative, but is {self.C}.")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    name: str = "demo"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    lexical: LexicalConfig = field(default_factory=LexicalConfig)
    view_head: ViewHeadConfig = field(default_factory=ViewHeadConfig)

    def check(self) -> None:
        """Raise ConfigError for a value out of its range."""
        _require(self.seed >= 0, f"seed must not be negative, but is {self.seed}.")
        for name in SECTIONS:
            getattr(self, name).check()
        _require(
            32 <= self.data.max_length <= self.model.text_positions,
            f"data.max_length must lie between 32 and model.text_positions, which is {self.model.text_positions}, "
            f"not {self.data.max_length}.",
        )


SECTIONS: Final = (
    "model",
    "weights",
    "data",
    "augment",
    "loss",
    "optimizer",
    "loop",
    "lexical",
    "view_head",
)
