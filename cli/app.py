"""The `cxr` command: from Open-i files to served predictions, similar cases and explanations.

Each sub-command is thin: it reads the arguments, calls one package and prints the result. Each command imports
its packages inside its function. So `cxr --help` is quick, and an extra is needed only by the command that uses it.
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

# OpenMP reads this variable when torch is loaded. By default its threads spin while they wait for each other, which
# wastes time when another program uses a core: on 2 cores, beside one such program, training took 3.7 times as long.
# `cxr bench` keeps the default: on a machine without other programs, PyTorch is a tenth slower without spinning.
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
    """Read the options that come before a command."""


@app.command()
def demo(
    reports: Annotated[
        Path | None,
        typer.Option(help="Use real Open-i reports (NLMCXR_reports.tgz) instead of the phantom data set."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Output directory. The output of an earlier demo in it is deleted.")
    ] = Path("demo-output"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the servers running until Ctrl-C.")] = False,
    studies: Annotated[int, typer.Option(min=60, help="Number of phantom studies to draw.")] = 700,
    seed: Annotated[int, typer.Option(help="Seed for data, split and training.")] = 0,
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
        Path | None, typer.Option(help="Bundle to evaluate. Without it, only the controls are evaluated.")
    ] = None,
    split_file: Annotated[
        Path | None, typer.Option(help="Split file to use instead of the bundle's split.")
    ] = None,
    external: Annotated[
        bool,
        typer.Option(
            "--external",
            help="Use every labelled study of the table as a test study (an external test set). This is automatic "
            "if the bundle's split names none of the studies. Needs --out.",
        ),
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Image cache of the table, made by `cxr data cache`.")
    ] = None,
    served: Annotated[
        bool, typer.Option("--served", help="Query the served model too, and report its results.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Directory for the results. Default: the bundle.")] = None,
    splits: Annotated[int, typer.Option(min=1, help="Number of random splits; only without --bundle.")] = 3,
    keep_duplicates: Annotated[
        bool,
        typer.Option(
            "--keep-duplicates", help="Split by patient only, so equal reports may be in two parts."
        ),
    ] = False,
    resamples: Annotated[
        int, typer.Option(min=0, help="Number of bootstrap resamples of the patients.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Seed for splits, controls and resamples.")] = 0,
    triton: TritonUrl = TRITON,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Evaluate a model, or only the controls, on the test split: findings, calibration, search."""
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
    # Send whole files, because the server's reading of them is to be measured too.
    with CxrClient(triton, timeout_s=timeout, shrink=False) if served else nullcontext() as client:
        answers, results = evaluate_bundle(
            console,
            loaded,
            table,
            split_file=split_file,
            external=external,
            options=options,
            cache=cache,
            client=client,
        )
    written = write_results(answers, results, loaded, out)
    if as_json:
        print_json({**results, "written": str(written)})
    else:
        print_results(console, results)
        console.print(f"All results, with plots: {escape(written)}", soft_wrap=True)


app.command()(calibrate)


@app.command()
def serve(
    repository: Annotated[Path, typer.Option(help="Model repository, published by `cxr export`.")],
    store: Annotated[Path, typer.Option(help="Directory of the case store. Created if missing.")],
    logs: Annotated[Path, typer.Option(help="Directory for the servers' logs.")] = Path("logs"),
    http_port: Annotated[
        int, typer.Option(help="HTTP port for health checks (GET /v2/health/ready).")
    ] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port of Triton.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of Triton's metrics (Prometheus).")] = 8002,
    retrieval_port: Annotated[int, typer.Option(help="gRPC port of the retrieval sidecar.")] = 8005,
    http_inference: Annotated[
        bool,
        typer.Option(
            "--http-inference",
            help="Also allow inference on the HTTP port, for trusted callers only. A POST must have the Content-Type "
            "application/octet-stream or application/json and must not come in very many chunks. Other requests can "
            "crash Triton 2.51.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run Triton and the retrieval sidecar on this machine until Ctrl-C. Restart a server that exits or hangs."""
    from serving.process import TerminationGuard

    with TerminationGuard():
        from cli.serve import serve_until_stopped

        ports = (http_port, grpc_port, metrics_port, retrieval_port)
        serve_until_stopped(repository, store, logs, ports, http_inference=http_inference, as_json=as_json)


@app.command("index")
def index_cases(
    table: Table,
    split: Annotated[
        Path | None, typer.Option(help="split.json of a bundle. Only its training studies are indexed.")
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
        raise InputError(
            f"None of {len(result.refused)} cases could be indexed. The reasons are listed above."
        )


@app.command()
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
    triton: TritonUrl = TRITON,
    timeout: Timeout = 10.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    shrink: Shrink = True,
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
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Number of cases to return.")] = 5,
    exclude: Annotated[list[str] | None, typer.Option(help="Study id to leave out. Repeatable.")] = None,
    triton: TritonUrl = TRITON,
    retrieval: RetrievalUrl = RETRIEVAL,
    timeout: Timeout = 10.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    shrink: Shrink = True,
    as_json: Json = False,
) -> None:
    """Find the cases most similar to a radiograph, a report, a sentence, or a whole study."""
    from cli.inputs import read_images, read_report, require_input
    from cli.show import NOTICE, print_cases, print_json, print_warnings
    from client import CxrClient

    require_input(image, report)
    with CxrClient(
        triton, retrieval, timeout, transport=transport, compression=compression, shrink=shrink
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


@app.command()
def explain(
    image: Image = None,
    report: ReportText = None,
    bundle: Annotated[Path, typer.Option(help="Bundle of the model. No server is needed.")] = Path(
        "demo-output/bundle"
    ),
    label: Annotated[
        str | None, typer.Option(help="Category key to explain. Default: the top finding.")
    ] = None,
    out: Annotated[Path, typer.Option(help="PNG file for the overlay.")] = Path("explanation.png"),
    steps: Annotated[int, typer.Option(min=4, max=512, help="Number of integration steps.")] = 32,
    as_json: Json = False,
) -> None:
    """Show which pixels and words support a finding (Integrated Gradients through the whole model)."""
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
    overlay = str(out) if write_overlay(explanation, out) else None
    if as_json:
        print_json({**explanation.to_dict(), "overlay": overlay, "notice": NOTICE})
        return
    console = make_console(False)
    print_explanation(console, explanation, overlay)
    console.print(NOTICE)


@app.command()
def doctor(
    local: Annotated[
        bool, typer.Option("--local", help="Check only this machine and its packages; contact no server.")
    ] = False,
    triton: TritonUrl = TRITON,
    retrieval: RetrievalUrl = RETRIEVAL,
    as_json: Json = False,
) -> None:
    """Check this machine and the servers: what is missing and how to install it, and whether inference and search work.

    Exit code 4: a server does not answer. Exit code 3: the index belongs to another model. A missing extra is no error.
    """
    from cli.show import find_exit_code, print_checks, print_json
    from serving.doctor import run_checks

    checks, health = run_checks(), None
    if not local:
        from client import CxrClient

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
    """Run the command. SIGTERM and SIGHUP stop its child processes and clean up, as Ctrl-C does."""
    open_streams()
    run(_start)


def _start() -> None:
    take_interrupts()
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, _stop)
    app()
