"""Masked-language pre-training of the text encoder: it predicts hidden word pieces from the rest of the report.

Devlin et al. 2019 (BERT, arXiv:1810.04805), with new hidden pieces in every epoch (dynamic masking) and without
next-sentence prediction, as in Liu et al. 2019 (RoBERTa, arXiv:1907.11692).
"""

import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import get_cosine_schedule_with_warmup
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from contract.errors import ConfigError
from training.config.settings import TrainConfig
from training.model.model import TextEncoder
from training.watch import StepReport, Watcher

MASK_SHARE: Final = 0.8  # share of the pieces to predict that become [MASK]; section 3.1 of BERT
RANDOM_SHARE: Final = 0.1  # share that becomes another piece; the rest stays
BETAS: Final = (0.9, 0.98)  # betas of AdamW; section 3.1 of RoBERTa
_POOL: Final = 8  # batches per pool; texts are sorted by length inside a pool, which keeps padding small


class Hidden(NamedTuple):
    """Texts with some hidden word pieces."""

    shown: Tensor  # (B, L) int64 input ids
    chosen: Tensor  # (B, L) bool: the pieces to predict


def pretrain_text(
    encoder: TextEncoder,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: TrainConfig,
    *,
    special_ids: Collection[int],
    mask_id: int,
    vocabulary_size: int,
    device: torch.device,
    watcher: Watcher,
    bfloat16: bool = False,
) -> list[float]:
    """Train an encoder in place to predict hidden word pieces. No other part of the model is needed.

    Equal seed, texts and machine give equal weights. The caller's random state does not change. Besides
    `config.pretraining`, the function uses `batch_size` and `accumulate` of `config.loop`, and weight decay, warm-up
    and clipping of `config.optimizer`.

    Args:
        encoder: The text encoder. Its BERT is trained, its projection is not.
        input_ids: (M, L) int64 of the training split's reports; a text without words is left out.
        attention_mask: (M, L) int64; 1 for a token, 0 for the padding after it.
        config: The run.
        special_ids: Ids that are never hidden and never replace a piece; the same holds for `mask_id`.
        mask_id: The id of [MASK].
        vocabulary_size: Ids are below it; at most the rows of the encoder's embedding.
        device: Where to train.
        watcher: Notified of every step, as stage "pretraining".
        bfloat16: Whether to compute in bfloat16 where it is safe (autocast).

    Returns:
        The mean loss per hidden piece in each epoch, in nats. A uniform guess has ln(vocabulary_size).

    Raises:
        ConfigError: There is no text, the encoder is frozen or has fewer word pieces, or the loss is NaN or infinite.
    """
    if not config.pretraining.epochs:
        return []
    _check_encoder(encoder, vocabulary_size)
    special = torch.tensor(sorted({*special_ids, mask_id}))
    words = torch.arange(vocabulary_size)
    words = words[~torch.isin(words, special)]  # (V,)
    texts = _choose_texts(input_ids.cpu(), attention_mask.cpu(), words)
    was_training = encoder.training
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = _MaskedLanguageModel(encoder).to(device).train()
        losses = _Loop(model, texts, words, mask_id, config, device, watcher, bfloat16).run()
    encoder.train(was_training)
    return losses


def hide_pieces(
    input_ids: Tensor, may_hide: Tensor, words: Tensor, mask_id: int, share: float, generator: torch.Generator
) -> Hidden:
    """Draw the word pieces to predict. Replace 80 % by [MASK] and 10 % by a random piece; leave 10 % unchanged.

    Args:
        input_ids: (B, L) int64.
        may_hide: (B, L) bool; only these pieces are drawn.
        words: (V,) int64 ids for random replacements.
        mask_id: The id of [MASK].
        share: Probability, 0 to 1, that a piece that may be hidden is drawn.
        generator: On the CPU, like all tensors.
    """
    chosen = may_hide & (torch.rand(input_ids.shape, generator=generator) < share)
    kind = torch.rand(input_ids.shape, generator=generator)
    replacements = torch.randint(len(words), input_ids.shape, generator=generator)
    shown = input_ids.masked_fill(chosen & (kind < MASK_SHARE), mask_id)
    random = chosen & (kind >= MASK_SHARE) & (kind < MASK_SHARE + RANDOM_SHARE)
    return Hidden(torch.where(random, words[replacements], shown), chosen)


