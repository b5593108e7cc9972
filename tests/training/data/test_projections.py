"""A published list of projections: read, held against the images, and stronger than their headers."""

import json

import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.errors import ConfigError
from training.data.openi import build_table
from training.data.projections import read_projections

pytest.importorskip("torch")

HEAD = "uid,filename,projection\n"


@pytest.fixture
def files(tmp_path):
    """Reports of one study and its two images: PA and LL by their headers."""
    import pydicom

    from training.phantom import draw_dataset

    draw_dataset(tmp_path / "phantom", studies=8, seed=0, scale=0.02, workers=1)
    number = next(
        folder
        for folder in sorted((tmp_path / "phantom").rglob("*.xml"))
        if folder.read_text().count("<parentImage") == 2
    )
    reports = tmp_path / "reports"
    reports.mkdir()
    number.rename(reports / number.name)
    images = sorted((tmp_path / "phantom").rglob(f"{number.stem}_IM-*.dcm"))
    for path, view in zip(images, ("PA", "LL"), strict=True):
        dataset = pydicom.dcmread(path)
        dataset.ViewPosition, dataset.PatientOrientation = view, ""
        dataset.save_as(path)
    return reports, tmp_path / "phantom", [path.stem for path in images]


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_is_read(tmp_path):
    path = write(
        tmp_path / "list.csv",
        f"\ufeff{HEAD}1,1_IM-0001-4001.dcm.png,Frontal\n1,1_IM-0001-3001.dcm.png, lateral\n",
    )
    assert read_projections(path) == {
        "1_IM-0001-4001.dcm.png": "FRONTAL",
        "1_IM-0001-3001.dcm.png": "LATERAL",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its first line lacks filename and projection"),
        (HEAD, "names no image"),
        ("uid,filename\n1,a\n", "its first line lacks projection"),
        (HEAD + "1,a.png,Oblique\n", "line 2 does not name an image and Frontal or Lateral"),
        (HEAD + "1,a.png\n", "line 2 does not name"),
        (HEAD + "1,,Frontal\n", "line 2 does not name"),
        (HEAD + "1,a.png,Frontal\n1,a.png,Lateral\n", "calls a.png both frontal and lateral"),
        (HEAD + '1,"a.png,Frontal\n', "line 2 cannot be read"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, text, words, check_sentence):
    with pytest.raises(ConfigError, match=words) as info:
        read_projections(write(tmp_path / "list.csv", text))
    check_sentence(info)


def test_what_cannot_be_read_is_refused(tmp_path, check_sentence):
    with pytest.raises(ConfigError, match=r"missing\.csv: No such file") as info:
        read_projections(tmp_path / "missing.csv")
    check_sentence(info)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8") as info:
        read_projections(tmp_path / "binary.csv")
    check_sentence(info)


def test_a_list_overrules_the_headers(files, tmp_path):
    reports, images, (first, second) = files
    [row] = build_table(reports, images).to_pylist()
    assert row["image_ids"] == [f"CXR{first}", f"CXR{second}"]
    assert row["views"] == ["PA", "LATERAL"]
    path = write(tmp_path / "list.csv", f"{HEAD}1,{first}.dcm.png,Lateral\n1,{second}.dcm.png,Frontal\n")
    [row] = build_table(reports, images, projections=path).to_pylist()
    assert row["image_ids"] == [f"CXR{second}", f"CXR{first}"]
    assert row["views"] == ["FRONTAL", "LATERAL"]
    assert {header["view_source"] for header in row["headers"]} == {"list of projections"}
    assert min(header["view_confidence"] for header in row["headers"]) > 0.99


def test_images_that_the_list_lacks_go_by_their_headers(files, tmp_path):
    reports, images, (_, second) = files
    path = write(tmp_path / "list.csv", f"{HEAD}1,{second}.dcm.png,Lateral\n")
    counts = []
    [row] = build_table(reports, images, on_images=counts.append, projections=path).to_pylist()
    assert row["views"] == ["PA", "LATERAL"]
    assert (counts[0].found, counts[0].listed) == (2, 1)


def test_a_list_of_other_images_is_refused(files, tmp_path, check_sentence):
    reports, images, _ = files
    path = write(tmp_path / "list.csv", HEAD + "9,999999_IM-0001-1001.dcm.png,Frontal\n")
    with pytest.raises(ConfigError, match="names none of the 2 images") as info:
        build_table(reports, images, projections=path)
    check_sentence(info)
    with pytest.raises(ConfigError, match="A list of projections needs images") as info:
        build_table(reports, None, projections=path)
    check_sentence(info)


def test_command(files, tmp_path):
    reports, images, (first, second) = files
    path = write(tmp_path / "list.csv", f"{HEAD}1,{first}.png,Frontal\n1,{second}.png,Lateral\n")
    arguments = [
        "data",
        "table",
        reports,
        "--images",
        images,
        "--projections",
        path,
        "--out",
        tmp_path / "t.parquet",
    ]
    shown = CliRunner().invoke(app, list(map(str, arguments)))
    assert "2 of 2 images are in the list of projections" in " ".join(shown.output.split())
    told = json.loads(CliRunner().invoke(app, [*map(str, arguments), "--json"]).stdout)
    assert told["images"] == {"named": 2, "found": 2, "missing": 0, "listed": 2}
