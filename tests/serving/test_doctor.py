"""The doctor answers on any machine."""

import sys

from serving import doctor


def test_checks_answer_in_order():
    result = doctor.checks()
    names = [name for name, _, _ in result]
    assert names[:3] == ["python", "cpu cores", "memory"]
    assert {"extra: serve", "tritonserver", "onnxruntime", "faiss", "gpu"} <= set(names)
    assert all(isinstance(ok, bool) and detail for _, ok, detail in result)


def test_missing_extra_names_its_install_command(monkeypatch):
    monkeypatch.setattr(doctor, "_read_version", lambda package: None)
    answers = {name: (ok, detail) for name, ok, detail in doctor.checks()}
    assert answers["extra: train"][0] is False
    assert "pip install 'cxr-serving[train]'" in answers["extra: train"][1]
    assert "cxr-serving[cpu]" in answers["faiss"][1]


def test_broken_package_does_not_end_the_doctor(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    answers = {name: (ok, detail) for name, ok, detail in doctor.checks()}
    assert answers["onnxruntime"][0] is False


def test_two_faiss_packages_are_told(monkeypatch):
    monkeypatch.setattr(doctor, "_read_version", lambda package: "1.0")
    answers = {name: (ok, detail) for name, ok, detail in doctor.checks()}
    assert answers["faiss"][0] is False
    assert "keep one" in answers["faiss"][1]
