"""The command `cxr search`."""

from typing import Annotated

import typer

from cli.connection import takes_connection
from cli.filters import (
    CaseKinds,
    CaseViews,
    ExcludedCases,
    ExcludedStudies,
    WithAll,
    WithAny,
    Without,
    make_options,
)
from cli.options import (
    Compression,
    Image,
    Json,
    ReportText,
    RetrievalUrls,
    Shrink,
    Timeout,
    Transport,
    TritonUrls,
    Views,
    make_console,
)
from contract.connection import PLAIN, Connection
from contract.search_limits import MAX_K


@takes_connection
def search(
    image: Image = None,
    view: Views = None,
    report: ReportText = None,
    k: Annotated[int, typer.Option("-k", min=1, max=MAX_K, help="Number of cases to return.")] = 5,
    exclude: ExcludedStudies = None,
    exclude_case: ExcludedCases = None,
    with_any: WithAny = None,
    with_all: WithAll = None,
    without: Without = None,
    case_view: CaseViews = None,
    case_kind: CaseKinds = None,
    min_score: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Smallest similarity of a case.")
    ] = None,
    diversity: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="0: the nearest cases; up to 1: near ones that differ from each other."
        ),
    ] = 0.0,
    query_label: Annotated[
        list[str] | None, typer.Option(help="Label of the query, to mark where a case shares it. Repeatable.")
    ] = None,
    triton: TritonUrls = None,
    retrieval: RetrievalUrls = None,
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
    options = make_options(
        with_any,
        with_all,
        without,
        case_view,
        case_kind,
        exclude_case,
        min_score=min_score,
        diversity=diversity,
        query_labels=tuple(query_label or ()),
    )
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
            read_images(image, view),
            read_report(report),
            k=k,
            exclude_studies=tuple(exclude or ()),
            options=options,
        )
    if as_json:
        print_json({**result.to_dict(), "notice": NOTICE})
        return
    console = make_console(False)
    print_cases(console, result.cases)
    if not result.exact:
        console.print("The index is approximate: a similar case may be missing. Each similarity is exact.")
    print_warnings(console, result.warnings)
    console.print(NOTICE)
