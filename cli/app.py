"""The `cxr` command: from Open-i files to served predictions, similar cases and explanations.

Each sub-command is thin: it reads what a person typed, calls one package and shows the answer. Imports
stand inside the command that needs them, so that `cxr --help` is quick and an extra is needed only where used.
"""

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from cli.bench_app import bench_app
from cli.calibrate import calibrate
from cli.command import CommandGroup, open_streams, run, take_interrupts
from cli.console import escape
from cli.data_app import data_app
from cli.export_app import export_app
from cli.options import (
    Compression,
    Image,
    Images,
    Json,
    ReportText,
    RetrievalUrl,
    Shrink,
    Table,
    Timeout,
    Transport,
    TritonUrl,
    Views,
    make_console,
    print_version,
)
from cli.train_app import train_app
from contract.errors import ConfigError, InputError

# Read by OpenMP when torch is loaded. Its threads otherwise spin while they wait for each other, and where another
# program has one of the cores they spin for ever: training took 3.7 times as long beside one on 2 cores. `cxr bench`
# measures PyTorch as it comes; alone on a machine it is a tenth slower without spinning.
if sys.argv[1:2] != ["bench"]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TRITON = "127.0.0.1:8001"
RETRIEVAL = "127.0.0.1:8005"


app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Chest X-ray prediction, similar cases and explanations. Research and teaching only: never a diagnosis.",
)
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(export_app, name="export")
app.add_typer(bench_app, name="bench")


