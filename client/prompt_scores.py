"""Score findings in free words, in the embedding space that images and sentences share.

    finding ── contract.prompts ──> sentences ── predict_text ──> embeddings of "present" and "absent", (D,) each
    embedding of a Prediction ── cosine with both ──> FindingScore

The prediction may be for an image, a report or a study. With a report, the score mostly follows the report. For a score
of the image, predict from the image alone. A score is a similarity, not a calibrated probability. Compare it between
cases, or choose a threshold for it on cases with known findings.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.prediction import Prediction
from client.served import ServedModel
from client.steps import Steps
from client.triton_core import Arrays
from contract.bundle import require_same_fingerprint
from contract.embedding import take_joint
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

Infer = Callable[[str, Arrays, Sequence[str]], Steps[Arrays]]  # model, inputs, names of outputs -> outputs

_UNKNOWN_WORD: Final = "\U00013000"  # an Egyptian hieroglyph, which no vocabulary of reports contains


@dataclass(frozen=True)
class FindingScore:
    """The score of a finding in free words for one case.

    Attributes:
        finding: The finding as it is in the sentences.
        score: 0 to 1, a similarity and not a calibrated probability. Above 0.5 the case is nearer to "present".
        similarity_present: Cosine similarity to the sentences that state the finding, -1 to 1.
        similarity_absent: Cosine similarity to the sentences that deny the finding, -1 to 1.
        trained_on: The collection that the model was trained on.
    """

    finding: str
    score: float
    similarity_present: float
    similarity_absent: float
    trained_on: str = UNKNOWN

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the score."""
        return warn_of_training(self.trained_on)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def score_findings(
    findings: Sequence[str], prediction: Prediction, model: ServedModel, infer: Infer
) -> Steps[tuple[FindingScore, ...]]:
    """Score findings for the embedding of a prediction, in steps (`client.steps`).

    Args:
        findings: Names such as "rib fracture", at least one.
        prediction: The prediction for an image, a report or both.
        model: The served model, which must have made the prediction.
        infer: Runs a served model.

    Raises:
        CxrError: As in `CxrClient.score_findings`.
    """
    require_same_fingerprint(
        model.fingerprint, prediction.fingerprint, expected_from="Triton", found_from="The prediction"
    )
    cleaned = clean_findings(findings)
    yield from _require_known(cleaned, model, infer)
    temperature = model.temperature or DEFAULT_TEMPERATURE
    prompts = [make_prompts(finding) for finding in cleaned]
    groups = [group for prompt in prompts for group in (prompt.present, prompt.absent)]  # 2 F
    embeddings = yield from _embed_sentences([sentence for group in groups for sentence in group], infer)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    joint = take_joint(embeddings, model.label_part)
    sides = np.stack(
        [average_prompts(part) for part in np.split(joint, ends)]
    )  # (2 F, size of the joint space)
    case = take_joint(prediction.embedding, model.label_part)
    present, absent = (sides @ case).reshape(-1, 2).T  # (F,) each
    scores = compute_scores(present, absent, temperature)
    return tuple(
        FindingScore(finding, float(score), float(to_present), float(to_absent), model.trained_on)
        for finding, score, to_present, to_absent in zip(cleaned, scores, present, absent, strict=True)
    )


def _embed_sentences(sentences: Sequence[str], infer: Infer) -> Steps[NDArray[np.float32]]:
    """Return the embeddings of P sentences, (P, D) float32 of unit length."""
    embeddings = []
    for reports in _batch_reports(sentences):
        answer = yield from infer("predict_text", reports, (EMBEDDING.name, REPORT_NOTES.name))
        notes = (ReportNotes.from_json(bytes(data)) for data in answer[REPORT_NOTES.name].ravel())
        if any(note.truncated for note in notes):
            raise InputError("A finding is too long for the model: use fewer words.")
        embeddings.append(answer[EMBEDDING.name])
    stacked = np.concatenate(embeddings)
    if len(stacked) != len(sentences):
        raise ArtifactError(f"Triton embedded {len(stacked)} sentences instead of {len(sentences)}.")
    return np.asarray(stacked, np.float32)


def _require_known(findings: Sequence[str], model: ServedModel, infer: Infer) -> Steps[None]:
    """Raise InputError for a finding whose words the model cannot read. The server tokenizes: a client cannot."""
    unknown, *pieces = yield from _read_pieces([_UNKNOWN_WORD, *findings], infer)
    for number, (finding, ids) in enumerate(zip(findings, pieces, strict=True), start=1):
        name = f"Finding {number}" if len(findings) > 1 else "The finding"
        if len(unknown) == 1 and set(ids) <= set(unknown):
            raise InputError(f"{name} has no word that the model knows: use the words of an English report.")
        if model.text_mode == "findings_masked" and mask_label_words(finding) != finding:
            raise InputError(
                f"{name} has words that are masked for the served model (text mode findings_masked): use other words."
            )


def _read_pieces(texts: Sequence[str], infer: Infer) -> Steps[list[tuple[int, ...]]]:
    """Return the token ids of each text, without the special tokens at both ends."""
    pieces = []
    for reports in _batch_reports(texts):
        answer = yield from infer("preprocess_text", reports, (INPUT_IDS.name, ATTENTION_MASK.name))
        for ids, mask in zip(answer[INPUT_IDS.name], answer[ATTENTION_MASK.name], strict=True):
            pieces.append(tuple(int(piece) for piece in ids[mask == 1][1:-1]))
    return pieces


def _batch_reports(sentences: Sequence[str]) -> Iterator[Arrays]:
    """Yield the inputs (B, 1) for all sentences, in batches that a served model accepts."""
    for start in range(0, len(sentences), MAX_BATCH_SIZE):
        batch = sentences[start : start + MAX_BATCH_SIZE]
        yield {REPORT.name: np.array([[frame_prompt(text).encode()] for text in batch], dtype=np.object_)}
