"""DICOM objects of radiographs of every kind: compressed, of other byte orders, with tables, damaged or hostile."""

import hashlib
import io
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from pydicom import config, dcmread, dcmwrite, uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from cli.speed_images import draw_radiograph, list_kinds
from client.explanation import Explanation, ImageMap
from client.prediction import Finding
from contract.errors import ImageError
from contract.image import dicom_file
from contract.image.frame import Frame
from contract.labels import LABEL_KEYS, LABEL_NAMES

pytest.importorskip("matplotlib")
pytest.importorskip("highdicom")

from client.explain.dicom.source import quiet_dicom, read_source
from client.explain.dicom.write import write_dicom

ROWS, COLUMNS = 180, 160
VALUES = draw_radiograph(ROWS, COLUMNS)
PATIENT = {
    "PatientName": "Roe^Janet",
    "PatientID": "MRN-77",
    "StudyInstanceUID": "1.2.3.4",
    "SeriesInstanceUID": "1.2.3.4.5",
    "SOPInstanceUID": "1.2.3.4.5.6",
    "PatientOrientation": ["L", "F"],
}
KINDS = {kind.name: kind for kind in list_kinds() if kind.dicom}
LUT = np.arange(4096, dtype=np.uint16)[::-1]


def change(data: bytes, remove: tuple[str, ...] = (), **elements) -> bytes:
    dataset = dcmread(io.BytesIO(data))
    for name, value in elements.items():
        setattr(dataset, name, value)
    for name in remove:
        delattr(dataset, name)
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def write_kind(name: str) -> bytes:
    return change(KINDS[name].write(VALUES), **PATIENT)


def explain(data: bytes) -> Explanation:
    """An explanation of a file, by hand: the map has one strong spot."""
    values = np.zeros((56, 56), np.float32)
    values[20:30, 20:30] = 1
    return Explanation(
        kind="image",
        key="cardiac",
        name=LABEL_NAMES["cardiac"],
        probability=0.8,
        threshold=0.5,
        logit=2.0,
        baseline_logit=-1.0,
        steps=32,
        convergence_delta=0.01,
        baseline="a black image",
        fingerprint="ab" * 32,
        radiograph=np.full((448, 448), 120, np.uint8),
        pixel_attribution=values,
        maps=(ImageMap("integrated_gradients", "Integrated Gradients", values, True, "logits", 0.1),),
        original=np.full((ROWS, COLUMNS), 120, np.uint8),
        frame=Frame.fit(ROWS, COLUMNS, 56),
        findings=tuple(Finding(key, LABEL_NAMES[key], 0.8, 0.5) for key in LABEL_KEYS),
        image_sha256=hashlib.sha256(data).hexdigest(),
    )


def write_objects(data: bytes, folder: Path) -> dict[str, Dataset]:
    """Write the objects of a file, check them with dciodvfy where it is installed, and return them by modality."""
    objects = {}
    for path in write_dicom([explain(data)], data, folder):
        made = dcmread(path)
        objects[made.Modality] = made
        assert made.StudyInstanceUID == PATIENT["StudyInstanceUID"]
        if shutil.which("dciodvfy") is not None:
            told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace")
            said = (told.stdout + told.stderr).splitlines()
            assert "\n".join(line for line in said if line.startswith("Error")) == ""
    return objects


def test_every_kind_of_file_is_a_source():
    for name in KINDS:
        source = read_source(write_kind(name))
        assert source.reference.SOPInstanceUID == PATIENT["SOPInstanceUID"], name
        assert source.dataset.PatientName == PATIENT["PatientName"], name
        assert not source.reference.PatientName, name


@pytest.mark.parametrize("name", ["deflated", "JPEG 2000", "uncompressed, big endian"])
def test_objects_of_unusual_files(name, tmp_path):
    data = change(write_kind(name), PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1")
    objects = write_objects(data, tmp_path)
    assert set(objects) == {"OT", "SR", "PR"}
    assert objects["PR"].PresentationLUTShape == "INVERSE"
    assert objects["OT"].PatientName == PATIENT["PatientName"]
    assert "PixelSpacing" not in objects["OT"]


def make_table(values: np.ndarray, bits: int, vr: str, syntax: uid.UID) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), 0, bits])
    order = "<" if syntax.is_little_endian else ">"
    item.add_new("LUTData", vr, values.astype(f"{order}u2").tobytes() if vr == "OW" else values.tolist())
    return item


