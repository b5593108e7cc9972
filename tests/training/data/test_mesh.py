"""The MeSH table is held against every heading of the real reports."""

import hashlib
from collections import Counter
from dataclasses import replace

import pytest

from contract.errors import ConfigError
from contract.labels import LABEL_KEYS
from training.data import mesh
from training.data.mesh import (
    COLUMNS,
    ROWS,
    RULES,
    UNMAPPED,
    is_labelled,
    list_doubts,
    make_rules,
    map_heading,
    map_headings,
    read_rows,
    split_heading,
)

# Places that the table foresees and the collection never names together with the head.
FORESEEN = {
    ("calcinosis", "spleen"),
    ("calcinosis", "liver"),
    ("calcinosis", "heart"),
    ("calcinosis", "aortic valve"),
    ("calcinosis", "breast"),
    ("heart", "enlarged"),
}


@pytest.fixture(scope="session")
def headings(real_studies) -> list[str]:
    return sorted({heading for study in real_studies for heading in study.mesh_major})


# --- the table and the collection ------------------------------------------------------------------------------


def test_122_heads_occur(headings):
    assert len({heading.split("/")[0] for heading in headings}) == 122
    # Three of them differ from another one in capitals or blanks alone.
    assert len({split_heading(heading)[0] for heading in headings}) == 119


def test_every_heading_is_mapped_or_left_out_for_a_reason(headings):
    assert len(headings) > 1000
    for heading in headings:
        keys = map_heading(heading)
        assert keys <= set(LABEL_KEYS)
        assert bool(keys) != (split_heading(heading)[0] in UNMAPPED), heading
    assert all(row.reason.endswith(".") for row in ROWS)
    assert all(row.doubt.endswith(".") for row in ROWS if row.doubt)


def test_no_head_of_the_table_is_dead_or_listed_twice(headings):
    assert not RULES.keys() & UNMAPPED.keys()
    assert RULES.keys() | UNMAPPED.keys() == {split_heading(heading)[0] for heading in headings}


def test_no_qualifier_of_the_table_is_dead(headings):
    seen = {(head, name) for head, names in map(split_heading, headings) for name in names}
    listed = {(head, name) for head, rule in RULES.items() for name in rule.by_qualifier}
    assert listed - seen == FORESEEN


def test_the_table_uses_every_category():
    assert {key for row in ROWS for key in row.categories} == set(LABEL_KEYS)


# What the rows gave that were mended; None: there was no such row.
SLIPS = {
    ("bronchiectasis", ""): ("copd_emphysema",),
    ("density", "ribs"): None,
    ("density", "clavicle"): None,
    ("density", "sternum"): None,
    ("thickening", "heart ventricles"): None,
    ("deformity", "thoracic vertebrae"): None,
    ("deformity", "lumbar vertebrae"): None,
    ("deformity", "spine"): None,
}
STUDIES_BEFORE = {
    "general_radiographic": 922,
    "fibrosis_ild": 207,
    "copd_emphysema": 289,
    "msk_trauma": 119,
    "msk_other": 233,
}
STUDIES = {
    "general_radiographic": 915,
    "general_disease": 5,
    "atelectasis": 341,
    "infection": 220,
    "fibrosis_ild": 211,
    "copd_emphysema": 285,
    "cardiac": 416,
    "aortic_vascular": 433,
    "pulmonary_vascular": 90,
    "malignancy": 17,
    "nodule_cyst": 114,
    "granulomatous": 532,
    "lymphadenopathy": 13,
    "pleural": 246,
    "air_leak": 32,
    "msk_trauma": 163,
    "msk_degenerative": 615,
    "msk_other": 203,
    "hernia_diaphragm": 167,
    "abdominal_gi": 15,
    "miscellaneous": 463,
    "normal": 1391,
}


def test_studies_of_each_category(real_studies):
    assert Counter(key for study in real_studies for key in study.labels) == STUDIES


