"""The audit of a data set: figures of the real reports and of a made table, and a page that can be trusted."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from contract.errors import ArtifactError, ConfigError
from contract.labels import LABELS
from training.data.audit.figures import audit_table
from training.data.audit.page import make_page, write_page
from training.data.openi import build_table, write_table

HEADER = {
    "format": "DICOM",
    "photometric": "MONOCHROME1",
    "bits": 12,
    "rows": 30,
    "columns": 20,
    "frames": 1,
    "window": True,
    "voi_lut": False,
    "inverse": False,
    "modality": "CR",
    "laterality": "",
    "body_part": "CHEST",
    "syntax": "1.2.840.10008.1.2.1",
}
TEXT = "The heart is normal in size. The mediastinum is unremarkable. No effusion or pneumothorax is seen in the chest."
NASTY = '<script>alert("x")</script> & $\\frac{1}{0}$ $sections'


NORMAL = {"mesh_major": ["normal"], "labels": ["normal"], "labelled": True}
ROWS = [
    {
        **NORMAL,
        "findings": TEXT,
        "image_ids": ["a", "b"],
        "image_paths": ["a", "b"],
        "views": ["PA", "LATERAL"],
        "headers": [HEADER, HEADER | {"photometric": "MONOCHROME2", "bits": 10, "window": False}],
    },
    {
        **NORMAL,
        "findings": TEXT.upper(),
        "indication": "XXXX-year-old, XXXX",
        "image_ids": ["c"],
        "image_paths": ["c"],
        "views": ["UNKNOWN"],
        "headers": [HEADER | {"syntax": "", "format": "PNG"}],
    },
    {
        "findings": TEXT + " XXXX Normal.",
        "comparison": "XXXX",
        "mesh_major": ["Cardiomegaly", "Kryptonite/lung"],
        "labels": ["cardiac", "pleural"],
        "labelled": True,
    },
    {"impression": "Large heart.", "mesh_major": ["No Indexing"]},
    {},
    {
        "impression": "Something else.",
        "patient_id": "1",
        "mesh_major": ["Pleural Effusion"],
        "labels": ["pleural"],
        "labelled": True,
    },
]


@pytest.fixture
def table(write_rows):
    return write_rows(ROWS)


@pytest.fixture
def split(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["CXR1", "CXR3"], "validation": ["CXR2"], "test": ["CXR4", "CXR6"]}))
    return path


def test_counts(table):
    audit = audit_table(table)
    assert (audit["studies"], audit["patients"], audit["images"], audit["labelled"]) == (6, 5, 3, 4)
    assert audit["labels"]["normal"] == {"name": "Normal", "studies": 2, "known": 4, "share": 0.5}
    assert audit["labels"]["cardiac"]["studies"] == 1
    keys = [label.key for label in LABELS]
    together = audit["together"]
    assert together[keys.index("pleural")][keys.index("cardiac")] == 1
    assert [together[place][place] for place in range(len(keys))] == [
        audit["labels"][key]["studies"] for key in keys
    ]
    assert audit["labels_per_study"] == {"1": 3, "2": 1}
    assert audit["images_per_study"] == {"0": 4, "1": 1, "2": 1}
    assert json.loads(json.dumps(audit)) == audit | {"words": json.loads(json.dumps(audit["words"]))}


def test_headings_without_a_label_are_explained(table):
    headings = audit_table(table)["headings"]
    assert {entry["heading"]: entry["reason"] for entry in headings["unmapped"]} == {
        "Kryptonite/lung": "training/data/mesh.csv has no rule for it.",
        "No Indexing": "The indexers gave up: what the report says is unknown, which is not the same as normal.",
    }
    assert (headings["distinct"], headings["without_heading"], headings["without_label"]) == (5, 1, 2)


def test_headers(table):
    headers = audit_table(table)["headers"]
    assert headers["view"] == {"LATERAL": 1, "PA": 1, "UNKNOWN": 1}
    assert headers["photometric"] == {"MONOCHROME1": 2, "MONOCHROME2": 1}
    assert headers["bits stored"] == {"12": 2, "10": 1}
    assert headers["window"] == {"yes": 2, "no": 1}
    assert headers["VOI LUT"] == {"no": 3}
    assert headers["transfer syntax"] == {"Explicit VR Little Endian": 2, "-": 1}
    assert headers["rows x columns"] == {"30 x 20": 3}
    assert all(sum(counts.values()) == 3 for counts in headers.values())


def test_rare_sizes_are_put_together(write_rows):
    headers = [HEADER | {"rows": 100 + number // 2} for number in range(50)]
    names = [str(number) for number in range(50)]
    table = write_rows([{"image_ids": names, "image_paths": names, "views": ["PA"] * 50, "headers": headers}])
    sizes = audit_table(table)["headers"]["rows x columns"]
    assert len(sizes) == 13
    assert sizes["13 other sizes"] == 26


def test_sections_and_lengths(table):
    audit = audit_table(table)
    assert audit["sections"]["missing"] == {
        "indication": 6 - 1,
        "comparison": 6,
        "findings": 3,
        "impression": 4,
    }
    assert audit["sections"]["without_findings_and_impression"] == 1
    assert audit["sections"]["marked"] == {"indication": 1, "comparison": 1, "findings": 1, "impression": 0}
    assert audit["sections"]["marked_studies"] == 2
    assert audit["words"]["reports"] == 5
    assert audit["words"]["quantiles"]["shortest"] == 2
    assert audit["words"]["quantiles"]["longest"] == len(TEXT.split()) + 1
    assert audit["words"]["histogram"] == {0: 2, 10: 1 + 1, 20: 1}


def test_duplicates_and_parts(table, split):
    audit = audit_table(table, split)
    equal, near = audit["duplicates"]["equal"], audit["duplicates"]["near"]
    assert (equal["groups"], equal["studies"], equal["largest"]) == (1, 2, 2)
    assert (near["groups"], near["studies"], near["largest"]) == (1, 3, 3)
    assert near["examples"] == [{"studies": 3, "study_ids": ["CXR1", "CXR2", "CXR3"]}]
    parts = audit["parts"]
    assert parts["studies"] == {"train": 2, "validation": 1, "test": 2}
    assert parts["not_mentioned"] == 1
    assert parts["divided"] == {"patients": 1, "equal_reports": 1, "near_reports": 1}
    assert parts["described"]["train"]["labels_per_study"] == 1.5
    assert "cardiac" in parts["described"]["test"]["missing_labels"]
    assert audit_table(table)["parts"] is None


def test_a_split_of_another_table_is_refused(table, split):
    split.write_text('{"train": ["CXR77"]}')
    with pytest.raises(ConfigError, match="1 studies that the table does not hold"):
        audit_table(table, split)


def test_an_empty_table_is_refused(write_rows):
    with pytest.raises(ConfigError, match="holds no study"):
        audit_table(write_rows([]))


@pytest.mark.slow  # made tables are above; test_openi and test_duplicates count the real reports
def test_real_reports(openi_archive, tmp_path):
    """The figures of the collection, and nothing of a report on its page."""
    write_table(build_table(openi_archive, None), tmp_path / "real.parquet")
    audit = audit_table(tmp_path / "real.parquet")
    assert (audit["studies"], audit["labelled"], audit["images"]) == (3955, 3854, 0)
    assert audit["sections"]["missing"] == {
        "indication": 216,
        "comparison": 913,
        "findings": 530,
        "impression": 34,
    }
    assert (audit["sections"]["without_findings_and_impression"], audit["sections"]["marked_studies"]) == (
        28,
        3411,
    )
    assert {entry["heading"]: entry["studies"] for entry in audit["headings"]["unmapped"]} == {
        "No Indexing": 95,
        "Technical Quality of Image Unsatisfactory": 86,
    }
    assert audit["duplicates"]["near"]["largest"] == 58
    page = make_page(audit)
    assert "3,955" in page
    assert "cardiomediastinal silhouette" not in page.lower()


# --- the page --------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.open, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in {"img", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(page) -> Reader:
    reader = Reader()
    reader.feed(page.removeprefix("<!doctype html>"))
    assert reader.open == []
    return reader


def test_page_needs_nothing_else(table, split):
    audit = audit_table(table, split)
    text = make_page(audit)
    page = read_page(text)
    assert "script" not in page.tags
    assert len(page.addresses) == 3
    for address in page.addresses:
        svg = base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")).decode()
        assert svg.rstrip().endswith("</svg>")
        assert not re.search(r'(?:href|src)="https?:', svg)
    for words in (
        "Kryptonite/lung",
        "MONOCHROME1",
        "Explicit VR Little Endian",
        "CXR1, CXR2, CXR3",
        "1 patients",
    ):
        assert words in page.text
    assert make_page(audit) == text


def test_page_of_a_table_without_images_labels_or_words(write_rows):
    assert "The table names no image." in read_page(make_page(audit_table(write_rows([{}])))).text


def test_everything_is_escaped(write_rows, tmp_path):
    """Whatever a table says of itself is text on the page, never a tag."""
    said = ("modality", "photometric", "body_part", "laterality", "syntax", "format")
    row = {
        "study_id": NASTY,
        "findings": TEXT,
        "mesh_major": [NASTY],
        "image_ids": ["a"],
        "image_paths": ["a"],
        "views": [NASTY],
        "headers": [HEADER | dict.fromkeys(said, NASTY)],
    }
    name = NASTY.replace("/", "")
    table = write_rows([row, row | {"study_id": "CXR2"}], f"{name}.parquet")
    (tmp_path / f"{name}.json").write_text(json.dumps({"train": [NASTY], "test": ["CXR2"]}))
    reader = read_page(make_page(audit_table(table, tmp_path / f"{name}.json")))
    assert "script" not in reader.tags
    assert reader.text.count(NASTY) >= 6
    assert name in reader.text


def test_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "training.data.audit.page.make_page", lambda audit: f"<p>{audit['table']} \u2265 1</p>"
    )
    audit = {"table": "studies.parquet"}
    write_page(audit, tmp_path / "new" / "audit.html")
    assert (tmp_path / "new" / "audit.html").read_text(encoding="utf-8") == "<p>studies.parquet \u2265 1</p>"
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="Could not write"):
        write_page(audit, tmp_path / "file" / "audit.html")