@pytest.mark.parametrize(
    ("name", "vr"),
    [
        ("uncompressed, big endian", "OW"),
        ("uncompressed, big endian", "US"),
        ("uncompressed, implicit VR", "OW"),
    ],
)
def test_look_up_tables_keep_their_values(name, vr, tmp_path):
    data = write_kind(name)
    syntax = dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID
    voi, modality = make_table(LUT, 12, vr, syntax), make_table(16 * LUT, 16, vr, syntax)
    modality.ModalityLUTType = "US"
    tables = {"VOILUTSequence": [voi], "ModalityLUTSequence": [modality]}
    data = change(data, ("WindowCenter", "WindowWidth"), **tables)
    state = write_objects(data, tmp_path)["PR"]
    for item, expected in (  # a presentation state has VOI LUTs of 8 or 16 bits
        (state.SoftcopyVOILUTSequence[0].VOILUTSequence[0], np.rint(LUT * (65535 / 4095))),
        (state.ModalityLUTSequence[0], 16 * LUT),
    ):
        assert list(item.LUTDescriptor) == [4096, 0, 16]
        np.testing.assert_array_equal(np.frombuffer(item.LUTData, "<u2"), expected)


def test_a_radiograph_in_colour_has_no_outlines(tmp_path):
    dataset = dcmread(io.BytesIO(write_kind("uncompressed, little endian")))
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    del dataset.WindowCenter, dataset.WindowWidth
    for colour in (1, 2, 3):
        dataset.add_new(0x00281100 + colour, "US", [4096, 0, 16])
        dataset.add_new(0x00281200 + colour, "OW", LUT.tobytes())
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    data = file.getvalue()
    assert set(write_objects(data, tmp_path)) == {"OT", "SR"}


def test_private_elements_stay_in_the_source(tmp_path):
    dataset = dcmread(io.BytesIO(write_kind("uncompressed, little endian")))
    for group in (0x0009, 0x0011):
        dataset.private_block(group, "SECRET MAKER", create=True).add_new(1, "LO", "SECRET")
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    write_objects(file.getvalue(), tmp_path)
    assert not any(b"SECRET" in path.read_bytes() for path in tmp_path.iterdir())


def test_a_wrong_representation_of_the_patient(tmp_path):
    """Elements of the patient with the VR of another element, and a weight that is no number."""
    dataset = dcmread(io.BytesIO(write_kind("uncompressed, little endian")))
    for tag, vr, value in (
        (0x00100020, "SH", b"MRN-77"),
        (0x00100030, "LO", b"born in spring"),
        (0x00101030, "DS", b"heavy "),
        (0x00101010, "UN", b"071Y"),
    ):
        dataset._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
    file = io.BytesIO()
    with quiet_dicom():
        dcmwrite(file, dataset, enforce_file_format=True)
    paths = write_dicom([explain(file.getvalue())], file.getvalue(), tmp_path)
    for path in paths:
        assert dcmread(path).PatientID == "MRN-77"
        assert b"born in spring" in path.read_bytes()


def test_a_file_that_unpacks_without_end_is_refused(monkeypatch):
    data = change(write_kind("deflated"), TextValue="x" * 3 * 2**20)
    assert len(data) < 2**17
    monkeypatch.setattr(dicom_file, "MAX_IMAGE_BYTES", 2**20)
    with pytest.raises(ImageError, match="unpacks to more than"):
        read_source(data)


def test_two_threads_put_the_settings_back():
    before = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    inside, left = threading.Event(), threading.Event()

    def run() -> None:
        with quiet_dicom():
            inside.set()
            assert left.wait(10)

    with quiet_dicom():
        other = threading.Thread(target=run)
        other.start()
        inside.wait(0.2)  # the other thread gets in only after this one
    left.set()
    other.join(10)
    assert (config.settings.reading_validation_mode, config.settings.writing_validation_mode) == before
