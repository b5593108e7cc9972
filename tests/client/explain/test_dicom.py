"""Explanations as DICOM objects, read back by pydicom and highdicom and checked by dciodvfy."""

import hashlib
import io
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.decisions import Decision
from contract.errors import ConfigError, ImageError
from contract.labels import LABEL_KEYS, LABELS
from contract.map_checks import MapCheck

torch = pytest.importorskip("torch")
pytest.importorskip("captum")
highdicom = pytest.importorskip("highdicom")

import pydicom  # noqa: E402

from client.explain import explain_findings, write_dicom  # noqa: E402
from client.explain.dicom import codes  # noqa: E402
from client.explain.dicom.device import RESEARCH  # noqa: E402
from client.explain.dicom.outlines import trace  # noqa: E402
from client.explain.maps import encode_png  # noqa: E402
from client.explain.overlay import find_strong, render_map  # noqa: E402

SECRETS = ("Roe^Janet", "MRN-77-1", "19480229", "ACC-4711", "Dr^Referrer", "St. Nowhere")
SR, SC, PR = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.11.1"


@pytest.fixture(scope="module")
def bundle(write_bundle, small_config, tmp_path_factory: pytest.TempPathFactory):
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "small",
        small_config,
        seed=3,
        texts=["The heart is enlarged."],
        thresholds=[0.4] * len(LABELS),
    )


def change(data: bytes, remove=(), **elements) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(data))
    for name, value in elements.items():
        setattr(dataset, name, value)
    for name in remove:
        if name in dataset:
            delattr(dataset, name)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def image(chest_files) -> bytes:
    """A radiograph with personal data."""
    name, number, birth, accession, doctor, place = SECRETS
    return change(
        chest_files["frontal"],
        StudyInstanceUID="1.2.3.4",
        SeriesInstanceUID="1.2.3.4.5",
        SOPInstanceUID="1.2.3.4.5.6",
        PatientName=name,
        PatientID=number,
        PatientBirthDate=birth,
        PatientSex="F",
        AccessionNumber=accession,
        ReferringPhysicianName=doctor,
        InstitutionName=place,
        StudyDescription="Thorax in zwei Ebenen",
        StudyDate="20200102",
        StudyTime="101112",
        StudyID="7",
        PatientAge="071Y",
        PatientOrientation=["L", "F"],
        ImagerPixelSpacing=[0.143, 0.143],
        BodyPartExamined="CHEST",
    )


@pytest.fixture(scope="module")
def explanations(bundle, image):
    found = explain_findings(
        bundle,
        image=image,
        labels=["cardiac", "pleural"],
        methods=["integrated_gradients", "attention"],
        steps=8,
    )
    *others, last = found[0].findings
    findings = (*others, replace(last, threshold=None))  # a finding without a decision
    return [replace(one, findings=findings) for one in found]


@pytest.fixture(scope="module")
def written(explanations, image, tmp_path_factory) -> dict[str, Path]:
    paths = write_dicom(explanations, image, tmp_path_factory.mktemp("dicom"))
    return {path.name: path for path in paths}


def move(explanations, data: bytes):
    """The explanations as if they were made of another file."""
    return [replace(one, image_sha256=hashlib.sha256(data).hexdigest()) for one in explanations]


def read(written, start: str):
    return [pydicom.dcmread(path) for name, path in sorted(written.items()) if name.startswith(start)]


def withhold(explanations):
    """The explanations of a bundle whose maps did not pass: none by default, and a named one with a caveat."""
    check = MapCheck(None, {"attention": "it is the same for different findings"}, 9)
    caveat = check.describe("attention", "Attention of the label")
    kept = replace(explanations[0].maps[1], caveat=caveat)
    return [
        replace(explanations[0], maps=(kept,), remarks=(check.refusal, caveat)),
        replace(explanations[1], maps=(), remarks=(check.refusal,)),
    ]


