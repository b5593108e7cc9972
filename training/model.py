"""The model: Swin image encoder, BERT text encoder, cross-modal fusion with attention per label.

    pixels (B, 1, S, S) ──> ImageEncoder ──> (B, N, C) ─┐
                                                         ├─> Fusion ──> probabilities, embedding, attention
    input_ids, mask (B, L) ─> TextEncoder ─> (B, L, C) ─┘

Fusion runs with both kinds of tokens or with either alone, with the same weights. Attention is written out
with matrix products and softmax, and masks are finite, so that every module converts with
`torch.onnx.export(module, args, dynamo=True, dynamic_shapes=...)`, with the batch (and the text length)
dynamic; give example batches of at least 2, because the exporter treats a size of 1 as a constant.

Swin: Liu et al. 2021, arXiv:2103.14030. BERT: Devlin et al. 2019, arXiv:1810.04805. Adapters: Houlsby et al.
2019, arXiv:1902.00751. Platt scaling: Platt 1999.
"""

from collections.abc import Callable
from typing import NamedTuple

from contract.bundle import Bundle
from contract.errors import ArtifactError, ConfigError
from contract.labels import LABELS
from contract.tensors import GRAPHS
from training.config import ModelConfig, read_model_config

try:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch import Tensor, nn
    from transformers import BertConfig, BertModel

    from training.swin import create_swin
except ModuleNotFoundError as error:
    raise ConfigError("Models need the 'train' extra: pip install 'cxr-serving[train]'.") from error

K = len(LABELS)
Outputs = tuple[Tensor, ...]  # in the order of a ModelSpec
KINDS = ("image", "text")
MASKED = -1e4  # finite, and inside the range of half precision: a softmax over it gives exactly 0, never NaN


class FusionOutput(NamedTuple):
    """What one pass of `Fusion` gives; an attention is None where its modality was absent."""

    logits: Tensor  # (B, K), before calibration
    embedding: Tensor  # (B, D), unit length
    image_attention: Tensor | None  # (B, K, N)
    text_attention: Tensor | None  # (B, K, L)


class ImageEncoder(nn.Module):
    """Radiographs to image tokens; the normalisation of the pixels is part of the graph."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(config.pixel_mean))
        self.register_buffer("std", torch.tensor(config.pixel_std))
        self.swin = create_swin(config)
        self.project = nn.Linear(self.swin.num_features, config.width)
        self.position = nn.Parameter(torch.randn(config.grid**2, config.width) * 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode (B, 1, S, S) pixels, 0 to 255, uint8 (float32 for gradients), as (B, N, C), row by row."""
        scaled = (pixels.to(self.project.weight.dtype) / 255.0 - self.mean) / self.std
        features = self.swin.forward_features(scaled)  # (B, G, G, F) with N = G * G
        return self.project(features.flatten(1, 2)) + self.position


