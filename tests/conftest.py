"""Paths to the real Open-i files, which lie beside the checkout."""

import os
from pathlib import Path

import pytest

OPENI = Path(__file__).resolve().parents[2] / "shared" / "data" / "openi"


@pytest.fixture(scope="session")
def openi_directory() -> Path:
    """Directory of the real Open-i files; where CI=true they must be there, elsewhere the test is skipped."""
    if not OPENI.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the real Open-i files are missing: {OPENI}")
        pytest.skip(f"the real Open-i files are not at {OPENI}")
    return OPENI
