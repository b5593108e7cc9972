"""The doctor answers on any machine."""

import re
import sys
from pathlib import Path

import pytest
import tomllib

from serving import doctor


def test_checks_answer_in_order():
    result = doctor.run_checks()
    names = [check.name for check in result]
    assert names[:3] == ["python", "cpu cores", "memory"]
    assert {"extra: serve", "tritonserver", "onnxruntime", "faiss", "gpu"} <= set(names)
    assert all(isinstance(check.ok, bool) and check.detail for check in result)


def test_missing_extra_names_its_install_command(monkeypatch):
    monkeypatch.setattr(doctor, "_read_version", lambda package: None)
    answers = {check.name: check for check in doctor.run_checks()}
    assert answers["extra: train"].ok is False
    assert "pip install 'cxr-serving[train]'" in answers["extra: train"].detail
    assert "cxr-serving[cpu]" in answers["faiss"].detail


def test_broken_package_does_not_end_the_doctor(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    answers = {check.name: check for check in doctor.run_checks()}
    assert answers["onnxruntime"].ok is False


def test_an_onnxruntime_that_crashes_on_the_graphs_is_told(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    answers = {check.name: check for check in doctor.run_checks()}
    assert answers["onnxruntime"].ok
    assert "NVIDIA's images 25.07 to 26.07 hold 1.22.0 to 1.27.0" in answers["onnxruntime"].detail
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    answers = {check.name: check for check in doctor.run_checks()}
    assert answers["onnxruntime"].ok is False
    assert "1.20.1, but the graphs need 1.21 or newer: pip install" in answers["onnxruntime"].detail


def test_two_faiss_packages_are_told(monkeypatch):
    monkeypatch.setattr(doctor, "_read_version", lambda package: "1.0")
    answers = {check.name: check for check in doctor.run_checks()}
    assert answers["faiss"].ok is False
    assert "keep one" in answers["faiss"].detail


def test_every_package_of_an_extra_is_looked_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = {"client": project["dependencies"], **project["optional-dependencies"]}
    for extra, listed in doctor.EXTRAS.items():
        names = {re.split(r"[\[<>=;]", package)[0] for package in extras[extra]} - {"cxr-serving"}
        assert names - {"torchvision", "scipy", "tomli"} <= set(re.split(r"[ |]", listed)), extra
