"""The MeSH table is held against every heading of the real reports."""

import pytest

from contract.errors import ConfigError
from contract.labels import LABEL_KEYS
from training.mesh import RULES, UNMAPPED, is_labelled, map_heading, map_headings, split_heading

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
    assert all(reason.endswith(".") for reason in UNMAPPED.values())


def test_no_head_of_the_table_is_dead_or_listed_twice(headings):
    assert not RULES.keys() & UNMAPPED.keys()
    assert RULES.keys() | UNMAPPED.keys() == {split_heading(heading)[0] for heading in headings}


def test_no_qualifier_of_the_table_is_dead(headings):
    seen = {(head, name) for head, names in map(split_heading, headings) for name in names}
    listed = {(head, name) for head, rule in RULES.items() for name in rule.by_qualifier}
    assert listed - seen == FORESEEN


def test_all_categories_of_the_table_are_label_keys():
    used = set()
    for rule in RULES.values():
        for keys in (rule.default, *rule.by_qualifier.values()):
            assert keys
            used |= set(keys)
    assert used == set(LABEL_KEYS)


def test_every_category_has_positive_studies(real_studies):
    assert {key for study in real_studies for key in study.labels} == set(LABEL_KEYS)
    assert sum("normal" in study.labels for study in real_studies) == 1391


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
        ("Deformity/thoracic vertebrae", "msk_other"),
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
    assert "training/mesh.py" in str(info.value)


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
