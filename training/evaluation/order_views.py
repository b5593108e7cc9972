"""Order the images of each study with a model's view head, where headers do not decide.

A view from a header or a published list with `contract.image.view.TRUSTED` confidence stays. The model reads the other
images. If it is sure, its view replaces the header's, and `view_source` is "model".
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
    """The result of ordering a table, as numbers of images and studies.

    Attributes:
        images: Images in the table.
        asked: Images without a view of `TRUSTED` confidence, which the model reads.
        unreadable: Number of these that could not be read.
        decided: Number of these whose view the model decided.
        studies: Studies in the table.
        moved: Studies with another first image than before.
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
    """Write a copy of a studies table with the images of each study ordered by a bundle's view head.

    A study without a decision of the model stays as it is.

    Args:
        table: Studies table. It is not changed.
        bundle: A verified bundle with a view head.
        out: Studies table to write, completely or not at all.
        cache: Image cache of the table, to read instead of the image files.
        progress: Called with the number of images read and their total.

    Raises:
        ConfigError: The bundle has no view head, `out` is the table itself, no image could be read, or the table or
            the cache cannot be used.
        ArtifactError: The table, the cache or the weights are damaged, or the disk refused the write.
    """
    if out.exists() and out.samefile(table):
        raise ConfigError(
            f"{out} is the table itself, which is not overwritten. Give another file with --out."
        )
    content = read_table(table)
    rows = content.to_pylist()
    read_pixels = read_from_cache(cache, bundle.config["sizes"]["S"]) if cache else None
    predictor = TorchPredictor(bundle, read_pixels=read_pixels)
    if not predictor.tells_views:
        raise ConfigError(
            f"{bundle.path} has no view head. Train it on images whose headers state frontal and lateral views."
        )
    paths = [path for row in rows for path in list_untrusted(row)]
    answers = predictor.tell_laterals(paths, progress)
    laterals = {
        path: float(answer) for path, answer in zip(paths, answers, strict=True) if np.isfinite(answer)
    }
    if paths and not laterals:
        raise ConfigError(f"None of {len(paths):,} images can be read. The first one is {paths[0]}.")
    ordered = [order_row(row, laterals) for row in rows]
    write_table(pa.Table.from_pylist(ordered, schema=SCHEMA.with_metadata(content.schema.metadata)), out)
    return Ordered(
        images=sum(len(row["image_paths"]) for row in rows),
        asked=len(paths),
        unreadable=len(paths) - len(laterals),
        decided=sum(_is_sure(lateral) for lateral in laterals.values()),
        studies=len(rows),
        moved=sum(
            old["image_paths"][:1] != new["image_paths"][:1] for old, new in zip(rows, ordered, strict=True)
        ),
    )


def list_untrusted(row: Mapping[str, Any]) -> list[str]:
    """Return the images of a table row without a view of `TRUSTED` confidence."""
    verdicts = _read_verdicts(row)
    return [
        path
        for path, verdict in zip(row["image_paths"], verdicts, strict=True)
        if verdict.view == "UNKNOWN" or verdict.confidence < TRUSTED
    ]


def order_row(row: Row, laterals: Mapping[str, float]) -> Row:
    """Return a table row with its images ordered by headers and a model.

    Args:
        row: A row as in `training.data.openi.SCHEMA`.
        laterals: Image path -> probability of a lateral by the model. Only those of `list_untrusted` are used.
    """
    paths, untrusted = row["image_paths"], set(list_untrusted(row))
    answers = [laterals.get(path) if path in untrusted else None for path in paths]
    if all(lateral is None for lateral in answers):
        return row
    old = _read_verdicts(row)
    new = [_decide(verdict, lateral) for verdict, lateral in zip(old, answers, strict=True)]
    headers = row["headers"] or [asdict(ImageHeader("")) for _ in paths]
    changed = {
        **row,
        "views": [verdict.view for verdict in new],
        "headers": [
            header if after is before else _write_verdict(header, after)
            for header, before, after in zip(headers, old, new, strict=True)
        ],
    }
    # Images of equal rank keep their order.
    order = sorted(range(len(paths)), key=lambda index: rank_view(new[index]))
    return changed | {name: [changed[name][index] for index in order] for name in _PER_IMAGE}


def _read_verdicts(row: Mapping[str, Any]) -> list[ViewVerdict]:
    """Return the verdict on each image of a study by the table; probability 0.5 for an image without a view."""
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
    """Return the model's verdict if the model is sure, else the header's."""
    if lateral is None:
        return verdict
    if not _is_sure(lateral):
        # Without a view in the header, even an unsure model decides the order.
        return replace(verdict, lateral=lateral) if verdict.view == "UNKNOWN" else verdict
    frontal: View = verdict.view if verdict.view in {"PA", "AP"} else "FRONTAL"
    return ViewVerdict("LATERAL" if lateral > 0.5 else frontal, lateral, MODEL)


def _is_sure(lateral: float) -> bool:
    return lateral >= SURE_LATERAL or lateral <= 1 - SURE_LATERAL


def _write_verdict(header: Mapping[str, Any] | None, verdict: ViewVerdict) -> Row:
    values = {field.name: (header or {}).get(field.name) for field in HEADER}
    if verdict.view == "UNKNOWN":  # keep the header's evidence
        return values
    described = describe_verdict(verdict)
    return values | {name: value for name, value in described.items() if name in values}
