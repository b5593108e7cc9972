"""Why a query and a search hit are similar: Integrated Gradients of their cosine, on both sides.

The cosine is that of the embeddings that the search compares. The embedding of one side stays fixed while the gradient
is integrated on the other side from a black image and a report of [PAD]. So each side says what its own regions and
words add to the similarity. The lexical part of a model, where it has one, reaches the embedding through the label
part; it stays fixed too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.explain.case import Files, Inputs, read_files, read_inputs
from client.explain.geometry import load_original
from client.explain.gradients import Array, integrate
from client.explain.network import Points, encode_points, find_device, make_path_ends, open_model
from client.explain.words import make_case_words
from client.explanation import WordAttribution, sum_attributions
from client.inputs import ImageSource, ReportSource, require_case
from contract.bundle import Bundle
from contract.errors import ConfigError
from contract.image.frame import Frame

try:
    import torch
    from torch import Tensor

    from training.model.model import CxrModel
except (ModuleNotFoundError, ConfigError) as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two cases.

    Attributes:
        kind: "study", "image" or "text".
        baseline_similarity: The cosine of the other case and of this side's baseline.
        pixel_attribution: (S, S) float32: what each pixel adds to the cosine; None without an image.
        words: The words with what they add to the cosine; their attention is 0. Empty without a report.
        report_text: The part of the report for the model; None without a report.
        original: (rows, columns) uint8; None without an image.
        frame: Where the radiograph lies in the square; None without an image.
        steps: Number of points of the integral.
        delta: |sum of the attributions - (similarity - baseline similarity)|.
    """

    kind: str
    baseline_similarity: float
    pixel_attribution: Array | None
    words: tuple[WordAttribution, ...]
    report_text: str | None
    original: NDArray[np.uint8] | None
    frame: Frame | None
    steps: int
    delta: float

    @property
    def contributions(self) -> dict[str, float]:
        """What "image" and "text" each add to the cosine."""
        return sum_attributions(self.pixel_attribution, self.words)

    def describe(self) -> str:
        """Return in one clause how much image and report add, and how accurate the integral is."""
        parts = ", ".join(f"{name} {value:+.3f}" for name, value in self.contributions.items())
        accuracy = f"delta {self.delta:.1e}, {self.steps} steps"
        return f"from {self.baseline_similarity:.3f} for the baseline: {parts} ({accuracy})"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the maps."""
        return {
            "kind": self.kind,
            "baseline_similarity": self.baseline_similarity,
            "contributions": self.contributions,
            "words": [vars(word) for word in self.words],
            "steps": self.steps,
            "delta": self.delta,
        }


@dataclass(frozen=True, eq=False)
class HitExplanation:
    """Why a query and a hit are similar.

    Attributes:
        similarity: Cosine of their embeddings, -1 to 1.
        query: The query's side.
        hit: The hit's side.
        fingerprint: Fingerprint of the model.
    """

    similarity: float
    query: Side
    hit: Side
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the maps."""
        return {
            "similarity": self.similarity,
            "query": self.query.to_dict(),
            "hit": self.hit.to_dict(),
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class Case:
    """The image, the report, or both of one case, as in `CxrClient.predict`."""

    image: ImageSource | None = None
    report: ReportSource | None = None


def explain_hit(bundle: Bundle, query: Case, hit: Case, *, steps: int | None = None) -> HitExplanation:
    """Explain the similarity of two cases.

    Args:
        bundle: The model.
        query: The query.
        hit: The case that the search returned.
        steps: As in `client.explain.explain`.

    Raises:
        ConfigError: A case has neither an image nor a report.
        ImageError: An image cannot be read.
        ReportError: A report cannot be read.
        ArtifactError: The bundle's weights or tokenizer are damaged.
    """
    model = open_model(bundle)
    device = find_device(model)
    files, inputs = [], []
    for case in (query, hit):
        require_case(case.image, case.report)
        files.append(read_files(case.image, case.report))
        inputs.append(read_inputs(bundle, image=files[-1].image, report=files[-1].report).to(device))
    with torch.no_grad():
        embeddings = [_embed(model, one, make_path_ends(model, one)[0]) for one in inputs]
    similarity = float((embeddings[0] * embeddings[1]).sum())
    sides = [
        _explain_side(bundle, model, inputs[place], files[place], embeddings[1 - place], steps)
        for place in (0, 1)
    ]
    return HitExplanation(similarity, sides[0], sides[1], bundle.fingerprint)


def embed_cases(model: CxrModel, cases: Sequence[Inputs]) -> Array:
    """Return the embeddings (M, D) of cases, as a search compares them; each of unit length."""
    with torch.no_grad():
        rows = [_embed(model, one, make_path_ends(model, one)[0])[0].cpu().numpy() for one in cases]
    return np.stack(rows)


def _explain_side(
    bundle: Bundle,
    model: CxrModel,
    inputs: Inputs,
    files: Files,
    other: Tensor,
    steps: int | None,
) -> Side:
    def compute_cosine(*points: Tensor) -> Tensor:
        return (_embed(model, inputs, points) * other).sum(-1)  # (B,), of unit vectors

    parts = integrate(compute_cosine, model, inputs, steps=steps)
    attention = None if parts.tokens is None else np.zeros_like(parts.tokens)
    return Side(
        inputs.kind,
        parts.baseline_logit,
        parts.pixels,
        make_case_words(bundle, inputs, files.report, parts.tokens, attention),
        inputs.text,
        None if files.image is None or inputs.frame is None else load_original(files.image, inputs.frame),
        inputs.frame,
        parts.steps,
        parts.convergence_delta,
    )


def _embed(model: CxrModel, inputs: Inputs, points: Points) -> Tensor:
    """Return the embeddings (B, D) that a search compares, of a batch of points."""
    tokens, fusion = encode_points(model, inputs, points), model.fusion
    if tokens.text is None:
        embedding: Tensor = fusion.forward_image(tokens.image)[1]
        return embedding
    ids = inputs.input_ids.expand(len(tokens.text), -1)  # type: ignore[union-attr]
    if tokens.image is None:
        embedding = fusion.forward_text(tokens.text, ids, tokens.mask)[1]
    else:
        embedding = fusion.forward_study(tokens.image, tokens.text, ids, tokens.mask)[1]
    return embedding
