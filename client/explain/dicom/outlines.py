"""Outlines of the strong spots of a map as a Grayscale Softcopy Presentation State (DICOM PS3.3 A.33.1).

A parametric map would hold the values, but viewers place it by a frame of reference, which a radiograph does not have,
and few draw it over one. A segmentation states what lies where, and a map does not. A presentation state counts in
pixels of the radiograph, so its place is exact, and every viewer with presentation states draws it over the original
grey values. It holds outlines; the values are in maps.npz.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.explain.dicom.codes import VISUAL_EXPLANATION
from client.explain.dicom.device import RESEARCH, Series, describe_equipment, place_in_series
from client.explain.dicom.source import Source
from client.explain.maps import import_cv2
from client.explain.overlay import describe_finding, find_strong
from client.explanation import Explanation, ImageMap

_LAYERS: Final = (("FOR", "Speaks for the finding"), ("AGAINST", "Speaks against the finding"))
_COARSENESS: Final = 1 / 1000  # of the longer side: how far a line may leave the edge of a spot
Line = NDArray[np.float64]  # (N, 2): column and row in pixels, closed


def make_outlines(
    source: Source, explanation: Explanation, found: ImageMap, series: Series, number: int
) -> Any | None:
    """Return the outlines of a map; None where no spot is strong, or the radiograph is in colour.

    Args:
        source: The radiograph.
        explanation: The explanation that the map belongs to.
        found: One of its maps.
        series: The series of the outlines.
        number: Number of these outlines in it, from 1 on.
    """
    from highdicom import pr
    from highdicom.sr import CodedConcept

    if not source.reference.PhotometricInterpretation.startswith("MONOCHROME"):
        return None
    lines = [trace(mask) for mask in find_strong(explanation, found)]
    if not any(lines):
        return None
    layers, annotations = [], []
    for order, ((name, meaning), traced) in enumerate(zip(_LAYERS, lines, strict=True), start=1):
        if not traced and order > 1:
            continue
        layer = pr.GraphicLayer(name, order, description=meaning)
        text = f"{describe_finding(explanation)}. {found.title}. {RESEARCH}"
        annotations.append(
            pr.GraphicAnnotation(
                [source.reference],
                layer,
                graphic_objects=[pr.GraphicObject("POLYLINE", line, "PIXEL") for line in traced] or None,
                text_objects=[_write(text)] if order == 1 else None,
            )
        )
        layers.append(layer)
    made = pr.GrayscaleSoftcopyPresentationState(
        [source.reference],
        content_label="EXPLANATION",
        content_description=f"{explanation.key}, {found.title}"[:64],
        concept_name=CodedConcept(*VISUAL_EXPLANATION),
        graphic_layers=layers,
        graphic_annotations=annotations,
        presentation_lut_transformation=_make_polarity(source),
        **describe_equipment(explanation.fingerprint),
        **place_in_series(series, number),
    )
    source.copy_tables(made)
    source.copy_body_part(made)
    source.copy_patient(made)
    return made


def trace(mask: NDArray[np.bool_]) -> list[Line]:
    """Return the outlines of a mask (rows, columns), in pixels from the upper left corner of the first pixel."""
    cv2 = import_cv2()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    lines = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, _COARSENESS * max(mask.shape), True)[:, 0]
        if len(points) >= 3:
            centres = points.astype(np.float64) + 0.5
            lines.append(np.vstack([centres, centres[:1]]))
    return lines


def _write(text: str) -> Any:
    from highdicom.pr import TextObject

    return TextObject(text, "DISPLAY", bounding_box=(0.02, 0.92, 0.98, 0.98), text_justification="LEFT")


def _make_polarity(source: Source) -> Any:
    """Return the polarity of the display. A presentation state replaces the one that the image states."""
    from highdicom import PresentationLUTTransformation

    shown = source.reference.PhotometricInterpretation, source.dataset.get("PresentationLUTShape")
    inverted = "MONOCHROME1" in shown or "INVERSE" in shown
    return PresentationLUTTransformation(presentation_lut_shape="INVERSE" if inverted else "IDENTITY")