class TextEncoder(nn.Module):
    """Token ids to text tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bert = BertModel(make_bert_config(config), add_pooling_layer=False)
        self.project = nn.Linear(config.text_width, config.width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode (B, L) int64 ids and mask (1 = token, 0 = padding) as (B, L, C)."""
        return self.encode(self.bert.embeddings(input_ids=input_ids), attention_mask)

    def encode(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode (B, L, text width) embedded tokens as (B, L, C); explanations differentiate by them."""
        mask = make_additive_mask(attention_mask, embeddings.dtype)  # (B, 1, 1, L)
        hidden = embeddings
        for layer in self.bert.encoder.layer:
            output = layer(hidden, attention_mask=mask)
            hidden = output[0] if isinstance(output, tuple) else output
        return self.project(hidden)


class Attention(nn.Module):
    """Multi-head attention of queries (B, Q, C) over a context (B, T, C)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Attend; `mask` is additive, (B, 1, 1, T)."""
        key, value = self.key_value(context).chunk(2, dim=-1)
        query, key, value = (self._split(part) for part in (self.query(queries), key, value))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, H, Q, T)
        if mask is not None:
            scores = scores + mask
        mixed = self.dropout(scores.softmax(dim=-1)) @ value  # (B, H, Q, C / H)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, tokens.shape[-1] // self.heads)).transpose(1, 2)


class HybridFeedForward(nn.Module):
    """A feed-forward layer that both modalities share, plus a low-rank adapter for each."""

    def __init__(self, width: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.adapters = nn.ModuleDict(
            {kind: nn.Sequential(nn.Linear(width, rank), nn.GELU(), nn.Linear(rank, width)) for kind in KINDS}
        )

    def forward(self, tokens: Tensor, kind: str) -> Tensor:
        """Return the update of (B, T, C) tokens of one kind, "image" or "text"."""
        return self.shared(tokens) + self.adapters[kind](tokens)


class Tokens(NamedTuple):
    """The tokens of one modality, (B, T, C), and their additive mask (None: all count)."""

    values: Tensor
    mask: Tensor | None


class FusionBlock(nn.Module):
    """Self-attention, attention to the other modality (if present), hybrid feed-forward; pre-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        self.self_norm = _per_kind(lambda: nn.LayerNorm(width))
        self.cross_norm = _per_kind(lambda: nn.LayerNorm(width))
        self.feed_norm = _per_kind(lambda: nn.LayerNorm(width))
        self.self_attention = _per_kind(lambda: Attention(width, config.fusion_heads, dropout))
        self.cross_attention = _per_kind(lambda: Attention(width, config.fusion_heads, dropout))
        self.feed = HybridFeedForward(width, config.adapter_rank, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: dict[str, Tokens]) -> dict[str, Tokens]:
        """Update the tokens of every kind that is there."""
        state = {kind: self._add(tokens, self._attend_self(kind, tokens)) for kind, tokens in state.items()}
        if len(state) == len(KINDS):
            normed = {kind: self.cross_norm[kind](tokens.values) for kind, tokens in state.items()}
            state = {
                kind: self._add(
                    tokens, self.cross_attention[kind](normed[kind], normed[other], state[other].mask)
                )
                for (kind, tokens), other in zip(state.items(), reversed(state), strict=True)
            }
        return {
            kind: self._add(tokens, self.feed(self.feed_norm[kind](tokens.values), kind))
            for kind, tokens in state.items()
        }

    def _attend_self(self, kind: str, tokens: Tokens) -> Tensor:
        normed = self.self_norm[kind](tokens.values)
        return self.self_attention[kind](normed, normed, tokens.mask)

    def _add(self, tokens: Tokens, update: Tensor) -> Tokens:
        return Tokens(tokens.values + self.dropout(update), tokens.mask)


class LabelPooling(nn.Module):
    """One learned query per label attends over all tokens and reads the label's logit.

    One head on purpose: the attention that is shown is then the very weight that the logit was made with.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(K, width) * 0.02)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.weight = nn.Parameter(torch.randn(K, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(K))

    def score(self, tokens: Tokens) -> Tensor:
        """Return the attention scores (B, K, T) before the softmax."""
        keys = self.key(tokens.values)  # (B, T, C)
        scores = self.queries @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        return scores if tokens.mask is None else scores + tokens.mask.squeeze(1)

    def forward(self, state: dict[str, Tokens]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits (B, K) and, per kind, the attention (B, K, T), each row summing to 1."""
        scores = {kind: self.score(tokens) for kind, tokens in state.items()}
        weights = torch.cat(list(scores.values()), dim=-1).softmax(dim=-1)  # (B, K, N + L)
        values = torch.cat([self.value(tokens.values) for tokens in state.values()], dim=1)
        logits = ((weights @ values) * self.weight).sum(-1) + self.bias
        # The softmax within one kind is the joint one, renormalised.
        return logits, {kind: score.softmax(dim=-1) for kind, score in scores.items()}


class Fusion(nn.Module):
    """Image tokens, text tokens or both to probabilities, embedding and attention.

    The three `forward_*` return the outputs of the `fusion_*` entries of `contract.tensors`, in their order.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.modality = nn.ParameterDict({kind: nn.Parameter(torch.randn(width) * 0.02) for kind in KINDS})
        self.blocks = nn.ModuleList(FusionBlock(config) for _ in range(config.fusion_layers))
        self.norm = _per_kind(lambda: nn.LayerNorm(width))
        self.pooling = LabelPooling(width)
        self.project_image = _make_projection(width, config.embedding_size)
        self.project_text = _make_projection(width, config.embedding_size)
        self.project_study = _make_projection(2 * width, config.embedding_size)
        for name in ("study", *KINDS):
            self.register_buffer(f"scale_{name}", torch.ones(K))
            self.register_buffer(f"bias_{name}", torch.zeros(K))

    def forward(
        self, image_tokens: Tensor | None, text_tokens: Tensor | None, attention_mask: Tensor | None
    ) -> FusionOutput:
        """Fuse (B, N, C) image tokens and (B, L, C) text tokens, either of which may be None."""
        state: dict[str, Tokens] = {}
        if image_tokens is not None:
            state["image"] = Tokens(image_tokens + self.modality["image"], None)
        if text_tokens is not None and attention_mask is not None:
            mask = make_additive_mask(attention_mask, text_tokens.dtype)
            state["text"] = Tokens(text_tokens + self.modality["text"], mask)
        for block in self.blocks:
            state = block(state)
        state = {kind: Tokens(self.norm[kind](tokens.values), tokens.mask) for kind, tokens in state.items()}
        logits, attention = self.pooling(state)
        embedding = self._embed(state, attention_mask)
        return FusionOutput(logits, embedding, attention.get("image"), attention.get("text"))

    def calibrate(self, logits: Tensor, kind: str) -> Tensor:
        """Turn logits (B, K) of "study", "image" or "text" into calibrated probabilities."""
        return torch.sigmoid(getattr(self, f"scale_{kind}") * logits + getattr(self, f"bias_{kind}"))

    def forward_study(
        self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return probabilities, embedding, image attention, text attention of both modalities together."""
        out = self(image_tokens, text_tokens, attention_mask)
        return self.calibrate(out.logits, "study"), out.embedding, out.image_attention, out.text_attention

    def forward_image(self, image_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities, embedding, image attention of the image alone."""
        out = self(image_tokens, None, None)
        return self.calibrate(out.logits, "image"), out.embedding, out.image_attention

    def forward_text(self, text_tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities, embedding, text attention of the report alone."""
        out = self(None, text_tokens, attention_mask)
        return self.calibrate(out.logits, "text"), out.embedding, out.text_attention

    def _embed(self, state: dict[str, Tokens], attention_mask: Tensor | None) -> Tensor:
        means = {}
        if "image" in state:
            means["image"] = state["image"].values.mean(dim=1)  # (B, C)
        if "text" in state:
            weights = attention_mask.to(state["text"].values.dtype).unsqueeze(-1)  # (B, L, 1)
            means["text"] = (state["text"].values * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        if len(means) == len(KINDS):
            joint = self.project_study(torch.cat([means["image"], means["text"]], dim=-1))
        else:
            joint = (
                self.project_image(means["image"]) if "image" in means else self.project_text(means["text"])
            )
        return joint / joint.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()


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
        return self.config.sizes

    def forward(
        self,
        pixels: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Read pixels (B, 1, S, S), text (B, L) or both; logits are before calibration."""
        image_tokens = None if pixels is None else self.image_encoder(pixels)
        text_tokens = None if input_ids is None else self.text_encoder(input_ids, attention_mask)
        return self.fusion(image_tokens, text_tokens, attention_mask)


class _FusionGraph(nn.Module):
    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion


class _StudyGraph(_FusionGraph):
    def forward(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor) -> Outputs:
        return self.fusion.forward_study(image_tokens, text_tokens, attention_mask)


class _ImageGraph(_FusionGraph):
    def forward(self, image_tokens: Tensor) -> Outputs:
        return self.fusion.forward_image(image_tokens)


class _TextGraph(_FusionGraph):
    def forward(self, text_tokens: Tensor, attention_mask: Tensor) -> Outputs:
        return self.fusion.forward_text(text_tokens, attention_mask)


def graph_modules(model: CxrModel) -> dict[str, nn.Module]:
    """Return the five served modules, by their names in `contract.tensors.GRAPHS`.

    Each takes and returns tensors in the order of its `ModelSpec`, and is in evaluation mode.
    """
    modules: dict[str, nn.Module] = {
        "image_encoder": model.image_encoder,
        "text_encoder": model.text_encoder,
        "fusion_study": _StudyGraph(model.fusion),
        "fusion_image": _ImageGraph(model.fusion),
        "fusion_text": _TextGraph(model.fusion),
    }
    return {name: modules[name].eval() for name in GRAPHS}


def load_model(bundle: Bundle) -> CxrModel:
    """Load a bundle's model on the CPU, in evaluation mode.

    Raises:
        ArtifactError: The weights do not fit the config.
    """
    try:
        model = CxrModel(read_model_config(bundle.config["model"]))
        model.load_state_dict(load_file(bundle.weights_path), strict=True)
    except (KeyError, TypeError, RuntimeError, ConfigError, SafetensorError) as error:
        raise ArtifactError(f"The weights of {bundle.path} do not fit its config.json.") from error
    return model.eval()


def make_additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask (B, L) of 1 and 0 into (B, 1, 1, L) of 0 and `MASKED`, to add to attention scores."""
    return ((1 - attention_mask).to(dtype) * MASKED)[:, None, None, :]


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


def _per_kind(make: Callable[[], nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({kind: make() for kind in KINDS})


def _make_projection(width: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Linear(size, size))
