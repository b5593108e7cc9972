"""The record of a file: what stands in it, and what must not."""

import struct

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from contract.errors import ImageError
from contract.image.dicom_file import get_syntax, read_header, read_radiograph
from contract.image.read import load_pixels
from contract.image.record import DicomImage, Edges, Window

pytest.importorskip("cv2")
VALUES = np.random.default_rng(0).integers(0, 4096, (40, 36)).astype(np.uint16)
PATIENT = {"PatientName": "Quincy^Zoe", "PatientID": "MRN-4711", "PatientComments": "Zoe fell"}


def list_texts(image: DicomImage) -> str:
    """Everything in the record but the pixels, with all elements that its data set keeps."""
    return repr([value for name, value in vars(image).items() if name != "pixels"])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless])
def test_record_does_not_name_the_patient(dicom, syntax):
    elements = {**PATIENT, "BodyPartExamined": "zoe quincy of bed 4711", "Modality": "CR"}
    if syntax == RLELossless:
        data = dicom.compress(VALUES, syntax, **elements)
    else:
        data = dicom.build(VALUES, syntax=syntax, **elements)
    assert b"Quincy" in data
    for image in (read_radiograph(data), read_header(data)):
        texts = list_texts(image).upper()
        assert not any(secret in texts for secret in ("QUINCY", "ZOE", "4711"))


def test_record_of_a_whole_file(dicom):
    window = {"WindowCenter": ["2000", ""], "WindowWidth": ["3000", "1"]}
    shutter = {
        "ShutterShape": ["RECTANGULAR", "BITMAP"],
        "ShutterLeftVerticalEdge": 3,
        "ShutterRightVerticalEdge": 30,
        "ShutterUpperHorizontalEdge": 2,
        "ShutterLowerHorizontalEdge": 39,
    }
    more = {"PixelPaddingValue": 7, "RescaleSlope": "2", "PresentationLUTShape": "inverse"}
    image = read_radiograph(dicom.build(VALUES, ViewPosition="pa", **window, **shutter, **more))
    assert (image.rows, image.columns, image.samples, image.frames) == (40, 36, 1, 1)
    assert (image.allocated, image.bits, image.high_bit, image.representation) == (16, 12, 11, 0)
    assert (image.photometric, image.inverse, image.view.view_position) == ("MONOCHROME2", True, "PA")
    assert image.windows == (Window(2000, 3000), Window(None, 1))
    assert (image.slope, image.intercept, image.function, image.padding) == (2, None, "LINEAR", (7, 7))
    assert image.shutter.openings == ("RECTANGULAR",)
    assert image.shutter.edges == Edges(top=2, bottom=39, left=3, right=30)
    assert image.shutter.centre is image.collimator is image.voi_lut is None
    assert image.pixels == VALUES.tobytes()


def test_header_is_read_without_pixels_and_tables(dicom):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 16])
    item.add_new("LUTData", "US", list(range(4096)))
    data = dicom.build(VALUES, VOILUTSequence=Sequence([item]), ModalityLUTSequence=Sequence([item]))
    header = read_header(data)
    assert header.has_voi_lut
    assert (header.pixels, header.dataset, header.voi_lut, header.modality_lut) == (b"", None, None, None)
    image = read_radiograph(data)
    assert image.voi_lut.first == 0
    assert np.array_equal(image.modality_lut.entries, np.arange(4096, dtype=np.float32))


def test_damaged_table_is_an_error_only_of_an_image_that_uses_it(dicom):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [100, 0, 16])
    item.add_new("LUTData", "US", list(range(50)))
    broken = {"VOILUTSequence": Sequence([item])}
    with pytest.raises(ImageError, match=r"^The VOI LUT of the DICOM file is damaged\.$"):
        read_radiograph(dicom.build(VALUES, **broken))
    assert read_header(dicom.build(VALUES, **broken)).has_voi_lut
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    settings = {"bits": 8, "photometric": "RGB", "Modality": "SC"}
    expected = load_pixels(dicom.build(colours, **settings), size=32)
    assert np.array_equal(load_pixels(dicom.build(colours, **settings, **broken), size=32), expected)


@pytest.mark.parametrize("number", ["1e300", "-1e10"])
def test_table_of_impossible_numbers_is_refused(dicom, number):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [2, 0, 16])
    item.add_new("LUTData", "DS", ["1", number])
    with pytest.raises(ImageError, match=r"^The modality LUT of the DICOM file is damaged\.$"):
        load_pixels(dicom.build(VALUES, ModalityLUTSequence=Sequence([item])), size=32)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_file_without_a_stated_syntax(dicom, syntax):
    data = dicom.write(dicom.dataset(VALUES, syntax=syntax), part10=False)
    image = read_radiograph(data)
    assert image.syntax == ""
    assert get_syntax(image) == syntax


@pytest.mark.parametrize("value", [b"\1\0", b"\1\0\2\0"])
def test_pixel_data_of_numbers_is_refused(dicom, value):
    """As its value representation may state; pydicom reads one number or a list."""
    data = dicom.build(VALUES)
    at = data.index(b"\xe0\x7f\x10\x00")
    changed = data[:at] + b"\xe0\x7f\x10\x00US" + struct.pack("<H", len(value)) + value
    assert dicom.refuse(changed) == "The pixel data of the DICOM file is damaged or truncated."
