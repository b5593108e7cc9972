"""What a package says is public is there, in order, and cheap to name."""

import importlib

import pytest


@pytest.mark.parametrize("package", ["client", "contract", "export", "retrieval", "serving", "training"])
def test_public_names_are_sorted_and_there(package):
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__)
    assert module.__doc__
    for name in module.__all__:
        assert hasattr(module, name) or importlib.import_module(f"{package}.{name}").__doc__
