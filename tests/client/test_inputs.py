"""Every form of an image or a report gives the same bytes or pixels. Every other value is an error that names it."""

import io
import os
import pathlib
import threading

import numpy as np
import pytest

from client.inputs import find_path, read_image, read_report
from contract.errors import ImageError, ReportError
from contract.image.png import encode_png
from contract.image.read import load_pixels

pydicom = pytest.importorskip("pydicom")
pil = pytest.importorskip("PIL.Image")

RANDOM = np.random.default_rng(5)
ARRAYS = {
    "grey": RANDOM.integers(0, 256, (37, 23), np.uint8),
    "grey with an axis": RANDOM.integers(0, 256, (37, 23, 1), np.uint8),
    "deep": RANDOM.integers(0, 65536, (37, 23), np.uint16),
    "deep big-endian": RANDOM.integers(0, 65536, (37, 23)).astype(">u2"),
    "colour": RANDOM.integers(0, 256, (37, 23, 3), np.uint8),
    "colour with alpha": RANDOM.integers(0, 256, (37, 23, 4), np.uint8),
    "one pixel": np.array([[7]], np.uint8),
    "turned": RANDOM.integers(0, 65536, (37, 23), np.uint16).T,
    "every second": RANDOM.integers(0, 65536, (37, 23), np.uint16)[::2, ::-2],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_becomes_a_picture_without_a_loss(name):
    array = ARRAYS[name]
    with pil.open(io.BytesIO(read_image(array))) as picture:
        assert picture.format == "PNG"
        picture.verify()
    decoded = np.asarray(pil.open(io.BytesIO(encode_png(array))))
    np.testing.assert_array_equal(decoded, array.reshape(decoded.shape))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.float32),
        np.zeros((3, 4), np.int64),
        np.zeros((3, 4), bool),
        np.zeros((3, 4, 3), np.uint16),
        np.zeros((3, 4, 2), np.uint8),
        np.zeros((1, 30, 40), np.uint8),
        np.zeros((3,), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((), np.uint8),
        np.zeros((2, 2, 2, 3), np.uint8),
        np.array([["a"]], object),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_an_array_that_is_no_picture_is_refused(array):
    with pytest.raises(ImageError, match=r"array of shape .* give \(H, W\) uint8 or uint16"):
        read_image(array)


def test_a_mask_is_not_lost_without_a_word():
    array = np.ma.masked_greater(np.arange(12, dtype=np.uint8).reshape(3, 4), 9)
    with pytest.raises(ImageError, match=r"masked array\. Fill the masked pixels"):
        read_image(array)
    assert read_image(array.filled(0)) == encode_png(array.filled(0))


def test_a_file_is_the_same_however_it_is_given(tmp_path, monkeypatch):
    data = encode_png(ARRAYS["deep"])
    path = tmp_path / "a chest (1).png"
    path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    for given in (path, str(path), path.name, data, bytearray(data), memoryview(data), memoryview(data)[::1]):
        assert read_image(given) == data
    report = tmp_path / "report.txt"
    report.write_bytes(b"Clear.")
    for given in (
        report,
        "Clear.",
        b"Clear.",
        bytearray(b"Clear."),
        memoryview(b"Clear."),
        pathlib.PurePath(report),
    ):
        assert read_report(given) == b"Clear."


def test_a_pipe_is_read_as_a_file():
    ends = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(ends[1], b"Clear."), os.close(ends[1])))
    writer.start()
    assert read_report(pathlib.Path(f"/dev/fd/{ends[0]}")) == b"Clear."
    writer.join()
    os.close(ends[0])


@pytest.mark.parametrize("how", ["file", "bytes", "changed", "no preamble"])
def test_a_data_set_gives_the_pixels_of_its_file(chest_files, how):
    data = chest_files["frontal"]
    dataset = pydicom.dcmread(io.BytesIO(data))
    before = dataset.to_json(), dataset.file_meta.to_json()
    if how == "no preamble":
        dataset.preamble = None
    if how == "changed":
        dataset.PatientName = "Someone^Else"
        before = dataset.to_json(), dataset.file_meta.to_json()
    np.testing.assert_array_equal(load_pixels(read_image(dataset), size=64), load_pixels(data, size=64))
    assert (dataset.to_json(), dataset.file_meta.to_json()) == before
    assert read_image(dataset)[128:132] == b"DICM"


