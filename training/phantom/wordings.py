"""Sentences of the reports; all are the project's own.

Filled in are {side}, {on} ("on the right"), {site}, {degree} and {mildly} (the degree as an adverb); a capital, as
in {Side}, begins a sentence. A degree that is not known is left out, with what stands in brackets around it.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Wording:
    """How one kind of finding is put into words.

    Attributes:
        findings: Sentences of the findings section.
        impression: Sentences of the impression.
        alone: Sentences of the impression that say of everything else that it is well.
        organs: Organs that can no longer be called normal.
        denials: Sentences for reports of studies that do not show the kind.
    """

    findings: tuple[str, ...]
    impression: tuple[str, ...]
    alone: tuple[str, ...] = ()
    organs: tuple[str, ...] = ()
    denials: tuple[str, ...] = ()


# By kind, or by kind and site or degree where that needs other words.
WORDINGS: Final[dict[str, Wording]] = {
    "effusion": Wording(
        (
            "There is {degree} {side} pleural effusion.",
            "The costophrenic sulcus is blunted {on}, in keeping with a {degree} amount of pleural fluid.",
            "A meniscus {on} obscures the hemidiaphragm; fluid volume is {degree}.",
            "{Degree} layering fluid is seen {on}.",
        ),
        ("{Degree} {side} effusion.", "{Degree} amount of pleural fluid {on}."),
        organs=("volume",),
        denials=(
            "No pleural effusion.",
            "Costophrenic angles are sharp.",
            "No pleural fluid is seen.",
            "There is no effusion.",
        ),
    ),
    "pneumothorax": Wording(
        (
            "A visceral pleural line is seen {on} with no lung markings beyond it.",
            "There is a {degree} {side} {site} pneumothorax.",
            "{Degree} amount of air in the {side} pleural space with partial collapse of the lung.",
        ),
        (
            "{Degree} {side} pneumothorax. Findings were called to XXXX.",
            "{Side} {site} pneumothorax, {degree}.",
        ),
        organs=("volume", "lungs"),
        denials=(
            "No pneumothorax.",
            "There is no evidence of pneumothorax.",
            "No pneumothorax is seen.",
            "Negative for pneumothorax.",
        ),
    ),
    "cardiomegaly": Wording(
        (
            "The heart is {mildly} enlarged.",
            "Cardiac silhouette occupies more than half of the thoracic diameter.",
            "There is {degree} enlargement of the cardiac silhouette.",
            "Heart size is above normal limits.",
        ),
        ("Cardiomegaly.", "{Mildly} enlarged heart."),
        ("{Mildly} enlarged heart without acute lung disease.",),
        organs=("heart",),
        denials=("No cardiomegaly.",),
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
        organs=("lungs",),
        denials=(
            "No focal consolidation.",
            "There is no focal airspace disease.",
            "No infiltrate is identified.",
        ),
    ),
    "atelectasis": Wording(
        (
            "Linear bands of increased density cross the lung {on}, consistent with {degree} subsegmental collapse.",
            "There is {degree} {side} basilar atelectasis.",
            "Plate-like opacities are present above the hemidiaphragm {on}.",
            "{Degree} streaky density at the base {on} likely represents discoid atelectasis.",
        ),
        ("{Degree} {side} basilar atelectasis.", "Subsegmental volume loss {on}."),
        organs=("lungs", "volume"),
    ),
    "collapse": Wording(
        (
            "The {side} {site} has lost volume and is uniformly dense.",
            "There is {side} {site} collapse with displacement of the fissure.",
            "A wedge of increased density {on} corresponds to an airless {site}.",
        ),
        (
            "{Side} {site} collapse. An obstructing lesion should be excluded.",
            "Atelectasis of the {side} {site}.",
        ),
        organs=("lungs", "volume"),
    ),
    "nodule": Wording(
        (
            "A rounded density of about two centimeters lies in the {side} {site}.",
            "There is a nodular opacity in the {side} {site}, not clearly calcified.",
            "{Side} {site} pulmonary nodule is noted.",
        ),
        (
            "{Side} {site} nodule; CT is recommended for further assessment.",
            "Indeterminate lung nodule {on}.",
        ),
        organs=("lungs",),
        denials=("No suspicious nodule.", "No pulmonary nodules are seen."),
    ),
    "nodule/multiple": Wording(
        (
            "Several rounded densities lie in the {side} {site}.",
            "There are multiple nodular opacities in the {side} {site}, not clearly calcified.",
            "{Side} {site} pulmonary nodules are noted.",
        ),
        ("Multiple {side} {site} nodules; CT is recommended.", "Indeterminate lung nodules {on}."),
        organs=("lungs",),
    ),
    "mass": Wording(
        (
            "A {degree} lobulated mass occupies the {side} {site}.",
            "There is a well-defined soft tissue density of several centimeters in the {side} {site}.",
            "{Side} {site} mass, suspicious for neoplasm.",
        ),
        (
            "{Side} {site} mass. Malignancy must be excluded; CT of the chest is advised.",
            "{Degree} lung mass {on}.",
        ),
        organs=("lungs",),
        denials=("No mass is seen.", "There is no mass."),
    ),
    "granuloma": Wording(
        (
            "Several calcified granulomas project over the {side} {site}.",
            "Small dense nodules in the {side} {site} are the sequela of old granulomatous infection.",
            "Punctate calcifications are seen {on}, most likely healed granulomatous disease.",
        ),
        ("Old granulomatous disease.", "Healed granulomas {on}."),
        ("Healed granulomas {on}; nothing acute.",),
        organs=("lungs",),
    ),
    "hyperinflation": Wording(
        (
            "The lungs are {mildly} hyperexpanded with flattening of the diaphragms.",
            "Increased retrosternal airspace and low, flat hemidiaphragms.",
            "Lung volumes are large and the peripheral vessels are sparse, suggesting emphysema.",
        ),
        ("Hyperexpanded lungs as seen in COPD.", "{Degree} emphysematous change."),
        ("Emphysematous change without acute disease.",),
        organs=("volume", "vessels"),
    ),
    "hypoinflation": Wording(
        (
            "Lung volumes are {mildly} reduced with crowding of the bronchovascular structures.",
            "The inspiration is shallow.",
            "Low lung volumes.",
        ),
        ("Low lung volumes.", "Shallow inspiration."),
        ("Low lung volumes without acute abnormality.",),
        organs=("volume",),
    ),
    "fibrosis": Wording(
        (
            "Coarse reticular markings are present at both bases[, {degree} in extent].",
            "There are bilateral interstitial opacities with a peripheral and basal predominance.",
            "{Degree} chronic interstitial change, compatible with fibrosis.",
        ),
        ("Chronic interstitial lung disease.", "Pulmonary fibrosis[, {degree}]."),
        organs=("lungs",),
    ),
    "congestion": Wording(
        (
            "The pulmonary vessels are engorged and indistinct.",
            "There is {degree} vascular congestion with cephalization.",
            "Perihilar haze and prominent central vasculature.",
        ),
        ("Pulmonary vascular congestion.", "{Degree} pulmonary venous congestion."),
        organs=("lungs",),
        denials=(
            "No pulmonary edema.",
            "Pulmonary vascularity is within normal limits.",
            "The pulmonary vessels are normal in caliber.",
        ),
    ),
    "aorta": Wording(
        (
            "The thoracic aorta is {mildly} tortuous.",
            "The aorta is ectatic and unfolded.",
            "There is prominence of the aortic knob with a sinuous descending aorta.",
        ),
        ("Tortuous aorta.", "Aortic ectasia."),
        ("Aortic ectasia; no acute disease.",),
        organs=("mediastinum",),
    ),
    "aorta/calcified": Wording(
        (
            "The thoracic aorta is {mildly} tortuous and its arch is calcified.",
            "Calcification outlines the prominent aortic knob; the descending aorta is sinuous.",
        ),
        ("Calcified, tortuous aorta.", "Ectasia and atheromatous change of the aorta."),
        organs=("mediastinum",),
    ),
    "adenopathy": Wording(
        (
            "{Side} hilar enlargement with lobulated contours.",
            "Hilar fullness {on} suggests enlarged lymph nodes.",
            "There is {side} hilar adenopathy.",
        ),
        ("Hilar adenopathy; consider sarcoidosis or lymphoma.", "Enlarged hilar nodes {on}."),
        organs=("mediastinum",),
        denials=("No hilar adenopathy.",),
    ),
    "diaphragm": Wording(
        (
            "The {side} hemidiaphragm is elevated.",
            "There is eventration of the {side} hemidiaphragm.",
            "The {side} dome of the diaphragm stands higher than expected.",
        ),
        ("Elevated {side} hemidiaphragm.", "Eventration of the diaphragm {on}."),
        organs=("volume",),
    ),
    "hernia": Wording(
        (
            "A retrocardiac density with an air-fluid level is noted.",
            "There is a {degree} hiatal hernia.",
            "Part of the stomach projects behind the heart.",
        ),
        ("{Degree} hiatal hernia.",),
        ("{Degree} hiatal hernia, otherwise negative.",),
        organs=("mediastinum",),
        denials=("No hiatal hernia is seen.",),
    ),
    "fracture/healed": Wording(
        (
            "There are old, healed deformities of several ribs {on}.",
            "Callus is present at the lateral ribs {on}.",
            "Multiple healed {side} rib fractures.",
        ),
        ("Old {side} rib fractures.", "{Side} rib fractures, healed."),
        ("Old {side} rib fractures; nothing acute.",),
        organs=("bones",),
    ),
    "fracture/displaced": Wording(
        (
            "Several lateral ribs {on} are broken and displaced.",
            "Cortical step-off of the lateral ribs {on}.",
            "Multiple displaced {side} rib fractures.",
        ),
        ("Acute {side} rib fractures.", "{Side} rib fractures, displaced."),
        organs=("bones",),
        denials=("No acute bony abnormality.", "No displaced rib fracture.", "No fracture is seen."),
    ),
    "spondylosis": Wording(
        (
            "There are {degree} degenerative changes of the thoracic spine.",
            "Bridging osteophytes are seen along the vertebral bodies.",
            "Anterior spurring and narrowing of the disc spaces in the mid thoracic spine.",
        ),
        ("{Degree} degenerative spine disease.", "Thoracic spondylosis."),
        ("Spondylosis without acute cardiopulmonary process.",),
        organs=("bones",),
    ),
    "scoliosis": Wording(
        (
            "There is {degree} curvature of the thoracic spine, convex to the {side}.",
            "{Degree} scoliosis.",
            "The spine shows a {side}ward curve.",
        ),
        ("{Degree} scoliosis.", "Curved thoracic spine."),
        ("Curved spine, no acute disease.",),
        organs=("bones",),
    ),
    "device": Wording(
        (
            "A {site} is seen {on} in the expected position.",
            "{Side} chest {site} is in place.",
            "Support apparatus {on} projects in satisfactory position.",
        ),
        ("{Side} {site} in good position.",),
        ("{Side} {site}; no acute process.",),
    ),
    "abdomen/free air": Wording(
        (
            "There is free air under both domes of the diaphragm.",
            "Crescents of gas below the diaphragm indicate free intraperitoneal air.",
        ),
        ("Free intraperitoneal air. Findings were called to XXXX.", "Pneumoperitoneum."),
        organs=("abdomen",),
        denials=("No free air under the diaphragm.",),
    ),
    "abdomen/stones": Wording(
        (
            "There are calcified gallstones in the right upper abdomen.",
            "Ring-shaped calcifications below the liver, as of gallstones, are noted on the frontal view.",
        ),
        ("Gallstones.", "Cholelithiasis; clinical correlation is needed."),
        organs=("abdomen",),
    ),
}

SITES: Final = {
    "catheter": "central venous catheter with port",
    "pacemaker": "dual-lead pacemaker",
    "apex": "apical",
    "base": "lung base",
}
ADVERBS: Final = {"mild": "mildly", "moderate": "moderately", "severe": "markedly"}
NORMAL: Final[dict[str, tuple[str, ...]]] = {  # "" where some reports say nothing
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
        "",
    ),
    "lungs": (
        "The lungs are clear.",
        "Both lungs are free of focal opacity.",
        "Lungs are clear bilaterally.",
    ),
    "volume": ("Lungs are well expanded.", "The lungs are normally inflated.", "", "", ""),
    "bones": (
        "The bony thorax is intact.",
        "Visualized skeleton is unremarkable.",
        "No bone abnormality.",
        "",
        "",
    ),
    "abdomen": ("The upper abdomen is unremarkable.", "", "", ""),
}
NORMAL_IMPRESSIONS: Final = (
    "No acute cardiopulmonary process.",
    "Normal chest.",
    "No active disease.",
    "Negative chest radiograph.",
    "1. No acute abnormality of the chest.",
    "No radiographic evidence of acute disease in the chest.",
    "Normal chest XXXX.",
)
INDICATIONS: Final = (
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
COMPARISONS: Final = (
    "None.",
    "None available",
    "XXXX, XXXX.",
    "Two-view study of XXXX",
    "XXXX",
    "Prior study dated XXXX.",
)
CAPTIONS: Final = (
    "Chest, frontal and lateral views",
    "PA and lateral chest XXXX at XXXX hours",
    "Two views of the chest",
    "Xray chest frontal",
)
