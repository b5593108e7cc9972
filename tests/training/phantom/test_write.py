"""Files: XML and DICOM that read back as what was planned, in the layout of the real collection."""

import re
import tarfile
from collections import Counter
from xml.etree.ElementTree import fromstring

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import UID

from contract.image.header import read_image_header
from contract.image.read import load_pixels
from contract.image.view import VIEWS
from training.data.openi import build_table, parse_study, read_reports
from training.phantom.findings import get_categories
from training.phantom.headers import draw_headers, load_table
from training.phantom.prose import write_sections
from training.phantom.write import (
    REMARK,
    ReportFile,
    encode_pixels,
    make_dataset,
    make_uid,
    write_image,
    write_report,
)

IMAGE_ID = r"CXR\d+_IM-\d{4}-\d+(-\d+)?(-\d+)?"


def list_tags(element, path="") -> set[str]:
    path = f"{path}/{element.tag}"
    own = {path} | {f"{path}@{name}" for name in element.attrib}
    return own.union(*(list_tags(child, path) for child in element))


@pytest.fixture(scope="module")
def headers(phantoms):
    """Image id -> header, drawn anew."""
    return {
        f"CXR{plan.number}_IM-{plan.number:04d}-{header.name}": header
        for plan in phantoms.plans
        if plan.with_images
        for header in draw_headers(np.random.default_rng([phantoms.seed, plan.number, 3]))
    }


# --- reports -----------------------------------------------------------------------------------------------


def test_reports_say_what_was_planned(phantoms):
    studies = read_reports(phantoms.directory)
    assert len(studies) == len(phantoms.plans)
    assert 0 < sum(not study.labelled for study in studies) < 10
    for study, plan in zip(studies, phantoms.plans, strict=True):
        assert study.study_id == f"CXR{plan.number}"
        assert study.labelled == plan.indexed
        if plan.indexed:
            assert study.labels == (get_categories(plan.findings) or {"normal"})
            assert set(study.mesh_major) == set(plan.headings)
        else:
            assert study.mesh_major == ("No Indexing",)
            assert study.labels == set()
        expected = write_sections(plan.findings, np.random.default_rng([phantoms.seed, plan.number, 2]))
        assert vars(study.report) == expected


def test_table_joins_every_image(phantoms):
    table = build_table(phantoms.directory, phantoms.directory)
    joined = [name for names in table["image_ids"].to_pylist() for name in names]
    assert sorted(joined) == sorted(phantoms.list_images()) == sorted(phantoms.boxes)
    named = {name for study in read_reports(phantoms.directory) for name in study.image_ids}
    assert named == set(joined)
    pictured = [bool(names) for names in table["image_ids"].to_pylist()]
    assert not all(pictured)
    assert pictured == [plan.with_images for plan in phantoms.plans]


def test_ids_have_the_shape_of_real_ones(phantoms, real_studies):
    real = [name for study in real_studies if study.study_id != "CXR1" for name in study.image_ids]
    assert all(re.fullmatch(IMAGE_ID, name) for name in real)
    assert all(re.fullmatch(IMAGE_ID, name) for name in phantoms.boxes)


def test_reports_have_the_tags_of_the_real_ones(phantoms, openi_archive):
    drawn = Counter()
    for plan in phantoms.plans:
        drawn.update(list_tags(fromstring(phantoms.get_report(plan.number))))
    real = set()
    with tarfile.open(openi_archive) as archive:
        for member in archive.getmembers()[:200]:
            if member.name.endswith(".xml"):
                real |= list_tags(fromstring(archive.extractfile(member).read()))
    assert drawn.keys() == real
    assert drawn["/eCitation/MeSH/major"] == len(phantoms.plans)


def test_report_says_that_it_is_no_patient(phantoms):
    root = fromstring(phantoms.get_report(1))
    assert root.findtext("note") == REMARK
    assert root.findtext("licenseType") == "phantom"
    assert "".join(root.find(".//AuthorList").itertext()).strip() == ""


def test_text_is_escaped(tmp_path):
    text = 'A "2 < 3" & <b>'
    report = ReportFile(7, {"findings": text, "impression": ""}, [text], [text], ["CXR7_IM-0007-1001"], text)
    write_report(tmp_path / "7.xml", report)
    study = parse_study(
        (tmp_path / "7.xml").read_bytes().replace(b"<major>A", b"<major>normal/A"), name="7.xml"
    )
    assert study.report.findings == study.mesh_automatic[0] == text
    assert study.report.impression == study.report.comparison == ""
    assert study.image_ids == ("CXR7_IM-0007-1001",)


# --- images ------------------------------------------------------------------------------------------------


def test_files_carry_the_drawn_headers(phantoms, headers):
    images = phantoms.list_images()
    assert images.keys() == headers.keys()
    for image_id, path in images.items():
        dataset, header = pydicom.dcmread(path), headers[image_id]
        for name in ("PhotometricInterpretation", "PresentationLUTShape", "ViewPosition", "Modality"):
            assert str(dataset.get(name, "")) == header.fields[name]
        assert (dataset.BitsAllocated, dataset.BitsStored) == (16, header.bits_stored)
        assert (dataset.HighBit, dataset.PixelRepresentation) == (header.bits_stored - 1, 0)
        windows = 0 if header.window is None else 3 if header.many_windows else 1
        assert (dataset["WindowCenter"].VM if "WindowCenter" in dataset else 0) == windows
        assert dataset.Rows == pytest.approx(header.rows * phantoms.scale, abs=1)
        assert dataset.Columns == pytest.approx(header.columns * phantoms.scale, abs=1)
        assert dataset.pixel_array.max() < 2**header.bits_stored
        assert (
            dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == header.fields["SOPClassUID"]
        )