def test_every_object_belongs_to_the_study_and_refers_to_the_radiograph(written, image):
    source = pydicom.dcmread(io.BytesIO(image))
    objects = [pydicom.dcmread(path) for path in written.values()]
    assert {one.SOPClassUID for one in objects} == {SR, SC, PR}
    assert len({one.SOPInstanceUID for one in objects}) == len(objects)
    for one in objects:
        assert one.StudyInstanceUID == source.StudyInstanceUID
        assert one.SeriesInstanceUID != source.SeriesInstanceUID
        for name in (
            "PatientName",
            "PatientID",
            "PatientBirthDate",
            "PatientSex",
            "AccessionNumber",
            "StudyDate",
            "StudyDescription",
            "PatientAge",
            "ReferringPhysicianName",
        ):
            assert one[name].value == source[name].value, name
        assert f'"{source.SOPInstanceUID}"' in one.to_json()
        assert f'"{source.SOPClassUID}"' in one.to_json()
        assert RESEARCH in one.SeriesDescription


def test_a_second_run_makes_new_objects(explanations, image, written, tmp_path):
    again = write_dicom(explanations, image, tmp_path)
    assert [path.name for path in again] == list(written)
    for path in again:
        assert pydicom.dcmread(path).SOPInstanceUID != pydicom.dcmread(written[path.name]).SOPInstanceUID


def test_the_capture_shows_the_radiograph_in_its_place_and_size(written, explanations, image):
    source = pydicom.dcmread(io.BytesIO(image))
    captures = read(written, "secondary-capture")
    assert len(captures) == 4
    for one in captures:
        assert list(one.ImageType) == ["DERIVED", "SECONDARY"]
        assert [float(side) for side in one.PixelSpacing] == [0.143, 0.143]
        assert one.Columns == source.Columns
        assert one.Rows > source.Rows
        assert list(one.PatientOrientation) == ["L", "F"]
        assert one.DeviceSerialNumber == explanations[0].fingerprint
        assert explanations[0].fingerprint in one.DerivationDescription
        assert one.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    picture, drawn = captures[0].pixel_array, render_map(explanations[0], explanations[0].maps[1])
    assert picture.shape == (captures[0].Rows, source.Columns, 3)
    below = len(drawn) // 8  # of the text
    np.testing.assert_array_equal(picture[below : len(drawn)], drawn[below:])


def test_the_words_for_research_only_are_burned_into_the_radiograph(written, explanations):
    [first, *_] = read(written, "secondary-capture")
    plain = render_map(explanations[0], explanations[0].maps[1])
    burned = np.abs(first.pixel_array[: len(plain)].astype(int) - plain).max(2) > 60
    rows = np.flatnonzero(burned.any(1))
    assert burned.sum() > 100
    assert rows.max() < len(plain) / 8


def test_the_report_states_every_finding(written, explanations, bundle):
    [dataset] = read(written, "structured-report")
    report = highdicom.sr.srread(written["structured-report.dcm"])
    assert dataset.Modality == "SR"
    assert dataset.VerificationFlag == "UNVERIFIED"
    groups = report.content.get_image_measurement_groups()
    assert len(groups) == len(LABELS)
    for group, finding in zip(groups, explanations[0].findings, strict=True):
        value, scheme, meaning = codes.code_finding(finding.key)
        assert (group.finding_type.value, group.finding_type.scheme_designator) == (value, scheme)
        assert group.finding_type.meaning == meaning
        values = {one.name.value: (one.value, one.unit.value) for one in group.get_measurements()}
        assert values[codes.CERTAINTY[0]] == (pytest.approx(100 * finding.probability, abs=0.01), "%")
        [presence] = group.get_qualitative_evaluations()
        if finding.threshold is None:
            assert codes.THRESHOLD[0] not in values
            assert presence.value.meaning == "Undetermined"
        else:
            assert values[codes.THRESHOLD[0]][0] == pytest.approx(40)
            assert presence.value.meaning == ("Present" if finding.probability >= 0.4 else "Absent")
        text = json.dumps([item.to_json() for item in group])
        assert bundle.fingerprint in text
        assert RESEARCH in text
    assert dataset.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == codes.SCHEME


def test_the_codes_are_short_and_their_own():
    triples = [codes.code_finding(key) for key in LABEL_KEYS]
    assert len(set(triples)) == len(LABELS)
    for value, scheme, meaning in (*triples, codes.THRESHOLD):
        assert len(value) <= 16
        assert len(scheme) <= 16
        assert len(meaning) <= 64
    assert codes.code_finding("general_radiographic")[:2] == ("CXR-01", codes.SCHEME)


def list_codes(dataset) -> set[codes.Triple]:
    """All coded entries of an object, at any depth."""
    found = set()
    if "CodeValue" in dataset:
        found.add((str(dataset.CodeValue), str(dataset.CodingSchemeDesignator), str(dataset.CodeMeaning)))
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                found |= list_codes(item)
    return found


