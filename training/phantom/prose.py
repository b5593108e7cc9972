"""Reports that describe phantoms: what is seen, what is not, and why the patient came.

All sentences are the project's own. As in the collection, headings are not simply repeated, normal organs are
named, findings that are absent are denied, and "XXXX" stands where de-identification took words away.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from training.phantom.finding import Finding, pick

Generator = np.random.Generator


@dataclass(frozen=True)
class Wording:
    """How one kind of finding is put into words.

    {side}, {on}, {site} and {degree} are filled in. `organs` are those that can no longer be called normal;
    `denials` stand in reports that do not show the kind.
    """

    findings: tuple[str, ...]
    impression: tuple[str, ...]
    organs: tuple[str, ...] = ()
    denials: tuple[str, ...] = ()


WORDINGS: Final[dict[str, Wording]] = {
    "effusion": Wording(
        (
            "There is a {degree} {side} pleural effusion.",
            "The costophrenic sulcus is blunted {on}, in keeping with a {degree} amount of pleural fluid.",
            "A meniscus {on} obscures the hemidiaphragm; fluid volume is {degree}.",
            "{Degree} layering fluid is seen {on}.",
        ),
        ("{Degree} {side} effusion.", "{Degree} pleural fluid {on}."),
        ("pleura",),
        ("No pleural effusion.", "Costophrenic angles are sharp.", "No pleural fluid is seen."),
    ),
    "pneumothorax": Wording(
        (
            "A visceral pleural line is seen {on} with no lung markings beyond it.",
            "There is a {degree} {side} pneumothorax.",
            "{Degree} amount of air in the {side} pleural space with partial collapse of the lung.",
        ),
        ("{Degree} {side} pneumothorax. Findings were called to XXXX.", "{Side} pneumothorax, {degree}."),
        ("air",),
        ("No pneumothorax.", "There is no evidence of pneumothorax.", "No pneumothorax is seen."),
    ),
    "cardiomegaly": Wording(
        (
            "The heart is {degree} enlarged.",
            "Cardiac silhouette occupies more than half of the thoracic diameter.",
            "There is {degree} enlargement of the cardiac silhouette.",
            "Heart size is above normal limits.",
        ),
        ("Cardiomegaly.", "{Degree} enlarged heart without acute lung disease."),
        ("heart",),
    ),
    "consolidation": Wording(
        (
            "Patchy airspace opacity projects over the {side} {site}.",
            "There is {degree} dense opacification of the {side} {site} with air bronchograms.",
            "Ill-defined alveolar opacities are present in the {side} {site}.",
            "{Side} {site} infiltrate, best seen on the frontal view.",
        ),
        (
            "{Side} {site} pneumonia. Follow-up to clearing is advised.",
            "Airspace disease in the {side} {site}.",
        ),
        ("lungs",),
        ("No focal consolidation.", "There is no focal airspace disease.", "No infiltrate is identified."),
    ),
    "atelectasis": Wording(
        (
            "Linear bands of increased density cross the lung {on}, consistent with {degree} subsegmental collapse.",
            "There is {degree} {side} {site} atelectasis.",
            "Volume is lost in the {side} {site}.",
            "Streaky density in the {side} {site} likely represents discoid atelectasis.",
        ),
        ("{Side} {site} atelectasis.", "Subsegmental volume loss {on}."),
        ("lungs",),
    ),
    "nodule": Wording(
        (
            "A rounded density of about one centimeter lies in the {side} {site}.",
            "There is a {degree} nodular opacity in the {side} {site}, not clearly calcified.",
            "{Side} {site} pulmonary nodule is noted.",
        ),
        (
            "{Side} {site} nodule; CT is recommended for further assessment.",
            "Indeterminate lung nodule {on}.",
        ),
        ("lungs",),
        ("No suspicious nodule.", "No pulmonary nodules are seen."),
    ),
    "mass": Wording(
        (
            "A {degree} lobulated mass occupies the {side} {site}.",
            "There is a well-defined soft tissue density of several centimeters in the {side} {site}.",
            "{Side} {site} mass, suspicious for neoplasm.",
        ),
        ("{Side} {site} mass. Malignancy must be excluded; CT of the chest is advised.", "Lung mass {on}."),
        ("lungs",),
        ("No mass is seen.",),
    ),
    "granuloma": Wording(
        (
            "Several calcified granulomas project over the {side} {site}.",
            "Small dense nodules in the {side} {site} are the sequela of old granulomatous infection.",
            "Punctate calcifications are seen {on}, most likely healed granulomatous disease.",
        ),
        ("Old granulomatous disease.", "Healed granulomas {on}; nothing acute."),
    ),
    "hyperinflation": Wording(
        (
            "The lungs are {degree} hyperexpanded with flattening of the diaphragms.",
            "Increased retrosternal airspace and low, flat hemidiaphragms.",
            "Lung volumes are large and the peripheral vessels are sparse, suggesting emphysema.",
        ),
        ("Hyperexpanded lungs as seen in COPD.", "Emphysematous change without acute disease."),
        ("volume",),
    ),
    "hypoinflation": Wording(
        (
            "Lung volumes are {degree} reduced with crowding of the bronchovascular structures.",
            "The inspiration is shallow.",
            "Low lung volumes.",
        ),
        ("Low lung volumes without acute abnormality.", "Shallow inspiration."),
        ("volume",),
    ),
    "fibrosis": Wording(
        (
            "Coarse reticular markings are present at both bases, {degree} in extent.",
            "There are bilateral interstitial opacities with a peripheral and basal predominance.",
            "{Degree} chronic interstitial change, compatible with fibrosis.",
        ),
        ("Chronic interstitial lung disease.", "Pulmonary fibrosis, {degree}."),
        ("lungs",),
    ),
    "congestion": Wording(
        (
            "The pulmonary vessels are engorged and indistinct.",
            "There is {degree} vascular congestion with cephalization.",
            "Perihilar haze and prominent central vasculature.",
        ),
        ("Pulmonary vascular congestion.", "{Degree} central venous congestion."),
        ("vessels",),
        ("No pulmonary edema.", "Pulmonary vascularity is within normal limits."),
    ),
    "aorta": Wording(
        (
            "The thoracic aorta is {degree} tortuous.",
            "The aorta is ectatic and unfolded.",
            "There is prominence of the aortic knob with a sinuous descending aorta.",
        ),
        ("Tortuous aorta.", "Aortic ectasia; no acute disease."),
        ("mediastinum",),
    ),
    "adenopathy": Wording(
        (
            "The hila are enlarged and lobulated, {side} in distribution.",
            "Hilar fullness {on} suggests enlarged lymph nodes.",
            "There is {side} hilar adenopathy.",
        ),
        ("Hilar adenopathy; consider sarcoidosis or lymphoma.", "Enlarged hilar nodes {on}."),
        ("mediastinum",),
        ("No hilar adenopathy.",),
    ),
    "diaphragm": Wording(
        (
            "The {side} hemidiaphragm is elevated.",
            "There is eventration of the {side} hemidiaphragm.",
            "The {side} dome of the diaphragm stands higher than expected.",
        ),
        ("Elevated {side} hemidiaphragm.",),
    ),
    "hernia": Wording(
        (
            "A retrocardiac density with an air-fluid level is noted.",
            "There is a {degree} hiatal hernia.",
            "Part of the stomach projects behind the heart.",
        ),
        ("Hiatal hernia.", "{Degree} hernia of the stomach, otherwise negative."),
    ),
    "fracture": Wording(
        (
            "Multiple {degree} {side} rib fractures.",
            "There are deformities of several ribs {on}, {degree}.",
            "Cortical step-off of the lateral ribs {on}.",
        ),
        ("{Side} rib fractures, {degree}.",),
        ("bones",),
        ("No acute bony abnormality.", "No displaced rib fracture."),
    ),
    "spondylosis": Wording(
        (
            "There are {degree} degenerative changes of the thoracic spine.",
            "Bridging osteophytes are seen along the vertebral bodies.",
            "Anterior spurring and narrowing of the disc spaces in the mid thoracic spine.",
        ),
        ("Degenerative spine disease.", "Spondylosis without acute cardiopulmonary process."),
        ("bones",),
    ),
    "scoliosis": Wording(
        (
            "There is {degree} curvature of the thoracic spine, convex to the {side}.",
            "{Degree} scoliosis.",
            "The spine shows a {side}ward curve.",
        ),
        ("Scoliosis.", "Curved spine, no acute disease."),
        ("bones",),
    ),
    "device": Wording(
        (
            "A {site} is seen {on} with its tip in the expected position.",
            "{Side} chest {site} is in place.",
            "Support apparatus {on} projects in satisfactory position.",
        ),
        ("{Side} {site} in good position.", "Lines as above; no acute process."),
    ),
    "abdomen": Wording(
        ("There is {site} in the upper abdomen.", "Upper abdominal {site} noted on the frontal view."),
        ("Abdominal {site}; clinical correlation is needed.",),
        ("abdomen",),
    ),
}

_SITES: Final = {
    "free air": "free intraperitoneal air",
    "stones": "gallstones",
    "catheter": "central venous catheter with port",
    "pacemaker": "dual-lead pacemaker",
    "retrocardiac": "retrocardiac region",
    "apex": "lung apex",
    "base": "lung base",
}
_DEGREES: Final = {
    "hyperinflation": "",
    "nodule": "",
}
_ADVERBS: Final = {"mild": "mildly", "moderate": "moderately", "severe": "markedly"}
_NORMAL: Final[dict[str, tuple[str, ...]]] = {
    "heart": (
        "Heart size is normal.",
        "The heart is not enlarged.",
        "Cardiac silhouette is normal in size and contour.",
        "The heart is of normal size.",
    ),
    "mediastinum": (
        "The mediastinal contours are unremarkable.",
        "Mediastinum is midline and normal in width.",
        "Hilar and mediastinal contours are within normal limits.",
    ),
    "lungs": (
        "The lungs are clear.",
        "Both lungs are free of focal opacity.",
        "Lungs are clear bilaterally.",
    ),
    "volume": ("Lungs are well expanded.", "The lungs are normally inflated.", ""),
    "bones": (
        "The bony thorax is intact.",
        "Visualized skeleton is unremarkable.",
        "No bone abnormality.",
        "",
    ),
    "abdomen": ("The upper abdomen is unremarkable.", "", "", ""),
}
_NORMAL_IMPRESSIONS: Final = (
    "No acute cardiopulmonary process.",
    "Normal chest.",
    "No active disease.",
    "Negative chest radiograph.",
    "1. No acute abnormality of the chest.",
)
_INDICATIONS: Final = (
    "Cough for XXXX weeks.",
    "Chest pain",
    "Shortness of breath",
    "XXXX-year-old with fever and cough",
    "XXXX-year-old woman, preoperative evaluation.",
    "XXXX-year-old man with dyspnea on exertion",
    "Positive skin test",
    "Fall, evaluate for injury.",
    "Weight loss, smoker",
    "Routine examination",
    "XXXX",
)
_COMPARISONS: Final = (
    "None.",
    "None available",
    "XXXX, XXXX.",
    "Two-view study of XXXX",
    "XXXX",
    "Prior study dated XXXX.",
)
_CAPTIONS: Final = (
    "Chest, frontal and lateral views",
    "PA and lateral chest XXXX at XXXX hours",
    "Two views of the chest",
    "Xray chest frontal",
)


def write_sections(findings: tuple[Finding, ...], generator: Generator) -> dict[str, str]:
    """Write the report of one study.

    Args:
        findings: What the pictures show; empty for a normal study.
        generator: Chooses the words.

    Returns:
        Section name -> text. Sections are left out about as often as in the real collection: findings 13 %,
        comparison 16 %, indication 2 %, both findings and impression 1 %.
    """
    sections = {
        "comparison": pick(generator, *_COMPARISONS) if generator.random() > 0.157 else "",
        "indication": pick(generator, *_INDICATIONS) if generator.random() > 0.023 else "",
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
    return pick(generator, *_CAPTIONS)


def _describe(findings: tuple[Finding, ...], generator: Generator) -> str:
    shown = {finding.kind for finding in findings}
    touched = {organ for name in shown for organ in WORDINGS[name].organs}
    normal = [pick(generator, *words) for organ, words in _NORMAL.items() if organ not in touched]
    denied = [pick(generator, *WORDINGS[name].denials) for name in _list_denials(shown, generator)]
    seen = [_fill(pick(generator, *WORDINGS[finding.kind].findings), finding) for finding in findings]
    sentences = [sentence for sentence in [*normal, *denied, *seen] if sentence]
    if generator.random() < 0.5:  # some begin with what is wrong, some go through the organs
        sentences = [sentences[place] for place in generator.permutation(len(sentences))]
    return " ".join(sentences)


def _list_denials(shown: set[str], generator: Generator) -> list[str]:
    possible = [name for name, wording in WORDINGS.items() if wording.denials and name not in shown]
    if "lungs" in {organ for name in shown for organ in WORDINGS[name].organs}:
        possible = [name for name in possible if name not in {"consolidation", "nodule", "mass"}]
    usual = [name for name in ("pneumothorax", "effusion") if name in possible and generator.random() < 0.85]
    return usual + [name for name in possible if name not in usual and generator.random() < 0.25]


def _conclude(findings: tuple[Finding, ...], generator: Generator) -> str:
    if not findings:
        return pick(generator, *_NORMAL_IMPRESSIONS)
    lines = [_fill(pick(generator, *WORDINGS[finding.kind].impression), finding) for finding in findings]
    if len(lines) == 1:
        return lines[0]
    return " ".join(f"{place}. {line}" for place, line in enumerate(lines, start=1))


def _fill(template: str, finding: Finding) -> str:
    side = finding.side
    degree = _DEGREES.get(finding.kind, finding.degree)
    if (
        "is {degree} enlarged" in template
        or "are {degree} hyper" in template
        or "is {degree} tortuous" in template
    ) or "volumes are {degree}" in template:
        degree = _ADVERBS.get(finding.degree, "")
    elif degree == "multiple":
        degree = ""
    words = {
        "side": side,
        "on": {"": "", "bilateral": "on both sides"}.get(side, f"on the {side}"),
        "site": _SITES.get(finding.site, finding.site),
        "degree": degree,
    }
    words |= {name.capitalize(): word.capitalize() for name, word in words.items()}
    text = " ".join(template.format(**words).split())
    for wrong, right in (
        (" .", "."),
        (" ,", ","),
        (", .", "."),
        (" ;", ";"),
        (",.", "."),
        ("a bilateral pleural", "bilateral pleural"),
    ):
        text = text.replace(wrong, right)
    return text[:1].upper() + text[1:]
