"""Prompts: sentences that state or deny a finding, and the score computed from them.

    finding ── make_prompts ──> sentences ── text encoder ──> embeddings ── average_prompts ──> present, absent (D,)
    embedding of a case ── cosine with each ── compute_scores ──> 0 to 1

The embeddings of the sentences that state (or deny) a finding are averaged: prompt ensembling, Radford et al. 2021
(arXiv:2103.00020, section 3.1.4). The score is a softmax over both averages, as in CheXzero: Tiu et al. 2022,
Expert-level detection of pathologies from unannotated chest X-ray images via self-supervised learning, Nature
Biomedical Engineering 6.
The templates are the commonest ways in which the reports of Open-i state and deny a finding. A model of `training` was
trained on labels of the same findings, so the score is no zero-shot score.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError, InputError
from contract.report.text import Report, clean_text, format_report
from contract.strings import require_strings

# `bare` is the finding without its article ("No mass", of "a mass"), `verb` is "is" or "are".
PRESENT_TEMPLATES: Final = (
    "{finding}.",
    "There {verb} {finding}.",
    "{finding} {verb} present.",
    "{finding} {verb} seen.",
    "Findings consistent with {finding}.",
)
ABSENT_TEMPLATES: Final = (
    "No {bare}.",
    "There {verb} no {bare}.",
    "No evidence of {finding}.",
    "No {bare} {verb} seen.",
    "Negative for {finding}.",
)
MAX_FINDING_CHARS: Final = 200
# Temperature of the contrastive loss (`training.config.settings.LossConfig`), if a served model does not state it.
DEFAULT_TEMPERATURE: Final = 0.125

_ARTICLE: Final = re.compile(r"(?:an?|the)\s+", re.IGNORECASE)
_BEHIND_NOUN: Final = re.compile(r"\s(?:of|in|at|on|under|with|within|along|near|from|to)\s.*", re.IGNORECASE)
_SINGULAR_ENDS: Final = ("ss", "is", "us", "ites")  # mass, stenosis, thrombus, ascites
_SINGULAR_WORDS: Final = frozenset(
    {"gas", "pancreas", "atlas"}
)  # others with this end are plural: granulomas, areas
_SENTENCE_STARTS: Final = ("no", "not", "without", "negative", "there", "absence", "absent")


@dataclass(frozen=True)
class Prompts:
    """Sentences that state a finding, and sentences that deny it."""

    present: tuple[str, ...]
    absent: tuple[str, ...]


def clean_findings(findings: Sequence[str]) -> tuple[str, ...]:
    """Return findings for the templates: on one line, without de-identification marks and without a final full stop.

    Raises:
        InputError: The argument is one string; or a finding is empty, longer than `MAX_FINDING_CHARS`, not printable,
            or a sentence such as "There is no effusion". With several findings the message gives the number of it.
        ConfigError: There is no finding.
    """
    findings = require_strings(findings, "findings")
    if not findings:
        raise ConfigError("Give at least one finding to score.")
    numbered = len(findings) > 1
    return tuple(
        _clean_finding(text, f"Finding {number}" if numbered else "The finding")
        for number, text in enumerate(findings, start=1)
    )


def _clean_finding(text: str, name: str) -> str:
    """Return one finding. An error message never repeats it, because it may come from a report."""
    if len(text) > MAX_FINDING_CHARS:
        raise InputError(f"{name} has {len(text):,} characters; at most {MAX_FINDING_CHARS} are read.")
    cleaned = clean_text(text).rstrip(".,;:!? ")
    if not cleaned.isprintable():
        raise InputError(f"{name} holds characters that cannot be printed.")
    if not any(letter.isalnum() for letter in cleaned):
        raise InputError(f"{name} is empty. Give a finding such as 'rib fracture'.")
    if cleaned.split()[0].lower() in _SENTENCE_STARTS:
        raise InputError(
            f"{name} must be a name such as 'rib fracture', not a sentence that states or denies it."
        )
    return cleaned


def make_prompts(*findings: str) -> Prompts:
    """Return the sentences for one finding, or for several names of the same finding; see `clean_findings`."""
    return Prompts(*(_fill(templates, findings) for templates in (PRESENT_TEMPLATES, ABSENT_TEMPLATES)))


def _fill(templates: Sequence[str], findings: Sequence[str]) -> tuple[str, ...]:
    sentences = (template.format(**_inflect(finding)) for finding in findings for template in templates)
    return tuple(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _inflect(finding: str) -> dict[str, str]:
    """Return the fields of a template: the finding, the finding without its article, and the verb that agrees with it.

    The last letters of the noun, which is the last word before a preposition, decide between singular and plural.
    """
    noun = _BEHIND_NOUN.sub("", finding).lower()
    is_singular = noun.endswith(_SINGULAR_ENDS) or noun.split()[-1] in _SINGULAR_WORDS
    plural = noun.endswith("s") and not is_singular
    article = match[0] if (match := _ARTICLE.match(finding)) else ""
    bare = finding.removeprefix(article)
    return {"finding": article.lower() + bare, "bare": bare, "verb": "are" if plural else "is"}


def frame_prompt(sentence: str) -> str:
    """Return a report from which a model of any text mode reads only the sentence."""
    return format_report(Report(indication=sentence, findings=sentence))


def average_prompts(embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the mean (D,), at unit length, of sentence embeddings (P, D).

    Radford et al. 2021, section 3.1.4.
    """
    mean = np.asarray(embeddings, np.float64).mean(0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))


def compute_scores(
    present: NDArray[np.floating[Any]], absent: NDArray[np.floating[Any]], temperature: float
) -> NDArray[np.float64]:
    """Return exp(p / t) / (exp(p / t) + exp(a / t)): how much closer a case is to "present" than to "absent".

    Tiu et al. 2022 use no temperature. It scales the score but does not change the order of cases.
    The score is a similarity, not a calibrated probability: 0.5 means only that both sides are equally close.

    Args:
        present: p, cosine similarities to the sentences of presence, -1 to 1.
        absent: a, cosine similarities to the sentences of absence, of the same shape.
        temperature: t above 0, the temperature of the model's contrastive loss.

    Returns:
        Scores of the same shape, 0 to 1.
    """
    difference = (np.asarray(present, np.float64) - np.asarray(absent, np.float64)) / temperature
    return np.asarray((1 + np.tanh(difference / 2)) / 2)  # the logistic function, without overflow
