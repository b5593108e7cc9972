"""Scores of findings in free words, through the embedding space that images and sentences share.

    finding ── contract.prompts ──> sentences ── predict_text (one request for many) ──> present, absent (D,)
    embedding of a Prediction ── cosine with both ──> FindingScore

The embedding may be of an image, a report or a study. With a report the score mostly says what the report says:
to hear the image alone, predict from the image alone. A score is a similarity, not a calibrated probability:
compare it between cases, or choose a threshold for it on cases with known answers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.prediction import Prediction
from client.served import ServedModel
from client.triton import Arrays
from contract.bundle import require_same_fingerprint
from contract.errors import ArtifactError, InputError
from contract.notes import ReportNotes
from contract.prompts import (
    DEFAULT_TEMPERATURE,
    average_prompts,
    clean_findings,
    compute_scores,
    frame_prompt,
    make_prompts,
)
from contract.report.label_words import mask_label_words
from contract.tensors import ATTENTION_MASK, EMBEDDING, INPUT_IDS, MAX_BATCH_SIZE, REPORT, REPORT_NOTES
from contract.training_data import UNKNOWN, warn_of_training

Infer = Callable[[str, Arrays, Sequence[str]], Arrays]  # model, inputs, names of outputs -> outputs

_UNKNOWN_WORD: Final = "\U00013000"  # an Egyptian hieroglyph: a letter that no vocabulary of reports holds


@dataclass(frozen=True)
class FindingScore:
    """How well a case fits a finding in free words.

    Attributes:
        finding: As it was put into the sentences.
        score: 0 to 1, a similarity and not a calibrated probability; above 0.5 the case is nearer to "present".
        similarity_present: Cosine, -1 to 1, to the sentences that say the finding is there.
        similarity_absent: Cosine, -1 to 1, to the sentences that say it is not.
        trained_on: The collection that the model was trained on.
    """

    finding: str
    score: float
    similarity_present: float
    similarity_absent: float
    trained_on: str = UNKNOWN

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the score is believed."""
        return warn_of_training(self.trained_on)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def score_findings(
    findings: Sequence[str], prediction: Prediction, model: ServedModel, infer: Infer
) -> tuple[FindingScore, ...]:
    """Score findings against the embedding of a prediction; see `CxrClient.score_findings`.

    Args:
        findings: Names such as "rib fracture", at least one.
        prediction: Of an image, a report or both.
        model: The served model, which must have made the prediction.
        infer: Runs a served model.
    """
    require_same_fingerprint(
        model.fingerprint, prediction.fingerprint, expected_from="Triton", found_from="the prediction"
    )
    cleaned = clean_findings(findings)
    _require_known(cleaned, model, infer)
    temperature = model.temperature or DEFAULT_TEMPERATURE
    prompts = [make_prompts(finding) for finding in cleaned]
    sentences = [sentence for both in prompts for sentence in (*both.present, *both.absent)]
    embeddings = _embed_sentences(sentences, infer)  # (F * P, D)
    ends = np.cumsum([len(side) for both in prompts for side in (both.present, both.absent)])[:-1]
    sides = np.stack([average_prompts(part) for part in np.split(embeddings, ends)])  # (2 F, D)
    present, absent = (sides @ prediction.embedding.astype(np.float64)).reshape(-1, 2).T  # (F,) each
    scores = compute_scores(present, absent, temperature)
    return tuple(
        FindingScore(finding, float(score), float(near), float(far), model.trained_on)
        for finding, score, near, far in zip(cleaned, scores, present, absent, strict=True)
    )


def _embed_sentences(sentences: Sequence[str], infer: Infer) -> NDArray[np.float32]:
    """Return (P, D) float32 of unit length."""
    embeddings = []
    for reports in _batch_reports(sentences):
        answer = infer("predict_text", reports, (EMBEDDING.name, REPORT_NOTES.name))
        notes = (ReportNotes.from_json(bytes(data)) for data in answer[REPORT_NOTES.name].ravel())
        if any(note.truncated for note in notes):
            raise InputError("A finding is too long for the model to read whole: use fewer words.")
        embeddings.append(answer[EMBEDDING.name])
    found = np.concatenate(embeddings)
    if found.shape[0] != len(sentences):
        raise ArtifactError(f"Triton answered {found.shape[0]} of {len(sentences)} sentences.")
    return np.asarray(found, np.float32)


def _require_known(findings: Sequence[str], model: ServedModel, infer: Infer) -> None:
    """Raise InputError for a finding whose words the model cannot read; a client has no tokenizer to look in."""
    unknown, *pieces = _read_pieces([_UNKNOWN_WORD, *findings], infer)
    for number, (finding, ids) in enumerate(zip(findings, pieces, strict=True), start=1):
        name = f"Finding {number}" if len(findings) > 1 else "The finding"
        if len(unknown) == 1 and set(ids) <= set(unknown):
            raise InputError(f"{name} has no word that the model knows: name it as an English report would.")
        if model.text_mode == "findings_masked" and mask_label_words(finding) != finding:
            raise InputError(
                f"{name} has words that the served model was trained not to read (text mode findings_masked)."
            )


def _read_pieces(texts: Sequence[str], infer: Infer) -> list[tuple[int, ...]]:
    """Return the word pieces of each text, without the special tokens at its ends."""
    pieces = []
    for reports in _batch_reports(texts):
        answer = infer("preprocess_text", reports, (INPUT_IDS.name, ATTENTION_MASK.name))
        for ids, mask in zip(answer[INPUT_IDS.name], answer[ATTENTION_MASK.name], strict=True):
            pieces.append(tuple(int(piece) for piece in ids[mask == 1][1:-1]))
    return pieces


def _batch_reports(sentences: Sequence[str]) -> Iterator[Arrays]:
    """Yield inputs (B, 1) of at most as many sentences as a served model takes at once."""
    for start in range(0, len(sentences), MAX_BATCH_SIZE):
        batch = sentences[start : start + MAX_BATCH_SIZE]
        yield {REPORT.name: np.array([[frame_prompt(text).encode()] for text in batch], dtype=np.object_)}