# Codes that pydicom's copy of PS3.16 does not hold -> where each was read.
ELSEWHERE = {
    codes.CHEST_RADIOGRAPHY: "https://hl7.org/fhir/us/core/STU5.0.1/Media-chest-xray.html",
    codes.code_finding(
        "atelectasis"
    ): "https://www.medizininformatik-initiative.de/fhir/ext/modul-onko/ConceptMap/"
    "mii-cm-onko-nebenwirkung-meddra-sct",
}


def test_every_standard_code_is_known(written):
    """Those of the written objects, and those of all decisions, by their meaning too."""
    known = {
        (code.value, code.scheme_designator, code.meaning)
        for scheme in ("DCM", "SCT", "UCUM")
        for code in getattr(pydicom.sr.codedict.codes, scheme).concepts.values()
    }
    used = {codes.code_decision(decision) for decision in get_args(Decision)}
    for path in written.values():
        used |= list_codes(pydicom.dcmread(path))
    used.discard(
        ("en-US", "RFC5646", "English (United States)")
    )  # the language of the report, of no code list
    standard = {code for code in used if code[1] != codes.SCHEME}
    assert standard - known == set(ELSEWHERE)
    assert codes.CERTAINTY in standard


def test_outlines_lie_on_the_strong_spots(written, explanations):
    states = {path.name: path for path in written.values() if path.name.startswith("presentation-state")}
    state = pydicom.dcmread(states["presentation-state-cardiac-integrated_gradients.dcm"])
    assert RESEARCH in state.GraphicAnnotationSequence[0].TextObjectSequence[0].UnformattedTextValue
    strong, _ = find_strong(explanations[0], explanations[0].maps[0])
    for line in state.GraphicAnnotationSequence[0].GraphicObjectSequence:
        assert line.GraphicAnnotationUnits == "PIXEL"
        points = np.reshape(line.GraphicData, (-1, 2))
        assert tuple(points[0]) == tuple(points[-1])
        on = [strong[int(row), int(column)] for column, row in points]
        assert all(on)


def test_a_line_counts_from_the_corner_of_the_first_pixel():
    mask = np.zeros((40, 50), np.bool_)
    mask[10:21, 5:36] = True
    [line] = trace(mask)
    assert line.min(0).tolist() == [5.5, 10.5]
    assert line.max(0).tolist() == [35.5, 20.5]


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")])
def test_outlines_keep_the_polarity(explanations, image, tmp_path, photometric, shape):
    data = change(image, ["PresentationLUTShape"], PhotometricInterpretation=photometric)
    states = [
        path for path in write_dicom(move(explanations, data), data, tmp_path) if "presentation" in path.name
    ]
    assert states
    assert {pydicom.dcmread(path).PresentationLUTShape for path in states} == {shape}


def test_a_map_that_did_not_pass_is_in_no_object(explanations, image, tmp_path):
    """The gate holds here too, also for a map that was asked for by name."""
    kept = withhold(explanations)
    paths = write_dicom(kept, image, tmp_path)
    assert [path.name for path in paths] == ["secondary-capture.dcm", "structured-report.dcm"]
    capture, report = (pydicom.dcmread(path) for path in paths)
    picture = capture.pixel_array[: len(kept[0].original)]
    assert np.ptp(picture, axis=2).max() == 0  # no colour
    assert kept[0].remarks[0] in report.to_json()
    assert "No map is in this study" in report.to_json()


