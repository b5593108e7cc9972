"""What is read of an image beside its pixels, and what a reader is warned of."""

import io
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from contract.errors import ImageError
from contract.image.header import ImageHeader, list_warnings, read_image_header
from contract.image.read import load_radiograph

image_module = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize(
    ("written", "view"),
    [
        ("PA", "PA"),
        ("AP", "AP"),
        ("ap ", "AP"),
        ("LL", "LATERAL"),
        ("RL", "LATERAL"),
        ("LATERAL", "LATERAL"),
        ("LARGE LATERAL", "LATERAL"),
        ("", "UNKNOWN"),
        ("RLO", "UNKNOWN"),
        (["PA", "AP"], "UNKNOWN"),
    ],
)
def test_view(dicom, written, view):
    data = dicom.build(dicom.ramp(12), ViewPosition=written)
    assert read_image_header(data).view == view
    assert read_image_header(data[: len(data) // 2]).view == view  # the header is enough
    assert read_image_header(dicom.build(dicom.ramp(12))).view == "UNKNOWN"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 zip", b"no image", b"%PDF-1.7"])
def test_view_of_no_image(data):
    with pytest.raises(ImageError):
        read_image_header(data)


@pytest.mark.parametrize(
    ("code", "view"),
    [  # SNOMED CT, then SNOMED-RT, of which Open-i has R-10214 and R-10236
        ("272479007", "PA"),
        ("399348003", "AP"),
        ("399067008", "LATERAL"),
        ("399173006", "LATERAL"),
        ("399198007", "LATERAL"),
        ("R-10214", "PA"),
        ("R-10206", "AP"),
        ("R-10236", "LATERAL"),
        ("399182000", "UNKNOWN"),  # oblique
        ("QUINCY", "UNKNOWN"),
    ],
)
def test_view_by_code(dicom, code, view):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "Quincy Zoe"
    coded = {"ViewCodeSequence": Sequence([item])}
    assert read_image_header(dicom.build(dicom.ramp(12), **coded)).view == view
    assert read_image_header(dicom.build(dicom.ramp(12), ViewPosition="AP", **coded)).view == "AP"
    assert read_image_header(dicom.build(dicom.ramp(12), ViewCodeSequence=Sequence())).view == "UNKNOWN"


@pytest.mark.parametrize(
    ("elements", "laterality"),
    [
        ({"ImageLaterality": "U"}, "U"),
        ({"Laterality": "L"}, "L"),
        ({"ImageLaterality": "R", "Laterality": "L"}, "R"),
        ({"Laterality": "Zoe's left lung"}, ""),
        ({}, ""),
    ],
)
def test_laterality(dicom, elements, laterality):
    assert read_image_header(dicom.build(dicom.ramp(12), **elements)).laterality == laterality


def test_everything_of_a_file(dicom):
    elements = {"BodyPartExamined": "CHEST", "ViewPosition": "PA", "PresentationLUTShape": "INVERSE"}
    window = {"WindowCenter": "2000", "WindowWidth": "3000"}
    data = dicom.compress(dicom.ramp(12), JPEG2000Lossless, photometric="MONOCHROME1", **elements, **window)
    expected = ImageHeader(
        format="DICOM",
        modality="CR",
        view="PA",
        body_part="CHEST",
        photometric="MONOCHROME1",
        inverse=True,
        bits=12,
        rows=32,
        columns=32,
        window=True,
        syntax=JPEG2000Lossless,
    )
    header = read_image_header(data)
    assert header == load_radiograph(data, size=32).header
    assert replace(header, view_confidence=0.5, view_source="") == expected
    assert header.view_source.startswith("View Position PA or AP")
    assert header.view_confidence > 0.98


@pytest.mark.parametrize("secret", ["Quincy^Zoe", "MRN-4711", "zoe quincy of bed 4711"])
def test_free_text_is_dropped(dicom, secret):
    header = read_image_header(dicom.build(dicom.ramp(12), BodyPartExamined=secret, ViewPosition=secret))
    assert header.body_part == ""
    assert header.view == "UNKNOWN"


@pytest.mark.parametrize(("kind", "bits"), [("PNG", 8), ("JPEG", 8), ("PNG", 16)])
def test_pictures(kind, bits):
    file = io.BytesIO()
    image_module.fromarray(np.zeros((20, 30), np.uint16 if bits == 16 else np.uint8)).save(file, kind)
    header = read_image_header(file.getvalue())
    assert (header.view, header.view_source) == ("UNKNOWN", "shape of the image")
    said = replace(header, view_confidence=0.5, view_source="")
    assert said == ImageHeader(kind, bits=bits, rows=20, columns=30)


def test_turned_picture_has_the_size_it_is_shown_in():
    picture = image_module.fromarray(np.zeros((20, 30), np.uint8))
    picture.getexif()[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=picture.getexif())
    header = read_image_header(file.getvalue())
    assert (header.rows, header.columns) == (30, 20)


@pytest.mark.parametrize("orientation", [None, 6])
def test_header_of_the_start_of_a_png(orientation):
    values = np.random.default_rng(0).integers(0, 2**16, (300, 400)).astype(np.uint16)
    exif = image_module.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image_module.fromarray(values).save(file, "PNG", exif=exif if orientation else b"")
    start = file.getvalue()[: 2**16]
    assert len(start) < len(file.getvalue())
    assert read_image_header(start) == read_image_header(file.getvalue())
    shape = (400, 300) if orientation else (300, 400)
    assert (read_image_header(start).rows, read_image_header(start).columns) == shape


def test_header_of_a_deflated_file(dicom):
    data = dicom.build(dicom.ramp(12), syntax=DeflatedExplicitVRLittleEndian, ViewPosition="AP")
    header = read_image_header(data)
    assert (header.view, header.syntax) == ("AP", DeflatedExplicitVRLittleEndian)


def test_the_file_is_parsed_once(dicom, monkeypatch):
    calls, read = [], pydicom.dcmread
    monkeypatch.setattr(
        pydicom, "dcmread", lambda *args, **options: calls.append(1) or read(*args, **options)
    )
    load_radiograph(dicom.build(dicom.ramp(12)), size=32)
    assert len(calls) == 1


CHESTS = [
    *(
        "CHEST",
        "Chest PA",
        "THORAX",
        "THORACIC",
        "RIBS",
        "LUNG",
        "STERNUM",
        "CHESTABDOMEN",
        "51185008",
        "CXR",
    ),
    *(
        "TORAX",
        "T\u00d3RAX",
        "TRONCO",
        "TORACE",
        "TORSE",
        "POITRINE",
        "PECHO",
        "PEITO",
        "PULM\u00d3N",
        "PETTO",
    ),
    *("BRUSTKORB", "BRUST", "BORSTKAS", "BR\u00d6STKORG", "KLATKA PIERSIOWA", "PIERSIOWA", "HRUDN\u00cdK"),
    *("MELLKAS", "RINTAKEH\u00c4", "RINDKERE", "TORAKS", "KR\u016aTIN\u0116S"),
]


def build_body_part(dicom, text: str, encoding: str) -> bytes:
    """Return a file whose Body Part Examined holds bytes that its value representation does not allow."""
    data = text.encode(encoding)
    mark = "X" * (len(data) + len(data) % 2)
    return dicom.build(dicom.ramp(12), BodyPartExamined=mark).replace(mark.encode(), data.ljust(len(mark)))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (text, encoding)
        for text in CHESTS
        for encoding in ("utf-8", "latin-1")
        if encoding == "utf-8" or max(text) <= "\xff"
    ],
)
def test_words_for_the_chest(dicom, text, encoding):
    assert list_warnings(read_image_header(build_body_part(dicom, text, encoding))) == ()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *(
            (word, word)
            for word in (
                "HAND",
                "ABDOMEN",
                "KNEE",
                "MANO",
                "PIED",
                "SCHAEDEL",
                "CSPINE",
                "TSPINE",
                "THORACIC SPINE",
            )
        ),
        ("CR\u00c2NE", "CRANE"),
        ("SCH\u00c4DEL", "SCHADEL"),
        ("BR\u00daCHO", "BRUCHO"),
    ],
)
def test_words_for_something_else(dicom, text, shown, encoding):
    (warning,) = list_warnings(read_image_header(build_body_part(dicom, text, encoding)))
    assert warning == f"The image is labelled {shown}, not chest."


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (ImageHeader("DICOM", view="PA", body_part="CHEST"), []),
        (ImageHeader("PNG"), []),
        (ImageHeader("DICOM", body_part="PORTABLE CHEST"), []),
        (ImageHeader("DICOM", view="LATERAL"), ["lateral"]),
        (ImageHeader("DICOM", body_part="EXTREMETY"), ["EXTREMETY, not chest"]),
        (ImageHeader("DICOM", frames=9), ["9 frames; only the first"]),
        (ImageHeader("DICOM", view="LATERAL", body_part="HAND", frames=2), ["lateral", "HAND", "2 frames"]),
    ],
)
def test_warnings(header, words):
    found = list_warnings(header)
    assert len(found) == len(words)
    assert all(
        word in sentence and sentence.endswith(".") for word, sentence in zip(words, found, strict=True)
    )
