"""The `cxr` command: from Open-i files to served predictions, similar cases and explanations.

Each sub-command is thin: it reads what a person typed, calls one package and shows the answer. Imports
stand inside the command that needs them, so that `cxr --help` is quick and an extra is needed only where used.
"""

import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from cli.bench.app import bench_app
from cli.data_app import data_app
from cli.export_app import export_app
from cli.options import (
    Compression,
    Image,
    Json,
    ReportText,
    RetrievalUrl,
    Table,
    Timeout,
    Transport,
    TritonUrl,
    make_console,
)
from cli.train_app import train_app
from contract.errors import ConfigError, CxrError

# Read by OpenMP when torch is loaded. Its threads otherwise spin while they wait for each other, and where another
# program has one of the cores they spin for ever: training took 3.7 times as long beside one on 2 cores. `cxr bench`
# measures PyTorch as it comes; alone on a machine it is a tenth slower without spinning.
if sys.argv[1:2] != ["bench"]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TRITON = "127.0.0.1:8001"
RETRIEVAL = "127.0.0.1:8005"


class CommandGroup(TyperGroup):
    """Turns every error raised on purpose into one sentence on standard error and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except CxrError as error:
            Console(stderr=True, soft_wrap=True).print(
                f"[red]Error:[/red] {escape(str(error))}", highlight=False
            )
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            Console(stderr=True).print("Stopped.")
            raise typer.Exit(130) from error
        except ModuleNotFoundError as error:
            message = (
                f"The package {error.name} is not installed; `cxr doctor` names the extra that brings it."
            )
            Console(stderr=True, soft_wrap=True).print(
                f"[red]Error:[/red] {escape(message)}", highlight=False
            )
            raise typer.Exit(ConfigError.exit_code) from error


app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Chest X-ray prediction, similar cases and explanations. Research and teaching only: never a diagnosis.",
)
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(export_app, name="export")
app.add_typer(bench_app, name="bench")


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
        Path | None, typer.Option(help="Bundle to measure; without it, the TF-IDF controls alone.")
    ] = None,
    split_file: Annotated[Path | None, typer.Option(help="Split to use instead of the bundle's own.")] = None,
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
    from cli.evaluate import evaluate_bundle, evaluate_controls, print_controls, print_results, write_results
    from cli.show import print_json
    from client import CxrClient
    from contract.bundle import load_bundle
    from training.evaluation.ask import Options

    options, console = Options(seed, resamples), make_console(as_json)
    if bundle is None:
        if served or split_file or out or cache:
            raise ConfigError("--served, --split-file, --cache and --out need --bundle.")
        controls = evaluate_controls(
            console, table, splits=splits, keep_duplicates=keep_duplicates, options=options
        )
        print_json(controls) if as_json else print_controls(console, controls)
        return
    loaded = load_bundle(bundle)
    with CxrClient(triton, timeout_s=timeout) if served else nullcontext() as client:
        asked, results = evaluate_bundle(
            console,
            loaded,
            table,
            split_file=split_file,
            options=options,
            cache=cache,
            client=client,
        )
    written = write_results(asked, results, loaded, out)
    if as_json:
        print_json({**results, "written": str(written)})
    else:
        print_results(console, results)
        console.print(f"Everything, with plots: {written}", highlight=False)


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
    from cli.show import print_json
    from export.versions import MARKER, settle
    from serving.stack import Ports, Stack

    if os.access(repository / MARKER, os.W_OK):
        settle(repository)  # what was killed while publishing ends here, before Triton reads it
    signal.signal(signal.SIGTERM, _leave)
    ports = Ports(http=http_port, grpc=grpc_port, metrics=metrics_port, retrieval=retrieval_port)
    console = make_console(as_json)
    with Stack(repository, store, ports=ports, log_dir=logs, http_inference=http_inference) as stack:
        with console.status("Starting Triton and the sidecar"):
            seconds = stack.wait_ready()
        if as_json:
            print_json({**stack.describe(), "ready_s": round(seconds, 2)})
            sys.stdout.flush()
        for name, address in stack.describe().items():
            console.print(f"{name:<12} {address}", highlight=False, soft_wrap=True)
        console.print(f"Ready after {seconds:.1f} s; Ctrl-C stops both.", highlight=False)
        stack.wait(lambda sentence: print(time.strftime("%H:%M:%S"), sentence, file=sys.stderr, flush=True))


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
    as_json: Json = False,
) -> None:
    """Embed every study of a table through the served model and store it for search."""
    from cli.cases import make_cases, read_rows
    from cli.inputs import read_split
    from cli.progress import show_progress
    from cli.show import print_indexed, print_json
    from client import CxrClient

    rows = read_rows(table, study_ids=read_split(split, "train") if split else None)
    console = make_console(as_json)
    connected = CxrClient(triton, retrieval, timeout, transport=transport, compression=compression)
    with connected as client, show_progress(console, "Indexing") as progress:
        text_mode = client.info().text_mode
        result = client.index(make_cases(rows, text_mode), progress=lambda done: progress(done, len(rows)))
    if as_json:
        print_json(result.to_dict())
    else:
        print_indexed(console, result)


@app.command()
def predict(
    image: Image = None,
    report: ReportText = None,
    finding: Annotated[
        list[str] | None,
        typer.Option(help="Finding in free words to score, as a similarity, not a probability; repeatable."),
    ] = None,
    triton: TritonUrl = TRITON,
    timeout: Timeout = 10.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    as_json: Json = False,
) -> None:
    """Predict the 22 finding categories from a radiograph, a report, or both."""
    from cli.inputs import read_image, read_report, require_input
    from cli.show import NOTICE, print_json, print_prediction
    from cli.zero_shot import describe_scores, print_scores, read_findings
    from client import CxrClient

    require_input(image, report)
    findings = read_findings(finding)
    with CxrClient(triton, timeout_s=timeout, transport=transport, compression=compression) as client:
        prediction = client.predict(read_image(image), read_report(report))
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
    report: ReportText = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many cases.")] = 5,
    exclude: Annotated[list[str] | None, typer.Option(help="Study id to leave out; may be repeated.")] = None,
    triton: TritonUrl = TRITON,
    retrieval: RetrievalUrl = RETRIEVAL,
    timeout: Timeout = 10.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    as_json: Json = False,
) -> None:
    """Find the most similar cases to a radiograph, a report, a sentence, or a whole study."""
    from cli.inputs import read_image, read_report, require_input
    from cli.show import NOTICE, print_cases, print_json, print_warnings
    from client import CxrClient

    require_input(image, report)
    with CxrClient(triton, retrieval, timeout, transport=transport, compression=compression) as client:
        found = client.search(
            read_image(image), read_report(report), k=k, exclude_studies=tuple(exclude or ())
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
    triton: TritonUrl = TRITON,
    retrieval: RetrievalUrl = RETRIEVAL,
    as_json: Json = False,
) -> None:
    """Tell what this machine has, what is missing and how to get it, and whether the servers infer and search."""
    from cli.show import print_checks, print_json
    from client import CxrClient
    from serving.doctor import run_checks

    checks = run_checks()
    with CxrClient(triton, retrieval, timeout_s=10.0) as client:  # three real inferences
        health = client.health()
    if as_json:
        print_json({"checks": [check.to_dict() for check in checks], "servers": health.to_dict()})
    else:
        print_checks(make_console(False), checks, health)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the console script; a termination signal stops children and cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, _stop)
    app()


if __name__ == "__main__":
    main()
