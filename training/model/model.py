"""The model: image encoder (a timm backbone), BERT text encoder, cross-modal fusion with attention per label.

    pixels (B, 1, S, S) ──> ImageEncoder ──> (B, N, C) ─┐
                                                         ├─> Fusion ──> probabilities, embedding, attention
    input_ids, mask (B, L) ─> TextEncoder ─> (B, L, C) ─┤
              └───────> LexicalHead, where configured ─┘

Fusion (`training.model.fusion`) runs with both kinds of tokens or with either alone, with the same weights. Every
module converts with `torch.onnx.export(module, args, dynamo=True, dynamic_shapes=...)`, with the batch (and the text
length) dynamic; give example batches of at least 2, because the exporter treats a size of 1 as a constant.

Swin: Liu et al. 2021, arXiv:2103.14030. BERT: Devlin et al. 2019, arXiv:1810.04805.
"""

from contract.bundle import Bundle
from contract.errors import ArtifactError, ConfigError
from contract.tensors import GRAPHS, MAX_VIEWS
from training.config.settings import ModelConfig
from training.config.toml_file import read_model_config

try:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch import Tensor, nn
    from transformers import BertConfig, BertModel

    from training.model.backbone import create_backbone, read_layout, read_sizes
    from training.model.fusion import Fusion, FusionOutput, make_additive_mask
except ModuleNotFoundError as error:
    raise ConfigError("Models need the 'train' extra: pip install 'cxr-serving[train]'.") from error

Outputs = tuple[Tensor, ...]  # in the order of a ModelSpec


class ImageEncoder(nn.Module):
    """Radiographs to image tokens; the normalisation of the pixels is part of the graph."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(config.pixel_mean))
        self.register_buffer("std", torch.tensor(config.pixel_std))
        self.layout = read_layout(config)
        self.backbone = create_backbone(config)
        self.project = nn.Linear(self.layout.width, config.width)
        self.position = nn.Parameter(torch.randn(self.layout.grid**2, config.width) * 0.02)
        self.register_load_state_dict_pre_hook(_rename_backbone)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode (B, 1, S, S) pixels, 0 to 255, uint8 (float32 for gradients), as (B, N, C), row by row."""
        return self.encode(self.scale(pixels, self.mean))

    def scale(self, pixels: Tensor, mean: Tensor) -> Tensor:
        """Scale pixels from 0..255 to 0..1, subtract a mean that fits their shape, and divide by the deviation."""
        return (pixels.to(self.project.weight.dtype) / 255.0 - mean) / self.std

    def encode(self, scaled: Tensor) -> Tensor:
        """Encode (B, 1, S, S) scaled pixels as (B, N, C)."""
        tokens = self.layout.take_tokens(self.backbone.forward_features(scaled))  # (B, N, F)
        return self.project(tokens) + self.position


def _rename_backbone(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: object) -> None:
    """Rename tensors of older bundles, which call the backbone "swin"."""
    for name in [name for name in state if name.startswith(f"{prefix}swin.")]:
        state[name.replace(f"{prefix}swin.", f"{prefix}backbone.", 1)] = state.pop(name)


