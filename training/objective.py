"""The training objective: the losses of a batch, for every way to read its studies.

A study with an image and a report is read in three ways: both together, the image alone and the report alone. So one
set of weights serves all three. A study without an image trains only the report side, and vice versa. A study without
known labels takes part only in the contrastive loss. The positives of that loss are studies with equal reports,
whatever their labels. The labels only decide which studies are not negatives. Without images there is no such loss.
"""

from itertools import combinations

import torch
from torch import Tensor, nn

from contract.training_data import WAYS
from training.batch import Batch
from training.config.settings import LossConfig
from training.gather import gather_rows
from training.losses import contrastive_loss, find_alike, label_loss
from training.model.fusion import FusionOutput
from training.model.model import CxrModel

Reading = dict[str, tuple[FusionOutput, Tensor]]  # way -> output (B_way, ...), rows of the batch (B,) bool


def read_batch(
    model: CxrModel, batch: Batch, pixels: Tensor | None = None, *, lexical: bool = True
) -> Reading:
    """Run the model in every way that the batch allows.

    Each encoder runs once. Only the fusion, which is small, runs for each way.

    Args:
        model: The model.
        batch: The studies.
        pixels: (B_image + B_second, 1, S, S) augmented pixels to use instead of the batch's.
        lexical: Whether the lexical part, if there is one, adds its logits. It must not in training, because the rest
            of the model would then learn only what the lexical part cannot predict.
    """
    ids = batch.input_ids if lexical else None  # (B_text, L)
    outputs: Reading = {}
    if batch.image_rows.any():
        image_tokens, image_mask = _encode_images(model, batch, batch.pixels if pixels is None else pixels)
        outputs["image"] = (model.fusion(image_tokens, None, None, image_mask), batch.image_rows)
    if batch.text_rows.any():
        text_tokens = model.text_encoder(batch.input_ids, batch.attention_mask)  # (B_text, L, C)
        stated = batch.text_rows & ~batch.silent_rows
        if stated.any():
            chosen = stated[batch.text_rows]
            known_ids = None if ids is None else ids[chosen]
            out = model.fusion(None, text_tokens[chosen], batch.attention_mask[chosen], input_ids=known_ids)
            outputs["text"] = (out, stated)
    both = batch.image_rows & batch.text_rows
    if both.any():
        images, texts = both[batch.image_rows], both[batch.text_rows]
        out = model.fusion(
            image_tokens[images],
            text_tokens[texts],
            batch.attention_mask[texts],
            None if image_mask is None else image_mask[images],
            None if ids is None else ids[texts],
        )
        outputs["study"] = (out, both)
    return outputs


def _encode_images(model: CxrModel, batch: Batch, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the tokens (B_image, N, C); with two views, (B_image, 2 N, C) and their mask."""
    tokens = model.image_encoder(pixels)
    count = len(batch.second_rows)
    if len(tokens) == count:
        return tokens, None
    first = tokens[:count]
    second = torch.zeros_like(first)
    second[batch.second_rows] = tokens[count:]
    return model.fusion.join_views(first, second, batch.second_rows)


class Objective(nn.Module):
    """A model with its losses. One call computes the loss of one batch."""

    def __init__(self, model: CxrModel, positive_weights: Tensor, config: LossConfig) -> None:
        """Take the model.

        Args:
            model: The model.
            positive_weights: (K,) weights of the positives in BCE.
            config: The losses.
        """
        super().__init__()
        self.model = model
        self.config = config
        self.register_buffer("positive_weights", positive_weights, persistent=False)

    def forward(
        self, batch: Batch, pixels: Tensor, counts: dict[str, float], share: float = 1.0
    ) -> dict[str, Tensor]:
        """Return "loss", the sum to minimise, and its parts.

        Args:
            batch: The studies of this process.
            pixels: The batch's pixels after augmentation.
            counts: For each way, the number of known labels over all processes, divided by the number of processes, so
                that the mean gradient is that of the whole batch.
            share: Factor of the contrastive loss if the gradients of several batches are summed.
        """
        readings = read_batch(self.model, batch, pixels, lexical=False)
        parts: dict[str, Tensor] = {}
        for way, (out, rows) in readings.items():
            parts[f"labels/{way}"] = label_loss(
                out.logits.float(),
                batch.targets[rows],
                batch.known[rows],
                self.positive_weights,
                self.config,
                count=batch.targets.new_tensor(counts[way]),
            )
        total = torch.stack(list(parts.values())).sum()
        if self.config.contrastive_weight:
            parts["contrastive"] = share * self._contrast(readings, batch)
            total = total + self.config.contrastive_weight * parts["contrastive"]
        return {"loss": total, **parts}

    def _contrast(self, readings: Reading, batch: Batch) -> Tensor:
        """Return the mean InfoNCE between the embeddings of image, text and study, over all processes."""
        both = batch.image_rows & batch.text_rows & ~batch.silent_rows
        groups = gather_rows(batch.groups[both])
        if len(groups) < 2:
            return batch.targets.new_zeros(())
        size = self.model.config.embedding_size
        gathered = {
            way: gather_rows(
                readings[way][0].embedding.float()[both[readings[way][1]]]
                if way in readings
                else batch.targets.new_zeros((0, size))
            )
            for way in WAYS
        }
        alike = self._find_alike(batch, both) if self.config.spare_alike else None
        losses = [
            contrastive_loss(gathered[a], gathered[b], groups, self.config.temperature, alike)
            for a, b in combinations(WAYS, 2)
        ]
        return torch.stack(losses).mean()

    def _find_alike(self, batch: Batch, rows: Tensor) -> Tensor:
        """Return `find_alike` of the chosen rows (B,) of all processes."""
        known = batch.known.to(batch.targets.dtype)
        given = (batch.targets[rows], known[rows], batch.wordings[rows])
        return find_alike(*(gather_rows(values) for values in given))
