"""Stored values to grey: tables, windows, padding, colour; against formulas or pydicom's own functions."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from contract.errors import ImageError
from contract.image.read import load_pixels, load_radiograph
from contract.notes import note_image

pytest.importorskip("cv2")
SIDE = 32  # images of this size are not scaled, so that each value can be compared


def table(descriptor: list, entries, *, vr: str = "US", entries_vr: str = "US") -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", vr, descriptor)
    item.add_new("LUTData", entries_vr, entries)
    return Sequence([item])


# --- modality LUT, VOI LUT, window -------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", ""])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_window_functions_are_those_of_pydicom(dicom, function, photometric):
    values = dicom.ramp(12)
    dataset = dicom.dataset(
        values, photometric=photometric, WindowCenter="1500", WindowWidth="1800", VOILUTFunction=function
    )
    pixels = load_pixels(dicom.write(dataset), size=SIDE)
    if not function:
        dataset.VOILUTFunction = "LINEAR"
    grey = apply_voi_lut(values, dataset) / 4095
    dicom.assert_close(pixels, dicom.show(1 - grey if photometric == "MONOCHROME1" else grey))


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [  # a window from 1000 to 2000, computed by hand
        ("LINEAR_EXACT", 1000, 0),
        ("LINEAR_EXACT", 1250, 64),
        ("LINEAR_EXACT", 1500, 128),
        ("LINEAR_EXACT", 2000, 255),
        ("LINEAR", 1000, 0),
        ("LINEAR", 1999, 255),
        ("SIGMOID", 1500, 128),
        ("SIGMOID", 2000, 225),  # 1 / (1 + exp(-2)) = 0.881
    ],
)
def test_window_values_by_hand(dicom, function, value, expected):
    values = np.full((SIDE, SIDE), value, np.uint16)
    data = dicom.build(values, WindowCenter="1500", WindowWidth="1000", VOILUTFunction=function)
    assert load_pixels(data, size=SIDE)[0, 3, 4] == expected


def test_first_of_many_windows_counts(dicom):
    one = dicom.build(dicom.ramp(12), WindowCenter="1500", WindowWidth="900")
    many = dicom.build(dicom.ramp(12), WindowCenter=["1500", "3000"], WindowWidth=["900", "100"])
    assert np.array_equal(load_pixels(many, size=SIDE), load_pixels(one, size=SIDE))


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": "2000"},
        {"WindowCenter": "2000", "WindowWidth": "0"},
        {"WindowCenter": "2000", "WindowWidth": "-5"},
        {"WindowCenter": "nan", "WindowWidth": "nan"},
        {"WindowCenter": "1e300", "WindowWidth": "1e300"},
    ],
)
def test_without_usable_window_the_image_sets_the_range(dicom, window):
    values = (dicom.ramp(12) // 8 + 900).astype(np.uint16)  # 512 of 4,096 values, as from a detector
    pixels = load_pixels(dicom.build(values, **window), size=SIDE)
    low, high = np.percentile(values, (0.5, 99.5))
    dicom.assert_close(pixels, dicom.show((values - low) / (high - low)))
    assert np.ptp(pixels) > 0.9 * 255
    assert len(np.unique(pixels)) > 0.9 * 256


def test_window_that_is_no_number_counts_as_absent(dicom):
    good = dicom.build(dicom.ramp(12), WindowCenter="2121", WindowWidth="1313")
    bad = good.replace(b"2121", b"2,12").replace(b"1313", b"wide")
    assert bad.count(b"wide") == bad.count(b"2,12") == 1
    assert np.array_equal(load_pixels(bad, size=SIDE), load_pixels(dicom.build(dicom.ramp(12)), size=SIDE))


@pytest.mark.parametrize(("slope", "intercept"), [("2", "-500"), ("0.5", "100"), ("-1", "4095")])
def test_window_counts_after_rescale(dicom, slope, intercept):
    values = dicom.ramp(12)
    dataset = dicom.dataset(
        values, RescaleSlope=slope, RescaleIntercept=intercept, WindowCenter="1000", WindowWidth="2000"
    )
    expected = dicom.show(dicom.window_linear(apply_modality_lut(values, dataset), 1000, 2000))
    dicom.assert_close(load_pixels(dicom.write(dataset), size=SIDE), expected)


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [("", "7"), ("0", "7"), ("nan", "7"), ("inf", "7"), ("1e38", "7"), ("1", ""), ("1", "nan")],
)
def test_nonsense_rescale_is_left_out(dicom, slope, intercept):
    window = {"WindowCenter": "2000", "WindowWidth": "3000"}
    data = dicom.build(dicom.ramp(12), RescaleSlope=slope, RescaleIntercept=intercept, **window)
    assert np.array_equal(
        load_pixels(data, size=SIDE), load_pixels(dicom.build(dicom.ramp(12), **window), size=SIDE)
    )


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_modality_table_is_that_of_pydicom(dicom, syntax):
    values = dicom.ramp(12)
    entries = (np.arange(3000) ** 1.3).astype(int).tolist()
    dataset = dicom.dataset(values, syntax=syntax, ModalityLUTSequence=table([3000, 500, 16], entries))
    rescaled = apply_modality_lut(values, dataset).astype(float)
    dataset.WindowCenter, dataset.WindowWidth = 15000, 25000
    dicom.assert_close(
        load_pixels(dicom.write(dataset), size=SIDE), dicom.show(dicom.window_linear(rescaled, 15000, 25000))
    )


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_voi_table_is_that_of_pydicom_and_goes_before_the_window(dicom, syntax, photometric):
    values = dicom.ramp(12)
    entries = np.linspace(0, 65535**0.5, 1745).__pow__(2).round().astype(int).tolist()
    dataset = dicom.dataset(
        values, syntax=syntax, photometric=photometric, VOILUTSequence=table([1745, 1401, 16], entries)
    )
    grey = apply_voi_lut(values, dataset) / 65535
    dataset.WindowCenter, dataset.WindowWidth = 3, 4
    pixels = load_pixels(dicom.write(dataset), size=SIDE)
    dicom.assert_close(pixels, dicom.show(1 - grey if photometric == "MONOCHROME1" else grey))


@pytest.mark.parametrize("vr", [b"IS", b"DS", b"LO"])
def test_voi_descriptor_written_as_text(dicom, vr):
    """In 2,878 headers of Open-i it is text; pydicom does not write that, so the tag is patched."""
    entries = list(range(0, 4096, 2))
    plain = dicom.build(dicom.ramp(12), VOILUTSequence=table([2048, 1000, 16], entries))
    item = Dataset()
    item.LUTExplanation = "2048\\1000\\16"
    item.add_new("LUTData", "US", entries)
    text = dicom.build(dicom.ramp(12), VOILUTSequence=Sequence([item]))
    patched = text.replace(b"\x28\x00\x03\x30LO", b"\x28\x00\x02\x30" + vr)
    assert patched != text
    assert np.array_equal(load_pixels(patched, size=SIDE), load_pixels(plain, size=SIDE))


@pytest.mark.parametrize("packed", [True, False])
def test_voi_table_of_8_bits(dicom, packed):
    entries = (np.arange(4096) // 16).astype(np.uint8 if packed else np.uint16)
    sequence = table([4096, 0, 8], entries.tobytes(), entries_vr="OW")
    pixels = load_pixels(dicom.build(dicom.ramp(12), VOILUTSequence=sequence), size=SIDE)
    assert np.array_equal(pixels[0], dicom.ramp(12) // 16)


def test_voi_table_of_65536_entries_and_negative_start(dicom):
    values = dicom.ramp(16, np.int16, -32768)
    entries = np.arange(65536, dtype=np.uint16)
    sequence = table([0, -32768, 16], entries.tobytes(), vr="SS", entries_vr="OW")
    pixels = load_pixels(dicom.build(values, bits=16, VOILUTSequence=sequence), size=SIDE)
    dicom.assert_close(pixels, dicom.show((values.astype(float) + 32768) / 65535))


@pytest.mark.parametrize(
    "broken",
    [
        table([100, 0, 16], list(range(50))),
        table([100, 0], list(range(100))),
    ],
)
@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
def test_broken_table_is_refused(dicom, broken, name):
    with pytest.raises(ImageError, match=r"LUT of the DICOM file is damaged\.$"):
        load_pixels(dicom.build(dicom.ramp(12), **{name: broken}), size=SIDE)


def test_empty_table_sequence_counts_as_absent(dicom):
    data = dicom.build(dicom.ramp(12), VOILUTSequence=Sequence(), ModalityLUTSequence=Sequence())
    assert np.array_equal(load_pixels(data, size=SIDE), load_pixels(dicom.build(dicom.ramp(12)), size=SIDE))


def make_empty_items() -> dict[str, Dataset]:
    full = table([4096, 0, 16], list(range(4096)))[0]
    items = {name: Dataset() for name in ("nothing", "no data", "no descriptor", "both empty", "explained")}
    items["no data"].add_new("LUTDescriptor", "US", [100, 0, 16])
    items["no descriptor"].add_new("LUTData", "US", full.LUTData)
    for name, vr in (("LUTDescriptor", "US"), ("LUTData", "OW")):
        items["both empty"].add_new(name, vr, None)
    items["explained"].LUTExplanation = "NORMAL"
    items["empty data"] = Dataset()
    items["empty data"].add_new("LUTDescriptor", "US", [100, 0, 16])
    items["empty data"].add_new("LUTData", "OW", b"")
    return items


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1500, "WindowWidth": 1800}])
@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize("empty", make_empty_items())
def test_empty_table_counts_as_absent(dicom, name, empty, window, syntax):
    found = load_radiograph(
        dicom.build(dicom.ramp(12), syntax=syntax, **{name: Sequence([make_empty_items()[empty]])}, **window),
        size=SIDE,
    )
    expected = load_radiograph(dicom.build(dicom.ramp(12), **window), size=SIDE)
    assert np.array_equal(found.pixels, expected.pixels)
    assert found.remarks == ()


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
def test_table_behind_an_empty_item_counts(dicom, name):
    full = table([4096, 0, 16], list(range(4095, -1, -1)))[0]
    window = {} if name == "VOILUTSequence" else {"WindowCenter": 2048, "WindowWidth": 4096}
    expected = load_pixels(dicom.build(dicom.ramp(12), **{name: Sequence([full])}, **window), size=SIDE)
    assert expected[0, 0, 0] == 255
    found = dicom.build(dicom.ramp(12), **{name: Sequence([Dataset(), full])}, **window)
    assert np.array_equal(load_pixels(found, size=SIDE), expected)


def test_level_table_leaves_the_window(dicom):
    """A table of one grey shows nothing; the window beside it does."""
    window = {"WindowCenter": 1500, "WindowWidth": 1800}
    data = dicom.build(dicom.ramp(12), VOILUTSequence=table([4096, 0, 16], [7] * 4096), **window)
    found = load_radiograph(data, size=SIDE)
    assert np.array_equal(found.pixels, load_pixels(dicom.build(dicom.ramp(12), **window), size=SIDE))
    assert "black or white" in found.remarks[0]


# Every optional element that the reader visits, with no value at all.
OPTIONAL = (
    *(
        "BitsStored",
        "HighBit",
        "NumberOfFrames",
        "SamplesPerPixel",
        "PlanarConfiguration",
        "Modality",
        "RescaleType",
    ),
    *(
        "RescaleSlope",
        "RescaleIntercept",
        "WindowCenter",
        "WindowWidth",
        "VOILUTFunction",
        "PresentationLUTShape",
    ),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ViewPosition", "ImageLaterality", "BodyPartExamined"),
    *("ModalityLUTSequence", "VOILUTSequence", "ViewCodeSequence", "ShutterShape", "ShutterLeftVerticalEdge"),
    *("ShutterUpperHorizontalEdge", "CenterOfCircularShutter", "RadiusOfCircularShutter"),
    *(
        "VerticesOfThePolygonalShutter",
        "CollimatorShape",
        "CollimatorLeftVerticalEdge",
        "CenterOfCircularCollimator",
    ),
)


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_empty_counts_as_absent(dicom, name, syntax):
    values, bits = dicom.ramp(16), 16  # as many as Bits Allocated, which holds without Bits Stored
    dataset = dicom.dataset(values, bits=bits, syntax=syntax, SOPInstanceUID="1.2.3")
    if name in dataset:
        del dataset[name]
    dataset.add_new(name, dictionary_VR(name), None)
    data = dicom.write(dataset)
    assert pydicom.dcmread(io.BytesIO(data))[name].is_empty
    found = load_radiograph(data, size=SIDE)
    assert np.array_equal(found.pixels, load_pixels(dicom.build(values, bits=bits), size=SIDE))
    assert note_image(found).warnings == ()


@pytest.mark.parametrize("name", ["BitsStored", "HighBit", "PlanarConfiguration", "NumberOfFrames"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_empty_layout_of_a_colour_capture(dicom, name, syntax):
    colours = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    settings = {"bits": 8, "photometric": "RGB", "Modality": "SC"}
    dataset = dicom.dataset(colours, **settings)
    if syntax == RLELossless:
        dataset = pydicom.dcmread(io.BytesIO(dicom.compress(colours, syntax, **settings)))
    else:
        dataset = dicom.dataset(colours, syntax=syntax, **settings)
    dataset[name] = pydicom.DataElement(name, dictionary_VR(name), None)
    expected = load_pixels(dicom.build(colours, **settings), size=SIDE)
    assert np.array_equal(load_pixels(dicom.write(dataset), size=SIDE), expected)


@pytest.mark.parametrize("blank", ["", " ", "\\", " \\ "])
@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"])
def test_blank_numbers_count_as_absent(dicom, name, blank):
    """Padding, or places between backslashes that hold nothing."""
    dataset = dicom.dataset(dicom.ramp(12))
    dataset.add_new(name, "LO", "x" * len(blank + " " * (len(blank) % 2)))
    data = dicom.write(dataset)
    tag = pydicom.tag.Tag(name)
    head = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
    length = len(blank) + len(blank) % 2
    written = head + b"LO" + length.to_bytes(2, "little") + b"x" * length
    assert data.count(written) == 1
    blanks = head + b"DS" + length.to_bytes(2, "little") + blank.ljust(length).encode()
    found = load_pixels(data.replace(written, blanks), size=SIDE)
    assert np.array_equal(found, load_pixels(dicom.build(dicom.ramp(12)), size=SIDE))


@pytest.mark.parametrize(("centres", "widths"), [(["", "1500"], ["", "900"]), (["9", "1500"], ["0", "900"])])
def test_first_usable_window_counts(dicom, centres, widths):
    one = dicom.build(dicom.ramp(12), WindowCenter="1500", WindowWidth="900")
    data = dicom.build(dicom.ramp(12), WindowCenter=centres, WindowWidth=widths)
    assert np.array_equal(load_pixels(data, size=SIDE), load_pixels(one, size=SIDE))


# --- padding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": "1200", "WindowWidth": "400"}])
def test_padding_is_black_and_leaves_the_range_alone(dicom, photometric, window):
    inner = (1000 + dicom.ramp(12)[:, : SIDE // 2] // 10).astype(np.uint16)
    padded = np.hstack([inner, np.full_like(inner, 4000)])
    data = dicom.build(padded, photometric=photometric, PixelPaddingValue=4000, **window)
    pixels = load_pixels(data, size=SIDE)[0]
    alone = load_pixels(dicom.build(inner, photometric=photometric, **window), size=SIDE)[0]
    assert not pixels[:, SIDE // 2 :].any()
    assert np.array_equal(pixels[:, : SIDE // 2], alone[:, SIDE // 4 : -SIDE // 4])


def test_padding_range(dicom):
    values = dicom.ramp(12)
    data = dicom.build(
        values,
        photometric="MONOCHROME1",
        PixelPaddingValue=0,
        PixelPaddingRangeLimit=400,
        WindowCenter="2048",
        WindowWidth="4096",
    )
    pixels = load_pixels(data, size=SIDE)[0]
    assert not pixels[values <= 400].any()
    assert (pixels[(values > 400) & (values < 2000)] > 100).all()


def test_signed_padding_written_as_unsigned(dicom):
    values = dicom.ramp(12, np.int16, -1024)
    values[0] = -2000
    dataset = dicom.dataset(values, bits=16, photometric="MONOCHROME1", WindowCenter="0", WindowWidth="9000")
    dataset.add_new("PixelPaddingValue", "US", 63536)
    pixels = load_pixels(dicom.write(dataset), size=SIDE)[0]
    assert not pixels[0].any()
    assert pixels[1].all()


# --- colour ------------------------------------------------------------------------------------------------


def luminance(colours: np.ndarray, top: int) -> np.ndarray:
    """Grey 0..1 by ITU-R BT.601."""
    return colours.astype(float) @ (0.299, 0.587, 0.114) / top


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rgb_secondary_capture(dicom, planar, dtype):
    top = np.iinfo(dtype).max
    colours = np.random.default_rng(3).integers(0, top + 1, (SIDE, SIDE, 3)).astype(dtype)
    stored = colours if planar == 0 else np.moveaxis(colours, -1, 0).reshape(SIDE, SIDE, 3)
    data = dicom.build(
        stored, bits=8 * stored.dtype.itemsize, photometric="RGB", Modality="SC", PlanarConfiguration=planar
    )
    dicom.assert_close(load_pixels(data, size=SIDE), dicom.show(luminance(colours, top)))


@pytest.mark.parametrize("depth", [8, 16])
def test_palette_secondary_capture(dicom, depth):
    dtype, top = (np.uint8, 255) if depth == 8 else (np.uint16, 65535)
    palette = np.random.default_rng(4).integers(0, top + 1, (256, 3)).astype(dtype)
    dataset = dicom.dataset(dicom.ramp(8, np.uint8), bits=8, photometric="PALETTE COLOR", Modality="OT")
    for column, name in enumerate(("Red", "Green", "Blue")):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, depth])
        setattr(dataset, f"{name}PaletteColorLookupTableData", palette[:, column].tobytes())
    pixels = load_pixels(dicom.write(dataset), size=SIDE)
    dicom.assert_close(pixels, dicom.show(luminance(palette[dicom.ramp(8, np.uint8)], top)))


def test_palette_image_without_palette_is_refused(dicom):
    with pytest.raises(ImageError, match="colour palette"):
        load_pixels(dicom.build(dicom.ramp(8, np.uint8), bits=8, photometric="PALETTE COLOR"), size=SIDE)
