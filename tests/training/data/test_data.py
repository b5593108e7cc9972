"""What is read of a studies table: images that can be read, and those that cannot."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract.errors import ConfigError
from training.data.studies import load_images, read_studies


def test_unreadable_images_are_left_out_and_told(tmp_path: Path, caplog):
    Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image of MRN-4711")
    paths = [str(tmp_path / name) for name in ("bad.png", "good.png", "missing.png")]
    seen = []
    pixels, places = load_images(paths, 16, lambda done, total: seen.append((done, total)))
    assert places == [None, 0, None]
    assert pixels.shape == (1, 1, 16, 16)
    assert seen[-1] == (3, 3)
    assert "bad.png" in caplog.text
    assert "No such file" in caplog.text
    assert "MRN-4711" not in caplog.text


def test_many_unreadable_images_do_not_flood_the_log(caplog):
    pixels, places = load_images([f"missing-{number}.png" for number in range(100)], 16)
    assert pixels.shape == (0, 1, 16, 16)
    assert places == [None] * 100
    assert len(caplog.messages) == 6
    assert caplog.messages[-1] == "Leaving out 95 more images."


def test_a_missing_table_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="cxr data table"):
        read_studies(tmp_path / "none.parquet", "findings", 32)
