"""The fusion: image tokens, text tokens or both to probabilities, embedding and attention per label.

Adapters: Houlsby et al. 2019, arXiv:1902.00751. Platt scaling: Platt 1999. Attention is written out with matrix
products and softmax, and masks are finite, so that everything converts to ONNX.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from contract.labels import LABELS
from contract.tensors import MAX_VIEWS
from training.config.settings import ModelConfig
from training.model.backbone import read_sizes
from training.model.lexical import LexicalHead
from training.model.view_head import ViewHead

K: Final = len(LABELS)
KINDS: Final = ("image", "text")
# Finite, and inside the range of half precision: a softmax over it gives exactly 0, never NaN.
MASKED: Final = -1e4


class FusionOutput(NamedTuple):
    """The result of one pass of `Fusion`. The attention of an absent modality is None."""

    logits: Tensor  # (B, K), before calibration
    embedding: Tensor  # (B, embedding size), unit length, in the joint space: without the label part
    image_attention: Tensor | None  # (B, K, N), of V views (B, K, V N)
    text_attention: Tensor | None  # (B, K, L)
    image_share: Tensor | None  # (B, K), share of the image in the attention to both; None with one modality


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
        """Update the tokens of every kind in the state."""
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
    """One learned query per label attends over all tokens and computes the label's logit.

    There is one head, so the displayed attention is the weight of the logit itself. With `uniform`, every label reads
    the mean of all tokens instead.
    """

    def __init__(self, width: int, *, uniform: bool = False) -> None:
        super().__init__()
        self.uniform = uniform
        self.queries = nn.Parameter(torch.randn(K, width) * 0.02)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.weight = nn.Parameter(torch.randn(K, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(K))

    def score(self, tokens: Tokens) -> Tensor:
        """Return the attention scores (B, K, T) before the softmax."""
        keys = self.key(tokens.values)  # (B, T, C)
        scores = self.queries @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        if self.uniform:
            scores = torch.zeros_like(scores)
        return scores if tokens.mask is None else scores + tokens.mask.squeeze(1)

    def forward(self, state: dict[str, Tokens]) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Pool the tokens of one kind or of both.

        Returns:
            Logits (B, K). For each kind the attention (B, K, T), whose rows sum to 1. The share (B, K) of the image in
            the attention to both kinds, 0 to 1; None with one kind alone.
        """
        scores = {kind: self.score(tokens) for kind, tokens in state.items()}
        weights = torch.cat(list(scores.values()), dim=-1).softmax(dim=-1)  # (B, K, N + L)
        values = torch.cat([self.value(tokens.values) for tokens in state.values()], dim=1)
        logits = ((weights @ values) * self.weight).sum(-1) + self.bias
        # The softmax within one kind is the joint one, renormalised.
        attention = {kind: score.softmax(dim=-1) for kind, score in scores.items()}
        if len(scores) < len(KINDS):
            return logits, attention, None
        return logits, attention, weights[..., : scores["image"].shape[-1]].sum(-1)