@app.callback()
def set_up(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def demo(
    reports: Annotated[
        Path | None,
        typer.Option(help="Use real Open-i reports (NLMCXR_reports.tgz) instead of the phantom data set."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for everything the demo makes; replaced.")] = Path(
        "demo-output"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers up until Ctrl-C.")] = False,
    studies: Annotated[int, typer.Option(min=60, help="How many phantom studies to draw.")] = 700,
    seed: Annotated[int, typer.Option(help="Seed of data, split and training.")] = 0,
    as_json: Json = False,
) -> None:
    """Run the whole path once: data, training, export, serving, prediction, search, explanation."""
    from cli.demo import run_demo
    from cli.show import print_json

    summary = run_demo(make_console(as_json), reports=reports, out=out, keep=keep, studies=studies, seed=seed)
    if as_json:
        print_json(summary)


@app.command()
def evaluate(
    table: Table,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to measure; without it, the controls alone.")
    ] = None,
    split_file: Annotated[Path | None, typer.Option(help="Split to use instead of the bundle's own.")] = None,
    external: Annotated[
        bool,
        typer.Option(
            "--external",
            help="Take every labelled study of the table as a test study: a test set from elsewhere. Taken so by "
            "itself where the bundle's split names none of them. Needs --out.",
        ),
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Image cache of the table, for PyTorch.")] = None,
    served: Annotated[
        bool, typer.Option("--served", help="Ask the served model too; its answers count.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory for the results; default: the bundle and its model card.")
    ] = None,
    splits: Annotated[int, typer.Option(min=1, help="Without a bundle: how many splits are drawn.")] = 3,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Without a bundle: split by patient alone.")
    ] = False,
    resamples: Annotated[int, typer.Option(min=0, help="How often patients are drawn anew.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    triton: TritonUrl = TRITON,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Measure a model on its test split: findings, calibration, search, controls; or the controls alone."""
    from cli.evaluate import (
        evaluate_bundle,
        evaluate_controls,
        plan_external,
        print_controls,
        print_results,
        write_results,
    )
    from cli.show import print_json
    from client import CxrClient
    from contract.bundle import load_bundle
    from training.evaluation.ask import Options

    options, console = Options(seed, resamples), make_console(as_json)
    if bundle is None:
        if served or split_file or out or cache or external:
            raise ConfigError("--served, --split-file, --external, --cache and --out need --bundle.")
        controls = evaluate_controls(
            console, table, splits=splits, keep_duplicates=keep_duplicates, options=options
        )
        print_json(controls) if as_json else print_controls(console, controls)
        return
    loaded = load_bundle(bundle)
    external = plan_external(loaded, table, external=external, split_file=split_file, out=out)
    # Whole files, so that what is measured is the server's reading of them.
    with CxrClient(triton, timeout_s=timeout, shrink=False) if served else nullcontext() as client:
        asked, results = evaluate_bundle(
            console,
            loaded,
            table,
            split_file=split_file,
            external=external,
            options=options,
            cache=cache,
            client=client,
        )
    written = write_results(asked, results, loaded, out)
    if as_json:
        print_json({**results, "written": str(written)})
    else:
        print_results(console, results)
        console.print(f"Everything, with plots: {escape(written)}", soft_wrap=True)


app.command()(calibrate)


@app.command()
def serve(
    repository: Annotated[Path, typer.Option(help="Model repository, published by `cxr export`.")],
    store: Annotated[Path, typer.Option(help="Directory of the case store; made when missing.")],
    logs: Annotated[Path, typer.Option(help="Directory for the servers' logs.")] = Path("logs"),
    http_port: Annotated[int, typer.Option(help="Health over HTTP: GET /v2/health/ready.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Triton gRPC.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Triton metrics (Prometheus).")] = 8002,
    retrieval_port: Annotated[int, typer.Option(help="Retrieval sidecar gRPC.")] = 8005,
    http_inference: Annotated[
        bool,
        typer.Option(
            "--http-inference",
            help="Open Triton's own HTTP interface on the HTTP port, for trusted callers alone: a POST must say "
            "Content-Type: application/octet-stream or application/json and must not come in very many chunks, or "
            "Triton 2.51 ends.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run Triton and the retrieval sidecar on this machine until Ctrl-C, and bring back what ends or stands still."""
    from serving.process import TerminationGuard

    with TerminationGuard():
        from cli.serve import serve_until_stopped

        ports = (http_port, grpc_port, metrics_port, retrieval_port)
        serve_until_stopped(repository, store, logs, ports, http_inference=http_inference, as_json=as_json)


@app.command("index")
def index_cases(
    table: Table,
    split: Annotated[
        Path | None, typer.Option(help="split.json of a bundle: index only its training studies.")
    ] = None,
    triton: TritonUrl = TRITON,
    retrieval: RetrievalUrl = RETRIEVAL,
    timeout: Timeout = 30.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    shrink: Shrink = True,
    as_json: Json = False,
) -> None:
    """Embed every study of a table through the served model and store it for search."""
    from cli.cases import make_cases
    from cli.progress import show_progress
    from cli.show import print_indexed, print_json
    from client import CxrClient
    from training.data.rows import choose_rows, read_rows

    rows = read_rows(table)
    if split:
        rows = choose_rows(rows, split, "train")
    console = make_console(as_json)
    connected = CxrClient(
        triton, retrieval, timeout, transport=transport, compression=compression, shrink=shrink
    )
    with connected as client, show_progress(console, "Indexing") as progress:
        text_mode = client.info().text_mode
        result = client.index(make_cases(rows, text_mode), progress=lambda done: progress(done, len(rows)))
    if as_json:
        print_json(result.to_dict())
    else:
        print_indexed(console, result)
    if result.refused and not result.indexed:
        raise InputError(f"None of {len(result.refused)} cases could be indexed; the reasons stand above.")


@app.command()
def predict(
    images: Images = None,
    view: Views = None,
    report: ReportText = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File for the results of many (.parquet, .csv, .jsonl); a run on the same file goes on."
        ),
    ] = None,
    finding: Annotated[
        list[str] | None,
        typer.Option(help="Finding in free words to score, as a similarity, not a probability; repeatable."),
    ] = None,
    triton: TritonUrl = TRITON,
    timeout: Timeout = 10.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    shrink: Shrink = True,
    as_json: Json = False,
) -> None:
    """Predict the 22 finding categories from a radiograph, a report, or both; or from many radiographs.

    A study of several images: the frontal one, and each other one with
    --view: cxr predict frontal.dcm --view lateral.dcm

    Many: several files, folders with all that is below them, or - for
    paths on standard input, one a line: PATH, or PATH, a tab and the PATH of
    its report. Each file becomes a line on standard output or a row of --out;
    one that cannot be read is a row with its error.

    The same command with the same --out goes on where a run stopped: files
    that were refused, or have changed since, are asked again.

    Exit code: 0 when every file was predicted, 2 when one was refused, 4 when
    the server failed.
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
        triton, timeout_s=timeout, transport=transport, compression=compression, shrink=shrink
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


@app.command()
def search(
    image: Image = None,
    view: Views = None,
    report: ReportText = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many cases.")] = 5,
    exclude: Annotated[list[str] | None, typer.Option(help="Study id to leave out; may be repeated.")] = None,
    triton: TritonUrl = TRITON,
    retrieval: RetrievalUrl = RETRIEVAL,
    timeout: Timeout = 10.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    shrink: Shrink = True,
    as_json: Json = False,
) -> None:
    """Find the most similar cases to a radiograph, a report, a sentence, or a whole study."""
    from cli.inputs import read_images, read_report, require_input
    from cli.show import NOTICE, print_cases, print_json, print_warnings
    from client import CxrClient

    require_input(image, report)
    with CxrClient(
        triton, retrieval, timeout, transport=transport, compression=compression, shrink=shrink
    ) as client:
        found = client.search(
            read_images(image, view), read_report(report), k=k, exclude_studies=tuple(exclude or ())
        )
    if as_json:
        print_json({**found.to_dict(), "notice": NOTICE})
        return
    console = make_console(False)
    print_cases(console, found.cases)
    print_warnings(console, found.warnings)
    console.print(NOTICE)


@app.command()
def explain(
    image: Image = None,
    report: ReportText = None,
    bundle: Annotated[Path, typer.Option(help="Bundle of the model to explain; no server is needed.")] = Path(
        "demo-output/bundle"
    ),
    label: Annotated[str | None, typer.Option(help="Category key; default: the top finding.")] = None,
    out: Annotated[Path, typer.Option(help="PNG file for the overlay.")] = Path("explanation.png"),
    steps: Annotated[int, typer.Option(min=4, max=512, help="Integration steps.")] = 32,
    as_json: Json = False,
) -> None:
    """Show which pixels and words speak for a finding (Integrated Gradients through the whole model)."""
    from cli.inputs import read_image, read_report, require_input
    from cli.show import NOTICE, print_explanation, print_json
    from client.explain import explain as explain_case
    from client.overlay import write_overlay
    from contract.bundle import load_bundle

    require_input(image, report)
    loaded = load_bundle(bundle)
    explanation = explain_case(
        loaded, image=read_image(image), report=read_report(report), label=label, steps=steps
    )
    written = str(out) if write_overlay(explanation, out) else None
    if as_json:
        print_json({**explanation.to_dict(), "overlay": written, "notice": NOTICE})
        return
    console = make_console(False)
    print_explanation(console, explanation, written)
    console.print(NOTICE)


@app.command()
def doctor(
    local: Annotated[
        bool, typer.Option("--local", help="Look at this machine and its packages only; ask no server.")
    ] = False,
    triton: TritonUrl = TRITON,
    retrieval: RetrievalUrl = RETRIEVAL,
    as_json: Json = False,
) -> None:
    """Tell what this machine has, what is missing and how to get it, and whether the servers infer and search.

    Exit code 4 when a server does not answer, 3 when the index is of another model; a missing extra is no error.
    """
    from cli.show import find_exit_code, print_checks, print_json
    from client import CxrClient
    from serving.doctor import run_checks

    checks, health = run_checks(), None
    if not local:
        with CxrClient(triton, retrieval, timeout_s=10.0) as client:  # three real inferences
            health = client.health()
    if as_json:
        servers = health.to_dict() if health else None
        print_json({"checks": [check.to_dict() for check in checks], "servers": servers})
    else:
        print_checks(make_console(False), checks, health)
    if health:
        raise typer.Exit(find_exit_code(health))


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command once it is imported; a termination signal stops children and cleans up as Ctrl-C does."""
    open_streams()
    run(_start)


def _start() -> None:
    take_interrupts()
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, _stop)
    app()
