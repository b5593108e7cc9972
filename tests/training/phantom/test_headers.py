"""DICOM headers: distributed as in the real collection, and nothing of its patients in the table."""

import ast
import csv
import gzip
import json
import re
from collections import Counter

import numpy as np
import pytest
from pydicom.dataset import Dataset

from contract.errors import ConfigError
from contract.image.elements import Elements, fill_view
from contract.image.view import rank_view, weigh_study
from contract.image.view_clues import ViewClues, read_clues
from training.data.openi import get_image_key
from training.phantom.header_clues import (
    CLUES,
    add_clues,
    describe_exposures,
    draw_exposure,
    find_laterals,
)
from training.phantom.headers import (
    FIELDS,
    TABLE,
    Header,
    count_headers,
    draw_headers,
    format_table,
    load_table,
)

IDENTIFYING = (
    "Accession Number",
    "SOP Instance UID",
    "Series Instance UID",
    "Study Instance UID",
    "Patient's Birth Date",
    "Study Date",
    "Content Date",
    "Content Time",
    "Instance Creation Date",
    "Instance Creation Time",
    "Requested Procedure ID",
    "Performed Procedure Step Start Date",
    "Performed Procedure Step Start Time",
)


@pytest.fixture(scope="module")
def metadata(openi_directory):
    return openi_directory / "nlmcxr_dicom_metadata.csv.gz"


