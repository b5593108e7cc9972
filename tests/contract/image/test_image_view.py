"""How the evidence of headers is read and weighed."""

import pytest
from pydicom.dataset import Dataset

from contract.image import view as image_view
from contract.image.elements import Elements, fill_record
from contract.image.header import ImageHeader, describe_dicom, read_image_header
from contract.image.view import ViewVerdict, is_trusted, rank_view, weigh_study, weigh_view
from contract.image.view_clues import ViewClues, describe_shape

AGFA = {"Manufacturer": "Agfa-Gevaert AG"}
SIEMENS = {"Manufacturer": "SIEMENS"}
PRESET = {"ViewPosition": "PA", "PatientOrientation": ["L", "F"]}


def make_dataset(rows=2048, columns=2048, creator="", **elements) -> Dataset:
    dataset = Dataset()
    dataset.Rows, dataset.Columns = rows, columns
    for name, value in elements.items():
        setattr(dataset, name, value)
    if creator:
        dataset.add_new(0x00190010, "LO", creator)
    return dataset


def describe(**settings) -> ImageHeader:
    return describe_dicom(fill_record(Elements(make_dataset(**settings))))


def read(**settings) -> ViewClues:
    return describe(**settings).clues


@pytest.mark.parametrize(
    ("elements", "view", "source"),
    [
        ({}, "UNKNOWN", image_view.SHAPE),
        ({"ViewPosition": "PA"}, "PA", image_view.NAMED_FRONTAL),
        ({"ViewPosition": "AP"}, "AP", image_view.NAMED_FRONTAL),
        ({"ViewPosition": "LL"}, "LATERAL", image_view.NAMED_LATERAL),
        ({"PatientOrientation": ["A", "F"]}, "LATERAL", image_view.ORIENTED_LATERAL),
        ({"PatientOrientation": ["P", "F"]}, "LATERAL", image_view.ORIENTED_LATERAL),
        ({"PatientOrientation": ["L", "F"]}, "FRONTAL", image_view.ORIENTED_FRONTAL),
        ({"PatientOrientation": ["R", "H"]}, "FRONTAL", image_view.ORIENTED_FRONTAL),
        ({"PatientOrientation": ["LA", "F"]}, "UNKNOWN", ""),  # oblique
        # PA and an orientation from the side: one of them is wrong, and nobody knows which.
        ({"ViewPosition": "PA", "PatientOrientation": ["A", "F"]}, "UNKNOWN", image_view.ORIENTED_LATERAL),
        ({"PostprocessingFunction": "NA_chest_auto_lat_CES"}, "LATERAL", image_view.PROGRAM_LATERAL),
        ({"PostprocessingFunction": "NA_chestAP_auto"}, "FRONTAL", image_view.PROGRAM_FRONTAL),
        ({"PostprocessingFunction": "lateral knee"}, "UNKNOWN", ""),
        (AGFA | PRESET | {"AcquisitionDeviceProcessingCode": "60003"}, "LATERAL", image_view.AGFA_LATERAL),
        (AGFA | PRESET | {"AcquisitionDeviceProcessingCode": "60025"}, "PA", image_view.AGFA_FRONTAL),
        (
            AGFA | {"AcquisitionDeviceProcessingCode": "60235", "ViewPosition": "AP"},
            "AP",
            image_view.AGFA_FRONTAL,
        ),
        (AGFA | PRESET | {"AcquisitionDeviceProcessingCode": "60999"}, "PA", image_view.NAMED_FRONTAL),
        (AGFA | {"AcquisitionDeviceProcessingCode": "3"}, "UNKNOWN", ""),
        (SIEMENS | {"AcquisitionDeviceProcessingCode": "1"}, "FRONTAL", image_view.SIEMENS_FRONTAL),
        (SIEMENS | {"AcquisitionDeviceProcessingCode": "4"}, "LATERAL", image_view.SIEMENS_LATERAL),
        (SIEMENS | {"AcquisitionDeviceProcessingCode": "0"}, "UNKNOWN", ""),
        (SIEMENS | {"AcquisitionDeviceProcessingCode": "60003"}, "UNKNOWN", ""),
        # A code of an unknown maker does not decide.
        ({"AcquisitionDeviceProcessingCode": "60003"}, "UNKNOWN", ""),
        ({"AcquisitionDeviceProcessingCode": "3", "Manufacturer": "Example"}, "UNKNOWN", ""),
        (PRESET | {"AcquisitionDeviceProcessingCode": "60003"}, "PA", image_view.NAMED_FRONTAL),
    ],
)
def test_view_by_one_header(elements, view, source):
    header = describe(**elements)
    assert header.view == view
    assert source in header.view_source
    assert (header.view_confidence >= 0.9) == (view != "UNKNOWN")