class Fusion(nn.Module):
    """Image tokens, text tokens or both to probabilities, embedding and attention.

    The three `forward_*` return the outputs of the `fusion_*` entries of `contract.tensors`, in their order. They take
    the concatenated tokens of the V views of each study, (B, V N, C), V from 1 to `MAX_VIEWS`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.label_share = config.label_share
        self.view = nn.Parameter(torch.zeros(width))  # added to the tokens of every view but the first
        self.tokens_per_view = read_sizes(config)["N"]
        self.modality = nn.ParameterDict({kind: nn.Parameter(torch.randn(width) * 0.02) for kind in KINDS})
        self.blocks = nn.ModuleList(FusionBlock(config) for _ in range(config.fusion_layers))
        self.norm = _per_kind(lambda: nn.LayerNorm(width))
        self.pooling = LabelPooling(width, uniform=config.pooling == "mean")
        self.project_image = _make_projection(width, config.embedding_size)
        self.project_text = _make_projection(width, config.embedding_size)
        self.project_study = _make_projection(2 * width, config.embedding_size)
        buckets = config.lexical_buckets
        self.lexical = LexicalHead(config.vocabulary_size, buckets, K) if buckets else None
        self.lateral = ViewHead(width)
        for name in ("study", *KINDS):
            self.register_buffer(f"scale_{name}", torch.ones(K))
            self.register_buffer(f"bias_{name}", torch.zeros(K))

    def forward(
        self,
        image_tokens: Tensor | None,
        text_tokens: Tensor | None,
        attention_mask: Tensor | None,
        image_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse image tokens and text tokens, either of which may be None.

        Args:
            image_tokens: (B, N, C), or of several views (B, V N, C) from `join_views` or `mark_views`.
            text_tokens: (B, L, C).
            attention_mask: (B, L) int64 of the text tokens.
            image_mask: (B, 2 N) int64 from `join_views`, for studies of one view and of two; None: all image tokens
                count.
            input_ids: (B, L) int64, the ids of the text tokens. None: the lexical part adds nothing, as in training.
        """
        state: dict[str, Tokens] = {}
        masks: dict[str, Tensor | None] = {"image": image_mask, "text": attention_mask}
        for kind, tokens in (("image", image_tokens), ("text", text_tokens)):
            if tokens is not None:
                mask = masks[kind]
                added = None if mask is None else make_additive_mask(mask, tokens.dtype)
                state[kind] = Tokens(tokens + self.modality[kind], added)
        for block in self.blocks:
            state = block(state)
        state = {kind: Tokens(self.norm[kind](tokens.values), tokens.mask) for kind, tokens in state.items()}
        logits, attention, image_share = self.pooling(state)
        if self.lexical is not None and text_tokens is not None and input_ids is not None:
            logits = logits + self.lexical(input_ids, attention_mask)
        embedding = self._embed({kind: average(tokens.values, masks[kind]) for kind, tokens in state.items()})
        return FusionOutput(logits, embedding, attention.get("image"), attention.get("text"), image_share)

    def join_views(self, first: Tensor, second: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenate the tokens of two views of each study.

        Args:
            first: (B, N, C) tokens of the first (frontal) view.
            second: (B, N, C) tokens of the second view. They are masked if there is none.
            present: (B,) bool, whether there is a second view.

        Returns:
            (B, 2 N, C) tokens and (B, 2 N) int64 mask.
        """
        tokens = torch.cat([first, second + self.view], dim=1)
        ones = torch.ones(first.shape[:2], dtype=torch.int64, device=first.device)
        return tokens, torch.cat([ones, ones * present[:, None].long()], dim=1)

    def mark_views(self, views: Tensor) -> Tensor:
        """Return the tokens (B, V, N, C) of views as (B, V N, C). Views after the first are marked, as in training.

        More than `MAX_VIEWS` views are an error in every runtime.
        """
        marks = torch.cat([torch.zeros_like(self.view)[None], self.view.expand(MAX_VIEWS - 1, -1)])  # (4, C)
        return (views + marks[: views.shape[1], None]).flatten(1, 2)

    def calibrate(self, logits: Tensor, kind: str) -> Tensor:
        """Turn logits (B, K) of "study", "image" or "text" into calibrated probabilities."""
        return torch.sigmoid(getattr(self, f"scale_{kind}") * logits + getattr(self, f"bias_{kind}"))

    def forward_study(
        self, image_tokens: Tensor, text_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return probabilities, embedding, image attention, text attention, views and the image's share of both."""
        views = self._split_views(image_tokens)
        out = self(self.mark_views(views), text_tokens, attention_mask, input_ids=input_ids)
        probabilities, embedding = self._answer(out, "study")
        attention = out.image_attention, out.text_attention
        return probabilities, embedding, *attention, self._tell_views(views), out.image_share

    def forward_image(self, image_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return probabilities, embedding, image attention and views of the images alone."""
        views = self._split_views(image_tokens)
        out = self(self.mark_views(views), None, None)
        probabilities, embedding = self._answer(out, "image")
        return probabilities, embedding, out.image_attention, self._tell_views(views)

    def forward_text(
        self, text_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities, embedding, text attention of the report alone."""
        out = self(None, text_tokens, attention_mask, input_ids=input_ids)
        probabilities, embedding = self._answer(out, "text")
        return probabilities, embedding, out.text_attention

    def _answer(self, out: FusionOutput, kind: str) -> tuple[Tensor, Tensor]:
        """Return the probabilities (B, K) and the embedding (B, D) with its label part (`contract.embedding`)."""
        probabilities = self.calibrate(out.logits, kind)
        if not self.label_share:
            return probabilities, out.embedding
        # A label that no training study states has the scale 0 (`training.validate.calibrate`) in the fitted ways. All
        # ways leave it out, because a search compares the embeddings of different ways.
        fitted = [getattr(self, f"scale_{name}") > 0 for name in ("study", *KINDS)]
        stated = torch.stack(fitted).all(0).to(probabilities.dtype)
        labels = _scale_to_unit(probabilities * stated)
        parts = (1 - self.label_share) ** 0.5 * out.embedding, self.label_share**0.5 * labels
        return probabilities, torch.cat(parts, dim=-1)

    def _split_views(self, image_tokens: Tensor) -> Tensor:
        """Return tokens (B, V N, C) as (B, V, N, C)."""
        count = image_tokens.shape[1] // self.tokens_per_view
        return image_tokens.unflatten(1, (count, self.tokens_per_view))

    def _tell_views(self, views: Tensor) -> Tensor:
        """Return the probability (B, V) that each view of tokens (B, V, N, C) is a lateral."""
        return self.lateral(views.flatten(0, 1)).unflatten(0, views.shape[:2])[..., 0]

    def _embed(self, means: dict[str, Tensor]) -> Tensor:
        """Turn the mean tokens (B, C) of each kind into unit vectors (B, embedding size)."""
        if len(means) == len(KINDS):
            joint = self.project_study(torch.cat([means["image"], means["text"]], dim=-1))
        else:
            joint = (
                self.project_image(means["image"]) if "image" in means else self.project_text(means["text"])
            )
        return _scale_to_unit(joint)


def _scale_to_unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()


def average(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean (B, C) of the tokens (B, T, C) whose mask (B, T) is 1."""
    if mask is None:
        return tokens.mean(dim=1)
    weights = mask.to(tokens.dtype).unsqueeze(-1)  # (B, T, 1)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def make_additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask (B, L) of 1 and 0 into (B, 1, 1, L) of 0 and `MASKED`, to add to attention scores."""
    return ((1 - attention_mask).to(dtype) * MASKED)[:, None, None, :]


def _per_kind(make: Callable[[], nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({kind: make() for kind in KINDS})


def _make_projection(width: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Linear(size, size))
