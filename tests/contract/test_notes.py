"""Notes on a case survive the way from server to client, and nothing else is taken for notes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ArtifactError
from contract.image.header import ImageHeader, list_warnings
from contract.image.read import Radiograph
from contract.image.view import VIEWS
from contract.notes import (
    ImageNotes,
    ReadPart,
    ReportNotes,
    join_warnings,
    note_image,
    note_reports,
    warn_of_view,
)
from contract.report.names import SECTIONS, Part
from contract.report.text import TokenBatch, parse_parts

IMAGE = ImageNotes("LATERAL", "L", "CR", ("The image is a lateral view.", "Größe: 3 µm"))
REPORT = ReportNotes(
    64, True, ("The report is longer than 64 tokens.",), (ReadPart("history", "indication", 2),)
)

lines = st.text(max_size=60).filter(str.isprintable)
warnings = st.lists(lines, max_size=5).map(tuple)


@given(st.builds(ImageNotes, st.sampled_from(VIEWS), lines, lines, warnings))
def test_image_notes_come_back_as_they_were(notes):
    assert ImageNotes.from_json(notes.to_json()) == notes


parts = st.builds(ReadPart, lines, st.sampled_from([*SECTIONS, ""]), st.integers(0, 99))


@given(
    st.builds(
        ReportNotes, st.integers(0, 10**6), st.booleans(), warnings, st.lists(parts, max_size=5).map(tuple)
    )
)
def test_report_notes_come_back_as_they_were(notes):
    assert ReportNotes.from_json(notes.to_json()) == notes


def test_the_json_is_what_the_readme_says():
    assert json.loads(IMAGE.to_json()) == {
        "view": "LATERAL",
        "laterality": "L",
        "modality": "CR",
        "warnings": list(IMAGE.warnings),
    }
    assert json.loads(REPORT.to_json()) == {
        "tokens": 64,
        "truncated": True,
        "warnings": list(REPORT.warnings),
        "parts": [{"heading": "history", "section": "indication", "sentences": 2}],
    }
    assert "µ".encode() in IMAGE.to_json()  # as it is, not as an escape


def test_image_notes_are_those_of_the_header():
    header = ImageHeader("DICOM", modality="DX", view="LATERAL", laterality="R", frames=3, body_part="HAND")
    pixels = np.zeros((1, 8, 8), np.uint8)
    notes = note_image(Radiograph(pixels, header, ("It is black.",)))
    assert (notes.view, notes.laterality, notes.modality) == ("LATERAL", "R", "DX")
    assert notes.warnings == (*list_warnings(header), "It is black.")
    assert len(notes.warnings) == 4
    usual = Radiograph(pixels, ImageHeader("DICOM", view="PA", body_part="CHEST"))
    assert note_image(usual).warnings == ()


@pytest.mark.parametrize(("mode", "names_impression"), [("full", True), ("findings", False)])
def test_report_notes_tell_what_was_cut(mode, names_impression):
    ids = np.ones((2, 64), np.int64)
    mask = ids.copy()
    mask[1, 10:] = 0
    batch = TokenBatch(ids, mask, np.zeros((2, 64, 2), np.int32), (True, False), (False, False))
    cut, whole = note_reports(batch, [(), ()], text_mode=mode, max_length=64)
    assert whole == ReportNotes(10)
    assert (cut.tokens, cut.truncated) == (64, True)
    (sentence,) = cut.warnings
    assert "longer than 64 tokens" in sentence
    assert "not read" in sentence
    assert ("impression" in sentence) is names_impression


def note(text: str) -> ReportNotes:
    ids = np.ones((1, 64), np.int64)
    batch = TokenBatch(ids, ids, np.zeros((1, 64, 2), np.int32), (False,), (False,))
    return note_reports(batch, [parse_parts(text)], text_mode="findings", max_length=64)[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Clear lungs. No effusion.", "findings 2 sentences (no heading)"),
        (
            "INDICATION: Cough. FINDINGS: Clear lungs. No mass. IMPRESSION: 1. Normal.",
            "indication 1 sentence, findings 2 sentences, impression 1 sentence",
        ),
        (
            "CLINICAL HISTORY: Cough. TECHNIQUE: PA.\n\nThe lungs are clear.\n\nOPINION: Normal.",
            'indication 1 sentence ("clinical history"), findings 1 sentence (no heading), '
            'impression 1 sentence ("opinion"); left out 1 sentence ("technique")',
        ),
        (
            "FINDINGS: Clear.\nIMPRESSION: Normal.\nDr. Jane Doe",
            'findings 1 sentence, impression 1 sentence; left out 2 sentences ("signature")',
        ),
    ],
)
def test_report_notes_say_what_was_read_as_what(text, said):
    assert note(text).describe_parts() == said
    assert not {"Cough", "Jane", "PA", "mass"} & {*note(text).to_json().decode().replace('"', " ").split()}


def test_several_examinations_are_told():
    chest = "EXAM: Chest x-ray\nFINDINGS: Clear.\nIMPRESSION: Normal.\n"
    assert note(chest).warnings == ()
    assert ["several examinations" in told for told in note(chest + chest).warnings] == [True]


def test_no_words_of_a_report_stand_in_the_parts():
    parts = (Part("findings", "findings", "A secret. And more."), Part("findings", "findings", "Third."))
    ids = np.ones((1, 64), np.int64)
    batch = TokenBatch(ids, ids, np.zeros((1, 64, 2), np.int32), (False,), (False,))
    (notes,) = note_reports(batch, [parts], text_mode="findings", max_length=64)
    assert notes.parts == (ReadPart("findings", "findings", 3),)


def test_joined_warnings_keep_their_order_and_come_once():
    assert join_warnings(None, None) == ()
    assert join_warnings(IMAGE, None, REPORT, IMAGE) == (*IMAGE.warnings, *REPORT.warnings)


def change(notes, **values) -> bytes:
    return json.dumps({**notes.to_dict(), **values}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        change(IMAGE, view="OBLIQUE"),
        change(IMAGE, view=["PA"]),
        change(IMAGE, extra=1),
        change(IMAGE, laterality=None),
        change(IMAGE, modality="\x1b[2J"),
        change(IMAGE, warnings="one"),
        change(IMAGE, warnings=[1]),
        change(IMAGE, warnings=["two\nlines"]),
        change(IMAGE, warnings=["x" * 10_000]),
        change(IMAGE, warnings=["x"] * 1000),
        REPORT.to_json(),
    ],
)
def test_anything_else_is_no_image_note(data):
    with pytest.raises(ArtifactError):
        ImageNotes.from_json(data)


@pytest.mark.parametrize(
    "data",
    [
        change(REPORT, tokens=-1),
        change(REPORT, tokens=True),
        change(REPORT, tokens=1.5),
        change(REPORT, truncated=1),
        change(REPORT, warnings=["\x00"]),
        change(REPORT, parts=[1]),
        change(REPORT, parts=[{"heading": "a", "section": "findings"}]),
        change(REPORT, parts=[{"heading": "a", "section": "other", "sentences": 1}]),
        change(REPORT, parts=[{"heading": "\x1b", "section": "", "sentences": 1}]),
        change(REPORT, parts=[{"heading": "a", "section": "", "sentences": True}]),
        change(REPORT, parts=[REPORT.to_dict()["parts"][0]] * 999),
        IMAGE.to_json(),
    ],
)
def test_anything_else_is_no_report_note(data):
    with pytest.raises(ArtifactError):
        ReportNotes.from_json(data)


@pytest.mark.parametrize(
    ("view", "lateral", "expected"),
    [
        ("UNKNOWN", 0.95, "The model sees a lateral radiograph (0.95); it learned mostly from frontal ones."),
        ("UNKNOWN", 0.89, None),
        ("UNKNOWN", 0.01, None),
        ("LATERAL", 0.95, None),  # the header's own warning says it
        ("LATERAL", 0.5, None),
        (
            "LATERAL",
            0.03,
            "The model sees a frontal radiograph (0.97) where the header says LATERAL: one of the two is wrong.",
        ),
        (
            "PA",
            0.95,
            "The model sees a lateral radiograph (0.95) where the header says PA: one of the two is wrong.",
        ),
        (
            "FRONTAL",
            0.9,
            "The model sees a lateral radiograph (0.90) where the header says FRONTAL: one of the two is wrong.",
        ),
        ("AP", 0.5, None),
        ("PA", 0.02, None),
        ("PA", None, None),
    ],
)
def test_a_model_and_a_header_that_contradict_each_other_are_told(view, lateral, expected):
    assert warn_of_view(ImageNotes(view), lateral) == (() if expected is None else (expected,))


def test_without_an_image_there_is_no_view_to_warn_of():
    assert warn_of_view(None, 0.99) == ()
