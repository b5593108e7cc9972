"""The 22 finding categories. Their order is the order of the logits everywhere."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Label:
    """One category.

    Attributes:
        key: Key in code and files.
        name: Display name. It states what most studies with the category show.
    """

    key: str
    name: str


LABELS: Final[tuple[Label, ...]] = (
    Label("general_radiographic", "General Radiographic & Non-specific Findings"),
    Label("general_disease", "General Disease & Symptom Terms"),
    Label("atelectasis", "Atelectasis / Lung Collapse"),
    Label("infection", "Infection / Pneumonia / Airspace Disease"),
    Label("fibrosis_ild", "Lung Scar / Fibrosis / ILD"),
    Label("copd_emphysema", "COPD / Emphysema / Hyperinflation"),
    Label("cardiac", "Cardiomegaly / Heart Failure"),
    Label("aortic_vascular", "Aortic & General Vascular Disease"),
    Label("pulmonary_vascular", "Pulmonary Vascular Disease / Congestion"),
    Label("malignancy", "Suspicious / Malignant Lesion"),
    Label("nodule_cyst", "Benign / Indeterminate Nodule & Cyst"),
    Label("granulomatous", "Granuloma (Mostly Old) / Granulomatous Disease"),
    Label("lymphadenopathy", "Lymphadenopathy"),
    Label("pleural", "Pleural Disease (Effusion / Thickening)"),
    Label("air_leak", "Air Leak Syndromes"),
    Label("msk_trauma", "Musculoskeletal - Fracture & Trauma"),
    Label("msk_degenerative", "Musculoskeletal - Degenerative Disease"),
    Label("msk_other", "Musculoskeletal - Other"),
    Label("hernia_diaphragm", "Hernias & Diaphragmatic Anomalies"),
    Label("abdominal_gi", "Abdominal / GI Findings"),
    Label("miscellaneous", "Other Miscellaneous Findings"),
    Label("normal", "Normal"),
)

LABEL_KEYS: Final[tuple[str, ...]] = tuple(label.key for label in LABELS)
LABEL_NAMES: Final[dict[str, str]] = {label.key: label.name for label in LABELS}
LABEL_INDEX: Final[dict[str, int]] = {key: index for index, key in enumerate(LABEL_KEYS)}
