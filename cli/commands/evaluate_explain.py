"""The command `cxr evaluate explain`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cli.console import escape
from cli.options import Json, Resamples, Table, make_console
from cli.signing import RequireSignature, tell_of_signature
from contract.errors import ConfigError


class Way(str, Enum):
    """The ways to read a study that have an image."""

    IMAGE = "image"
    STUDY = "study"


class Part(str, Enum):
    """The parts of a split, and all studies of a table from elsewhere."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    ALL = "all"


def evaluate_explain(
    table: Table,
    bundle: Annotated[Path, typer.Option(help="Bundle whose maps are measured.")],
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="Boxes of findings: boxes.json of a phantom data set, a COCO file, gt_annotations_*.json of "
            "CheXlocalize, or BBox_List_2017.csv of ChestX-ray14. Default: the boxes of the table."
        ),
    ] = None,
    way: Annotated[
        list[Way] | None,
        typer.Option(help="Read the image alone, or image and report; repeatable. Default: the image alone."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Method to measure; repeatable. Default: all methods.")
    ] = None,
    part: Annotated[Part, typer.Option(help="Part of the bundle's split.")] = Part.TEST,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the results. Default: the bundle, whose default map they then decide. Needed for "
            "other parts than test."
        ),
    ] = None,
    findings: Annotated[
        int, typer.Option(min=0, help="Most findings to measure, evenly spread. 0: all.")
    ] = 0,
    resamples: Resamples = 1000,
    seed: Annotated[int, typer.Option(help="Seed for random maps, random weights and resamples.")] = 0,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Measure whether the maps of explanations point at findings, and whether they are sane."""
    from cli.evaluate_maps import keep_results, measure_bundle, print_maps
    from cli.show import print_json
    from contract.bundle import load_bundle
    from contract.signatures import TrustedKeys
    from training.evaluation.maps.measure import Sizes

    if part is not Part.TEST and out is None:
        raise ConfigError(
            "The bundle holds only the results of its own test split: give a directory for these with --out."
        )
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a directory. Give a directory for the results with --out.")
    console, loaded = make_console(as_json), load_bundle(bundle, trust=TrustedKeys.find(require_signature))
    results = measure_bundle(
        console,
        loaded,
        table,
        boxes_file=boxes,
        ways=[one.value for one in dict.fromkeys(way or [Way.IMAGE])],
        methods=method or [],
        part=part.value,
        findings=findings,
        sizes=Sizes(resamples=resamples, seed=seed),
    )
    signed = loaded.is_signed
    written = keep_results(results, loaded, out)
    if as_json:
        print_json({**results, "written": str(written)})
        return
    print_maps(console, results)
    console.print(f"All results, with plots: {escape(written)}", soft_wrap=True)
    tell_of_signature(console, signed, loaded)
