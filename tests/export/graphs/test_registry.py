"""The exporter's table of operators is made once for all graphs, and by every call elsewhere."""

import pytest

from export.graphs import registry
from export.graphs.registry import keep_registry

pytest.importorskip("onnxscript")


class Registry:
    """Stands for torch's class."""

    made = 0

    @classmethod
    def from_torchlib(cls, opset_version: int = 18) -> tuple[int, int]:
        cls.made += 1
        return cls.made, opset_version


def test_one_table_for_each_opset_and_afterwards_as_before(monkeypatch):
    monkeypatch.setattr(registry, "_find_class", lambda: Registry)
    monkeypatch.setattr(Registry, "made", 0)
    before = vars(Registry)["from_torchlib"]
    with keep_registry():
        first = Registry.from_torchlib(opset_version=18)
        assert Registry.from_torchlib(opset_version=18) is first
        assert Registry.from_torchlib(opset_version=20) == (2, 20)
    assert vars(Registry)["from_torchlib"] is before
    assert Registry.from_torchlib() == (3, 18)


def test_an_error_ends_it(monkeypatch):
    monkeypatch.setattr(registry, "_find_class", lambda: Registry)
    before = vars(Registry)["from_torchlib"]
    with pytest.raises(KeyError), keep_registry():
        raise KeyError
    assert vars(Registry)["from_torchlib"] is before


def test_the_installed_torch_has_the_class():
    assert registry._find_class() is not None


def test_without_the_class_nothing_changes(monkeypatch):
    monkeypatch.setattr(registry, "_find_class", lambda: None)
    with keep_registry():
        pass