@pytest.mark.parametrize(
    ("elements", "maker"),
    [
        ({"creator": "AGFA"}, "AGFA"),
        ({"creator": "Agfa ADC NX"}, "AGFA"),
        ({"creator": "SIEMENS MEDCOM HEADER2"}, "SIEMENS"),
        ({"PlateType": "code15"}, "AGFA"),
        ({"creator": "AGFA PACS Archive Mirroring 1.0"}, ""),  # an archive, which holds images of all makers
        ({"creator": "MITRA OBJECT UTF8 ATTRIBUTES 1.0"}, ""),
        ({"creator": "SIEMENS MEDCOM HEADER", "Manufacturer": "Philips"}, ""),
        ({"PlateType": "code15", "Manufacturer": "Philips"}, ""),
        ({"PlateType": "PIXIUM 4600"}, ""),
        ({}, ""),
    ],
)
def test_maker(elements, maker):
    assert read(**elements).maker == maker


def test_a_landscape_image_is_no_lateral_by_its_code():
    code = AGFA | PRESET | {"AcquisitionDeviceProcessingCode": "60003"}
    assert describe(rows=2828, columns=2320, **code).view == "LATERAL"
    assert describe(rows=2320, columns=2828, **code).view == "UNKNOWN"


@pytest.mark.parametrize(
    ("rows", "columns", "shape"),
    [
        (2828, 2320, "portrait"),
        (2320, 2828, "landscape"),
        (2991, 2992, "square"),
        (100, 104, "square"),
        (0, 9, ""),
    ],
)
def test_shape_alone_never_decides(rows, columns, shape):
    assert describe_shape(rows, columns) == shape
    assert weigh_view(ViewClues(shape=shape)).view == "UNKNOWN"


@pytest.mark.parametrize(
    ("elements", "exposure"),
    [
        ({"ExposureInuAs": 2500, "Exposure": 7}, 2.5),
        ({"Exposure": 7}, 7.0),
        ({"ExposureInuAs": 0, "Exposure": 7}, 7.0),
        ({"Exposure": -3}, 0.0),
        ({"Exposure": 10**9}, 0.0),
        ({}, 0.0),
    ],
)
def test_exposure(elements, exposure):
    assert read(**elements).exposure == exposure


def test_broken_elements_say_nothing(dicom):
    """Values that are no code, no pair of directions and no number; the image is read without them."""
    mark = "123456789012"
    data = dicom.build(dicom.ramp(12), ExposureInuAs=mark, AcquisitionDeviceProcessingCode="Quincy^Zoe 4711")
    header = read_image_header(data.replace(mark.encode(), b"12e999999999"))
    assert (header.clues.exposure, header.clues.code, header.view) == (0.0, "", "UNKNOWN")
    for wrong in (["A"], ["A", "F", "F"], ["XY", "F"], "A"):
        assert read(PatientOrientation=wrong).orientation == ""


SQUARE = ViewClues(shape="square")
SILENT = {"maker": "SIEMENS", "code": "0", "shape": "square"}
FRONTAL = ViewClues(position="AP", shape="landscape")
LATERAL = ViewClues(position="LATERAL", shape="portrait")