def run_dciodvfy(path: Path) -> list[str]:
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace")
    return [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is missing: apt install dicom3tools")
def test_dciodvfy_finds_no_error(written, explanations, image, tmp_path):
    paths = [*written.values(), *write_dicom(withhold(explanations), image, tmp_path)]
    assert len(paths) > 6
    for path in paths:
        assert run_dciodvfy(path) == [], path.name
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(change(paths[0].read_bytes(), remove=["ConversionType"]))
    assert run_dciodvfy(broken)  # the check itself can fail


@pytest.mark.parametrize(
    ("elements", "remove", "message"),
    [
        ({}, ["StudyInstanceUID"], "states no StudyInstanceUID"),
        ({"SOPInstanceUID": ""}, [], "states no SOPInstanceUID"),
    ],
)
def test_a_file_that_nothing_can_refer_to(explanations, image, tmp_path, elements, remove, message):
    with pytest.raises(ImageError, match=message):
        write_dicom(explanations, change(image, remove, **elements), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_picture_is_refused_in_one_sentence(explanations, tmp_path):
    png = encode_png(explanations[0].original)
    with pytest.raises(ImageError, match=r"^DICOM outputs need a DICOM image[^.]*PNG or JPEG\.$"):
        write_dicom(explanations, png, tmp_path / "none")
    with pytest.raises(ConfigError, match="explanation of an image"):
        write_dicom([], png, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_another_file_than_the_explained_one(explanations, image, tmp_path):
    """No explanation gets into the study of another patient, nor under the name of another model."""
    other = change(image, PatientName="Doe^Other", StudyInstanceUID="1.2.9", SOPInstanceUID="1.2.9.1")
    first, second = explanations
    for mixed, data, message in (
        (explanations, other, "this file is another one"),
        ([first, *move([second], other)], image, "of one image"),
        ([first, replace(second, fingerprint="e" * 64)], image, "of one model"),
        ([first, replace(second, kind="study")], image, "of one case"),
        ([first, replace(second, findings=second.findings[1:])], image, "of one case"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_dicom(mixed, data, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert first.image_sha256 == hashlib.sha256(image).hexdigest()
    assert first.image_sha256 not in repr(first) + json.dumps(first.to_dict())


def test_missing_extra_names_its_install_command(explanations, image, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConfigError, match=r"pip install 'cxr-serving\[explain\]'"):
        write_dicom(explanations, image, tmp_path)


def test_nothing_of_the_patient_gets_into_logs_or_errors(
    explanations, image, tmp_path, caplog, capfd, recwarn
):
    caplog.set_level(logging.DEBUG)
    # A name without a caret, a sex and dates that do not exist, a damaged number: what libraries complain about.
    odd = change(image, PatientName="Janet Roe", PatientSex="X", BodyPartExamined="CHEST")
    odd = odd.replace(b"19480229", b"29021948").replace(b"071Y", b"71 Y")
    write_dicom(move(explanations, odd), odd, tmp_path / "odd")
    windows = change(odd, WindowCenter=["1", "2"], WindowWidth="3")
    with pytest.raises(ImageError) as missing:
        write_dicom(explanations, change(odd, ["StudyInstanceUID"]), tmp_path / "bad")
    with pytest.raises(ImageError) as unusable:
        write_dicom(move(explanations, windows), windows, tmp_path / "bad")
    errors = (missing.value, unusable.value)
    told = [str(error) + str(error.__cause__ or "") for error in errors]
    said = (
        caplog.text
        + "".join(capfd.readouterr())
        + "".join(str(one.message) for one in recwarn)
        + "".join(told)
    )
    for secret in (*SECRETS, "Janet", "Roe", "29021948", "71 Y", "1.2.3.4"):
        assert secret not in said
    [report] = [path for path in (tmp_path / "odd").iterdir() if path.name == "structured-report.dcm"]
    assert pydicom.dcmread(report).PatientName == "Janet Roe"


def test_the_command_writes_them(bundle, image, tmp_path):
    (tmp_path / "chest.dcm").write_bytes(image)
    (tmp_path / "chest.png").write_bytes(encode_png(np.eye(64, dtype=np.uint8) * 255))
    (tmp_path / "report.txt").write_text("The heart is enlarged.")
    line = ["--bundle", str(bundle.path), "--steps", "4", "--out", str(tmp_path / "why.png")]
    out = ["--dicom", str(tmp_path / "dicom"), "--json"]
    told = CliRunner().invoke(
        app, ["explain", str(tmp_path / "chest.dcm"), *line, *out, "--finding", "cardiac"]
    )
    assert told.exit_code == 0, told.output
    assert {Path(path).name for path in json.loads(told.stdout)["written"]} == {
        path.name for path in (tmp_path / "dicom").iterdir()
    }
    for secret in SECRETS:
        assert secret not in told.output
    for given, message in (
        ([str(tmp_path / "chest.png")], "DICOM outputs need a DICOM image"),
        (["--report", str(tmp_path / "report.txt")], "--dicom needs a DICOM image"),
    ):
        refused = CliRunner().invoke(app, ["explain", *given, *line, *out])
        assert refused.exit_code == 2
        assert message in " ".join(refused.output.split())
