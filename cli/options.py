"""Arguments and options that several commands share, and the console they print on."""

import math
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.console import CommandConsole

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Image = Annotated[
    Path | None, typer.Argument(help="Radiograph: DICOM, PNG or JPEG file; - for standard input.")
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
    typer.Option("--report", "-r", help="Report: its text, a text file, an Open-i XML file, or -."),
]
TritonUrl = Annotated[str, typer.Option("--triton", envvar="CXR_TRITON", help="host:port of Triton's gRPC.")]
RetrievalUrl = Annotated[
    str, typer.Option("--retrieval", envvar="CXR_RETRIEVAL", help="host:port of the retrieval sidecar.")
]
Transport = Annotated[
    Literal["auto", "grpc", "shared_memory", "cuda_shared_memory"],
    typer.Option(
        "--transport",
        envvar="CXR_TRANSPORT",
        help="How tensors reach Triton: auto takes shared memory for large calls on one host.",
    ),
]
Compression = Annotated[
    Literal["none", "gzip", "deflate"],
    typer.Option("--compression", envvar="CXR_COMPRESSION", help="Of gRPC messages: for slow networks only."),
]

Shrink = Annotated[
    bool,
    typer.Option(
        "--shrink/--whole",
        envvar="CXR_SHRINK",
        help="Read large images here and send only the model's pixels, or send whole files.",
    ),
]


def _check_timeout(seconds: float) -> float:
    if math.isnan(seconds):  # which no range refuses
        raise typer.BadParameter("nan is no number of seconds; give one from 0.01 to 86400.")
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


def make_console(as_json: bool) -> CommandConsole:
    """Text goes to standard output; with --json only progress is shown, on standard error."""
    return CommandConsole(stderr=as_json, quiet=as_json and not sys.stderr.isatty(), soft_wrap=False)


def print_version(asked: bool) -> None:
    """Print what a bug report needs, in one line, and end the command; nothing unless asked."""
    if asked:
        try:
            installed = version("cxr-serving")
        except PackageNotFoundError:
            installed = "(not installed)"
        typer.echo(f"cxr-serving {installed}, Python {platform.python_version()}, {platform.platform()}")
        raise typer.Exit