def test_nothing_but_the_slips_changed(monkeypatch, headings, real_studies):
    """With the mended rows as they were, every heading means what it meant when the table was code."""
    rows = [
        row
        if (row.head, row.qualifier) not in SLIPS
        else replace(row, categories=SLIPS[row.head, row.qualifier])
        for row in ROWS
        if SLIPS.get((row.head, row.qualifier), ()) is not None
    ]
    assert len(ROWS) - len(rows) == len(SLIPS) - 1
    monkeypatch.setattr(mesh, "RULES", make_rules(rows))
    meant = sorted(f"{heading}: {' '.join(sorted(map_heading(heading)))}" for heading in headings)
    digest = hashlib.sha256("\n".join(meant).encode()).hexdigest()
    assert digest == "6ea762f3d811e6a86ca54bb798e917c4b2f4a99ddcb0b7e175d9f8cc273249f9"
    before = Counter(key for study in real_studies for key in map_headings(study.mesh_major))
    assert before == STUDIES | STUDIES_BEFORE


def test_doubts_are_listed_by_category():
    doubts = list_doubts()
    assert list(doubts) == [key for key in LABEL_KEYS if key in doubts]
    assert ["airspace disease", "consolidation"] in doubts["infection"].values()
    assert "cicatrix" in [heading for headings in doubts["fibrosis_ild"].values() for heading in headings]
    assert ["lung/hyperdistention", "diaphragm/flattened"] in doubts["copd_emphysema"].values()
    assert "normal" not in doubts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not begin with head,qualifier"),
        ("head,categories\n", "does not begin with head,qualifier"),
        ("{}lung,,copd_emphysema,Why.\n", "Line 2 .* has 4 columns and not 5"),
        ("{}lung,,emphysema,Why.,\n", "Line 2 .* unknown category 'emphysema'"),
        ("{}lung,,,Why.,\nlung,,normal,,\n", "Line 3 .* lacks its reason"),
        ("{},,normal,Why.,\n", "Line 2 .* lacks its head"),
        ("{}lung,,normal,Why.,\nlung,,cardiac,Why.,\n", "Line 3 .* repeats 'lung'"),
        ("{}lung,azygos lobe,normal,Why.,\n", "qualifiers of 'lung', and no categories without one"),
        ("{}lung,,,Why.,\nlung,azygos lobe,normal,Why.,\n", "qualifiers of 'lung', and no categories"),
        ('{}"lung,,normal,Why.,\n', "cannot be read"),
        ("{}l\xfcng,,normal,Why.,\n", "cannot be read"),
    ],
)
def test_a_broken_table_is_refused(text, words, tmp_path):
    path = tmp_path / "mesh.csv"
    path.write_bytes(text.replace("{}", ",".join(COLUMNS) + "\n").encode("latin-1"))
    with pytest.raises(ConfigError, match=words) as info:
        read_rows(path)
    assert str(path) in str(info.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"mesh\.csv cannot be read"):
        read_rows(tmp_path / "mesh.csv")


def test_the_order_of_qualifiers_does_not_matter(headings):
    for heading in headings:
        head, names = split_heading(heading)
        assert map_heading("/".join((head, *reversed(names)))) == map_heading(heading)