def test_views_are_read_from_the_files(phantoms, headers):
    """A header that decides alone names what the picture shows; drawn from the real ones, few are wrong."""
    seen = Counter()
    for image_id, path in phantoms.list_images().items():
        found, header = read_image_header(path.read_bytes()), headers[image_id]
        assert found.view in VIEWS
        if found.view != "UNKNOWN":
            seen[(found.view == "LATERAL") == header.lateral] += 1
        assert found.clues.exposure == pytest.approx(header.exposure, abs=0.001)
        code = header.clues.get("AcquisitionDeviceProcessingCode", "")
        assert (found.clues.code, found.clues.maker) == (code, header.clues["maker"])
    assert seen[True] > 70
    assert seen[False] <= 1


def test_no_file_names_a_person_or_a_day(phantoms):
    for path in phantoms.list_images().values():
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        assert dataset.PatientName == dataset.PatientID == path.parent.name
        assert dataset.ImageComments == REMARK
        for element in dataset:
            assert element.VR not in {"DA", "TM", "DT"} or not element.value
            assert element.VR != "PN" or element.keyword == "PatientName" or not element.value


def test_uids_are_unique_and_shaped_like_real_ones(phantoms):
    datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in phantoms.list_images().values()]
    instances = [dataset.SOPInstanceUID for dataset in datasets]
    assert len(set(instances)) == len(instances)
    assert len({dataset.StudyInstanceUID for dataset in datasets}) == len({d.PatientID for d in datasets})
    for dataset in datasets:
        for uid in (dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID):
            assert re.fullmatch(r"9999\.\d{30,}", uid)
            assert UID(uid).is_valid
        assert re.fullmatch(r"\d{16}", dataset.AccessionNumber)
    assert make_uid(1, 2, "a") == make_uid(1, 2, "a")
    assert len({make_uid(*key) for key in ((1, 2, "a"), (2, 2, "a"), (1, 3, "a"), (1, 2, "b"))}) == 4


def list_kinds(artist, *, lateral=False):
    """A header of every kind in the real collection."""
    for kind in load_table()["kinds"]:
        windows = kind["windows"] or [[None]]
        window = tuple(windows[0][0]) if windows[0][0] else None
        yield artist.make_header(
            lateral=lateral, window=window, many=kind["window"] == "multiple", **kind["fields"]
        )


def show(picture, header, tmp_path, seed=0) -> np.ndarray:
    """The pixels that a model sees of a picture in a file with this header, (112, 112)."""
    stored, window = encode_pixels(picture, header, np.random.default_rng(seed))
    assert stored.dtype == np.uint16
    assert stored.max() < 2**header.bits_stored
    write_image(tmp_path / "image.dcm", make_dataset(stored, header, window, 3, 0))
    return load_pixels((tmp_path / "image.dcm").read_bytes(), size=112)[0].astype(int)


@pytest.mark.parametrize("lateral", [False, True])
def test_one_picture_looks_alike_through_every_real_header(lateral, artist, tmp_path):
    picture, _ = artist.draw(3, lateral=lateral)
    air = cv2.resize(picture, (92, 112), interpolation=cv2.INTER_AREA) < 0.005
    assert air.sum() > 100
    with_window, without = [], []
    for header in list_kinds(artist, lateral=lateral):
        pixels = show(picture, header, tmp_path)
        (with_window if header.window else without).append(pixels)
        inner = pixels[:, 10:102]  # without the black beside the picture
        assert inner[air].max() < 6  # black, whatever the header says
        assert np.percentile(inner, 99.5) - inner.min() > (0.8 if header.window else 0.95) * 255
    assert len(with_window) > 20
    assert len(without) > 10
    # A window gives back the picture; without one, its own range is stretched, hence a little brighter.
    for pixels in with_window:
        assert np.abs(pixels - with_window[0]).max() <= 2
    for pixels in without:
        assert np.abs(pixels - without[0]).max() <= 2
        assert np.abs(pixels - with_window[0]).mean() < 16
        assert np.corrcoef(pixels.ravel(), with_window[0].ravel())[0, 1] > 0.999


def test_missing_window_leaves_a_part_of_the_range_unused(artist):
    picture = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    ranges = set()
    for seed in range(20):
        stored, window = encode_pixels(picture, artist.make_header(), np.random.default_rng(seed))
        assert window is None
        assert 0 < stored.min() < stored.max() < 4095
        ranges.add((int(stored.min()), int(stored.max())))
    assert len(ranges) == 20


@pytest.mark.parametrize("window", [(2048.0, 4096.0), (1600.0, 3100.0), (100.0, 4000.0), (4000.0, 9000.0)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_window_spans_the_picture(window, photometric, artist, tmp_path):
    picture = np.linspace(0, 1, 112 * 112, dtype=np.float32).reshape(112, 112)
    header = artist.make_header(window=window, PhotometricInterpretation=photometric)
    pixels = show(picture, header, tmp_path)
    assert np.abs(pixels - np.rint(picture * 255)).max() <= 1


def test_many_windows_stand_beside_their_names(artist):
    picture = np.full((24, 24), 0.5, np.float32)
    header = artist.make_header(window=(9000.0, 6000.0), many=True, BitsStored="14")
    dataset = make_dataset(
        *encode_pixels(picture, header, np.random.default_rng(0))[:1], header, (9000.0, 6000.0), 3, 0
    )
    assert list(dataset.WindowCenter) == [9000, 9000, 9000]
    assert list(dataset.WindowWidth) == [6000, 4500, 9000]
    assert list(dataset.WindowCenterWidthExplanation) == ["NORMAL", "HARDER", "SOFTER"]