def draw_order(lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle texts with (M,) lengths into batches of similar lengths; return their indices, each once."""
    batches: list[Tensor] = []
    for pool in torch.randperm(len(lengths), generator=generator).split(batch_size * _POOL):
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


class _Texts(NamedTuple):
    """Texts as (B, L) tensors on the CPU."""

    input_ids: Tensor
    attention_mask: Tensor
    may_hide: Tensor

    def take(self, indices: Tensor) -> "_Texts":
        """Return some of the texts, without their common padding."""
        length = _measure(self.attention_mask[indices]).max()
        return _Texts(*(tensor[indices, :length] for tensor in self))


def _measure(attention_mask: Tensor) -> Tensor:
    """Return the length of each text, (B,)."""
    return attention_mask.sum(1)


def _check_encoder(encoder: TextEncoder, vocabulary_size: int) -> None:
    rows = encoder.bert.embeddings.word_embeddings.num_embeddings
    if vocabulary_size > rows:
        raise ConfigError(
            f"The tokenizer has {vocabulary_size} word pieces, but the text encoder knows {rows}."
        )
    if not any(parameter.requires_grad for parameter in encoder.bert.parameters()):
        raise ConfigError(
            "A frozen text encoder cannot be pre-trained. Set pretraining.epochs to 0 or change weights.freeze."
        )


def _choose_texts(input_ids: Tensor, attention_mask: Tensor, words: Tensor) -> _Texts:
    """Return the texts that hold at least one word."""
    may_hide = torch.isin(input_ids, words) & attention_mask.bool()  # (M, L)
    rows = may_hide.any(1)
    if not rows.any():
        raise ConfigError("Pre-training needs reports with text, and the training split has none.")
    return _Texts(input_ids[rows], attention_mask[rows], may_hide[rows])


class _MaskedLanguageModel(nn.Module):
    """The encoder with BERT's prediction head, which shares the word embeddings and is discarded afterwards."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = BertLMPredictionHead(encoder.bert.config)
        self.head.decoder.weight = encoder.bert.embeddings.word_embeddings.weight
        self.head.decoder.bias = self.head.bias
        nn.init.normal_(self.head.transform.dense.weight, std=0.02)
        nn.init.zeros_(self.head.transform.dense.bias)

    def forward(self, shown: Tensor, attention_mask: Tensor, chosen: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss of the chosen pieces of (B, L) texts; `targets` (T,) are their true ids."""
        states = self.encoder.read_hidden(self.encoder.embed(shown), attention_mask)  # (B, L, text width)
        logits = self.head(states[chosen])  # (T, vocabulary): only the pieces to predict, to save memory
        return F.cross_entropy(logits.float(), targets, reduction="sum")


@dataclass
class _Loop:
    """The epochs and their state."""

    model: _MaskedLanguageModel
    texts: _Texts
    words: Tensor
    mask_id: int
    config: TrainConfig
    device: torch.device
    watcher: Watcher
    bfloat16: bool

    def __post_init__(self) -> None:
        batches = math.ceil(len(self.texts.input_ids) / self.config.loop.batch_size)
        self.steps = batches * self.config.pretraining.epochs
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.optimizer = _make_optimizer(self.model, self.config)
        warmup = round(self.steps * self.config.optimizer.warmup_share)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, warmup, self.steps)

    def run(self) -> list[float]:
        """Train, and return the mean loss of each epoch."""
        step, means = 0, []
        for epoch in range(1, self.config.pretraining.epochs + 1):
            started, read, total, count = time.monotonic(), 0, 0.0, 0
            for batch in self._draw_batches():
                rate = self.schedule.get_last_lr()[0]
                loss, guessed = self._step(batch)
                total, count = total + loss, count + guessed
                step, read = step + 1, read + len(batch.input_ids)
                mean = loss / max(1, guessed)
                speed = read / max(time.monotonic() - started, 1e-9)
                self.watcher.on_step(
                    StepReport("pretraining", step, self.steps, epoch, mean, {}, rate, speed)
                )
            means.append(total / max(1, count))
        self.optimizer.zero_grad(set_to_none=True)
        return means

    def _draw_batches(self) -> Iterator[_Texts]:
        lengths = _measure(self.texts.attention_mask)
        for indices in draw_order(lengths, self.config.loop.batch_size, self.generator):
            yield self.texts.take(indices)

    def _step(self, batch: _Texts) -> tuple[float, int]:
        """Make one optimizer step; return the summed loss and the number of predicted pieces."""
        share, parts = self.config.pretraining.masked_share, self.config.loop.accumulate
        hidden = hide_pieces(batch.input_ids, batch.may_hide, self.words, self.mask_id, share, self.generator)
        guessed = int(hidden.chosen.sum())
        tensors = (batch.input_ids, batch.attention_mask, hidden.shown, hidden.chosen)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        if guessed:  # a small batch of short texts may have none
            for ids, mask, shown, chosen in zip(*(tensor.chunk(parts) for tensor in tensors), strict=True):
                total += self._learn(ids, mask, shown, chosen, guessed)
        if not math.isfinite(total):
            raise ConfigError(
                "The loss of pre-training became NaN or infinite. Lower pretraining.learning_rate."
            )
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return total, guessed

    def _learn(
        self, input_ids: Tensor, attention_mask: Tensor, shown: Tensor, chosen: Tensor, guessed: int
    ) -> float:
        """Add the gradients of one part of a batch with `guessed` pieces to predict; return the part's summed loss."""
        targets = input_ids[chosen]
        tensors = (tensor.to(self.device) for tensor in (shown, attention_mask, chosen, targets))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = self.model(*tensors)
        (loss / guessed).backward()
        return float(loss.detach())


def _make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW without weight decay on vectors (norms, biases)."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [weight for weight in learning if weight.ndim > 1]},
        {"params": [weight for weight in learning if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    decay = config.optimizer.weight_decay
    return torch.optim.AdamW(
        groups, lr=config.pretraining.learning_rate, betas=BETAS, eps=1e-6, weight_decay=decay
    )
