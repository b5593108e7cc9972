"""A case as the tensors of a request, and the tensors of an answer as a prediction."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from client.results import ConformalSet, Finding, Kind, Prediction, ServedModel
from client.triton import Arrays
from contract.dicom import MAX_IMAGE_BYTES
from contract.errors import ConfigError, ImageError
from contract.notes import ImageNotes, ReportNotes
from contract.tensors import (
    EMBEDDING,
    IMAGE_ATTENTION,
    IMAGE_BYTES,
    IMAGE_NOTES,
    PROBABILITIES,
    REPORT,
    REPORT_NOTES,
    REPORT_TEXT,
    TEXT_ATTENTION,
    TOKEN_SPANS,
)


def make_inputs(image: bytes | None, report: bytes | str | None) -> tuple[Kind, Arrays]:
    """Return how a case is read and its tensors; ConfigError for an empty case, ImageError for too large an image."""
    inputs: Arrays = {}
    if image is not None:
        if len(image) > MAX_IMAGE_BYTES:
            raise ImageError(f"The image has {len(image):,} bytes; at most {MAX_IMAGE_BYTES:,} are read.")
        inputs[IMAGE_BYTES.name] = np.array([[image]], dtype=np.object_)  # (1, 1)
    if report is not None:
        data = report.encode("utf-8", errors="surrogatepass") if isinstance(report, str) else report
        inputs[REPORT.name] = np.array([[data]], dtype=np.object_)
    if not inputs:
        raise ConfigError("Give an image, a report, or both.")
    kind: Kind = "study" if len(inputs) == 2 else "image" if image is not None else "text"
    return kind, inputs


def read_answer(kind: Kind, model: ServedModel, answer: Arrays) -> Prediction:
    """Return the tensors of an answer, each with a batch of one, as a prediction."""
    probabilities = answer[PROBABILITIES.name][0].tolist()
    findings = tuple(
        Finding(x.key, x.name, probability, x.threshold, x.uncertain_low, x.uncertain_high)
        for x, probability in zip(model.labels, probabilities, strict=True)
    )

    def first(name: str) -> Any:
        return answer[name][0] if name in answer else None

    text, image_notes, report_notes = map(first, (REPORT_TEXT.name, IMAGE_NOTES.name, REPORT_NOTES.name))
    return Prediction(
        kind=kind,
        findings=findings,
        embedding=answer[EMBEDDING.name][0],
        fingerprint=model.fingerprint,
        image_attention=first(IMAGE_ATTENTION.name),
        text_attention=first(TEXT_ATTENTION.name),
        report_text=None if text is None else bytes(text[0]).decode("utf-8"),
        token_spans=first(TOKEN_SPANS.name),
        image_notes=None if image_notes is None else ImageNotes.from_json(bytes(image_notes[0])),
        report_notes=None if report_notes is None else ReportNotes.from_json(bytes(report_notes[0])),
        conformal_set=_choose_set(model, probabilities),
    )


def _choose_set(model: ServedModel, probabilities: Sequence[float]) -> ConformalSet | None:
    """Return the labels with at least the probability from which they cannot be left out."""
    stated = [label.stated_recall for label in model.labels if label.stated_recall is not None]
    if len(stated) < len(model.labels):
        return None
    keys = tuple(
        label.key
        for label, probability in zip(model.labels, probabilities, strict=True)
        if label.include is not None and probability >= label.include
    )
    return ConformalSet(keys, min(stated))