# --- single headings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("normal", "normal"),
        ("Lung/hyperdistention", "copd_emphysema"),
        ("Lung/bilateral/hyperdistention/mild", "copd_emphysema"),
        ("Lung/hypoinflation", "general_radiographic"),
        ("Lung/hilum/lymph nodes/bilateral/enlarged", "lymphadenopathy"),
        ("Lung/hilum/prominent", "general_radiographic"),
        ("Lung/azygos lobe", "miscellaneous"),
        ("Lung/blood vessels/enlarged", "pulmonary_vascular"),
        ("Blood Vessels/lung/prominent", "pulmonary_vascular"),
        ("Aorta/tortuous", "aortic_vascular"),
        ("Aorta, Thoracic/tortuous/mild", "aortic_vascular"),
        ("Aorta/obscured", "general_radiographic"),
        ("Atherosclerosis/aorta", "aortic_vascular"),
        ("Costophrenic Angle/blunted", "pleural"),
        ("Costophrenic Angle/left/blunted/mild", "pleural"),
        ("Costophrenic Angle/right/obscured", "general_radiographic"),
        ("Calcinosis", "general_radiographic"),
        ("Calcinosis/lung/hilum", "granulomatous"),
        ("Calcinosis/mediastinum/lymph nodes", "granulomatous"),
        ("Calcinosis/aorta", "aortic_vascular"),
        ("Calcinosis/aorta/lymph nodes", "aortic_vascular granulomatous"),
        ("Calcinosis/mitral valve", "cardiac"),
        ("Calcinosis/pleura/multiple", "pleural"),
        ("Calcinosis/breast implants", "miscellaneous"),
        ("Deformity/ribs", "msk_trauma"),
        ("Deformity/clavicle/left", "msk_trauma"),
        ("Deformity/thoracic vertebrae/anterior/mild", "msk_trauma"),
        ("Deformity/lumbar vertebrae", "msk_trauma"),
        ("Deformity/spine", "msk_trauma"),
        ("Deformity/humerus/left", "msk_other"),
        ("Bronchiectasis/upper lobe/bilateral", "fibrosis_ild"),
        ("Density/ribs/left/anterior", "msk_other"),
        ("Density/lung/base/left", "general_radiographic"),
        ("Thickening/heart ventricles", "cardiac"),
        ("Deformity/lung/hilum/right", "general_radiographic"),
        ("Deformity/heart/right", "general_radiographic"),
        ("Deformity/pleura/apex/right", "pleural"),
        ("Deformity/breast", "miscellaneous"),
        ("Cicatrix/lung/base/left", "fibrosis_ild"),
        ("Cicatrix/pleura/apex/bilateral", "pleural"),
        ("Cicatrix/ribs/left", "msk_other"),
        ("Thickening/pleura/apex", "pleural"),
        ("Thickening/bronchi", "general_radiographic"),
        ("Spine/degenerative", "msk_degenerative"),
        ("Shoulder/right/prominent/mild", "msk_other"),
        ("Diaphragm/right/elevated", "hernia_diaphragm"),
        ("Diaphragm/bilateral/flattened", "copd_emphysema"),
        ("Cardiac Shadow/enlarged", "cardiac"),
        ("Cardiac Shadow/obscured/severe", "general_radiographic"),
        ("Hydropneumothorax/right", "air_leak pleural"),
        ("Cysts/humerus/left", "msk_other"),
        ("Cysts/lung/upper lobe/left", "nodule_cyst"),
        ("Technical Quality of Image Unsatisfactory", ""),
        ("No Indexing", ""),
    ],
)
def test_heading(heading, keys):
    assert map_heading(heading) == set(keys.split())
    assert map_heading(heading.upper()) == set(keys.split())
    assert map_heading(heading.replace("/", " / ").replace(" ", "  ")) == set(keys.split())


@pytest.mark.parametrize("heading", ["Kryptonite/lung", "Pneumonia Right", "", "/lung", "right/Pneumonia"])
def test_unknown_head_is_named(heading):
    with pytest.raises(ConfigError, match="unknown") as info:
        map_headings(["normal", heading])
    assert repr(heading) in str(info.value)
    assert "training/data/mesh.csv" in str(info.value)


# --- reports ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("major", "keys", "labelled"),
    [
        ([], "", False),
        (["normal"], "normal", True),
        (["No Indexing"], "", False),
        (["no  indexing "], "", False),
        (["Technical Quality of Image Unsatisfactory"], "", False),
        (["Technical Quality of Image Unsatisfactory", "Scoliosis"], "msk_other", True),
        (["normal", "No Indexing"], "normal", True),
        (["normal", "Opacity/lung"], "general_radiographic", True),
        (["Cardiomegaly/mild", "Aorta/tortuous", "Heart Failure"], "cardiac aortic_vascular", True),
    ],
)
def test_report(major, keys, labelled):
    assert map_headings(major) == set(keys.split())
    assert is_labelled(major) is labelled


def test_a_report_that_nobody_indexed_is_neither_normal_nor_labelled(real_studies):
    studies = [study for study in real_studies if "No Indexing" in study.mesh_major]
    assert len(studies) == 95
    assert not any(study.labelled or study.labels for study in studies)


def test_labelled_studies_are_those_with_a_label(real_studies):
    assert all(study.labelled == bool(study.labels) for study in real_studies)
    assert sum(not study.labelled for study in real_studies) == 101  # six more name the bad exposure alone


def test_normal_stands_alone(real_studies):
    assert all(len(study.labels) == 1 for study in real_studies if "normal" in study.labels)
