"""A map that did not pass the checks of its bundle gets into no DICOM object, whatever asks for it."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.bundle import Bundle, amend_bundle, load_bundle, write_json
from contract.labels import LABELS
from contract.map_checks import FILE, FOLDER

torch = pytest.importorskip("torch")
pytest.importorskip("captum")
pytest.importorskip("highdicom")

import pydicom  # noqa: E402

from client.explain import explain_findings, explain_views, write_dicom  # noqa: E402

METHODS = ["attention", "integrated_gradients"]  # one that failed, and one that was not measured


@pytest.fixture(scope="module")
def checked(write_bundle, small_config, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of whose maps none passed."""
    bundle = write_bundle(
        tmp_path_factory.mktemp("bundles") / "small",
        small_config,
        seed=3,
        texts=["The heart is enlarged."],
        thresholds=[0.4] * len(LABELS),
    )
    rows = {"attention": {"passed": False, "reason": "it lags"}}
    gate = {"gate": {"default": None, "methods": rows, "findings": 9}}
    with amend_bundle(bundle) as scratch:
        (scratch / FOLDER).mkdir()
        content = {"format": 1, "fingerprint": bundle.fingerprint, "ways": {"image": gate}}
        write_json(scratch / FOLDER / FILE, content)
    return load_bundle(bundle.path)


@pytest.fixture(scope="module")
def files(chest_files, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A frontal and a lateral radiograph."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("frontal", "lateral"):
        (folder / f"{name}.dcm").write_bytes(chest_files[name])
    return [folder / "frontal.dcm", folder / "lateral.dcm"]


def require_no_map(folder: Path) -> None:
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == ["secondary-capture.dcm", "structured-report.dcm"]
    capture, report = (pydicom.dcmread(path) for path in paths)
    assert np.ptp(capture.pixel_array, axis=2).max() == 0  # no colour
    assert "No map is in this study" in report.to_json()


def test_from_python(checked, files, tmp_path):
    wanted = {"labels": ["cardiac"], "steps": 2, "methods": METHODS}
    alone = explain_findings(checked, image=files[0], **wanted)
    together = explain_views(checked, files, **wanted)
    second = [one for one in together if one.view == 2]
    for name, found, file in (("alone", alone, files[0]), ("second", second, files[1])):
        assert [one.method for one in found[0].maps] == METHODS
        write_dicom(found, file.read_bytes(), tmp_path / name)
        require_no_map(tmp_path / name)
    assert "it was not measured" in alone[0].maps[1].caveat


def test_from_the_command_which_writes_the_first_of_several_images(checked, files, tmp_path):
    line = ["explain", str(files[0]), "--further", str(files[1]), "--bundle", str(checked.path), "--json"]
    line += ["--steps", "4", "--out", str(tmp_path / "why.png"), "--dicom", str(tmp_path / "objects")]
    told = CliRunner().invoke(
        app, [*line, "--finding", "cardiac", *(word for key in METHODS for word in ("--method", key))]
    )
    assert told.exit_code == 0, told.output
    assert len(json.loads(told.stdout)["written"]) == 2
    require_no_map(tmp_path / "objects")
    report = pydicom.dcmread(tmp_path / "objects" / "structured-report.dcm").to_json()
    assert "Image 1 of 2 that were read together" in report
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    assert uids[0] in report
