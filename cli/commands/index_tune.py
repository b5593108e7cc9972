"""`cxr index tune`: which kind of index suits the stored cases."""

from pathlib import Path
from typing import Annotated

import typer

from cli.console import escape
from cli.options import Json, make_console
from contract.case_store import refuse_milvus

_NO_KINDS = (
    "A Milvus store has no kinds of index to compare: copy it into a directory with `cxr index migrate`."
)


def tune(
    source: Annotated[
        str,
        typer.Argument(
            help="Case store that no server has open, .npy file of N x D numbers, or drawn ones: random, mixture."
        ),
    ],
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND[:PARAMETER=VALUE,...]", help="Kind to measure. Repeatable. Default: all."),
    ] = None,
    cases: Annotated[int, typer.Option(min=1000, help="Largest number of embeddings.")] = 100_000,
    queries: Annotated[int, typer.Option(min=100, help="Timed searches of each kind.")] = 500,
    recall_floor: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest recall@10, without and with filters.")
    ] = 0.95,
    memory_share: Annotated[
        float, typer.Option(min=0.01, help="Largest memory, as a share of the embeddings.")
    ] = 0.25,
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw p99 against recall into.")] = None,
    as_json: Json = False,
) -> None:
    """Measure recall, latency, memory and building of each kind of index, and recommend one."""
    from bench.retrieval.tune import (
        DEFAULT_KINDS,
        draw_plot,
        make_report,
        read_embeddings,
        recommend,
        tune_kinds,
    )
    from cli.show import print_json
    from cli.show_bench import print_tuned

    refuse_milvus(source, _NO_KINDS)
    console = make_console(as_json)
    vectors = read_embeddings(source, cases)
    with console.status("Measuring") as status:
        found = tune_kinds(vectors, kind or DEFAULT_KINDS, queries, lambda name: status.update(escape(name)))
    chosen = recommend(found, recall_floor, memory_share)
    if plot:
        draw_plot(found, recall_floor, plot)
    rule = (
        f"the smallest p99 of the kinds with a recall@10 of at least {recall_floor:g}, without and with filters, and "
        f"at most {memory_share:g} of the embeddings' memory; flat if none is faster"
    )
    report = make_report(found, chosen, source, vectors.shape, rule)
    print_json(report) if as_json else print_tuned(console, report)
