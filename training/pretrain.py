"""Masked-language pre-training of the text encoder: it guesses hidden word pieces from the rest of their report.

Devlin et al. 2019 (BERT, arXiv:1810.04805), with a new draw of the hidden pieces in every epoch (dynamic masking) and
without next-sentence prediction, as Liu et al. 2019 (RoBERTa, arXiv:1907.11692).
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

MASK_SHARE: Final = 0.8  # of the pieces to guess: shown as [MASK]; section 3.1 of BERT
RANDOM_SHARE: Final = 0.1  # shown as another piece; the rest is shown as it is
BETAS: Final = (0.9, 0.98)  # of AdamW; section 3.1 of RoBERTa
_POOL: Final = 8  # batches whose texts are sorted by length together, so that padding stays small


class Hidden(NamedTuple):
    """Texts of which some word pieces are hidden."""

    shown: Tensor  # (B, L) int64 ids to read
    chosen: Tensor  # (B, L) bool: the pieces to guess


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
    """Train an encoder to guess hidden word pieces, in place and on `device`; nothing else of a model is needed.

    Equal seed, texts and machine give equal weights. The caller's random state is left as it was. Beside
    `config.pretraining` it reads the batch size and its parts from `config.loop`, and weight decay, warm-up and
    clipping from `config.optimizer`.

    Args:
        encoder: Its BERT learns, its projection does not.
        input_ids: (M, L) int64 of the training split's reports; a text without any word is left out.
        attention_mask: (M, L) int64; 1 for a token, 0 for the padding after it.
        config: The run.
        special_ids: Never hidden and never shown in a piece's place, and neither is `mask_id`.
        mask_id: The id of [MASK].
        vocabulary_size: Ids are below it; at most the rows of the encoder's embedding.
        device: Where to train.
        watcher: Told of every step, as stage "pretraining".
        bfloat16: Compute in bfloat16 where that is safe (autocast).

    Returns:
        The mean loss of a hidden piece in each epoch, in nats; ln(vocabulary_size) is a blind guess.

    Raises:
        ConfigError: No text to learn from, a frozen encoder or one with fewer word pieces, or a loss that is no
            longer a number.
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
    """Draw the word pieces to guess, and show them as [MASK] (80 %), as any other piece (10 %) or as they are (10 %).

    Args:
        input_ids: (B, L) int64.
        may_hide: (B, L) bool; only these are drawn.
        words: (V,) int64 ids that may be shown in the place of another.
        mask_id: The id of [MASK].
        share: Of the pieces that may be hidden, each drawn on its own, 0 to 1.
        generator: On the CPU, like all tensors.
    """
    chosen = may_hide & (torch.rand(input_ids.shape, generator=generator) < share)
    kind = torch.rand(input_ids.shape, generator=generator)
    places = torch.randint(len(words), input_ids.shape, generator=generator)
    shown = input_ids.masked_fill(chosen & (kind < MASK_SHARE), mask_id)
    random = chosen & (kind >= MASK_SHARE) & (kind < MASK_SHARE + RANDOM_SHARE)
    return Hidden(torch.where(random, words[places], shown), chosen)


def draw_order(lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle the places of texts of (M,) lengths into batches of similar lengths; each place comes once."""
    batches: list[Tensor] = []
    for pool in torch.randperm(len(lengths), generator=generator).split(batch_size * _POOL):
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


class _Texts(NamedTuple):
    """Texts as (B, L) tensors on the CPU."""

    input_ids: Tensor
    attention_mask: Tensor
    may_hide: Tensor

    def take(self, places: Tensor) -> "_Texts":
        """Return some of the texts, without the padding that all of them have."""
        length = _measure(self.attention_mask[places]).max()
        return _Texts(*(tensor[places, :length] for tensor in self))


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
            "A frozen text encoder cannot be pre-trained: set pretraining.epochs to 0 or change weights.freeze."
        )


def _choose_texts(input_ids: Tensor, attention_mask: Tensor, words: Tensor) -> _Texts:
    """Return the texts that hold a word at all."""
    may_hide = torch.isin(input_ids, words) & attention_mask.bool()  # (M, L)
    rows = may_hide.any(1)
    if not rows.any():
        raise ConfigError("Pre-training needs reports with text, and the training split has none.")
    return _Texts(input_ids[rows], attention_mask[rows], may_hide[rows])


class _MaskedLanguageModel(nn.Module):
    """The encoder below BERT's own prediction head, which shares the word embeddings and is thrown away afterwards."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = BertLMPredictionHead(encoder.bert.config)
        self.head.decoder.weight = encoder.bert.embeddings.word_embeddings.weight
        self.head.decoder.bias = self.head.bias
        nn.init.normal_(self.head.transform.dense.weight, std=0.02)
        nn.init.zeros_(self.head.transform.dense.bias)

    def forward(self, shown: Tensor, attention_mask: Tensor, chosen: Tensor, wanted: Tensor) -> Tensor:
        """Return the sum of the losses of the chosen pieces of (B, L) texts; `wanted` (T,) are their true ids."""
        states = self.encoder.read_hidden(self.encoder.embed(shown), attention_mask)  # (B, L, text width)
        logits = self.head(states[chosen])  # (T, vocabulary): only what is guessed, or memory runs out
        return F.cross_entropy(logits.float(), wanted, reduction="sum")


@dataclass
class _Loop:
    """The epochs, and what they work with."""

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
        for places in draw_order(lengths, self.config.loop.batch_size, self.generator):
            yield self.texts.take(places)

    def _step(self, batch: _Texts) -> tuple[float, int]:
        """Change the weights once; return the sum of the losses and the number of pieces guessed."""
        share, parts = self.config.pretraining.masked_share, self.config.loop.accumulate
        hidden = hide_pieces(batch.input_ids, batch.may_hide, self.words, self.mask_id, share, self.generator)
        guessed = int(hidden.chosen.sum())
        tensors = (batch.input_ids, batch.attention_mask, hidden.shown, hidden.chosen)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        if guessed:  # or by chance none, in a small batch of short texts
            for ids, mask, shown, chosen in zip(*(tensor.chunk(parts) for tensor in tensors), strict=True):
                total += self._learn(ids, mask, shown, chosen, guessed)
        if not math.isfinite(total):
            raise ConfigError(
                "The loss of pre-training is no longer a number: lower pretraining.learning_rate."
            )
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return total, guessed

    def _learn(
        self, input_ids: Tensor, attention_mask: Tensor, shown: Tensor, chosen: Tensor, guessed: int
    ) -> float:
        """Add the gradients of a part of a batch of `guessed` pieces to guess; return the part's summed loss."""
        wanted = input_ids[chosen]
        tensors = (tensor.to(self.device) for tensor in (shown, attention_mask, chosen, wanted))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = self.model(*tensors)
        (loss / guessed).backward()
        return float(loss.detach())


def _make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW; vectors (norms, biases) are not decayed."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [weight for weight in learning if weight.ndim > 1]},
        {"params": [weight for weight in learning if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    decay = config.optimizer.weight_decay
    return torch.optim.AdamW(
        groups, lr=config.pretraining.learning_rate, betas=BETAS, eps=1e-6, weight_decay=decay
    )
