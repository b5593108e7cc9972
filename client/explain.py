"""Offline explanations: which pixels and words moved one finding's logit, and where the model looked.

    bundle = load_bundle("bundle")
    explanation = explain(bundle, image=Path("chest.dcm").read_bytes(), report="Small effusion.")

Integrated Gradients (Sundararajan et al. 2017, arXiv:1703.01365) of the pooled logit of one label, before
calibration, through the whole model: both encoders, fusion and pooling. With an image and a report the
integral runs along one straight path through both, so the attributions of pixels and words share one unit
(logits) and together sum to logit - baseline logit. What the lexical part (`training.model.lexical`) adds to a logit
is a sum over n-grams: its share of each token is read off, not integrated, and its baseline is a text without any.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.explanation import Array, Explanation, WordAttribution
from client.inputs import ImageSource, ReportSource, read_image, read_report, require_case
from client.prediction import Kind
from contract.bundle import Bundle
from contract.decisions import ServedLabel
from contract.errors import ConfigError
from contract.image.read import load_pixels
from contract.labels import LABEL_INDEX, LABEL_KEYS
from contract.notes import ImageNotes, ReportNotes
from contract.report.text import ReportTokenizer
from contract.steps import ReportReader, read_radiograph

try:
    import torch
    from captum.attr import IntegratedGradients
    from torch import Tensor

    from training.model.fusion import FusionOutput
    from training.model.model import CxrModel, load_model
except (ModuleNotFoundError, ConfigError) as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error

DISPLAY_SIZE: Final = 448  # side in pixels of the radiograph that is shown
_UNSTATED: Final = 0.5  # threshold of a label without one
CHUNK: Final = 8  # points of the path that go through the model at once; bounds the memory
IMAGE_BASELINE: Final = "a black image"
TEXT_BASELINE: Final = "a report of the same length whose every token is [PAD] between [CLS] and [SEP]"


class Inputs(NamedTuple):
    """One case as the model reads it, a batch of 1; what belongs to an absent modality is None."""

    pixels: Tensor | None = None  # (1, 1, S, S) float32, 0 to 255
    input_ids: Tensor | None = None  # (1, L) int64
    attention_mask: Tensor | None = None  # (1, L) int64
    baseline_ids: Tensor | None = None  # (1, L) int64
    spans: NDArray[np.int32] | None = None  # (L, 2)
    text: str | None = None
    image_notes: ImageNotes | None = None
    report_notes: ReportNotes | None = None

    @property
    def kind(self) -> Kind:
        """Which modalities there are."""
        if self.pixels is None:
            return "text"
        return "image" if self.input_ids is None else "study"


class Attributions(NamedTuple):
    """Integrated Gradients of one logit, in logits."""

    pixels: Array | None  # (S, S)
    tokens: Array | None  # (L,); 0 on padding, [CLS] and [SEP], which are the same in the baseline
    logit: float
    baseline_logit: float

    @property
    def convergence_delta(self) -> float:
        """How far the sum of all attributions is from what completeness asks for."""
        parts = (part for part in (self.pixels, self.tokens) if part is not None)
        total = sum(float(part.sum(dtype=np.float64)) for part in parts)
        return abs(total - (self.logit - self.baseline_logit))


def explain(
    bundle: Bundle,
    *,
    image: ImageSource | None = None,
    report: ReportSource | None = None,
    label: str | None = None,
    steps: int = 32,
) -> Explanation:
    """Explain one finding of one case; equal inputs give equal explanations.

    The image baseline is black: it is the value that surrounds every radiograph in the square that the model
    reads, so the model knows it as "nothing here", and unlike a blurred copy it keeps nothing of large
    opacities or of the size of the heart. The price: a pixel that is black itself can get no attribution.
    The text baseline replaces each token by [PAD], the embedding that stands for no word, and keeps the
    positions, [CLS] and [SEP]; [MASK] would not do: in the text mode "findings_masked" it stands for a
    telling word.

    Args:
        bundle: The model.
        image: As `CxrClient.predict` takes it.
        report: As `CxrClient.predict` takes it.
        label: Key of the finding. Default: the one furthest above its threshold on the way to certainty or,
            if none reaches its threshold, the one closest to it; `normal` only if it alone is present. Where the
            model has no thresholds for this way of reading, 0.5 stands for them.
        steps: Points of the integral (Gauss-Legendre); more make `convergence_delta` smaller.

    Raises:
        ConfigError: Neither image nor report, several images, an unknown label, or `steps` below 1.
        ImageError: The image cannot be read.
        ReportError: The report cannot be read.
        ArtifactError: The bundle's weights or tokenizer are damaged.
    """
    require_case(image, report)
    _check_arguments(label, steps)
    _require_one(image)
    file = None if image is None else read_image(image)
    inputs = read_inputs(bundle, image=file, report=None if report is None else read_report(report))
    model = load_model(bundle).requires_grad_(False)
    with torch.inference_mode():
        output = model(inputs.pixels, inputs.input_ids, inputs.attention_mask)
        probabilities = model.fusion.calibrate(output.logits, inputs.kind)[0].numpy()
        lateral = _tell_view(model, inputs)
    labels = bundle.decisions.of(inputs.kind)
    index = choose_label(labels, probabilities) if label is None else LABEL_INDEX[label]
    parts = attribute(model, inputs, index, steps=steps)
    attention = _read_attention(output, index)
    served = labels[index]
    grid = math.isqrt(model.sizes["N"])
    return Explanation(
        kind=inputs.kind,
        key=served.key,
        name=served.name,
        probability=float(probabilities[index]),
        threshold=served.threshold,
        logit=parts.logit,
        baseline_logit=parts.baseline_logit,
        steps=steps,
        convergence_delta=parts.convergence_delta,
        baseline=_describe_baseline(inputs.kind),
        fingerprint=bundle.fingerprint,
        radiograph=None if file is None else load_pixels(file, size=DISPLAY_SIZE)[0],
        pixel_attribution=parts.pixels,
        patch_attention=None if attention["image"] is None else attention["image"].reshape(grid, grid),
        words=_make_words(inputs, parts.tokens, attention["text"]),
        report_text=inputs.text,
        image_notes=inputs.image_notes,
        report_notes=inputs.report_notes,
        trained_on=bundle.trained_on,
        trained_ways=bundle.trained_ways,
        lateral=lateral,
    )


def read_inputs(bundle: Bundle, *, image: bytes | None, report: bytes | str | None) -> Inputs:
    """Preprocess one case exactly as it is served; errors as for `explain`."""
    inputs = Inputs()
    if image is not None:
        radiograph, notes = read_radiograph(image, size=bundle.config["sizes"]["S"])
        pixels = torch.from_numpy(radiograph.pixels[None]).float()
        inputs = Inputs(pixels, image_notes=notes)
    return inputs if report is None else _add_report(inputs, bundle, report)


def _add_report(inputs: Inputs, bundle: Bundle, report: bytes | str) -> Inputs:
    tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
    reader = ReportReader(tokenizer, bundle.config["text_mode"], bundle.config["max_length"])
    batch = reader.read([report])
    tokens = batch.tokens
    kept = np.isin(tokens.input_ids, [tokenizer.cls_id, tokenizer.sep_id])
    baseline_ids = np.where(kept, tokens.input_ids, tokenizer.pad_id)
    arrays = (tokens.input_ids, tokens.attention_mask, baseline_ids)
    input_ids, mask, baseline = (torch.from_numpy(array) for array in arrays)
    return inputs._replace(
        input_ids=input_ids,
        attention_mask=mask,
        baseline_ids=baseline,
        spans=tokens.spans[0],
        text=batch.texts[0],
        report_notes=batch.notes[0],
    )


def attribute(model: CxrModel, inputs: Inputs, index: int, *, steps: int) -> Attributions:
    """Integrate the gradient of one logit from the baseline to the inputs.

    Args:
        model: In evaluation mode, on the CPU.
        inputs: The case.
        index: Of the label, 0 to K - 1.
        steps: Points of the integral.
    """
    values, baselines = _make_path_ends(model, inputs)

    def compute_logit(*points: Tensor) -> Tensor:
        return _run_from_embeddings(model, inputs, points).logits[:, index]  # (B,)

    with torch.no_grad():
        logit = float(compute_logit(*values))
        baseline_logit = float(compute_logit(*baselines))
    method = IntegratedGradients(compute_logit)
    parts = iter(method.attribute(values, baselines, n_steps=steps, internal_batch_size=CHUNK))
    pixels = None if inputs.pixels is None else next(parts)[0, 0].numpy().astype(np.float32)
    if inputs.input_ids is None:
        return Attributions(pixels, None, logit, baseline_logit)
    tokens = next(parts)[0].sum(-1).numpy().astype(np.float32)
    words, bias = _attribute_words(model, inputs, index)
    return Attributions(
        pixels, tokens + words, logit + float(words.sum(dtype=np.float64)) + bias, baseline_logit + bias
    )


def _attribute_words(model: CxrModel, inputs: Inputs, index: int) -> tuple[Array, float]:
    """Return what the lexical part, if any, adds to a logit: by each token (L,), and for a text without words."""
    lexical = model.fusion.lexical
    if lexical is None:
        return np.zeros((), np.float32), 0.0
    with torch.no_grad():
        added = lexical.attribute(inputs.input_ids, inputs.attention_mask)[0, :, index]  # (L,)
        bias = lexical.find_bias(inputs.input_ids)[0, index]
    return added.numpy().astype(np.float32), float(bias)


def _tell_view(model: CxrModel, inputs: Inputs) -> float | None:
    """Return the probability of a lateral view; None without an image."""
    if inputs.pixels is None:
        return None
    return float(model.fusion.lateral(model.image_encoder(inputs.pixels))[0, 0])


def _check_arguments(label: str | None, steps: int) -> None:
    if label is not None and label not in LABEL_INDEX:
        raise ConfigError(f"There is no category {label!r}; choose one of {', '.join(LABEL_KEYS)}.")
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, not {steps}.")


def _require_one(image: object) -> None:
    if isinstance(image, (list, tuple)):
        raise ConfigError(
            f"An explanation is of one image; {len(image)} were given: explain the images of a study one by one."
        )


def _make_path_ends(model: CxrModel, inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the tensors of the case and of the baseline: pixels, embedded tokens, or both."""
    ends: list[tuple[Tensor, Tensor]] = []
    if inputs.pixels is not None:
        ends.append((inputs.pixels, torch.zeros_like(inputs.pixels)))
    if inputs.input_ids is not None:
        embed = model.text_encoder.embed
        with torch.no_grad():
            ends.append((embed(inputs.input_ids), embed(inputs.baseline_ids)))
    values, baselines = zip(*ends, strict=True)
    return values, baselines


