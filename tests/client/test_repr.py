"""The repr of a result is one short line without arrays, bytes or text of a report."""

from pathlib import Path

import numpy as np
import pytest

from client import (
    BatchPrediction,
    CaseInput,
    ConformalSet,
    CxrClient,
    Finding,
    Health,
    IndexResult,
    Prediction,
    SearchResult,
    ServedModel,
    SimilarCase,
)
from client.explanation import Explanation, WordAttribution
from client.images import ReadImage
from client.retrieval_core import StoredCase
from contract.bundle import Bundle
from contract.decisions import Decisions, ServedLabel
from contract.labels import LABEL_KEYS, LABELS
from contract.notes import ImageNotes, ReportNotes

SECRET = "Jane Roe has a left pleural effusion. " * 30
PRINT = "ab" * 32
IMAGE_NOTES = ImageNotes(warnings=("Odd view.",))
FINDINGS = tuple(Finding(x.key, x.name, 0.9 - 0.01 * place, 0.5) for place, x in enumerate(LABELS))
DECISIONS = Decisions.repeat(tuple(ServedLabel(x.key, x.name, 0.5) for x in LABELS))
SERVED = ServedModel(PRINT, "findings", 64, 56, 16, 7, DECISIONS)
CASE = SimilarCase("CXR12", "CXR12", 0.91349, ("cardiac", "pleural"), SECRET, "/scans/12.dcm")
WIDE = np.zeros((22, 49), np.float32)

SHOWN = {
    "Finding('general_radiographic', 0.900, 'present')": FINDINGS[0],
    "ConformalSet(['general_radiographic', 'general_disease', 'atelectasis', +19], stated_recall=0.90)": (
        ConformalSet(LABEL_KEYS, 0.9)
    ),
    "Prediction('study', present=['general_radiographic', 'general_disease', 'atelectasis', +19], warnings=1, "
    "model='abababababab')": Prediction(
        "study",
        FINDINGS,
        WIDE[0],
        PRINT,
        WIDE,
        WIDE,
        SECRET,
        np.zeros((9, 2), np.int32),
        conformal_set=ConformalSet(LABEL_KEYS, 0.9),
        images=(ReadImage(IMAGE_NOTES),),
        report_notes=ReportNotes(9),
    ),
    "SimilarCase('CXR12', 0.913, labels=['cardiac', 'pleural'])": CASE,
    "SearchResult(cases=3, best=SimilarCase('CXR12', 0.913, labels=['cardiac', 'pleural']), warnings=1)": (
        SearchResult((CASE,) * 3, ("Odd view.",))
    ),
    "SearchResult(cases=0, warnings=0)": SearchResult(()),
    "BatchPrediction('study', cases=4, model='abababababab')": BatchPrediction(
        "study", SERVED, np.zeros((4, 22), np.float32), np.zeros((4, 16), np.float32)
    ),
    "Explanation('study', 'cardiac', probability=0.812, warnings=1, model='abababababab')": Explanation(
        kind="study",
        key="cardiac",
        name="Cardiomegaly",
        probability=0.8123,
        threshold=0.5,
        logit=1.0,
        baseline_logit=0.0,
        steps=8,
        convergence_delta=0.1,
        baseline="a grey image",
        fingerprint=PRINT,
        radiograph=np.zeros((99, 99), np.uint8),
        words=(WordAttribution("Jane Roe", 0, 8, 0.1, 0.1),),
        report_text=SECRET,
        image_notes=IMAGE_NOTES,
        report_notes=ReportNotes(9),
    ),
    "ServedModel('abababababab', reads 'findings' and 56 pixels, decides from study, image, text)": SERVED,
    "Health(triton='ready', retrieval='ready', cases=560, model='abababababab')": Health(
        None, None, PRINT, 560
    ),
    "Health(triton='Triton at 127.0.0.1:1 does not answer: …', retrieval='ready', cases=None, model='')": Health(
        "Triton at 127.0.0.1:1 does not answer: is `cxr serve` running there? " * 9, None
    ),
    "IndexResult(indexed=560, refused=1, warned=900)": IndexResult(
        560, refused=(("1", "no"),), warned=(("1", ("Odd.",)),) * 900
    ),
    "Bundle('demo-output/bundle', 'abababababab')": Bundle(
        Path("demo-output/bundle"), PRINT, {"text_mode": "findings"}, SERVED.decisions, {"files": {}}
    ),
    "CaseInput('CXR12', given=['image', 'report'])": CaseInput("CXR12", "CXR12", SECRET.encode(), SECRET),
    f"CaseInput({'1' * 39 + '…'!r}, given=[])": CaseInput("1" * 900, "CXR12"),
    "CxrClient('host:8001', '127.0.0.1:8005')": CxrClient("host:8001"),
    "StoredCase(id='CXR12', study_id='CXR12', labels=('cardiac',), image_ref='12.dcm')": StoredCase(
        "CXR12", "CXR12", WIDE[0], ("cardiac",), SECRET, "12.dcm"
    ),
}


@pytest.mark.parametrize("expected", SHOWN)
def test_a_result_shows_itself_in_one_short_line(expected):
    shown = repr(SHOWN[expected])
    assert shown == expected
    assert len(shown) <= 150
    assert "Jane" not in shown
