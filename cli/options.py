"""Arguments and options that several commands share, and the console for their output."""

import math
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.console import CommandConsole
from contract.connection import DEFAULT_ADDRESSES

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Image = Annotated[
    Path | None, typer.Argument(help="Radiograph: a DICOM, PNG or JPEG file, or - for standard input.")
]
Images = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE|FOLDER|-",
        help="Radiographs: DICOM, PNG or JPEG files, folders, or - for an image or a list of paths on standard input.",
    ),
]
Views = Annotated[
    list[Path] | None,
    typer.Option(
        "--view",
        help="Another image of the same study, such as the lateral one, read together with the first; repeatable, for "
        "up to 4 images in all.",
    ),
]
ReportText = Annotated[
    str | None,
    typer.Option(
        "--report", "-r", help="Report: the text itself, a text or Open-i XML file, or - for standard input."
    ),
]


def _take_addresses(server: str, what: str) -> Any:
    """Return the option for the addresses of one kind of server, as `contract.connection` resolves them."""
    default = f"Default: CXR_{server.upper()}, else {DEFAULT_ADDRESSES[server]}."
    several = "Repeat it for several servers, which take turns."
    return typer.Option(f"--{server}", metavar="HOST:PORT", help=f"{what}. {several} {default}")


TritonUrls = Annotated[list[str] | None, _take_addresses("triton", "Triton's gRPC service")]
RetrievalUrls = Annotated[list[str] | None, _take_addresses("retrieval", "The retrieval sidecar")]
Transport = Annotated[
    Literal["auto", "grpc", "shared_memory", "cuda_shared_memory"],
    typer.Option(
        "--transport",
        envvar="CXR_TRANSPORT",
        help="How to send tensors to Triton. auto uses shared memory for large calls on one host.",
    ),
]
Compression = Annotated[
    Literal["none", "gzip", "deflate"],
    typer.Option(
        "--compression",
        envvar="CXR_COMPRESSION",
        help="Compression of gRPC messages. Useful only on slow networks.",
    ),
]

Shrink = Annotated[
    bool,
    typer.Option(
        "--shrink/--whole",
        envvar="CXR_SHRINK",
        help="--shrink: read large images here and send only the model's pixels. --whole: send whole files.",
    ),
]


def _check_timeout(seconds: float) -> float:
    if math.isnan(seconds):  # min and max accept nan
        raise typer.BadParameter("nan is not a number of seconds. Give a number from 0.01 to 86400.")
    return seconds


Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.01,
        max=86_400,
        callback=_check_timeout,
        help="Deadline of each call, in seconds.",
    ),
]
Table = Annotated[Path, typer.Argument(help="Studies table (Parquet), made by `cxr data table`.")]
Cache = Annotated[Path | None, typer.Option(help="Image cache of the table, made by `cxr data cache`.")]
Resamples = Annotated[int, typer.Option(min=0, help="Number of bootstrap resamples of the patients.")]


def make_console(as_json: bool) -> CommandConsole:
    """Return a console on standard output; with --json, one on standard error that shows only progress."""
    return CommandConsole(stderr=as_json, quiet=as_json and not sys.stderr.isatty(), soft_wrap=False)


def print_version(requested: bool) -> None:
    """Print the versions that a bug report needs, and exit. Without --version do nothing."""
    if requested:
        try:
            installed = version("cxr-serving")
        except PackageNotFoundError:
            installed = "(not installed)"
        typer.echo(f"cxr-serving {installed}, Python {platform.python_version()}, {platform.platform()}")
        raise typer.Exit