@pytest.fixture(scope="module")
def rows(metadata):
    with gzip.open(metadata, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def drawn():
    """The headers of 4,000 studies."""
    return [draw_headers(np.random.default_rng([8, number])) for number in range(4000)]


def test_table_is_what_the_script_counts(metadata):
    assert TABLE.read_text(encoding="utf-8") == format_table(count_headers(metadata))


def count_windows(row) -> str:
    text = row["Window Center"]
    return "many" if text.startswith("[") else "one" if text else ""


def round_size(text) -> int:
    """Rare sizes are counted together, rounded to hundreds."""
    return round(int(text) / 100) * 100


@pytest.mark.parametrize(
    ("read", "get"),
    [
        (lambda row: row["Photometric Interpretation"], lambda h: h.fields["PhotometricInterpretation"]),
        (lambda row: row["Bits Stored"], lambda h: h.fields["BitsStored"]),
        (lambda row: row["View Position"], lambda h: h.fields["ViewPosition"]),
        (lambda row: row["Presentation LUT Shape"], lambda h: h.fields["PresentationLUTShape"]),
        (count_windows, lambda h: "many" if h.many_windows else "one" if h.window else ""),
        (
            lambda row: (round_size(row["Rows"]), round_size(row["Columns"])),
            lambda h: (round_size(h.rows), round_size(h.columns)),
        ),
    ],
    ids=["photometric", "bits", "view", "lut-shape", "windows", "size"],
)
def test_drawn_headers_are_distributed_as_the_real_ones(read, get, drawn, rows):
    real = Counter(read(row) for row in rows)
    found = Counter(get(header) for headers in drawn for header in headers)
    assert found.keys() <= real.keys()
    for value, count in real.items():
        share = count / real.total()
        # Images of one study mostly agree, so that the studies, not the images, are the sample.
        error = (share * (1 - share) / len(drawn)) ** 0.5
        assert abs(found[value] / found.total() - share) < 4 * error, value


def test_images_of_a_study_as_many_as_in_the_collection(drawn, rows):
    real = Counter(Counter(row["imageid"].split("_")[0] for row in rows).values())
    found = Counter(len(headers) for headers in drawn)
    for count, studies in real.items():
        assert found[count] / 4000 == pytest.approx(studies / real.total(), abs=0.03)


def test_missing_windows_go_with_the_same_photometric_interpretation(drawn, rows):
    """In the collection it is mostly MONOCHROME1 that brings no window; drawn apart, they would not agree."""
    real = [not row["Window Center"] for row in rows if row["Photometric Interpretation"] == "MONOCHROME1"]
    found = [h.window is None for headers in drawn for h in headers if h.inverted]
    assert np.mean(found) == pytest.approx(np.mean(real), abs=0.04)
    assert np.mean(real) > 0.8


def test_names_are_those_of_real_files(drawn, rows):
    real = {re.sub(r"^\d+_IM-\d+-", "", get_image_key(row["imageid"])) for row in rows}
    for headers in drawn:
        names = [header.name for header in headers]
        assert len(set(names)) == len(names)
        assert set(names) <= real


def test_sizes_and_windows_are_usable():
    for kind in load_table()["kinds"]:
        assert all(variant["sizes"] for variant in kind["variants"])
        sizes = [size for variant in kind["variants"] for size, _ in variant["sizes"]]
        assert min(min(size) for size in sizes) >= 500
        assert all(width > 1 for (_, width), _ in kind["windows"])
        assert bool(kind["windows"]) == bool(kind["window"])


def test_table_holds_no_identifier(rows):
    text = TABLE.read_text(encoding="utf-8")
    values = {row[column] for row in rows for column in IDENTIFYING} - {""}
    assert len(values) > 10_000
    words = set(re.findall(r"[^\s\"\\\[\]{},:]+", text))
    assert not words & values
    assert not re.search(r"9999\.\d|\b(19|20)\d{6}\b|CXR\d|IM-\d", text)
    table = json.loads(text)
    assert table.keys() == {"images", "kinds", "studies", "names"}
    for kind in table["kinds"]:
        assert kind.keys() == {"fields", "window", "windows", "variants", "count"}
        assert kind["fields"].keys() == FIELDS.keys()
        for variant in kind["variants"]:
            assert variant.keys() == {"clues", "lateral", "sizes", "exposures"}
            assert variant["clues"].keys() == {*CLUES, "maker"}


PA, LL, SILENT = ViewClues(position="PA"), ViewClues(position="LATERAL"), ViewClues()


@pytest.mark.parametrize(
    ("studied", "laterals"),
    [
        ([], []),
        ([PA], [False]),
        ([SILENT], [False]),
        ([LL], [True]),
        ([PA, LL], [False, True]),
        ([LL, PA, LL], [True, False, True]),
        ([SILENT, SILENT], [False, True]),
        ([SILENT, PA], [True, False]),
        ([LL, LL], [True, True]),
    ],
)
def test_which_images_are_lateral(studied, laterals):
    assert find_laterals(studied) == laterals


def test_headers_tell_what_the_phantom_shows(drawn):
    """By the same evidence as in the real collection: hardly a study starts with a lateral, or has a wrong view."""
    wrong = decided = late = several = 0
    for headers in drawn:
        verdicts = weigh_study([read_drawn_clues(header) for header in headers])
        known = [
            (v.view == "LATERAL", h.lateral)
            for v, h in zip(verdicts, headers, strict=True)
            if v.view != "UNKNOWN"
        ]
        wrong, decided = wrong + sum(said != shown for said, shown in known), decided + len(known)
        if len({header.lateral for header in headers}) == 2:
            first = min(
                range(len(headers)), key=lambda place: (rank_view(verdicts[place]), headers[place].name)
            )
            late, several = late + headers[first].lateral, several + 1
    assert decided > 7000
    assert wrong < 0.002 * decided
    assert several > 3000
    assert late < 0.005 * several


def read_drawn_clues(header: Header) -> ViewClues:
    """Return what a file with a drawn header says of its view."""
    dataset = Dataset()
    dataset.ViewPosition, orientation = header.fields["ViewPosition"], header.fields["PatientOrientation"]
    dataset.PatientOrientation = ast.literal_eval(orientation) if orientation else ""
    add_clues(dataset, header.clues, header.exposure)
    return read_clues(fill_view(Elements(dataset)), rows=header.rows, columns=header.columns)


def test_exposures_of_one_patient_rise_together():
    quantiles = describe_exposures([1.0, 2.0, 4.04, 0.0, 8.0])
    assert quantiles == sorted(quantiles)
    assert draw_exposure(quantiles, 0.1) < draw_exposure(quantiles, 0.6) < draw_exposure(quantiles, 0.95) <= 8
    assert describe_exposures([1.0, 0.0, 0.0]) == describe_exposures([]) == []
    assert draw_exposure([], 0.5) == 0


def test_equal_generators_draw_equal_headers():
    assert draw_headers(np.random.default_rng(3)) == draw_headers(np.random.default_rng(3))
    assert len({str(draw_headers(np.random.default_rng(number))) for number in range(20)}) > 10


def test_wrong_metadata_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="There is no file"):
        count_headers(tmp_path / "none.csv.gz")
    plain = tmp_path / "plain.csv.gz"
    plain.write_text("imageid\n1\n")
    with pytest.raises(ConfigError, match="not a csv file packed"):
        count_headers(plain)
    other = tmp_path / "other.csv.gz"
    other.write_bytes(gzip.compress(b"imageid,Rows\nCXR1_IM-0001-1001,7\n"))
    with pytest.raises(ConfigError, match="does not hold the headers"):
        count_headers(other)
