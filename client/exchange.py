"""A case as the tensors of a request, and the tensors of an answer as a prediction."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.images import ReadImage
from client.inputs import ReportSource, StudyImages, read_images, read_report, require_case
from client.results import BatchPrediction, ConformalSet, Finding, Kind, Prediction, ServedModel
from client.triton import Arrays
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
    """Return how a case is read and its tensors; ConfigError for an empty case, other errors as of `client.inputs`."""
    require_case(image, report)
    inputs: Arrays = {}
    if image is not None:
        inputs[IMAGE_BYTES.name] = np.array([read_images(image)], dtype=np.object_)  # (1, V)
    if report is not None:
        inputs[REPORT.name] = np.array([[read_report(report)]], dtype=np.object_)
    kind: Kind = "study" if len(inputs) == 2 else "image" if image is not None else "text"
    return kind, inputs


def count_images(inputs: Arrays) -> int:
    """Return how many images a case of `make_inputs` has."""
    return inputs[IMAGE_BYTES.name].shape[1] if IMAGE_BYTES.name in inputs else 0


def check_tensors(
    pixels: NDArray[np.uint8] | None,
    input_ids: NDArray[np.int64] | None,
    attention_mask: NDArray[np.int64] | None,
    *,
    image_size: int,
    limits: TokenLimits | None = None,
) -> tuple[Kind, Arrays]:
    """Return how a batch of preprocessed cases is read and its tensors.

    Raises:
        ConfigError: There is nothing, or token ids without their mask, or a mask alone.
        TensorError: A tensor has the wrong type or shape, or the batch is none of 1 to 32 cases in all of them, or
            the model cannot read the token ids or their mask (`contract.report.tokens`).
    """
    if (input_ids is None) != (attention_mask is None):
        raise ConfigError("Give input_ids and attention_mask together.")
    given = ((PIXELS, pixels), (INPUT_IDS, input_ids), (ATTENTION_MASK, attention_mask))
    inputs: Arrays = {entry.name: array for entry, array in given if array is not None}
    if not inputs:
        raise ConfigError("Give pixels, input_ids with attention_mask, or all three.")
    for entry, array in given:
        if array is not None:
            entry.check(array, {"S": image_size})
    sizes = {len(array) for array in inputs.values()}
    if len(sizes) > 1 or not 1 <= min(sizes) <= MAX_BATCH_SIZE:
        said = " and ".join(str(size) for size in sorted(sizes))
        raise TensorError(f"The tensors must hold the same 1 to {MAX_BATCH_SIZE} cases, not {said}.")
    if input_ids is not None and attention_mask is not None and limits is not None:
        limits.check(input_ids, attention_mask)
    kind: Kind = "text" if pixels is None else "image" if input_ids is None else "study"
    return kind, inputs


def read_batch(kind: Kind, model: ServedModel, answer: Arrays) -> BatchPrediction:
    """Return the tensors of an answer to preprocessed cases as they are."""
    return BatchPrediction(
        kind=kind,
        model=model,
        probabilities=answer[PROBABILITIES.name],
        embedding=answer[EMBEDDING.name],
        image_attention=answer.get(IMAGE_ATTENTION.name),
        text_attention=answer.get(TEXT_ATTENTION.name),
        lateral=answer[LATERAL.name][:, 0] if LATERAL.name in answer else None,
    )


def read_answer(kind: Kind, model: ServedModel, answer: Arrays) -> Prediction:
    """Return the tensors of an answer, each with a batch of one, as a prediction."""
    probabilities = answer[PROBABILITIES.name][0].tolist()
    labels = model.decisions.of(kind)
    findings = tuple(
        Finding(x.key, x.name, probability, x.threshold, x.uncertain_low, x.uncertain_high)
        for x, probability in zip(labels, probabilities, strict=True)
    )

    def first(name: str) -> Any:
        return answer[name][0] if name in answer else None

    text, report_notes = map(first, (REPORT_TEXT.name, REPORT_NOTES.name))
    attention = first(IMAGE_ATTENTION.name)
    images = _read_images(first(IMAGE_NOTES.name), first(LATERAL.name), attention)
    return Prediction(
        kind=kind,
        findings=tuple(replace(finding, unmeasured=finding.key in model.unmeasured) for finding in findings),
        embedding=answer[EMBEDDING.name][0],
        fingerprint=model.fingerprint,
        image_attention=attention,
        text_attention=first(TEXT_ATTENTION.name),
        report_text=None if text is None else bytes(text[0]).decode("utf-8"),
        token_spans=first(TOKEN_SPANS.name),
        image_notes=images[0].notes if images else None,
        report_notes=None if report_notes is None else ReportNotes.from_json(bytes(report_notes[0])),
        conformal_set=_choose_set(labels, probabilities),
        trained_on=model.trained_on,
        trained_ways=model.trained_ways,
        lateral=images[0].lateral if images else None,
        further_images=images[1:],
        trained_views=model.trained_views,
    )


def _read_images(notes: Any, laterals: Any, attention: Any) -> tuple[ReadImage, ...]:
    """Return the images of one study.

    Args:
        notes: (V,) objects; None without images.
        laterals: (V,) float32; None from a server of an older version.
        attention: (K, V N) float32.
    """
    if notes is None:
        return ()
    parts = [None] * len(notes) if attention is None else np.array_split(attention, len(notes), axis=1)
    return tuple(
        ReadImage(
            ImageNotes.from_json(bytes(said)),
            None if laterals is None else float(laterals[place]),
            parts[place],
        )
        for place, said in enumerate(notes)
    )


def _choose_set(labels: Sequence[ServedLabel], probabilities: Sequence[float]) -> ConformalSet | None:
    """Return the labels with at least the probability from which they stay possible."""
    stated = [label.stated_recall for label in labels if label.stated_recall is not None]
    if len(stated) < len(labels):
        return None
    keys = tuple(
        label.key
        for label, probability in zip(labels, probabilities, strict=True)
        if label.include is not None and probability >= label.include
    )
    return ConformalSet(keys, min(stated))
