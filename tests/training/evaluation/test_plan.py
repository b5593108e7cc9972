"""Which studies are asked and how: nothing is its own control, and all rows are about the same studies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ConfigError
from contract.report.text import TEXT_MODES, read_report, select_text
from training.evaluation.plan import (
    Way,
    choose_complete,
    draw_strangers,
    list_plain_ways,
    list_ways,
    make_cases,
    select_studies,
)
from training.evaluation.predict import frame_report, frame_text

from .conftest import make_row, make_studies


def test_labelled_studies_are_selected_in_the_order_of_the_table():
    rows = [make_row(number, labelled=number != 2) for number in range(5)]
    studies = select_studies(rows, ["CXR4", "CXR2", "CXR0"])
    assert studies.study_ids == ("CXR0", "CXR4")
    assert studies.patient_ids == ("0", "4")
    assert set(studies.texts) == set(TEXT_MODES)
    assert studies.texts["full"][1].endswith("film 4 summary 4")
    assert studies.texts["indication"][0] == ""
    assert list(studies.has_text("indication")) == [False, True]


def test_complete_studies_can_be_read_in_every_way():
    rows = [make_row(0), make_row(1, image=False), make_row(2, findings="", impression="")]
    ids = [row["study_id"] for row in rows]
    assert choose_complete(select_studies(rows, ids), "findings").study_ids == ("CXR0",)
    texts_only = select_studies([make_row(number, image=False) for number in range(3)], ids)
    assert len(choose_complete(texts_only, "findings")) == 3
    images_only = select_studies(rows[2:], ids)
    assert choose_complete(images_only, "findings").study_ids == ("CXR2",)
    with pytest.raises(ConfigError, match="can be read"):
        choose_complete(
            select_studies([make_row(2, image=False, findings="", impression="")], ids), "findings"
        )
    with pytest.raises(ConfigError, match="can be read"):
        choose_complete(select_studies([rows[1], rows[2]], ids), "findings")


def test_every_way_has_a_name_of_its_own():
    for images, texts in ((True, True), (False, True), (True, False)):
        studies = make_studies(
            range(4), image=images, **({} if texts else {"findings": "", "impression": ""})
        )
        ways = list_ways(studies, "findings")
        assert len({way.key for way in ways}) == len({way.title for way in ways}) == len(ways)
        assert any(way.image for way in ways) is images
        assert any(way.text is not None for way in ways) is texts
        plain = list_plain_ways(studies, "findings")
        assert set(plain) <= set(ways)
        assert len(plain) == (3 if images and texts else 1)
    ways = list_ways(make_studies(range(4)), "full")
    assert Way(True, "full", "image") in ways
    assert sum(bool(way.swapped) for way in ways) == 3


def test_cases_hold_what_their_way_asks_for():
    studies = make_studies(range(10))
    for way in list_ways(studies, "findings"):
        cases, rows = make_cases(studies, way)
        assert len(rows) == (8 if way.text == "indication" else 10)
        for case, row in zip(cases, rows, strict=True):
            assert case.study_id == studies.study_ids[row]
            assert (case.image is not None) == way.image
            assert (case.text is not None) == (way.text is not None)
            own_image = case.image == studies.get_image(row)
            own_text = way.text is None or case.text == studies.texts[way.text][row]
            if way.image:
                assert own_image == (way.swapped != "image")
            assert own_text == (way.swapped != "report")


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.integers(0, 3))
def test_a_stranger_is_another_patient(patients, seed):
    names = [str(patient) for patient in patients]
    chosen = draw_strangers(names, seed)
    assert sorted(chosen) == list(range(len(names)))
    most = max(names.count(name) for name in names)
    if 2 * most <= len(names):
        assert all(names[row] != names[other] for row, other in enumerate(chosen))


def test_strangers_are_drawn_by_the_seed():
    names = [str(number) for number in range(50)]
    assert (draw_strangers(names, 1) == draw_strangers(names, 1)).all()
    assert (draw_strangers(names, 1) != draw_strangers(names, 2)).any()
    assert len(draw_strangers([], 0)) == 0


@pytest.mark.parametrize("model_mode", ["indication", "findings", "full"])
def test_a_framed_text_is_read_word_for_word_by_any_model(model_mode):
    for mode in TEXT_MODES:
        text = make_studies([1]).texts[mode][0]
        assert select_text(frame_report(text, model_mode), model_mode) == text
        assert read_report(frame_text(text, model_mode), model_mode) == text
