"""The command `cxr predict`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.connection import takes_connection
from cli.options import (
    Compression,
    Images,
    Json,
    ReportText,
    Shrink,
    Timeout,
    Transport,
    TritonUrls,
    Views,
    make_console,
)
from contract.connection import PLAIN, Connection


@takes_connection
def predict(
    images: Images = None,
    view: Views = None,
    report: ReportText = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Results file for many radiographs (.parquet, .csv or .jsonl). An existing file is continued."
        ),
    ] = None,
    finding: Annotated[
        list[str] | None,
        typer.Option(help="Finding to score, in your own words. Not a probability. Repeatable."),
    ] = None,
    triton: TritonUrls = None,
    timeout: Timeout = 10.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    shrink: Shrink = True,
    connection: Connection = PLAIN,
    as_json: Json = False,
) -> None:
    """Predict the 22 finding categories from a radiograph, a report, or both; or from many radiographs.

    For a study of several images, give the frontal one, and each other one with
    --view: cxr predict frontal.dcm --view lateral.dcm

    For many radiographs, give several files, folders (searched with all
    subfolders), or - to read paths from standard input. Each line there is
    PATH, or PATH, a tab and the PATH of its report. Each file gives one line on
    standard output or one row in --out. A file that cannot be read gives a row
    with its error.

    The same command with the same --out continues a stopped run. It predicts
    again the files that were refused or have changed.

    Exit code: 0 if every file was predicted, 2 if one was refused, 4 if the
    server failed.
    """
    from cli.inputs import read_images, read_report, require_input
    from cli.predict import exit_with, list_cases, predict_all
    from cli.prompt_scores import describe_scores, print_scores, read_findings
    from cli.show import NOTICE, print_json, print_prediction
    from client import CxrClient

    cases = list_cases(
        images or (), out=out, report=report is not None, findings=bool(finding), views=bool(view)
    )
    image = images[0] if images else None
    if cases is None:
        require_input(image, report)
    findings = read_findings(finding)
    with CxrClient(
        triton,
        timeout_s=timeout,
        transport=transport,
        compression=compression,
        shrink=shrink,
        **connection.as_arguments(),
    ) as client:
        if cases is not None:
            exit_with(predict_all(client, cases, out=out, as_json=as_json))
            return
        prediction = client.predict(read_images(image, view), read_report(report))
        scores = client.score_findings(findings, prediction) if findings else ()
    if as_json:
        print_json({**prediction.to_dict(), **describe_scores(scores), "notice": NOTICE})
        return
    console = make_console(False)
    print_prediction(console, prediction)
    print_scores(console, scores)
    console.print(NOTICE)
