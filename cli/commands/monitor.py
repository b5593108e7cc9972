"""The commands `cxr monitor reference` and `cxr monitor report`."""

from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from cli.console import escape
from cli.options import Json, Table, make_console
from cli.signing import RequireSignature, find_trust
from contract.errors import ConfigError

CHANGED_CODE: Final = 5

monitor_app = typer.Typer(
    no_args_is_help=True,
    help="Compare what a model reads and answers now with a reference. This needs no labels.",
)


@monitor_app.command("reference")
def reference(
    bundle: Annotated[Path, typer.Argument(help="Bundle of the model. It is not changed.")],
    table: Table,
    part: Annotated[
        Literal["validation", "test", "all"],
        typer.Option(
            help="Studies to use: a part of the bundle's split, or both. Never the training studies."
        ),
    ] = "all",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: BUNDLE.monitoring, beside the bundle.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample of at most 2,000 studies.")] = 0,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Predict held-out studies and keep answers, embeddings and statistics of the inputs as the reference.

    The reference holds no id and no text. But it holds an embedding of each study: keep it as you keep the studies.
    """
    from cli.progress import show_progress
    from cli.show import KIND_TITLES, print_json
    from contract.bundle import load_bundle
    from training.monitoring.reference import get_folder, make_reference, write_reference

    console = make_console(as_json)
    loaded = load_bundle(bundle, trust=find_trust(require_signature))
    with show_progress(console, "Reading and predicting") as progress:
        made = make_reference(loaded, table, part=part, seed=seed, progress=progress)
    folder = get_folder(bundle) if out is None else out
    write_reference(made, folder)
    counts = {way: len(sample) for way, sample in made.ways.items()}
    if as_json:
        print_json(
            {"written": str(folder), "model": made.fingerprint, "source": made.source, "cases": counts}
        )
        return
    for way, count in counts.items():
        console.print(f"{KIND_TITLES[way]}: {count} cases")
    console.print(f"Reference: {escape(folder)}, model {made.fingerprint[:12]}", soft_wrap=True)


@monitor_app.command("report")
def report(
    reference: Annotated[
        Path, typer.Argument(metavar="BUNDLE|REFERENCE", help="Bundle, or the folder of its reference.")
    ],
    results: Annotated[
        list[Path], typer.Argument(help="Tables of `cxr predict --out`: .parquet, .csv or .jsonl.")
    ],
    inputs: Annotated[
        bool,
        typer.Option(
            "--inputs",
            help="Read again up to 1,000 files that the tables name, and compare statistics of images and reports, "
            "and embeddings. Needs BUNDLE. Run it in the folder where `cxr predict` ran.",
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Page with plots to write (.html).")] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(help="File for Prometheus to write (.prom), in the textfile folder of node_exporter."),
    ] = None,
    fail_on_change: Annotated[
        bool, typer.Option("--fail-on-change", help="Exit with code 5 if a value changed.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of samples, intervals and permutations.")] = 0,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Compare the answers in tables of `cxr predict` with the reference of the model.

    Each label has its population stability index, the mean shift with an interval, a test with a p value that is
    adjusted for all rows, and a verdict: "no change seen", "changed" or "too few cases".

    A change does not say that the answers became worse. No change does not say that they are right.
    """
    from cli.monitor import describe_tables, print_rows
    from cli.progress import show_progress
    from cli.show import NOTICE, print_json
    from contract.bundle import MANIFEST, load_bundle, require_same_fingerprint
    from training.monitoring.compare import RULE, compare
    from training.monitoring.metrics import check_metrics_file, write_metrics
    from training.monitoring.page import check_page, write_page
    from training.monitoring.reference import get_folder, read_reference
    from training.monitoring.results import read_inputs, read_results, take_answers

    console, trust = make_console(as_json), find_trust(require_signature)
    bundle = load_bundle(reference, trust=trust) if (reference / MANIFEST).is_file() else None
    if bundle is None and (inputs or require_signature):
        need = "--inputs needs the bundle: its model makes the embeddings."
        raise ConfigError(
            need if inputs else "--require-signature needs the bundle: only a bundle is signed."
        )
    if out is not None:
        check_page(out)
    if metrics is not None:
        check_metrics_file(metrics)
    known = read_reference(reference if bundle is None else get_folder(reference))
    if bundle is not None:
        require_same_fingerprint(
            bundle.fingerprint,
            known.fingerprint,
            expected_from=str(reference),
            found_from=str(get_folder(reference)),
        )
    tables = read_results(results, known.fingerprint)
    if inputs and bundle is not None:
        with show_progress(console, "Reading files") as progress:
            current = read_inputs(tables, bundle, seed=seed, progress=progress)
    else:
        current = take_answers(tables, seed=seed)
    rows = compare(known, current, seed=seed)
    notes = describe_tables(tables, current, known)
    if out is not None:
        write_page(known, current, rows, notes, out)
    if metrics is not None:
        write_metrics(rows, known.fingerprint, metrics)
    if as_json:
        found = [row.to_dict() for row in rows]
        print_json(
            {"model": known.fingerprint, "rows": found, "notes": notes, "rule": RULE, "notice": NOTICE}
        )
    else:
        print_rows(console, rows, notes)
        for path in filter(None, (out, metrics)):
            console.print(f"Written: {escape(path)}", soft_wrap=True)
    if fail_on_change and any(row.verdict == "changed" for row in rows):
        raise typer.Exit(CHANGED_CODE)
