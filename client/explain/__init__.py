"""Offline explanations: where the model looks for one finding, and which words moved it.

    bundle = load_bundle("bundle")
    explanation = explain(bundle, image=Path("chest.dcm").read_bytes(), report="Small effusion.")

case.py          one case as tensors, and its words
network.py       the model as a function of pixels and word embeddings
gradients.py     Integrated Gradients, whose steps are doubled until the integral is accurate
cam.py           Grad-CAM
attention.py     attention of a label, and attention rollout
perturbation.py  occlusion and Shapley values
methods.py       the registry of the methods
choice.py        which findings are explained
findings.py      explanations of one or several findings: `explain`, `explain_findings`
views.py         several images of a study: each is explained while the others stay
study.py         explanations of each image of a study: `explain_views`
hit.py           why a query and a search hit are similar: `explain_hit`
words.py         tokens to words of the report and its sections
maps.py          attributions to what is shown and measured
geometry.py      maps back onto the radiograph, with markers of the sides
overlay.py       pictures
map_files.py     each map as a file, and all values
dicom/           Secondary Capture, Structured Report and Presentation State: `write_dicom`

Importing the package is cheap. Its functions need the `explain` extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from client.explain.case import Inputs, read_inputs
    from client.explain.choice import choose_label
    from client.explain.dicom.write import write_dicom
    from client.explain.findings import explain, explain_findings
    from client.explain.gradients import Attributions, attribute
    from client.explain.hit import explain_hit
    from client.explain.methods import METHODS
    from client.explain.study import explain_views
    from client.explain.words import group_pieces

_PLACES: Final = {
    "Attributions": "gradients",
    "Inputs": "case",
    "METHODS": "methods",
    "attribute": "gradients",
    "choose_label": "choice",
    "explain": "findings",
    "explain_findings": "findings",
    "explain_hit": "hit",
    "explain_views": "study",
    "group_pieces": "words",
    "read_inputs": "case",
    "write_dicom": "dicom.write",
}

__all__ = [
    "METHODS",
    "Attributions",
    "Inputs",
    "attribute",
    "choose_label",
    "explain",
    "explain_findings",
    "explain_hit",
    "explain_views",
    "group_pieces",
    "read_inputs",
    "write_dicom",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used. Raise ConfigError if the `explain` extra is not installed."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
