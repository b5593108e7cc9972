"""`cxr data speed`: every file holds the drawn image, and the table tells what was measured."""

import io
import json
import sys

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import get_frame
from rich.console import Console
from typer.testing import CliRunner

from cli.app import app
from cli.speed import load_control, measure_kind, measure_speed, print_speed, take_turns
from cli.speed_images import BITS, Kind, draw_radiograph, list_kinds
from contract.errors import ConfigError, ImageError
from contract.image.read import load_pixels

image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")
VALUES = draw_radiograph(70, 58)
IMAGECODECS = {
    **dict.fromkeys(("JPEG extended, 12 bit", "JPEG lossless", "JPEG lossless SV1"), "jpeg8"),
    **dict.fromkeys(("JPEG-LS", "JPEG-LS near-lossless"), "jpegls"),
}
KINDS = {kind.name: kind for kind in list_kinds()}


def write(kind: Kind) -> bytes:
    try:
        return kind.write(VALUES)
    except ConfigError as error:
        pytest.skip(str(error))


def decode(data: bytes, kind: Kind) -> np.ndarray:
    """Decode a file without the code of this project."""
    if not kind.dicom:
        return np.asarray(image_module.open(io.BytesIO(data)))
    dataset = dcmread(io.BytesIO(data))
    if kind.name in IMAGECODECS:  # pydicom decodes it with packages only that this project does not use
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        return getattr(pytest.importorskip("imagecodecs"), f"{IMAGECODECS[kind.name]}_decode")(frame)
    return dataset.pixel_array


@pytest.mark.parametrize("name", KINDS)
def test_every_file_gives_back_the_image(name):
    kind = KINDS[name]
    found = decode(write(kind), kind).astype(float) * 2.0 ** (BITS - kind.bits)
    expected = VALUES.astype(float)
    if kind.lossless:
        np.testing.assert_array_equal(found, expected)
    else:
        assert np.abs(found - expected).max() < 2**BITS / 16


@pytest.mark.parametrize("name", KINDS)
def test_control_sees_the_image_that_load_pixels_sees(name):
    data = write(KINDS[name])
    try:
        pixels = load_pixels(data, size=24)[0]
        control = load_control(data, dicom=KINDS[name].dicom, size=24)
    except (ImageError, RuntimeError) as error:
        pytest.skip(str(error))
    left = (24 - control.shape[1]) // 2
    shown = pixels[:, left : left + control.shape[1]]
    assert np.corrcoef(shown.ravel(), control.ravel())[0, 1] > 0.99


def test_image_is_the_same_each_time_and_uses_its_bits():
    assert VALUES.dtype == np.uint16
    assert VALUES.shape == (70, 58)
    assert 2 ** (BITS - 1) < VALUES.max() < 2**BITS
    np.testing.assert_array_equal(VALUES, draw_radiograph(70, 58))


def test_ways_take_turns():
    calls: list[str] = []
    times = take_turns([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3)
    assert calls == ["a", "b"] * 3
    assert [len(kept) for kept in times] == [3, 3]
    assert all(value >= 0 for kept in times for value in kept)


def test_control_that_fails_is_left_open():
    kind = Kind("odd", KINDS["RLE"].write, dicom=False)  # Pillow does not read DICOM
    timing = measure_kind(kind, VALUES, size=24, repeats=2)
    assert timing.ms >= timing.min_ms > 0
    assert timing.control_ms is None
    assert timing.ratio is None


def test_encoder_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    report = measure_speed(size=24, repeats=1, rows=70, columns=58)
    skipped = dict(report.skipped)
    assert "cxr-serving[image]" in skipped["JPEG-LS"]
    assert "pip install imagecodecs" in skipped["RLE"]
    assert "PNG, 16 bit" in {timing.kind for timing in report.timings}
    assert len(report.timings) + len(report.skipped) == len(KINDS)


def test_table_shows_every_kind():
    calls: list[tuple[int, int]] = []
    report = measure_speed(
        size=24, repeats=1, rows=70, columns=58, progress=lambda done, total: calls.append((done, total))
    )
    assert calls[-1] == (len(KINDS), len(KINDS))
    console = Console(record=True, width=110, file=io.StringIO())
    print_speed(console, report)
    text = console.export_text()
    assert all(name in text for name in KINDS)
    assert f"{report.cpus} CPUs, {report.cv2_threads} OpenCV threads" in text


def test_command_prints_json():
    result = CliRunner().invoke(app, ["data", "speed", "--scale", "0.03", "--repeats", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["rows"], report["columns"]) == (85, 70)
    assert {"kind", "ms", "control_ms", "ratio", "decoder"} <= set(report["timings"][0])