def test_a_data_set_made_in_memory():
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.Modality, dataset.PhotometricInterpretation = "CR", "MONOCHROME2"
    dataset.Rows, dataset.Columns = ARRAYS["grey"].shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = ARRAYS["grey"].tobytes() + b"\0"
    pixels = load_pixels(read_image(dataset), size=32)
    assert pixels.shape == (1, 32, 32)
    assert pixels.max() > 0
    dataset[0x00280010]._value = "many"
    with pytest.raises(ImageError, match="pydicom cannot write the data set") as caught:
        read_image(dataset)
    assert "many" not in str(caught.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"])
def test_a_pillow_image_gives_its_pixels(mode):
    picture = pil.fromarray(ARRAYS["deep"]) if mode.startswith("I") else pil.fromarray(ARRAYS["colour"])
    picture = picture.convert(mode) if picture.mode != mode else picture
    decoded = pil.open(io.BytesIO(read_image(picture)))
    if mode.startswith("I"):
        np.testing.assert_array_equal(np.asarray(decoded), ARRAYS["deep"])
    else:
        np.testing.assert_array_equal(
            np.asarray(decoded.convert("RGBA")), np.asarray(picture.convert("RGBA"))
        )


def test_a_turned_photograph_stands_upright_as_its_file_would():
    picture = pil.fromarray(np.repeat(np.arange(60, dtype=np.uint8)[:, None] * 4, 40, axis=1))
    exif, file = pil.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture.save(file, "JPEG", exif=exif, quality=100)
    opened = pil.open(io.BytesIO(file.getvalue()))
    np.testing.assert_array_equal(
        load_pixels(read_image(opened), size=32), load_pixels(file.getvalue(), size=32)
    )


@pytest.mark.parametrize("mode", ["F", "CMYK", "YCbCr", "I"])
def test_a_pillow_image_that_png_cannot_hold_is_refused(mode):
    picture = (
        pil.fromarray(ARRAYS["colour"]).convert(mode) if mode not in "FI" else pil.new(mode, (4, 4), 70_000)
    )
    with pytest.raises(ImageError, match=f"mode {mode} .*convert"):
        read_image(picture)


def test_a_pillow_image_whose_file_is_cut_off_is_refused():
    data = encode_png(ARRAYS["grey"])
    with pytest.raises(ImageError, match="damaged or closed"):
        read_image(pil.open(io.BytesIO(data[:200])))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("no.dcm", r"Cannot read the image file 'no.dcm': No such file"),
        (pathlib.Path("no.dcm"), "No such file"),
        ("", "Cannot read the image file"),
        (".", "directory"),
        ("nul\0.dcm", "the name is not valid"),
        ("x" * 5000, "too long"),
        ([1, 2], "image is of type list: give the path of a file, bytes, a numpy array"),
        (float("nan"), "image is NaN, the empty cell of a table"),
        (np.float64("nan"), "image is NaN"),
        (7, "of type int"),
        (io.BytesIO(b"x"), "of type BytesIO"),
        (True, "of type bool"),
    ],
)
def test_what_is_no_image_is_named(given, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=words) as caught:
        read_image(given)
    assert "\n" not in str(caught.value)


PATHS = {
    "my report.txt": "a file that does not exist",
    "x.pdf": "a file that does not exist",
    "scan.DCM ": "a file that does not exist",
    "/dev/fd/6399": "a file that does not exist",
    "/data/reports/12": "a file that does not exist",
    "./12": "a file that does not exist",
    "~/reports/12": "a file that does not exist",
    "C:\\reports\\12": "a file that does not exist",
    "https://host/12": "a file that does not exist",
    "folder/12": "a file that does not exist",
    "folder": "a folder",
    "Normal": "a file",
    "/dev/stdin": "a file",
}


@pytest.mark.parametrize("text", PATHS)
def test_a_report_that_names_a_file_is_not_scored(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "Normal").write_text("Clear.")
    assert find_path(text) == PATHS[text]
    with pytest.raises(ReportError, match=f"report is text that names {PATHS[text]}.*Path.*encode"):
        read_report(text)
    assert read_report(text.encode()) == text.encode()


@pytest.mark.parametrize(
    "text",
    [
        "Normal.",
        "Normal",
        "s/p CABG, w/o effusion",
        "atelectasis/collapse",
        "~ 3 cm nodule",
        "Compared with 12.03.2010. No change",
        "FINDINGS: clear\nsee report.txt",
        "\\nFINDINGS: clear",
        "/ no effusion",
        "2.5 cm nodule in the right lower lobe/lingula",
        "<eCitation/>",
        "",
        "-",
        "x" * 3000,
    ],
)
def test_a_report_stays_text(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_path(text) == ""
    assert read_report(text) == text.encode()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pathlib.Path("no.txt"), "Cannot read the report file 'no.txt': No such file"),
        (pathlib.Path(), "directory"),
        (pathlib.Path("letter.pdf"), "is a PDF: a report must be text or Open-i XML"),
        (pathlib.Path("letter.docx"), "is a Word document"),
        (pathlib.Path("chest.dcm"), "has the suffix of an image"),
        (pathlib.Path("long.txt"), "larger than 1 MB"),
        (float("nan"), "report is NaN, the empty cell of a table"),
        (["Clear."], "report is of type list: give its text, a Path or bytes"),
        (7, "of type int"),
        (np.zeros(3), "of type ndarray"),
    ],
)
def test_what_is_no_report_is_named(given, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letter.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "long.txt").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(ReportError, match=words) as caught:
        read_report(given)
    assert "\n" not in str(caught.value)
