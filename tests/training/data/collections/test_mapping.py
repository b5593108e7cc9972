import pytest

from contract.errors import ConfigError
from contract.labels import LABEL_KEYS
from training.data.collections.mapping import LabelMap, MappingRow, load_label_map
from training.data.collections.table import FORMATS

CHEXPERT = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
# What each collection's publication lists; PadChest's tree has too many names for a second list.
PUBLISHED = {
    "nih14": (
        *(
            "Atelectasis",
            "Cardiomegaly",
            "Effusion",
            "Infiltration",
            "Mass",
            "Nodule",
            "Pneumonia",
            "Pneumothorax",
        ),
        *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia", "No Finding"),
        "Infiltrate",  # of the boxes alone
    ),
    "chexpert": CHEXPERT,
    "mimic-cxr": CHEXPERT,
    "kermany": ("NORMAL", "PNEUMONIA bacteria", "PNEUMONIA virus"),
    "vindr": (
        *(
            "Aortic enlargement",
            "Atelectasis",
            "Calcification",
            "Cardiomegaly",
            "Clavicle fracture",
            "Consolidation",
        ),
        *(
            "Edema",
            "Emphysema",
            "Enlarged PA",
            "ILD",
            "Infiltration",
            "Lung Opacity",
            "Lung cavity",
            "Lung cyst",
        ),
        *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
        *(
            "Pulmonary fibrosis",
            "Rib fracture",
            "Other lesion",
            "COPD",
            "Lung tumor",
            "Pneumonia",
            "Tuberculosis",
        ),
        *("Other diseases", "No finding"),
    ),
}
ROW = MappingRow("Heart", "cardiac", "present", "absent", "")


@pytest.mark.parametrize("name", FORMATS)
def test_each_target_is_a_category_and_what_is_left_out_has_a_reason(name):
    rows = load_label_map(name).rows
    assert {row.category for row in rows if row.category} <= set(LABEL_KEYS)
    assert all(
        row.reason.endswith(".")
        for row in rows
        if not row.category or "unknown" in (row.if_present, row.if_absent)
    )
    assert "normal" in {row.category for row in rows}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_published_label_is_mapped_or_left_out(name):
    assert set(load_label_map(name).labels) == set(PUBLISHED[name])


def test_padchest_maps_its_whole_tree():
    labels = load_label_map("padchest").labels
    assert len(labels) == 194
    assert {"pleural effusion", "COPD signs", "unchanged", "exclude", "NSG tube", "hemothorax"} <= set(labels)


def make_map(*rows):
    return LabelMap([MappingRow(*row, *[""] * (5 - len(row))) for row in rows], "the table")


def describe(found):
    absent = set(LABEL_KEYS) - found.present - found.unknown
    return found.present, absent


HEART = (("Heart", "cardiac", "present", "absent"), ("Edema", "cardiac", "present", "absent"))


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"Heart": True}, True),
        ({"Heart": True, "Edema": None}, True),
        ({"Heart": False, "Edema": False}, False),
        ({"Heart": False}, None),  # nobody speaks of edema
        ({"Heart": False, "Edema": None}, None),
        ({"Heart": None, "Edema": None}, None),
        ({}, None),
    ],
)
def test_a_category_is_absent_where_all_its_labels_are(stated, expected):
    present, absent = describe(make_map(*HEART).derive(stated))
    assert ("cardiac" in present, "cardiac" in absent) == (expected is True, expected is False)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"Effusion": False}, False),
        ({"Effusion": False, "Other": None}, None),  # perhaps there
        ({"Effusion": False, "Other": True}, True),
        ({"Effusion": False, "Lesion": True}, None),  # there, but perhaps elsewhere
        ({"Other": False}, None),
    ],
)
def test_doubtful_rows(stated, expected):
    table = make_map(
        ("Effusion", "pleural", "present", "absent"),
        ("Other", "pleural", "present", "unknown", "Hardly ever denied."),
        ("Lesion", "pleural", "unknown", "unknown", "Of the pleura or the lung."),
    )
    present, absent = describe(table.derive(stated))
    assert ("pleural" in present, "pleural" in absent) == (expected is True, expected is False)


NORMAL = (
    *HEART,
    ("Clear", "normal", "present", "absent"),
    ("Tube", "miscellaneous", "present", "unknown", "More."),
)


@pytest.mark.parametrize(
    ("stated", "present", "absent"),
    [
        ({"Clear": True}, {"normal"}, {"cardiac"}),
        ({"Clear": True, "Edema": None}, {"normal"}, set()),
        ({"Clear": True, "Tube": True}, {"miscellaneous"}, {"cardiac", "normal"}),
        ({"Heart": True}, {"cardiac"}, {"normal"}),
        ({"Clear": False}, set(), {"normal"}),
        ({}, set(), set()),
    ],
)
def test_normal_denies_what_can_be_denied_and_stands_alone(stated, present, absent):
    assert describe(make_map(*NORMAL).derive(stated)) == (present, absent)


def test_a_list_denies_what_it_does_not_name():
    found = make_map(*NORMAL).derive_listed(["Edema"])
    assert describe(found) == ({"cardiac"}, {"normal"})
    assert found.labelled
    assert not make_map(*NORMAL).derive({}).labelled


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("Heart", "heart", "present", "absent")], "'heart' is none of the categories"),
        ([("Heart", "cardiac", "yes", "absent")], "if_present must be present or unknown"),
        ([("Heart", "cardiac", "present", "unknown")], "a doubtful row needs a reason"),
        ([("Heart", "")], "needs a reason"),
        (
            [("Heart", "", "present", "absent", "Because.")],
            "needs a reason, and its other cells must be empty",
        ),
        ([HEART[0], HEART[0]], "maps 'Heart' to 'cardiac' twice"),
        ([("", "cardiac", "present", "absent")], "a row without a label"),
    ],
)
def test_a_table_that_is_not_usable(rows, message):
    with pytest.raises(ConfigError, match=message):
        make_map(*rows)
