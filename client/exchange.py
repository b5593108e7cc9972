"""Turn a case into the tensors of a request, and the tensors of an answer into a prediction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.images import ReadImage
from client.inputs import ReportSource, StudyImages, read_images, read_report, require_case
from client.prediction import BatchPrediction, ConformalSet, Finding, Kind, Prediction
from client.served import ServedModel
from client.triton_core import Arrays
from contract.decisions import ServedLabel
from contract.errors import ConfigError, TensorError
from contract.notes import ImageNotes, ReportNotes
from contract.report.tokens import TokenLimits
from contract.tensors import (
    ATTENTION_MASK,
    EMBEDDING,
    IMAGE_ATTENTION,
    IMAGE_BYTES,
    IMAGE_NOTES,
    IMAGE_SHARE,
    INPUT_IDS,
    LATERAL,
    MAX_BATCH_SIZE,
    PIXELS,
    PROBABILITIES,
    REPORT,
    REPORT_NOTES,
    REPORT_TEXT,
    TEXT_ATTENTION,
    TOKEN_SPANS,
)


def make_inputs(image: StudyImages | None, report: ReportSource | None) -> tuple[Kind, Arrays]:
    """Return the kind of a case, and its tensors as a batch of one.

    Args:
        image: One image, or the images of one study; see `client.inputs`.
        report: A report; see `client.inputs`.

    Raises:
        ConfigError: There is neither an image nor a report.
        ImageError, ReportError: As in `client.inputs`.
    """
    require_case(image, report)
    inputs: Arrays = {}
    if image is not None:
        inputs[IMAGE_BYTES.name] = np.array([read_images(image)], dtype=np.object_)  # (1, V)
    if report is not None:
        inputs[REPORT.name] = np.array([[read_report(report)]], dtype=np.object_)
    kind: Kind = "study" if len(inputs) == 2 else "image" if image is not None else "text"
    return kind, inputs


def count_images(inputs: Arrays) -> int:
    """Return the number of images in a case of `make_inputs`."""
    return inputs[IMAGE_BYTES.name].shape[1] if IMAGE_BYTES.name in inputs else 0


def check_tensors(
    pixels: NDArray[np.uint8] | None,
    input_ids: NDArray[np.int64] | None,
    attention_mask: NDArray[np.int64] | None,
    *,
    image_size: int,
    limits: TokenLimits | None = None,
) -> tuple[Kind, Arrays]:
    """Return the kind of a batch of preprocessed cases, and its tensors.

    Args:
        pixels: (B, 1, S, S) uint8.
        input_ids: (B, L) int64.
        attention_mask: (B, L) int64.
        image_size: S.
        limits: The token ids that the model can read; None: not checked.

    Raises:
        ConfigError: There is no tensor, or only one of token ids and mask.
        TensorError: A tensor has the wrong type or shape, the tensors have different batch sizes, the batch size is
            not from 1 to 32, or the model cannot read the token ids or their mask (`contract.report.tokens`).
    """
    if (input_ids is None) != (attention_mask is None):
        raise ConfigError("Give input_ids and attention_mask together.")
    tensors = ((PIXELS, pixels), (INPUT_IDS, input_ids), (ATTENTION_MASK, attention_mask))
    inputs: Arrays = {spec.name: array for spec, array in tensors if array is not None}
    if not inputs:
        raise ConfigError("Give pixels, input_ids with attention_mask, or all three.")
    for spec, array in tensors:
        if array is not None:
            spec.check(array, {"S": image_size})
    sizes = {len(array) for array in inputs.values()}
    if len(sizes) > 1 or not 1 <= min(sizes) <= MAX_BATCH_SIZE:
        counts = " and ".join(str(size) for size in sorted(sizes))
        raise TensorError(f"The tensors must hold the same 1 to {MAX_BATCH_SIZE} cases, not {counts}.")
    if input_ids is not None and attention_mask is not None and limits is not None:
        limits.check(input_ids, attention_mask)
    kind: Kind = "text" if pixels is None else "image" if input_ids is None else "study"
    return kind, inputs


def read_batch(kind: Kind, model: ServedModel, answer: Arrays) -> BatchPrediction:
    """Return the answer to a batch of preprocessed cases as a prediction.

    Args:
        kind: The kind of the cases.
        model: The model that answered.
        answer: Name -> batched array.
    """
    return BatchPrediction(
        kind=kind,
        model=model,
        probabilities=answer[PROBABILITIES.name],
        embedding=answer[EMBEDDING.name],
        image_attention=answer.get(IMAGE_ATTENTION.name),
        text_attention=answer.get(TEXT_ATTENTION.name),
        lateral=answer[LATERAL.name][:, 0] if LATERAL.name in answer else None,
        image_share=answer.get(IMAGE_SHARE.name),
    )


def read_answer(kind: Kind, model: ServedModel, answer: Arrays) -> Prediction:
    """Return the answer to one case as a prediction.

    Args:
        kind: The kind of the case.
        model: The model that answered.
        answer: Name -> array with a batch of one.

    Raises:
        ArtifactError: The notes in the answer are not valid.
    """
    first: dict[str, Any] = {name: array[0] for name, array in answer.items()}
    probabilities = first[PROBABILITIES.name].tolist()
    shares = first[IMAGE_SHARE.name].tolist() if IMAGE_SHARE.name in first else [None] * len(probabilities)
    labels = model.decisions.of(kind)
    return Prediction(
        kind=kind,
        findings=tuple(
            Finding(
                label.key,
                label.name,
                probability,
                label.threshold,
                label.uncertain_low,
                label.uncertain_high,
                unmeasured=label.key in model.unmeasured,
                held_out=label.key in model.held_out,
                image_share=share,
            )
            for label, probability, share in zip(labels, probabilities, shares, strict=True)
        ),
        embedding=first[EMBEDDING.name],
        fingerprint=model.fingerprint,
        image_attention=first.get(IMAGE_ATTENTION.name),
        text_attention=first.get(TEXT_ATTENTION.name),
        report_text=bytes(first[REPORT_TEXT.name][0]).decode("utf-8") if REPORT_TEXT.name in first else None,
        token_spans=first.get(TOKEN_SPANS.name),
        images=_read_images(first),
        report_notes=(
            ReportNotes.from_json(bytes(first[REPORT_NOTES.name][0])) if REPORT_NOTES.name in first else None
        ),
        conformal_set=_choose_set(labels, probabilities),
        trained_on=model.trained_on,
        trained_ways=model.trained_ways,
        trained_views=model.trained_views,
    )


def _read_images(first: dict[str, Any]) -> tuple[ReadImage, ...]:
    """Return the V images of one case.

    Args:
        first: Tensors of one case: notes (V,) objects, absent without an image; `lateral` (V,) float32, absent from an
            older repository; attention (K, V N) float32.
    """
    if IMAGE_NOTES.name not in first:
        return ()
    notes, laterals = first[IMAGE_NOTES.name], first.get(LATERAL.name)
    attention = first.get(IMAGE_ATTENTION.name)
    parts = [None] * len(notes) if attention is None else np.array_split(attention, len(notes), axis=1)
    return tuple(
        ReadImage(
            notes=ImageNotes.from_json(bytes(data)),
            lateral=None if laterals is None else float(laterals[index]),
            attention=parts[index],
        )
        for index, data in enumerate(notes)
    )


def _choose_set(labels: Sequence[ServedLabel], probabilities: Sequence[float]) -> ConformalSet | None:
    """Return the labels whose probability reaches their `include`; None if a label states no recall."""
    recalls = [label.stated_recall for label in labels if label.stated_recall is not None]
    if len(recalls) < len(labels):
        return None
    keys = tuple(
        label.key
        for label, probability in zip(labels, probabilities, strict=True)
        if label.include is not None and probability >= label.include
    )
    return ConformalSet(keys, min(recalls))
