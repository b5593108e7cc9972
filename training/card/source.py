"""Descriptions of the training collections, for the model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_FROM_HEADINGS: Final = (
    "The labels come from the MeSH major headings that indexers assigned to each report, never from phrases in the "
    "text that the model reads."
)


@dataclass(frozen=True)
class Source:
    """A collection of studies.

    Attributes:
        key: Name for the hub's metadata.
        name: Name for the reader.
        about: Sentence that describes the collection.
        limit: Sentence for the limits of the card.
        labels: Sentences on the origin of the labels.
    """

    key: str
    name: str
    about: str
    limit: str
    labels: str = _FROM_HEADINGS

    @property
    def from_headings(self) -> bool:
        """Whether the labels come from MeSH headings, by `training/data/mesh.csv`."""
        return self.labels == _FROM_HEADINGS


_ONE_SET: Final = "The data come from one data set. Other scanners, patients and wordings were not tested."
_OTHER_LABELS: Final = "The labels are those of the studies table that the model was trained on."
_MAPPED: Final = (
    "`training/data/collections/mappings` maps the collection's labels to the categories and gives a reason for each "
    "doubtful row. A label that the collection does not state is unknown. Losses, thresholds and figures ignore it."
)
_FROM_REPORTS: Final = "A program extracted the labels from the reports, with some errors. " + _MAPPED
_SOURCES: Final = {
    "nih14": Source(
        "chestx-ray14",
        "ChestX-ray14 (NIH Clinical Center)",
        "Frontal radiographs of the NIH Clinical Center (Wang et al. 2017, CVPR), de-identified by its makers.",
        _ONE_SET,
        _FROM_REPORTS,
    ),
    "chexpert": Source(
        "chexpert",
        "CheXpert (Stanford)",
        "Radiographs of Stanford Hospital (Irvin et al. 2019, AAAI), de-identified by its makers.",
        _ONE_SET,
        _FROM_REPORTS,
    ),
    "mimic-cxr": Source(
        "mimic-cxr",
        "MIMIC-CXR (Beth Israel Deaconess Medical Center)",
        "Radiographs and reports of MIMIC-CXR (Johnson et al. 2019, Scientific Data), de-identified by its makers.",
        _ONE_SET,
        _FROM_REPORTS,
    ),
    "vindr": Source(
        "vindr-cxr",
        "VinDr-CXR",
        "Radiographs of two hospitals in Vietnam (Nguyen et al. 2022, Scientific Data), read by radiologists.",
        _ONE_SET,
        _MAPPED,
    ),
    "padchest": Source(
        "padchest",
        "PadChest (Hospital San Juan, Alicante)",
        "Radiographs of the Hospital San Juan (Bustos et al. 2020, Medical Image Analysis), de-identified by its "
        "makers.",
        _ONE_SET,
        "Physicians labelled a part of the reports. A program that was trained on them labelled the others. "
        + _MAPPED,
    ),
    "kermany": Source(
        "kermany-2018",
        "Paediatric radiographs of Guangzhou",
        "Radiographs of children of one to five years from the Guangzhou Women and Children's Medical Center (Kermany "
        "et al. 2018, Cell), normal or with pneumonia.",
        "The data come from children of one hospital. Adults, other findings and other scanners were not tested.",
        "Physicians labelled the images. " + _MAPPED,
    ),
    "openi": Source(
        "open-i",
        "Open-i (Indiana University chest X-ray collection)",
        "Radiographs and reports of the Open-i collection of the U.S. National Library of Medicine "
        "(Demner-Fushman et al. 2016), de-identified by its makers.",
        "The data come from one collection. Other scanners, patients and wordings were not tested.",
    ),
    "phantom": Source(
        "cxr-phantom",
        "Phantoms drawn by cxr-serving",
        "Phantoms: radiographs and reports from a program, in the layout of Open-i. They show no patients.",
        "**Trained on drawn phantoms: the figures show that the software works. They say nothing about patients.**",
    ),
}


def find_source(details: Mapping[str, Any]) -> Source:
    """Return the description of the collection in a training record."""
    named = details.get("data_source")
    if named in _SOURCES:
        return _SOURCES[named]
    name = str(named) if named else f"studies table {details.get('data_sha256', 'unknown')[:12]}"
    about = f"Source: {named}." if named else "The training record does not name the collection."
    return Source("custom", name, about, _ONE_SET, _OTHER_LABELS)
