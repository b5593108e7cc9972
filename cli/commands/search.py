"""The command `cxr search`."""

from typing import Annotated

import typer

from cli.connection import takes_connection
from cli.options import (
    RETRIEVAL,
    TRITON,
    Compression,
    Image,
    Json,
    ReportText,
    RetrievalUrl,
    Shrink,
    Timeout,
    Transport,
    TritonUrl,
    Views,
    make_console,
)
from contract.connection import PLAIN, Connection


@takes_connection
def search(
    image: Image = None,
    view: Views = None,
    report: ReportText = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Number of cases to return.")] = 5,
    exclude: Annotated[list[str] | None, typer.Option(help="Study id to leave out. Repeatable.")] = None,
    triton: TritonUrl = TRITON,
    retrieval: RetrievalUrl = RETRIEVAL,
    timeout: Timeout = 10.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    shrink: Shrink = True,
    connection: Connection = PLAIN,
    as_json: Json = False,
) -> None:
    """Find the cases most similar to a radiograph, a report, a sentence, or a whole study."""
    from cli.inputs import read_images, read_report, require_input
    from cli.show import NOTICE, print_cases, print_json, print_warnings
    from client import CxrClient

    require_input(image, report)
    with CxrClient(
        triton,
        retrieval,
        timeout,
        transport=transport,
        compression=compression,
        shrink=shrink,
        **connection.as_arguments(),
    ) as client:
        result = client.search(
            read_images(image, view), read_report(report), k=k, exclude_studies=tuple(exclude or ())
        )
    if as_json:
        print_json({**result.to_dict(), "notice": NOTICE})
        return
    console = make_console(False)
    print_cases(console, result.cases)
    print_warnings(console, result.warnings)
    console.print(NOTICE)
