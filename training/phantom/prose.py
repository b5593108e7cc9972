"""Write reports that describe phantoms: the findings, absent findings, and the reason for the examination.

As in the collection, headings are not simply repeated, normal organs are named, absent findings are denied, and "XXXX"
replaces de-identified words. A sentence never contradicts the pictures: an organ with a finding is not called normal,
and no present finding is denied.
"""

import re

import numpy as np

from training.phantom.finding import Finding, pick
from training.phantom.wordings import (
    ADVERBS,
    CAPTIONS,
    COMPARISONS,
    INDICATIONS,
    NORMAL,
    NORMAL_IMPRESSIONS,
    SITES,
    WORDINGS,
    Wording,
)

Generator = np.random.Generator
_USUAL_DENIALS = ("pneumothorax", "effusion")
# Denials of these kinds are also left out if their organ has another finding.
_DENIED_ORGAN = {"consolidation": "lungs", "nodule": "lungs", "mass": "lungs", "congestion": "vessels"}


def write_sections(findings: tuple[Finding, ...], generator: Generator) -> dict[str, str]:
    """Write the report of one study.

    Args:
        findings: Findings of the study; empty for a normal study.
        generator: Random generator for the wording.

    Returns:
        Section name -> text. Sections are left out about as often as in the real collection: findings 13 %,
        comparison 16 %, indication 2 %, both findings and impression 1 %.
    """
    sections = {
        "comparison": pick(generator, *COMPARISONS) if generator.random() > 0.157 else "",
        "indication": pick(generator, *INDICATIONS) if generator.random() > 0.023 else "",
        "findings": _describe(findings, generator),
        "impression": _conclude(findings, generator),
    }
    chance = generator.random()
    if chance < 0.134:
        sections["findings"] = ""
    if chance < 0.007 or 0.134 <= chance < 0.136:
        sections["impression"] = ""
    return sections


def write_caption(generator: Generator) -> str:
    """Return the caption of a study's images."""
    return pick(generator, *CAPTIONS)


def _get_wording(finding: Finding) -> Wording:
    keys = (f"{finding.kind}/{finding.site}", f"{finding.kind}/{finding.degree}", finding.kind)
    return next(WORDINGS[key] for key in keys if key in WORDINGS)


def _describe(findings: tuple[Finding, ...], generator: Generator) -> str:
    touched = {organ for finding in findings for organ in _get_wording(finding).organs}
    normal = [pick(generator, *words) for organ, words in NORMAL.items() if organ not in touched]
    denied = [pick(generator, *words) for words in _choose_denials(findings, touched, generator)]
    seen = [_fill(pick(generator, *_get_wording(finding).findings), finding) for finding in findings]
    sentences = [sentence for sentence in [*normal, *denied, *seen] if sentence]
    if generator.random() < 0.5:  # half of the reports keep the order of the organs
        sentences = [sentences[place] for place in generator.permutation(len(sentences))]
    return " ".join(sentences)


def _choose_denials(
    findings: tuple[Finding, ...], touched: set[str], generator: Generator
) -> list[tuple[str, ...]]:
    shown = {finding.kind for finding in findings}
    chosen = []
    for name, wording in WORDINGS.items():
        kind = name.split("/")[0]
        hidden = kind in shown or _DENIED_ORGAN.get(kind) in touched
        chance = 0.8 if kind in _USUAL_DENIALS else 0.08
        if wording.denials and not hidden and generator.random() < chance:
            chosen.append(wording.denials)
    return chosen


def _conclude(findings: tuple[Finding, ...], generator: Generator) -> str:
    if not findings:
        return pick(generator, *NORMAL_IMPRESSIONS)
    lines = []
    for finding in findings:
        wording = _get_wording(finding)
        choices = wording.impression + (wording.alone if len(findings) == 1 else ())
        lines.append(_fill(pick(generator, *choices), finding))
    if len(lines) == 1:
        return lines[0]
    return " ".join(f"{place}. {line}" for place, line in enumerate(lines, start=1))


def _fill(template: str, finding: Finding) -> str:
    """Put side, site and degree into a sentence, and leave no gap where one is missing."""
    words = {
        "side": finding.side,
        "on": {"": "", "bilateral": "on both sides"}.get(finding.side, f"on the {finding.side}"),
        "site": SITES.get(finding.site, finding.site),
        "degree": finding.degree,
        "mildly": ADVERBS.get(finding.degree, ""),
    }
    words |= {name.capitalize(): word.capitalize() for name, word in words.items()}
    template = re.sub(r"\[(.*?)\]", r"\1" if finding.degree else "", template)
    text = " ".join(template.format(**words).split())
    if finding.site == "lingula":  # only the left lung has a lingula
        text = re.sub(
            r"(?i)\bleft lingula(?= (pneumonia|infiltrate|pulmonary|nodule|mass))", "lingular", text
        )
        text = text.replace("left lingula", "lingula").replace("Left lingula", "lingula")
    return text[:1].upper() + text[1:]
