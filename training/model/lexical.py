"""The lexical part of the model: one logistic regression per label on the word pieces of a text and their pairs.

Texts with hidden words ([MASK]) have regressions of their own: if the words that state a label are hidden, the other
words have larger weights.

The part is fitted once, on the training split, and never trained with the rest of the model. Its logits are added to
those of the transformer, like the wide part of Wide & Deep (Cheng et al. 2016, arXiv:1606.07792). Pairs are hashed into
a table (Weinberger et al. 2009, arXiv:0902.2206). Features are binary TF-IDF of unit length with scikit-learn's smooth
idf, ln((1 + texts) / (1 + texts with it)) + 1. All operations are lookups and sums, which convert to ONNX.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.errors import ConfigError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_HASH: Final = 31_337  # multiplier of the hash of a pair: a prime far from the sizes of tables
_MIN_TEXTS: Final = 2  # features in fewer training texts are left out
_ROWS: Final = 128  # texts at a time, which limits the memory


class LexicalHead(nn.Module):
    """Token ids to logits that are linear in the n-grams of a text. It has buffers and no parameters.

    A row of `unigrams` and `bigrams` holds idf * weight for each label and, last, idf^2. The second half of the rows is
    for texts with hidden words. Each distinct n-gram of a text counts once. The logits of a new head are 0.
    """

    def __init__(self, vocabulary_size: int, buckets: int, labels: int) -> None:
        """Make an empty head.

        Args:
            vocabulary_size: V; every id is below it.
            buckets: Rows of the table of hashed pairs, at least 1.
            labels: K.
        """
        super().__init__()
        self.register_buffer("unigrams", torch.zeros(2 * vocabulary_size, labels + 1))
        self.register_buffer("bigrams", torch.zeros(2 * buckets, labels + 1))
        self.register_buffer("bias", torch.zeros(2, labels))
        self.register_buffer("mask_id", torch.tensor(-1))  # set when fitted
        # A table and not a product: OpenVINO 2026.4 takes remainders in float32, which has no room for these products.
        hashes = torch.arange(vocabulary_size) * _HASH % buckets  # (V,)
        self.register_buffer("hashes", hashes, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (B, K) float32 of ids and mask (B, L) int64. A text without a known n-gram gets the bias."""
        return self.attribute(input_ids, attention_mask).sum(1) + self.find_bias(input_ids)

    def find_bias(self, input_ids: Tensor) -> Tensor:
        """Return the bias (B, K) of each text, with or without hidden words."""
        return self.bias[self.find_hidden(input_ids).long()]

    def find_hidden(self, input_ids: Tensor) -> Tensor:
        """Return (B,) bool: which texts have hidden words."""
        return (input_ids == self.mask_id).any(1)

    def attribute(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the contribution of each token to the logits, (B, L, K). With the bias they sum to the logits.

        Each of the two tokens of a pair gets half of its contribution. A repeated n-gram counts at its first place.
        Padding, [CLS] and [SEP] contribute nothing.
        """
        (pieces, first_pieces), (pairs, first_pairs) = self.find_ngrams(input_ids, attention_mask)
        own = self.unigrams[pieces] * first_pieces.unsqueeze(-1)  # (B, L, K + 1)
        half = self.bigrams[pairs] * first_pairs.unsqueeze(-1) / 2
        sums = own + half + torch.cat([half[:, 1:], torch.zeros_like(half[:, :1])], dim=1)
        squares = sums[..., -1:].sum(1, keepdim=True)  # (B, 1, 1), of the TF-IDF vector; 0 or at least 1
        return sums[..., :-1] / squares.clamp(min=1.0).sqrt()

    def find_ngrams(
        self, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the unigrams and bigrams that end at each token of (B, L) ids.

        The first and the last token of a text, [CLS] and [SEP] (`contract.report.text`), are in no n-gram.

        Returns:
            For unigrams and for bigrams: (B, L) int64 rows of the table, and (B, L) bool, whether there is an n-gram
            that does not occur earlier in the text.
        """
        real = attention_mask.bool()
        none = torch.zeros_like(real[:, :1])
        words = (
            real & torch.cat([none, real[:, :-1]], dim=1) & torch.cat([real[:, 1:], none], dim=1)
        )  # (B, L)
        follows = words & torch.cat([none, words[:, :-1]], dim=1)
        before = torch.cat([input_ids[:, :1], input_ids[:, :-1]], dim=1)
        pairs = (self.hashes[before] + input_ids) % (self.bigrams.shape[0] // 2)
        hidden = self.find_hidden(input_ids)[:, None].long()  # (B, 1), chooses the half of a table
        pieces = input_ids + hidden * (self.unigrams.shape[0] // 2)
        pairs = pairs + hidden * (self.bigrams.shape[0] // 2)
        return (pieces, _find_first(pieces, words)), (pairs, _find_first(pairs, follows))


def _find_first(rows: Tensor, counted: Tensor) -> Tensor:
    """Return (B, L) bool: which of the counted rows (B, L) equal no earlier counted row."""
    positions = torch.arange(rows.shape[1], device=rows.device)
    earlier = positions[None, :] < positions[:, None]  # (L, L)
    same = (rows[:, :, None] == rows[:, None, :]) & earlier & counted[:, None, :]  # (B, L, L)
    return counted & ~same.any(dim=-1)


@torch.no_grad()
def fit_lexical(
    head: LexicalHead,
    input_ids: Tensor,
    attention_mask: Tensor,
    targets: Tensor,
    *,
    mask_id: int,
    known: Tensor | None = None,
    C: float = 10.0,
    weight: float = 1.0,
) -> None:
    """Fit one logistic regression per label, for texts with and without hidden words, and write them into the head.

    Equal inputs give equal tables. A label gets weights and bias 0, so that the rest of the model decides alone, if all
    or none of the known texts have it, or if the texts of a kind share no word.

    Args:
        head: Changed in place.
        input_ids: (M, L) int64 of the training texts, with [CLS], [SEP] and padding.
        attention_mask: (M, L) int64.
        targets: (M, K) bool.
        mask_id: Id of [MASK].
        known: (M, K) bool, which of the targets are known; default: all.
        C: Inverse strength of the L2 penalty, above 0.
        weight: Factor of the logits, above 0.

    Raises:
        ConfigError: No two texts without hidden words share a word piece.
    """
    head.mask_id.fill_(mask_id)
    counts = _count_ngrams(head, input_ids, attention_mask)  # (M, 2 V + 2 buckets)
    truth = targets.cpu().numpy().astype(bool)
    stated = np.ones_like(truth) if known is None else known.cpu().numpy().astype(bool)
    table = np.zeros((counts.shape[1], truth.shape[1] + 1))
    bias = np.zeros((2, truth.shape[1]))
    hidden = head.find_hidden(input_ids).cpu().numpy()
    for kind in np.unique(hidden).astype(int):
        rows = np.flatnonzero(hidden == kind)
        frequent = np.flatnonzero(np.asarray(counts[rows].sum(0))[0] >= _MIN_TEXTS)  # (F,)
        if not len(frequent):
            if kind:  # only a few texts have hidden words
                continue
            raise ConfigError("The training texts are too few for the lexical part: they share no word.")
        idf, weights, bias[kind] = _fit_regressions(counts[rows][:, frequent], truth[rows], stated[rows], C)
        table[frequent, :-1] = weight * idf[:, None] * weights
        table[frequent, -1] = idf**2
    split = len(head.unigrams)
    head.unigrams.copy_(torch.from_numpy(table[:split]))
    head.bigrams.copy_(torch.from_numpy(table[split:]))
    head.bias.copy_(torch.from_numpy(weight * bias))


def _fit_regressions(
    counts: "csr_matrix", truth: NDArray[np.bool_], known: NDArray[np.bool_], C: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the idf (F,), weights (F, K) and biases (K,) of texts (M, F), from their known labels (M, K)."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    transformer = TfidfTransformer()
    features = transformer.fit_transform(counts)
    weights, bias = np.zeros((counts.shape[1], truth.shape[1])), np.zeros(truth.shape[1])
    for k in np.flatnonzero((truth & known).any(0) & (~truth & known).any(0)):
        rows = np.flatnonzero(known[:, k])
        model = LogisticRegression(C=C, solver="liblinear", class_weight="balanced", max_iter=1000)
        model.fit(features[rows], truth[rows, k])
        weights[:, k], bias[k] = model.coef_[0], model.intercept_[0]
    return transformer.idf_, weights, bias


def _count_ngrams(head: LexicalHead, input_ids: Tensor, attention_mask: Tensor) -> "csr_matrix":
    """Return (M, 2 V + 2 buckets), 1.0 where a text has an n-gram, in the order of the head's tables."""
    from scipy.sparse import csr_matrix

    ngrams = list(_iterate_ngrams(head, input_ids, attention_mask))
    rows, columns = (np.concatenate(parts) for parts in zip(*ngrams, strict=True))
    shape = (len(input_ids), len(head.unigrams) + len(head.bigrams))
    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)


def _iterate_ngrams(
    head: LexicalHead, input_ids: Tensor, attention_mask: Tensor
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the rows and columns of the n-grams, some texts at a time."""
    yield np.empty(0, np.int64), np.empty(0, np.int64)  # for an empty list of texts
    for start in range(0, len(input_ids), _ROWS):
        part = slice(start, start + _ROWS)
        kinds = head.find_ngrams(input_ids[part], attention_mask[part])
        for (columns, counted), offset in zip(kinds, (0, len(head.unigrams)), strict=True):
            rows = counted.nonzero()[:, 0] + start
            yield rows.cpu().numpy(), (columns[counted] + offset).cpu().numpy()
