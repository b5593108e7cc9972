"""What tests of label files share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.data.collections.table import build_collection_table

ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


@pytest.fixture
def write_files(tmp_path) -> Callable[..., Path]:
    """A function that writes files of lines below a directory: name -> lines."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "published" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "published"

    return write


@pytest.fixture
def draw_images(tmp_path) -> Callable[..., Path]:
    """A function that writes images of one pixel below a directory."""

    def draw(*names: str) -> Path:
        for name in names:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(ONE_PIXEL)
        return tmp_path / "images"

    return draw


@pytest.fixture
def read_rows() -> Callable[..., dict[str, dict[str, Any]]]:
    """A function that reads label files into rows by study id."""

    def read(
        source: Path, name: str, images: Path | None = None, **options: Any
    ) -> dict[str, dict[str, Any]]:
        rows = build_collection_table(source, name, images, **options).to_pylist()
        return {row["study_id"]: row for row in rows}

    return read
