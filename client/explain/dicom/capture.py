"""A picture of an explanation as a Secondary Capture (DICOM PS3.3 A.8.1).

The radiograph keeps its place and its size, so its pixel spacing holds; the legend lies below it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from client.explain.dicom.codes import PROCESSED_IMAGE
from client.explain.dicom.device import RESEARCH, Series, describe_equipment, place_in_series
from client.explain.dicom.source import Source
from client.explain.dicom.strip import draw_colour_strip, draw_text_strip
from client.explain.geometry import Picture
from client.explain.overlay import (
    LIMITS,
    describe_finding,
    describe_map,
    render_map,
    render_plain,
    write_text,
)
from client.explanation import Explanation, ImageMap
from contract.notes import NOTICE


def draw_map(explanation: Explanation, found: ImageMap) -> Picture:
    """Return the picture (H, columns, 3) of a map over the radiograph, with its legend and what to know about it."""
    top = _stamp(render_map(explanation, found))
    columns = top.shape[1]
    title = f"{describe_finding(explanation)}. {describe_map(explanation, found)}."
    text = [LIMITS, *explanation.remarks, *explanation.warnings, _sign(explanation)]
    legend = [
        draw_text_strip([title], columns, bold=True),
        draw_colour_strip(found, columns),
        draw_text_strip(text, columns),
    ]
    return np.vstack([top, *legend])


def draw_without_map(explanations: Sequence[Explanation]) -> Picture:
    """Return the picture (H, columns, 3) of the radiograph with the findings and the reasons why there is no map."""
    first = explanations[0]
    top = _stamp(render_plain(first))
    remarks = dict.fromkeys(text for one in explanations for text in (*one.remarks, *one.warnings))
    paragraphs = [f"{describe_finding(one)}." for one in explanations]
    return np.vstack([top, draw_text_strip([*paragraphs, *remarks, _sign(first)], top.shape[1])])


def make_capture(source: Source, picture: Picture, fingerprint: str, series: Series, number: int) -> Any:
    """Return a picture as a Secondary Capture of the study of the radiograph.

    Args:
        source: The radiograph.
        picture: (H, columns, 3) uint8, RGB.
        fingerprint: Fingerprint of the model.
        series: The series of the pictures.
        number: Number of the picture in it, from 1 on.
    """
    from highdicom.sc import SCImage

    made = SCImage(
        np.ascontiguousarray(picture),
        "RGB",
        8,
        "PATIENT",
        study_instance_uid=source.reference.StudyInstanceUID,
        patient_orientation=("L", "F"),  # replaced below by what the file states
        **describe_equipment(fingerprint),
        **place_in_series(series, number),
    )
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.PatientOrientation = ""
    made.DerivationDescription = (
        f"Explanation of a finding drawn over the radiograph. {RESEARCH}. Model {fingerprint}."
    )
    made.ImageComments = f"{RESEARCH}."
    made.SourceImageSequence = [_refer_to(source)]
    if (spacing := source.spacing) is not None:
        made.PixelSpacing = list(spacing)
        if "PixelSpacing" in source.dataset:
            source.copy(made, "PixelSpacingCalibrationType", "PixelSpacingCalibrationDescription")
    source.copy(made, "PatientOrientation", "BurnedInAnnotation")
    source.copy(made, "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
    source.copy_body_part(made)
    source.copy_patient(made)
    return made


def _sign(explanation: Explanation) -> str:
    return f"{RESEARCH}. Model {explanation.fingerprint[:12]}. {NOTICE}"


def _stamp(picture: Picture) -> Picture:
    """Burn in that the picture is for research only, into the radiograph itself, so that no crop loses it."""
    longest = max(picture.shape[:2])
    scale = min(longest / 900, picture.shape[1] / 620)
    return write_text(picture, RESEARCH, (round(12 * scale), round(34 * scale)), scale)


def _refer_to(source: Source) -> Any:
    from pydicom import Dataset

    item, purpose = Dataset(), Dataset()
    item.ReferencedSOPClassUID = source.reference.SOPClassUID
    item.ReferencedSOPInstanceUID = source.reference.SOPInstanceUID
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = PROCESSED_IMAGE
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item
