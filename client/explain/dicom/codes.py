"""Coded names of findings, values and decisions.

Codes are those of DICOM PS3.16 and SNOMED CT where one means the same. Most categories are groups that no standard code
names, so they have codes of a private scheme: CXR-01 to CXR-22, in the order of `contract.labels`.

pydicom's copy of PS3.16 holds each standard code but two, whose sources stand beside them.
"""

from typing import Final

from contract.decisions import Decision
from contract.labels import LABEL_INDEX, LABEL_NAMES

Triple = tuple[str, str, str]  # code value, coding scheme, meaning

SCHEME: Final = "99CXRSERVING"
SCHEME_NAME: Final = "Finding categories and values of cxr-serving"
CERTAINTY: Final[Triple] = ("111012", "DCM", "Certainty of Finding")
THRESHOLD: Final[Triple] = ("CXR-THRESHOLD", SCHEME, "Certainty from which the finding counts as present")
PRESENCE: Final[Triple] = ("121052", "DCM", "Presence of property")
COMMENT: Final[Triple] = ("121106", "DCM", "Comment")
PERCENT: Final[Triple] = ("%", "UCUM", "Percent")
# HL7 US Core, example Media-chest-xray: "Plain chest X-ray (procedure) (SNOMED CT#399208008)".
CHEST_RADIOGRAPHY: Final[Triple] = ("399208008", "SCT", "Plain chest X-ray")
VISUAL_EXPLANATION: Final[Triple] = ("130401", "DCM", "Visual explanation")
PROCESSED_IMAGE: Final[Triple] = ("121322", "DCM", "Source image for image processing operation")

_UNDETERMINED: Final[Triple] = ("373068000", "SCT", "Undetermined")
_DECISIONS: Final[dict[Decision, Triple]] = {  # CID 240
    "present": ("52101004", "SCT", "Present"),
    "absent": ("272519000", "SCT", "Absent"),
    "uncertain": _UNDETERMINED,
    "undecided": _UNDETERMINED,
}
# Only where the code means the whole category. "Pneumonia" is a part of "Infection / Pneumonia / Airspace Disease".
_STANDARD: Final[dict[str, Triple]] = {
    # ConceptMap mii-cm-onko-nebenwirkung-meddra-sct of the Medizininformatik-Initiative (SNOMED CT of 2025-07-01).
    "atelectasis": ("46621007", "SCT", "Atelectasis"),
    "lymphadenopathy": ("30746006", "SCT", "Lymphadenopathy"),
    "normal": ("17621005", "SCT", "Normal"),
}


def code_finding(key: str) -> Triple:
    """Return the code of a finding category.

    Args:
        key: Key of the category, as in `contract.labels`.
    """
    return _STANDARD.get(key) or (f"CXR-{LABEL_INDEX[key] + 1:02d}", SCHEME, LABEL_NAMES[key][:64])


def code_decision(decision: Decision) -> Triple:
    """Return the code of a decision: present, absent or undetermined."""
    return _DECISIONS[decision]
