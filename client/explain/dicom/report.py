"""The findings of a case as a Structured Report: TID 1500, one group (TID 1501) for each finding."""

from collections.abc import Sequence
from typing import Any

from client.explain.dicom import codes
from client.explain.dicom.device import (
    ALGORITHM,
    MANUFACTURER,
    RESEARCH,
    Series,
    describe_equipment,
    find_version,
    make_device_uid,
    make_uid,
    place_in_series,
)
from client.explain.dicom.source import Source
from client.explanation import Explanation
from client.prediction import Finding
from contract.notes import NOTICE


def make_report(source: Source, explanations: Sequence[Explanation], series: Series) -> Any:
    """Return the report of a case: all findings, and for those that were explained, what to know about their maps.

    Args:
        source: The radiograph.
        explanations: Explanations of the case, at least one.
        series: The series of the report.
    """
    from highdicom import sr

    first = explanations[0]
    by_key = {one.key: one for one in explanations}
    groups = [_make_group(source, finding, first, by_key.get(finding.key)) for finding in first.findings]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=make_device_uid(first.fingerprint),
        name=ALGORITHM,
        manufacturer_name=MANUFACTURER,
        model_name=ALGORITHM,
        serial_number=first.fingerprint[:64],
    )
    observer = sr.ObserverContext(
        observer_type=_code(("121007", "DCM", "Device")), observer_identifying_attributes=device
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_code(codes.CHEST_RADIOGRAPHY),
        imaging_measurements=groups,
    )
    equipment = describe_equipment(first.fingerprint)
    made = sr.ComprehensiveSR(
        evidence=[source.reference],
        content=content[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[_describe_scheme()],
        **equipment,
        **place_in_series(series, 1),
    )
    source.copy_patient(made)
    return made


def list_comments(explanation: Explanation) -> list[str]:
    """Return the sentences that a report states beside a finding that was explained."""
    maps = [found.title for found in explanation.maps if not found.caveat]
    drawn = [f"Maps in this study: {', '.join(maps)}."] if maps else ["No map is in this study."]
    return [f"{RESEARCH}. {NOTICE}", *drawn, *explanation.remarks, *explanation.warnings]


def _make_group(source: Source, finding: Finding, first: Explanation, explained: Explanation | None) -> Any:
    from highdicom import sr

    together = [f"Image {first.view} of {first.views} that were read together"] if first.views > 1 else []
    algorithm = sr.AlgorithmIdentification(
        name=ALGORITHM,
        version=find_version(),
        parameters=[
            f"Model fingerprint {first.fingerprint}",
            f"Read from {'image and report' if first.kind == 'study' else first.kind}",
            f"Trained on {first.trained_on}",
            *together,
        ],
        manufacturer=MANUFACTURER,
    )
    values = [(codes.CERTAINTY, finding.probability)]
    if finding.threshold is not None:
        values.append((codes.THRESHOLD, finding.threshold))
    image = sr.SourceImageForMeasurementGroup(source.reference.SOPClassUID, source.reference.SOPInstanceUID)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=make_uid(), identifier=finding.key),
        finding_type=_code(codes.code_finding(finding.key)),
        algorithm_id=algorithm,
        measurements=[
            sr.Measurement(name=_code(name), value=round(100 * value, 2), unit=_code(codes.PERCENT))
            for name, value in values
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(
                name=_code(codes.PRESENCE), value=_code(codes.code_decision(finding.decision))
            )
        ],
        source_images=[image],
    )
    comments = [] if explained is None else list_comments(explained)
    if finding.remark:
        comments.append(f"{finding.remark.capitalize()}.")
    group[0].ContentSequence.extend(
        sr.TextContentItem(name=_code(codes.COMMENT), value=text, relationship_type="CONTAINS")
        for text in comments or [f"{RESEARCH}."]
    )
    return group


def _code(triple: codes.Triple) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(*triple)


def _describe_scheme() -> Any:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(
        codes.SCHEME, name=codes.SCHEME_NAME, responsible_organization=MANUFACTURER
    )