def _run_from_embeddings(model: CxrModel, inputs: Inputs, points: tuple[Tensor, ...]) -> FusionOutput:
    """Run the model on a batch of points between baseline and case."""
    parts = iter(points)
    image_tokens = None if inputs.pixels is None else model.image_encoder(next(parts))
    text_tokens = mask = None
    if inputs.attention_mask is not None:
        embeddings = next(parts)  # (B, L, text width)
        mask = inputs.attention_mask.expand(len(embeddings), -1)
        text_tokens = model.text_encoder.encode(embeddings, mask)
    output: FusionOutput = model.fusion(image_tokens, text_tokens, mask)
    return output


def choose_label(labels: Sequence[ServedLabel], probabilities: Array) -> int:
    """Return the index of the label that is explained when none is asked for; see `explain`.

    Args:
        labels: The K categories with their thresholds.
        probabilities: (K,), calibrated.
    """
    stated = [_UNSTATED if label.threshold is None else label.threshold for label in labels]
    thresholds = np.clip(stated, 1e-6, 1 - 1e-6)
    distance = probabilities - thresholds
    margins = np.where(distance >= 0, distance / (1 - thresholds), distance / thresholds)  # -1 to 1
    normal = LABEL_INDEX["normal"]
    others = np.delete(margins, normal)
    if margins[normal] >= 0 > others.max():
        return normal
    margins[normal] = -np.inf
    return int(margins.argmax())


