"""Prompts: what counts as a finding, how it is put into sentences, and the score made of similarities."""

import numpy as np
import pytest

from contract.errors import ConfigError, InputError
from contract.prompts import (
    ABSENT_TEMPLATES,
    MAX_FINDING_CHARS,
    PRESENT_TEMPLATES,
    average_prompts,
    clean_findings,
    compute_scores,
    frame_prompt,
    make_prompts,
)
from contract.report.text import TEXT_MODES, read_report

REFUSED = {
    "empty": ("", "is empty"),
    "blank": (" \t\n", "is empty"),
    "punctuation": ("...?", "is empty"),
    "de-identified": ("XXXX.", "is empty"),
    "too long": ("a" * (MAX_FINDING_CHARS + 1), "201 characters; at most 200"),
    "control character": ("rib\x00fracture", "printed"),
    "surrogate": ("rib \udcff fracture", "printed"),
    "denial": ("No pneumothorax", "not a sentence"),
    "sentence": ("There is an effusion.", "not a sentence"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_finding_is_refused_without_repeating_it(name):
    text, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as caught:
        clean_findings([text])
    assert str(caught.value).startswith("The finding ")
    assert not text.strip() or text not in str(caught.value)
    with pytest.raises(InputError, match=rf"^Finding 2 .*{words}"):
        clean_findings(["effusion", text])


def test_no_finding_at_all():
    with pytest.raises(ConfigError, match="at least one"):
        clean_findings([])


def test_findings_are_cleaned():
    given = ["  rib \n fracture. ", "XXXX nodule", "northern infiltrate", "a" * MAX_FINDING_CHARS]
    assert clean_findings(given) == ("rib fracture", "nodule", "northern infiltrate", "a" * MAX_FINDING_CHARS)


def test_sentences_state_and_deny():
    prompts = make_prompts("rib fracture")
    assert prompts.present[:2] == ("Rib fracture.", "There is rib fracture.")
    assert prompts.absent[:2] == ("No rib fracture.", "There is no rib fracture.")
    assert all("rib fracture" in sentence.lower() for side in vars(prompts).values() for sentence in side)
    assert make_prompts("{0} {x}").absent[0] == "No {0} {x}."  # braces are words like others


@pytest.mark.parametrize(
    ("finding", "present", "absent"),
    [
        ("a mass", "There is a mass.", ("No mass.", "There is no mass.", "No evidence of a mass.")),
        ("An elevated hemidiaphragm", "There is an elevated hemidiaphragm.", ("No elevated hemidiaphragm.",)),
        ("the usual line", "The usual line is seen.", ("No usual line is seen.",)),
        ("low lung volumes", "Low lung volumes are present.", ("There are no low lung volumes.",)),
        ("degenerative changes of the spine", "Degenerative changes of the spine are seen.", ()),
        ("thickening of the pleural margins", "Thickening of the pleural margins is seen.", ()),
        ("atelectasis", "There is atelectasis.", ("No atelectasis is seen.", "Negative for atelectasis.")),
        ("free gas", "There is free gas.", ("There is no free gas.",)),
        ("calcified granulomas", "There are calcified granulomas.", ("There are no calcified granulomas.",)),
        ("areas of opacity", "Areas of opacity are seen.", ("No areas of opacity are seen.",)),
        ("a", "There is a.", ("No a.",)),
    ],
)
def test_sentences_are_grammatical(finding, present, absent):
    prompts = make_prompts(finding)
    assert present in prompts.present
    assert set(absent) < set(prompts.absent)
    assert len(prompts.present) == len(PRESENT_TEMPLATES)


def test_several_names_share_a_side():
    prompts = make_prompts("effusion", "fluid")
    assert len(prompts.present) == 2 * len(PRESENT_TEMPLATES)
    assert len(prompts.absent) == 2 * len(ABSENT_TEMPLATES)
    assert {"Effusion.", "Fluid."} < set(prompts.present)


@pytest.mark.parametrize("mode", [mode for mode in TEXT_MODES if mode != "findings_masked"])
@pytest.mark.parametrize("finding", ["rib fracture", "impression: a mass", "<b>mass</b>", "ε-shaped opacity"])
def test_every_text_mode_reads_the_sentence_and_nothing_else(mode, finding):
    for sentence in make_prompts(*clean_findings([finding])).absent:
        assert read_report(frame_prompt(sentence), mode) == sentence


def test_average_has_unit_length_and_the_direction_of_the_mean():
    average = average_prompts(np.array([[1, 0, 0], [0, 1, 0]], np.float32))
    np.testing.assert_allclose(average, [0.5**0.5, 0.5**0.5, 0], atol=1e-7)
    assert np.isfinite(average_prompts(np.array([[1.0], [-1.0]]))).all()


def test_score_is_the_softmax_over_both_sides():
    present, absent = np.array([0.3, 0.2, -1.0]), np.array([0.3, -0.1, 1.0])
    scores = compute_scores(present, absent, 0.125)
    ours, theirs = np.exp(present / 0.125), np.exp(absent / 0.125)
    np.testing.assert_allclose(scores, ours / (ours + theirs), atol=1e-12)
    assert scores[0] == 0.5
    np.testing.assert_allclose(compute_scores(absent, present, 0.125), 1 - scores, atol=1e-12)
    assert compute_scores(np.array(1.0), np.array(-1.0), 1e-6) == 1  # no overflow
