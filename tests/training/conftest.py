"""What tests of training share: the real Open-i reports, read once, and reports and tables made up."""

import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from contract.bundle import Bundle, load_bundle
from contract.errors import ReportError
from contract.report.text import select_text
from training.data.openi import SCHEMA, Study, build_table, read_reports, write_table

# A training run of some seconds.
SMALL = {
    "loop.epochs": 1,
    "model.image_size": 56,
    "model.image_width": 16,
    "model.image_depths": [1],
    "model.image_heads": [2],
    "model.text_width": 32,
    "model.text_layers": 1,
    "model.text_heads": 2,
}
FINDINGS = '<AbstractText Label="FINDINGS">Clear.</AbstractText>'


@pytest.fixture(scope="session")
def openi_archive(openi_directory) -> Path:
    """The complete report archive, as the collection distributes it."""
    return openi_directory / "NLMCXR_reports.tgz"


@pytest.fixture(scope="session")
def real_studies(openi_archive) -> tuple[Study, ...]:
    """All studies of the archive, ordered by number."""
    return tuple(read_reports(openi_archive))


@pytest.fixture(scope="session")
def few_reports(openi_archive, tmp_path_factory) -> Path:
    """A directory with 300 reports of the archive."""
    place = tmp_path_factory.mktemp("few")
    with tarfile.open(openi_archive) as archive:
        for member in itertools.islice(filter(tarfile.TarInfo.isfile, archive), 300):
            (place / Path(member.name).name).write_bytes(archive.extractfile(member).read())
    return place


@pytest.fixture(scope="session")
def real_texts(real_studies) -> tuple[str, ...]:
    """Findings and impression of every study, "" where there is neither."""
    return tuple(_read_text(study) for study in real_studies)


def _read_text(study: Study) -> str:
    try:
        return select_text(study.report, "full")
    except ReportError:
        return ""


@pytest.fixture(scope="session")
def phantom_table(make_once: Callable[..., Path]) -> Path:
    """The table of 60 phantom studies with small images, drawn once for all tests: none changes it or the images."""
    from training.phantom import draw_dataset

    def fill(place: Path) -> None:
        draw_dataset(place / "phantom", studies=60, seed=5, scale=0.05, workers=1)
        write_table(build_table(place / "phantom", place / "phantom"), place / "studies.parquet")

    return make_once("phantom-60", fill) / "studies.parquet"


@pytest.fixture(scope="session")
def phantom_bundle(make_once: Callable[..., Path], phantom_table: Path) -> Bundle:
    """What a run of `SMALL` on these studies leaves, trained once for all tests: none changes it."""
    from training.config.toml_file import load_config
    from training.train import train

    place = make_once(
        "phantom-bundle", lambda place: train(load_config("demo", SMALL), phantom_table, place / "bundle")
    )
    return load_bundle(place / "bundle")


@pytest.fixture(scope="session")
def make_xml() -> Callable[..., bytes]:
    """A function that writes one Open-i report; see `_make_xml`."""
    return _make_xml


def _make_xml(number=7, *, images=(), major=("normal",), automatic=(), sections=FINDINGS) -> bytes:
    headings = "".join(f"<major>{heading}</major>" for heading in major)
    headings += "".join(f"<automatic>{heading}</automatic>" for heading in automatic)
    parents = "".join(f'<parentImage id="{name}"><figureId>F1</figureId></parentImage>' for name in images)
    return (
        f'<eCitation><uId id="CXR{number}"/><MeSH>{headings}</MeSH><MedlineCitation><Article><Abstract>'
        f"{sections}</Abstract></Article></MedlineCitation>{parents}</eCitation>"
    ).encode()


@pytest.fixture(scope="session")
def check_sentence() -> Callable[[pytest.ExceptionInfo], None]:
    """A function that checks the message of an error: one sentence, without what a file held."""
    return _check_sentence


def _check_sentence(info) -> None:
    message = str(info.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert "4711" not in message
    assert len(message) < 400


@pytest.fixture
def reports(tmp_path, make_xml) -> Path:
    """A directory with two reports, the first of seven images."""
    ids = [f"CXR7_IM-0001-{number}001" for number in range(1, 8)]
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "7.xml").write_bytes(make_xml(images=ids))
    (tmp_path / "reports" / "8.xml").write_bytes(make_xml(8))
    return tmp_path / "reports"


EMPTY_ROW = {
    **dict.fromkeys(("image_ids", "image_paths", "views", "headers", "mesh_major", "mesh_automatic"), ()),
    **dict.fromkeys(("indication", "comparison", "findings", "impression"), ""),
    "labels": (),
    "labelled": False,
}


@pytest.fixture
def write_rows(tmp_path) -> Callable[..., Path]:
    """A function that writes a studies table of rows; what a row does not say is empty, ids count from 1."""

    def write(rows, name="studies.parquet") -> Path:
        numbered = [
            {"study_id": f"CXR{number}", "patient_id": str(number), **EMPTY_ROW, **row}
            for number, row in enumerate(rows, start=1)
        ]
        write_table(pa.Table.from_pylist(numbered, schema=SCHEMA), tmp_path / name)
        return tmp_path / name

    return write
