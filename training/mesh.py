"""MeSH major headings of Open-i reports -> the 22 categories.

A heading is a head with qualifiers, `Calcinosis/lung/hilum/right`. A `Rule` gives a head's categories, and
may let some qualifiers decide instead: `Costophrenic Angle/blunted` is pleural disease, while an obscured one
is only an unspecific finding. The categories come from the radiologists' indexing, never from the text of the
report.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from contract.errors import ConfigError

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """`default` applies unless qualifiers of the heading stand in `by_qualifier`, which decide together."""

    default: Keys
    by_qualifier: dict[str, Keys] = field(default_factory=dict)


def _rule(default: str, **by_qualifier: str) -> Rule:
    """Write a rule in short: categories are separated by blanks, `_` in a qualifier stands for a blank."""
    decided = {name.replace("_", " "): tuple(keys.split()) for name, keys in by_qualifier.items()}
    return Rule(tuple(default.split()), decided)


_VERTEBRAE = _rule("msk_other", degenerative="msk_degenerative")
_GRANULOMA_SITES = dict.fromkeys(
    ("lung", "lymph_nodes", "hilum", "mediastinum", "paratracheal", "spleen"), "granulomatous"
)
_VESSELS = {
    "aorta": ("aortic_vascular",),
    "aorta, thoracic": ("aortic_vascular",),
    "blood vessels": ("aortic_vascular",),
    "coronary vessels": ("aortic_vascular",),
    "pleura": ("pleural",),
    "heart": ("cardiac",),
    "mitral valve": ("cardiac",),
    "aortic valve": ("cardiac",),
    "abdomen": ("abdominal_gi",),
    "liver": ("abdominal_gi",),
    "breast": ("miscellaneous",),
    "breast implants": ("miscellaneous",),
}

# Heads in lower case; the order follows the categories.
RULES: Final[dict[str, Rule]] = {
    "normal": _rule("normal"),
    # unspecific findings of the image
    "lung": _rule(
        "general_radiographic",
        blood_vessels="pulmonary_vascular",
        hyperdistention="copd_emphysema",
        hypoinflation="general_radiographic",
        lymph_nodes="lymphadenopathy",
        azygos_lobe="miscellaneous",
    ),
    "opacity": _rule("general_radiographic"),
    "markings": _rule("general_radiographic"),
    "density": _rule("general_radiographic"),
    "lucency": _rule("general_radiographic"),
    "shift": _rule("general_radiographic"),
    "thorax": _rule("general_radiographic"),
    "trachea": _rule("general_radiographic"),
    "trachea, carina": _rule("general_radiographic", lymph_nodes="lymphadenopathy"),
    "mediastinum": _rule(
        "general_radiographic", lymph_nodes="lymphadenopathy", blood_vessels="aortic_vascular"
    ),
    "thickening": _rule("general_radiographic", pleura="pleural"),
    # diseases without a place of their own
    "cystic fibrosis": _rule("general_disease"),
    "hypovolemia": _rule("general_disease"),
    # lung
    "pulmonary atelectasis": _rule("atelectasis"),
    "volume loss": _rule("atelectasis"),
    "airspace disease": _rule("infection"),
    "infiltrate": _rule("infection"),
    "pneumonia": _rule("infection"),
    "consolidation": _rule("infection"),
    "cavitation": _rule("infection"),
    "bronchitis": _rule("infection"),
    "bronchiolitis": _rule("infection"),
    "cicatrix": _rule("fibrosis_ild", pleura="pleural", ribs="msk_other", breast="miscellaneous"),
    "fibrosis": _rule("fibrosis_ild"),
    "pulmonary fibrosis": _rule("fibrosis_ild"),
    "lung diseases, interstitial": _rule("fibrosis_ild"),
    "emphysema": _rule("copd_emphysema"),
    "pulmonary emphysema": _rule("copd_emphysema"),
    "bullous emphysema": _rule("copd_emphysema"),
    "pulmonary disease, chronic obstructive": _rule("copd_emphysema"),
    "lung, hyperlucent": _rule("copd_emphysema"),
    "blister": _rule("copd_emphysema"),  # a bulla
    "bronchiectasis": _rule("copd_emphysema"),
    "mass": _rule("malignancy"),
    "nodule": _rule("nodule_cyst"),
    "cysts": _rule("nodule_cyst", humerus="msk_other"),
    "calcified granuloma": _rule("granulomatous"),
    "granuloma": _rule("granulomatous"),
    "granulomatous disease": _rule("granulomatous"),
    "sarcoidosis": _rule("granulomatous"),
    "tuberculosis": _rule("granulomatous"),
    "calcinosis": Rule(
        ("general_radiographic",),
        {**_rule("", **_GRANULOMA_SITES).by_qualifier, **_VESSELS},
    ),
    "lymph nodes": _rule("lymphadenopathy"),
    # heart and vessels
    "cardiomegaly": _rule("cardiac"),
    "cardiac shadow": _rule("cardiac", obscured="general_radiographic"),
    "heart": _rule("general_radiographic", prominent="cardiac", enlarged="cardiac"),
    "heart atria": _rule("cardiac"),
    "heart ventricles": _rule("cardiac"),
    "heart failure": _rule("cardiac"),
    "pericardial effusion": _rule("cardiac"),
    "pulmonary edema": _rule("cardiac"),
    "aorta": _rule("aortic_vascular", obscured="general_radiographic"),
    "aorta, thoracic": _rule("aortic_vascular"),
    "aortic aneurysm": _rule("aortic_vascular"),
    "atherosclerosis": _rule("aortic_vascular"),
    "pulmonary congestion": _rule("pulmonary_vascular"),
    "pulmonary artery": _rule("pulmonary_vascular"),
    "hypertension, pulmonary": _rule("pulmonary_vascular"),
    "blood vessels": _rule("aortic_vascular", lung="pulmonary_vascular"),
    # pleura and air outside the lung
    "pleural effusion": _rule("pleural"),
    "pleura": _rule("pleural"),
    "costophrenic angle": _rule("general_radiographic", blunted="pleural"),
    "sulcus": _rule("general_radiographic", blunted="pleural"),
    "hemothorax": _rule("pleural"),
    "pneumothorax": _rule("air_leak"),
    "hydropneumothorax": _rule("air_leak pleural"),
    "hemopneumothorax": _rule("air_leak pleural"),
    "subcutaneous emphysema": _rule("air_leak"),
    "mediastinal emphysema": _rule("air_leak"),
    # bones
    "fractures, bone": _rule("msk_trauma"),
    "dislocations": _rule("msk_trauma"),
    "deformity": _rule(
        "msk_other",
        ribs="msk_trauma",
        clavicle="msk_trauma",
        lung="general_radiographic",
        heart="general_radiographic",
        mediastinum="general_radiographic",
        trachea="general_radiographic",
        pleura="pleural",
        breast="miscellaneous",
        abdomen="abdominal_gi",
    ),
    "thoracic vertebrae": _VERTEBRAE,
    "lumbar vertebrae": _VERTEBRAE,
    "cervical vertebrae": _VERTEBRAE,
    "spine": _VERTEBRAE,
    "shoulder": _VERTEBRAE,
    "humerus": _VERTEBRAE,
    "ribs": _VERTEBRAE,
    "bone and bones": _VERTEBRAE,
    "osteophyte": _rule("msk_degenerative"),
    "spondylosis": _rule("msk_degenerative"),
    "arthritis": _rule("msk_degenerative"),
    "hyperostosis, diffuse idiopathic skeletal": _rule("msk_degenerative"),
    "sclerosis": _rule("msk_other", pleura="pleural"),
    "scoliosis": _rule("msk_other"),
    "kyphosis": _rule("msk_other"),
    "bone diseases, metabolic": _rule("msk_other"),
    "osteoporosis": _rule("msk_other"),
    "spinal fusion": _rule("msk_other"),
    "funnel chest": _rule("msk_other"),
    "pectus carinatum": _rule("msk_other"),
    "expansile bone lesions": _rule("msk_other"),
    # diaphragm and abdomen
    "diaphragm": _rule("hernia_diaphragm", flattened="copd_emphysema", obscured="general_radiographic"),
    "diaphragmatic eventration": _rule("hernia_diaphragm"),
    "hernia, hiatal": _rule("hernia_diaphragm"),
    "hernia, diaphragmatic": _rule("hernia_diaphragm"),
    "abdomen": _rule("abdominal_gi"),
    "cholelithiasis": _rule("abdominal_gi"),
    "colonic interposition": _rule("abdominal_gi"),
    "pneumoperitoneum": _rule("abdominal_gi air_leak"),
    # devices, operations, variants
    "catheters, indwelling": _rule("miscellaneous"),
    "implanted medical device": _rule("miscellaneous"),
    "medical device": _rule("miscellaneous"),
    "surgical instruments": _rule("miscellaneous"),
    "tube, inserted": _rule("miscellaneous"),
    "foreign bodies": _rule("miscellaneous"),
    "stents": _rule("miscellaneous"),
    "sutures": _rule("miscellaneous"),
    "contrast media": _rule("miscellaneous"),
    "pneumonectomy": _rule("miscellaneous"),
    "mastectomy": _rule("miscellaneous"),
    "breast implants": _rule("miscellaneous"),
    "nipple shadow": _rule("miscellaneous"),
    "epicardial fat": _rule("miscellaneous"),
    "adipose tissue": _rule("miscellaneous"),
}

UNMAPPED: Final[dict[str, str]] = {
    "no indexing": "The indexers gave up: what the report says is unknown, which is not the same as normal.",
    "technical quality of image unsatisfactory": "Describes the exposure, not the patient.",
}


def split_heading(heading: str) -> tuple[str, tuple[str, ...]]:
    """Split a heading into its head and qualifiers, in lower case and with single blanks."""
    head, *qualifiers = (" ".join(part.split()).lower() for part in heading.split("/"))
    return head, tuple(qualifiers)


def map_heading(heading: str) -> frozenset[str]:
    """Return the category keys of one heading; empty for a head in `UNMAPPED`.

    Raises:
        ConfigError: The head stands in no table; the message names it.
    """
    head, qualifiers = split_heading(heading)
    if head in UNMAPPED:
        return frozenset()
    rule = RULES.get(head)
    if rule is None:
        raise ConfigError(f"The MeSH heading {heading!r} is unknown: add its head to training/mesh.py.")
    decided = [rule.by_qualifier[name] for name in qualifiers if name in rule.by_qualifier]
    return frozenset(key for keys in decided or [rule.default] for key in keys)


def map_headings(major: Sequence[str]) -> frozenset[str]:
    """Return the category keys of all major headings of a report; "normal" only where it stands alone."""
    keys = frozenset(key for heading in major for key in map_heading(heading))
    return keys - {"normal"} if len(keys) > 1 else keys


def is_labelled(major: Sequence[str]) -> bool:
    """Whether the headings say what the study shows; "No Indexing" and no heading at all do not."""
    return any(split_heading(heading)[0] not in UNMAPPED for heading in major)