def _read_attention(output: FusionOutput, index: int) -> dict[str, Array | None]:
    attentions = {"image": output.image_attention, "text": output.text_attention}
    return {
        kind: None if attention is None else attention[0, index].numpy()
        for kind, attention in attentions.items()
    }


def _describe_baseline(kind: Kind) -> str:
    parts = {"image": IMAGE_BASELINE, "text": TEXT_BASELINE}
    return parts.get(kind, " and ".join(parts.values()))


def _make_words(
    inputs: Inputs, attribution: Array | None, attention: Array | None
) -> tuple[WordAttribution, ...]:
    if inputs.text is None or inputs.spans is None or attribution is None or attention is None:
        return ()
    words = []
    for first, last in group_pieces(inputs.text, inputs.spans):
        start, end = int(inputs.spans[first, 0]), int(inputs.spans[last, 1])
        pieces = slice(first, last + 1)
        sums = (float(values[pieces].sum(dtype=np.float64)) for values in (attribution, attention))
        words.append(WordAttribution(inputs.text[start:end], start, end, *sums))
    return tuple(words)


def group_pieces(text: str, spans: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Group the pieces of one text into words: neighbours without a gap, letters or digits on both sides.

    Args:
        text: What was tokenised.
        spans: (L, 2), as in `TokenBatch`; empty for special tokens and padding.

    Returns:
        First and last token of each word.
    """
    words: list[tuple[int, int]] = []
    for position, (start, end) in enumerate(spans.tolist()):
        if end <= start:
            continue
        if words:
            first, last = words[-1]
            joined = int(spans[last, 1]) == start and text[start - 1].isalnum() and text[start].isalnum()
            if joined:
                words[-1] = (first, position)
                continue
        words.append((position, position))
    return words
