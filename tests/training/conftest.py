"""The real Open-i reports, read once for all tests."""

from pathlib import Path

import pytest

from contract.errors import ReportError
from contract.text import select_text
from training.openi import Study, read_reports


@pytest.fixture(scope="session")
def openi_archive(openi_directory) -> Path:
    """The complete report archive, as the collection distributes it."""
    return openi_directory / "NLMCXR_reports.tgz"


@pytest.fixture(scope="session")
def real_studies(openi_archive) -> tuple[Study, ...]:
    """All studies of the archive, ordered by number."""
    return tuple(read_reports(openi_archive))


@pytest.fixture(scope="session")
def real_texts(real_studies) -> tuple[str, ...]:
    """Findings and impression of every study, "" where there is neither."""
    return tuple(_read_text(study) for study in real_studies)


def _read_text(study: Study) -> str:
    try:
        return select_text(study.report, "full")
    except ReportError:
        return ""