@pytest.mark.parametrize(
    ("studied", "expected"),
    [
        ([], []),
        ([ViewClues(**SILENT)], ["UNKNOWN"]),
        ([ViewClues(**SILENT)] * 2, ["UNKNOWN", "UNKNOWN"]),
        ([ViewClues(**SILENT, exposure=7.0), ViewClues(**SILENT, exposure=2.0)], ["LATERAL", "FRONTAL"]),
        ([ViewClues(**SILENT, exposure=2.0), ViewClues(**SILENT, exposure=2.2)], ["UNKNOWN", "UNKNOWN"]),
        ([ViewClues(**SILENT, exposure=2.0), ViewClues(**SILENT)], ["UNKNOWN", "UNKNOWN"]),
        # Most studies hold one of each.
        ([ViewClues(**SILENT), FRONTAL], ["LATERAL", "AP"]),
        ([ViewClues(**SILENT), LATERAL], ["FRONTAL", "LATERAL"]),
        ([SQUARE, FRONTAL, LATERAL], ["UNKNOWN", "AP", "LATERAL"]),
        # Two views of one kind stay what they are called.
        ([ViewClues(position="PA", shape="square")] * 2, ["PA", "PA"]),
        ([LATERAL] * 2, ["LATERAL", "LATERAL"]),
        # Pictures say nothing but their shape; beside each other it is enough.
        ([ViewClues(shape="landscape"), ViewClues(shape="portrait")], ["FRONTAL", "LATERAL"]),
        ([SQUARE, SQUARE], ["UNKNOWN", "UNKNOWN"]),
        # The code of the portrait image contradicts its shape beside a landscape one.
        (
            [
                ViewClues(position="PA", maker="AGFA", code="60025", shape="portrait"),
                ViewClues(position="PA", maker="AGFA", code="60003", shape="landscape"),
            ],
            ["UNKNOWN", "UNKNOWN"],
        ),
    ],
)
def test_views_of_a_study(studied, expected):
    assert [verdict.view for verdict in weigh_study(studied)] == expected
    turned = weigh_study(studied[::-1])
    assert [verdict.view for verdict in turned] == expected[::-1]


def test_study_of_very_many_images_is_weighed_one_by_one():
    studied = [SQUARE] * 19 + [FRONTAL]
    assert [verdict.view for verdict in weigh_study(studied)] == ["UNKNOWN"] * 19 + ["AP"]


@pytest.mark.parametrize("projection", ["FRONTAL", "LATERAL"])
@pytest.mark.parametrize("clues", [{"position": "PA"}, {"position": "LATERAL", "orientation": "A\\F"}, {}])
def test_a_list_overrules_headers(clues, projection):
    verdict = weigh_view(ViewClues(**clues, projection=projection))
    frontal = "PA" if clues.get("position") == "PA" else "FRONTAL"
    assert verdict == ViewVerdict(
        "LATERAL" if projection == "LATERAL" else frontal, pytest.approx(verdict.lateral), image_view.LISTED
    )
    assert verdict.confidence > 0.99
    # What is listed of one image helps with the other.
    other = weigh_study([ViewClues(**clues, projection=projection), SQUARE])[1]
    assert other.view == ("FRONTAL" if projection == "LATERAL" else "LATERAL")


def test_order():
    """Sure frontals first, PA before AP; what is likelier a lateral comes last, however it is called."""
    ordered = [
        ViewVerdict("PA", 0.01),
        ViewVerdict("FRONTAL", 0.001),
        ViewVerdict("AP", 0.001),
        ViewVerdict("PA", 0.4),
        ViewVerdict("UNKNOWN", 0.5),
        ViewVerdict("PA", 0.6),
        ViewVerdict("UNKNOWN", 0.6),
        ViewVerdict("LATERAL", 0.95),
    ]
    mixed = [ordered[place] for place in (3, 7, 0, 5, 1, 6, 2, 4)]
    assert sorted(mixed, key=rank_view) == ordered


@pytest.mark.parametrize(
    ("view", "confidence", "source", "expected"),
    [
        ("LATERAL", 0.99, image_view.NAMED_LATERAL, True),
        ("PA", 0.999, f"{image_view.NAMED_FRONTAL}; {image_view.SHAPE}", True),
        ("FRONTAL", 1.0, image_view.LISTED, True),
        ("PA", 0.9899, image_view.NAMED_FRONTAL, False),
        ("UNKNOWN", 0.999, image_view.NAMED_FRONTAL, False),
        ("LATERAL", 0.999, image_view.SHAPE, False),
        ("LATERAL", 0.999, f"{image_view.EXPOSURE}; {image_view.OTHERS}", False),
        ("LATERAL", 0.999, image_view.MODEL, False),  # a model does not teach the next one
        ("LATERAL", 0.999, "", False),
    ],
)
def test_what_is_trusted_is_said_of_the_very_image(view, confidence, source, expected):
    assert is_trusted(view, confidence, source) is expected


def test_verdicts_of_headers_are_trusted_as_far_as_they_are_sure():
    lateral, frontal = weigh_study([read(ViewPosition="LL"), read(ViewPosition="PA")])
    assert is_trusted(lateral.view, lateral.confidence, lateral.source)
    assert is_trusted(frontal.view, frontal.confidence, frontal.source)
    silent, _ = weigh_study([read(), read(ViewPosition="LL")])
    assert not is_trusted(silent.view, silent.confidence, silent.source)  # frontal by its study alone
