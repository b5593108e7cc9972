"""A model's view head decides which image of a study is the frontal one, where headers do not.

What a header or a published list says with `contract.image.view.TRUSTED` confidence stays. The other images are read;
where the model is sure, its view takes the place of the header's, and `view_source` says "model".
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from contract.bundle import Bundle
from contract.errors import ConfigError
from contract.image.header import ImageHeader, describe_verdict
from contract.image.view import MODEL, TRUSTED, View, ViewVerdict, rank_view
from contract.notes import SURE_LATERAL
from training.data.openi import HEADER, SCHEMA, read_table, write_table
from training.evaluation.predict import TorchPredictor, read_from_cache

Progress = Callable[[int, int], None]
Row = dict[str, Any]
_PER_IMAGE = ("image_ids", "image_paths", "views", "headers")


@dataclass(frozen=True)
class Ordered:
    """What ordering a table came to; images and studies are counted.

    Attributes:
        images: In the table.
        asked: Images whose header is silent or below `TRUSTED`.
        unreadable: Images among these that could not be read.
        decided: Images among these whose view the model told.
        studies: In the table.
        moved: Studies whose first image is another one now.
    """

    images: int
    asked: int
    unreadable: int
    decided: int
    studies: int
    moved: int

    def to_dict(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


def order_table(
    table: Path, bundle: Bundle, out: Path, *, cache: Path | None = None, progress: Progress | None = None
) -> Ordered:
    """Write a studies table anew, with the images of each study in the order that a bundle's view head gives them.

    A study of which the model told nothing stays as it is.

    Args:
        table: Studies table; it is left as it is.
        bundle: A verified bundle with a view head.
        out: Studies table to write, whole or not at all.
        cache: Image cache of the table, to read instead of the image files.
        progress: Called with images read and images in all.

    Raises:
        ConfigError: The bundle has no view head, `out` is the table itself, no image could be read, or the table or
            the cache cannot be used.
        ArtifactError: The table, the cache or the weights are damaged, or the disk refused the write.
    """
    if out.exists() and out.samefile(table):
        raise ConfigError(f"{out} is the table itself, which is kept: name another file by --out.")
    content = read_table(table)
    rows = content.to_pylist()
    read_pixels = read_from_cache(cache, bundle.config["sizes"]["S"]) if cache else None
    predictor = TorchPredictor(bundle, read_pixels=read_pixels)
    if not predictor.tells_views:
        raise ConfigError(
            f"{bundle.path} has no view head: train it on images whose headers say frontal and lateral."
        )
    paths = [path for row in rows for path in list_silent(row)]
    answers = predictor.tell_laterals(paths, progress)
    told = {path: float(answer) for path, answer in zip(paths, answers, strict=True) if np.isfinite(answer)}
    if paths and not told:
        raise ConfigError(f"None of {len(paths):,} images can be read, the first being {paths[0]}.")
    ordered = [order_row(row, told) for row in rows]
    write_table(pa.Table.from_pylist(ordered, schema=SCHEMA.with_metadata(content.schema.metadata)), out)
    return Ordered(
        images=sum(len(row["image_paths"]) for row in rows),
        asked=len(paths),
        unreadable=len(paths) - len(told),
        decided=sum(_is_sure(lateral) for lateral in told.values()),
        studies=len(rows),
        moved=sum(
            old["image_paths"][:1] != new["image_paths"][:1] for old, new in zip(rows, ordered, strict=True)
        ),
    )


def list_silent(row: Mapping[str, Any]) -> list[str]:
    """Return the images in a row of a studies table whose view no header says with `TRUSTED` confidence."""
    verdicts = _read_verdicts(row)
    return [
        path
        for path, verdict in zip(row["image_paths"], verdicts, strict=True)
        if verdict.view == "UNKNOWN" or verdict.confidence < TRUSTED
    ]


def order_row(row: Row, told: Mapping[str, float]) -> Row:
    """Return a row of a studies table with the images in the order of what headers and a model say.

    Args:
        row: As in `training.data.openi.SCHEMA`.
        told: Image path -> probability of a lateral by the model; heard of the images of `list_silent` alone.
    """
    paths, silent = row["image_paths"], set(list_silent(row))
    heard = [told.get(path) if path in silent else None for path in paths]
    if all(lateral is None for lateral in heard):
        return row
    old = _read_verdicts(row)
    new = [_decide(verdict, lateral) for verdict, lateral in zip(old, heard, strict=True)]
    headers = row["headers"] or [asdict(ImageHeader("")) for _ in paths]
    changed = {
        **row,
        "views": [verdict.view for verdict in new],
        "headers": [
            header if after is before else _write_verdict(header, after)
            for header, before, after in zip(headers, old, new, strict=True)
        ],
    }
    order = sorted(
        range(len(paths)), key=lambda place: rank_view(new[place])
    )  # equal ones stay in their order
    return changed | {name: [changed[name][place] for place in order] for name in _PER_IMAGE}


def _read_verdicts(row: Mapping[str, Any]) -> list[ViewVerdict]:
    """Return what a table says of each image of a study; of an image without a view the chance is even."""
    if not (row["views"] and row["headers"]):
        return [ViewVerdict() for _ in row["image_paths"]]
    return [
        _read_verdict(view, header or {}) for view, header in zip(row["views"], row["headers"], strict=True)
    ]


def _read_verdict(view: View, header: Mapping[str, Any]) -> ViewVerdict:
    confidence, source = header.get("view_confidence") or 0.5, header.get("view_source") or ""
    if view == "UNKNOWN":
        return ViewVerdict(source=source)
    return ViewVerdict(view, confidence if view == "LATERAL" else 1 - confidence, source)


def _decide(verdict: ViewVerdict, lateral: float | None) -> ViewVerdict:
    """Return the verdict of a model that is sure, else the header's."""
    if lateral is None:
        return verdict
    if not _is_sure(lateral):
        # Of a silent header the model's doubt still says which image rather comes first.
        return replace(verdict, lateral=lateral) if verdict.view == "UNKNOWN" else verdict
    frontal: View = verdict.view if verdict.view in {"PA", "AP"} else "FRONTAL"
    return ViewVerdict("LATERAL" if lateral > 0.5 else frontal, lateral, MODEL)


def _is_sure(lateral: float) -> bool:
    return lateral >= SURE_LATERAL or lateral <= 1 - SURE_LATERAL


def _write_verdict(header: Mapping[str, Any] | None, verdict: ViewVerdict) -> Row:
    values = {field.name: (header or {}).get(field.name) for field in HEADER}
    if verdict.view == "UNKNOWN":  # what the header gave for its doubt stands
        return values
    described = describe_verdict(verdict)
    return values | {name: value for name, value in described.items() if name in values}
