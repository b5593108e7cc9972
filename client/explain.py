"""Offline explanations: the pixels and words that moved the logit of one finding, and the model's attention.

    bundle = load_bundle("bundle")
    explanation = explain(bundle, image=Path("chest.dcm").read_bytes(), report="Small effusion.")

The method is Integrated Gradients (Sundararajan et al. 2017, arXiv:1703.01365) of the pooled logit of one label, before
calibration, through the whole model: both encoders, fusion and pooling. With an image and a report, the integral
follows one straight path through both. So the attributions of pixels and words have the same unit (logits), and their
sum is the logit minus the baseline logit.

The lexical part (`training.model.lexical`) adds a sum over n-grams to a logit. The share of each token in this sum is
exact and needs no integral. Its baseline is a text without n-grams.
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

DISPLAY_SIZE: Final = 448  # side of the radiograph for display, in pixels
_DEFAULT_THRESHOLD: Final = 0.5  # for a model without thresholds
CHUNK: Final = 8  # points of the path in one batch, which limits the memory
IMAGE_BASELINE: Final = "a black image"
TEXT_BASELINE: Final = "a report of the same length whose every token is [PAD] between [CLS] and [SEP]"


class Inputs(NamedTuple):
    """One case as a batch of one for the model. The fields of an absent image or report are None."""

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
        """The kind of the case."""
        if self.pixels is None:
            return "text"
        return "image" if self.input_ids is None else "study"


class Attributions(NamedTuple):
    """Integrated Gradients of one logit, in logits."""

    pixels: Array | None  # (S, S)
    tokens: Array | None  # (L,); 0 on padding, [CLS] and [SEP], which the baseline has too
    logit: float
    baseline_logit: float

    @property
    def convergence_delta(self) -> float:
        """|sum of all attributions - (logit - baseline_logit)|, which is 0 for an exact integral."""
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
    """Explain one finding of one case. Equal inputs give equal explanations.

    The image baseline is black. Every radiograph has black borders in the square that the model reads, so the model
    knows black as "nothing here". A blurred copy would retain large opacities and the size of the heart. The
    disadvantage: a black pixel of the radiograph gets no attribution.

    The text baseline replaces each token by [PAD], the embedding that stands for no word. It retains the positions,
    [CLS] and [SEP]. [MASK] would be wrong, because it stands for a telling word in the text mode "findings_masked".

    Args:
        bundle: The model.
        image: One image, as in `CxrClient.predict`.
        report: As in `CxrClient.predict`.
        label: Key of the finding. None: see `choose_label`.
        steps: Number of points of the integral (Gauss-Legendre). More points make `convergence_delta` smaller.

    Raises:
        ConfigError: There is neither an image nor a report, there are several images, the label does not exist, or
            `steps` is below 1.
        ImageError: The image cannot be read.
        ReportError: The report cannot be read.
        ArtifactError: The bundle's weights or tokenizer are damaged.
    """
    require_case(image, report)
    _check_arguments(image, label, steps)
    file = None if image is None else read_image(image)
    inputs = read_inputs(bundle, image=file, report=None if report is None else read_report(report))
    model = load_model(bundle).requires_grad_(False)
    with torch.inference_mode():
        output = model(inputs.pixels, inputs.input_ids, inputs.attention_mask)
        probabilities = model.fusion.calibrate(output.logits, inputs.kind)[0].numpy()
        lateral = None
        if inputs.pixels is not None:
            lateral = float(model.fusion.lateral(model.image_encoder(inputs.pixels))[0, 0])
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
        image_share=None if output.image_share is None else float(output.image_share[0, index]),
    )


def read_inputs(bundle: Bundle, *, image: bytes | None, report: bytes | str | None) -> Inputs:
    """Preprocess one case exactly as the served model does. Errors as in `explain`."""
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
    is_special = np.isin(tokens.input_ids, [tokenizer.cls_id, tokenizer.sep_id])
    baseline_ids = np.where(is_special, tokens.input_ids, tokenizer.pad_id)
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
        model: The model, in evaluation mode and on the CPU.
        inputs: The case.
        index: Index of the label, 0 to K - 1.
        steps: Number of points of the integral.
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
    """Return what the lexical part adds to a logit: (L,) for each token, and a number for a text without words."""
    lexical = model.fusion.lexical
    if lexical is None:
        return np.zeros((), np.float32), 0.0
    with torch.no_grad():
        added = lexical.attribute(inputs.input_ids, inputs.attention_mask)[0, :, index]  # (L,)
        bias = lexical.find_bias(inputs.input_ids)[0, index]
    return added.numpy().astype(np.float32), float(bias)


def _check_arguments(image: object, label: str | None, steps: int) -> None:
    if isinstance(image, (list, tuple)):
        raise ConfigError(
            f"An explanation needs one image, but {len(image)} were given: explain the images of a study one by one."
        )
    if label is not None and label not in LABEL_INDEX:
        raise ConfigError(f"The label must be one of {', '.join(LABEL_KEYS)}, not {label!r}.")
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, not {steps}.")


def _make_path_ends(model: CxrModel, inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return both ends of the path, the case and the baseline: pixels, embedded tokens, or both."""
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
    """Run the model on a batch of points between the baseline and the case."""
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
    """Return the index of the label to explain if the caller names none.

    This is the label whose probability is furthest above its threshold, as a share of the distance from the threshold
    to 1. If no probability reaches its threshold, it is the label closest to its threshold. `normal` is chosen only if
    no other label reaches its threshold. A model without thresholds for this kind of input gets the threshold 0.5.

    Args:
        labels: The K categories with their thresholds.
        probabilities: (K,), calibrated.
    """
    thresholds = [_DEFAULT_THRESHOLD if label.threshold is None else label.threshold for label in labels]
    limits = np.clip(thresholds, 1e-6, 1 - 1e-6)
    distances = probabilities - limits
    margins = np.where(distances >= 0, distances / (1 - limits), distances / limits)  # -1 to 1
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
    """Group the tokens of one text into words. Neighbours form one word without a gap or punctuation between them.

    Args:
        text: The tokenized text.
        spans: (L, 2), as in `TokenBatch`; empty for special tokens and padding.

    Returns:
        Index of the first and the last token of each word.
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