class TextEncoder(nn.Module):
    """Token ids to text tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bert = BertModel(make_bert_config(config), add_pooling_layer=False)
        self.project = nn.Linear(config.text_width, config.width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode (B, L) int64 ids and mask (1 = token, 0 = padding) as (B, L, C)."""
        return self.encode(self.embed(input_ids), attention_mask)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embed (B, L) int64 ids as (B, L, text width): word pieces and positions."""
        embedded: Tensor = self.bert.embeddings(input_ids=input_ids)
        return embedded

    def encode(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode (B, L, text width) embedded tokens as (B, L, C). Explanations differentiate with respect to them."""
        return self.project(self.read_hidden(embeddings, attention_mask))

    def read_hidden(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """Run BERT's layers over (B, L, text width) embedded tokens."""
        mask = make_additive_mask(attention_mask, embeddings.dtype)  # (B, 1, 1, L)
        hidden = embeddings
        for layer in self.bert.encoder.layer:
            output = layer(hidden, attention_mask=mask)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


class CxrModel(nn.Module):
    """The whole model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config)
        self.fusion = Fusion(config)

    @property
    def sizes(self) -> dict[str, int]:
        """The shape letters S, N, C, D of `contract.tensors`."""
        return read_sizes(self.config)

    def forward(
        self,
        pixels: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Read pixels (B, 1, S, S), text (B, L) or both; logits are before calibration."""
        image_tokens = None if pixels is None else self.image_encoder(pixels)
        text_tokens = None if input_ids is None else self.text_encoder(input_ids, attention_mask)
        return self.fusion(image_tokens, text_tokens, attention_mask, input_ids=input_ids)


class _Graph(nn.Module):
    """A part of the model as it is served. An id outside the vocabulary must not affect other requests of the batch.

    Without a check, some runtimes would fail the whole batch, and others would read other memory.
    """

    def __init__(self, part: nn.Module, vocabulary_size: int) -> None:
        super().__init__()
        self.part = part
        self.vocabulary_size = vocabulary_size

    def _clip(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids (B, L) with 0 ([PAD]) in place of unknown ids, and (B, L) bool, whether an id is known."""
        is_known = (input_ids >= 0) & (input_ids < self.vocabulary_size)
        return torch.where(is_known, input_ids, 0), is_known

    def _read(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and mask (B, L) for the fusion. A text with an unknown id becomes padding."""
        known, is_known = self._clip(input_ids)
        return known, attention_mask * is_known.all(1, keepdim=True).long()


class _ImageEncoderGraph(nn.Module):
    """The image encoder over the views of each study.

    The mean has `MAX_VIEWS` rows. So more views are an error in every runtime, before they use memory.
    """

    def __init__(self, part: ImageEncoder) -> None:
        super().__init__()
        self.part = part

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode (B, V, S, S) uint8 pixels, V from 1 to `MAX_VIEWS`, as (B, V N, C)."""
        studies, count = pixels.shape[:2]
        means = self.part.mean.expand(MAX_VIEWS)[:count, None, None]  # (V, 1, 1)
        scaled = self.part.scale(pixels, means).flatten(0, 1).unsqueeze(1)  # (B V, 1, S, S)
        return self.part.encode(scaled).unflatten(0, (studies, count)).flatten(1, 2)


class _TextEncoderGraph(_Graph):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.part(self._clip(input_ids)[0], attention_mask)


class _StudyGraph(_Graph):
    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Outputs:
        return self.part.forward_study(image_tokens, text_tokens, *self._read(input_ids, attention_mask))


class _ImageGraph(_Graph):
    def forward(self, image_tokens: Tensor) -> Outputs:
        return self.part.forward_image(image_tokens)


class _TextGraph(_Graph):
    def forward(self, text_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        return self.part.forward_text(text_tokens, *self._read(input_ids, attention_mask))


def graph_modules(model: CxrModel) -> dict[str, nn.Module]:
    """Return the five served modules, by their names in `contract.tensors.GRAPHS`.

    Each takes and returns tensors in the order of its `ModelSpec`, and is in evaluation mode. An id outside the
    vocabulary is read as padding, and the fusion treats its whole text as padding. For all other ids the modules
    compute the same as the model.
    """
    size = model.config.vocabulary_size
    modules: dict[str, nn.Module] = {
        "image_encoder": _ImageEncoderGraph(model.image_encoder),
        "text_encoder": _TextEncoderGraph(model.text_encoder, size),
        "fusion_study": _StudyGraph(model.fusion, size),
        "fusion_image": _ImageGraph(model.fusion, size),
        "fusion_text": _TextGraph(model.fusion, size),
    }
    return {name: modules[name].eval() for name in GRAPHS}


def load_model(bundle: Bundle) -> CxrModel:
    """Load a bundle's model onto the CPU, in evaluation mode.

    Raises:
        ArtifactError: The weights do not fit the config.
    """
    try:
        model = CxrModel(read_model_config(bundle.config["model"]))
        model.load_state_dict(load_file(bundle.weights_path), strict=True)
    except (KeyError, TypeError, RuntimeError, ConfigError, SafetensorError) as error:
        raise ArtifactError(f"The weights of {bundle.path} do not fit its config.json.") from error
    return model.eval()


def make_bert_config(config: ModelConfig) -> BertConfig:
    """Return the transformers config of the text encoder."""
    return BertConfig(
        vocab_size=config.vocabulary_size,
        hidden_size=config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        intermediate_size=config.text_feedforward,
        max_position_embeddings=config.text_positions,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        attn_implementation="eager",
    )
