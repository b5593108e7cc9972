"""`cxr bench`: the speed of a served model, compared with the same work without a server."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.console import escape
from cli.options import Compression, Json, Timeout, Transport, make_console
from contract.connection import DEFAULT_ADDRESSES

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure a served model: latency, throughput, time per step, and the highest rate within a latency budget.",
)


@bench_app.command("run")
def run(
    model: Annotated[
        str,
        typer.Option(help="Served model. predict_study takes files, predict_study_tensors takes tensors."),
    ] = "predict_study_tensors",
    table: Annotated[
        Path | None,
        typer.Option(
            help="Studies table with the cases to send. Without it, phantoms or random tensors are sent."
        ),
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Number of different cases.")] = 16,
    concurrency: Annotated[
        str, typer.Option(help="Closed loop: requests in flight. Separate several values by commas.")
    ] = "1,2,4,8",
    rate: Annotated[
        str | None, typer.Option(help="Open loop: requests per second. Separate several values by commas.")
    ] = None,
    arrivals: Annotated[
        Literal["constant", "poisson"], typer.Option(help="Open loop: distribution of the gaps.")
    ] = "poisson",
    in_flight: Annotated[
        int, typer.Option(min=1, max=1024, help="Open loop: most requests in flight at once.")
    ] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Cases per request.")] = 1,
    length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens per text. Shorter texts are padded, longer ones left out."),
    ] = None,
    duration: Annotated[
        float, typer.Option(min=0.1, help="Seconds to measure each load, summed over its repeats.")
    ] = 10.0,
    count: Annotated[
        int | None, typer.Option(min=1, help="Requests to measure for each load, instead of --duration.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, max=100, help="How often each load is measured. The loads take turns.")
    ] = 5,
    warmup: Annotated[
        float, typer.Option(min=0, help="Longest warm-up in seconds. It ends when the latency is steady.")
    ] = 30.0,
    tolerance: Annotated[
        float,
        typer.Option(min=0.001, help="Latency is steady if three windows differ by at most this fraction."),
    ] = 0.1,
    budget: Annotated[
        str | None,
        typer.Option(help="Find the highest open-loop rate within this latency budget, such as p99=50ms."),
    ] = None,
    resolution: Annotated[
        float, typer.Option(min=0.001, help="Precision of that rate, as a fraction of it.")
    ] = 0.05,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Also run the same requests in this process. Needs --repository, --bundle or both.",
        ),
    ] = False,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository with the graphs for the baseline.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle with the PyTorch model for a baseline (eager, fp32).")
    ] = None,
    baseline_batch: Annotated[
        str | None,
        typer.Option(help="Cases per request of the baselines. Separate several values by commas."),
    ] = None,
    server_pid: Annotated[
        list[int] | None,
        typer.Option(
            help="Process id of the server, to measure its cores and memory. Default: found by port. Repeatable."
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Address of Triton's metrics (http://host:8002/metrics), to read GPU use and memory."
        ),
    ] = None,
    via: Annotated[
        Literal["bytes", "client"],
        typer.Option(
            help="bytes: send prepared requests, to measure the server alone. client: call this project's client."
        ),
    ] = "bytes",
    out: Annotated[Path | None, typer.Option(help="Directory for bench.json, bench.md and plots.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the choice of cases and the arrival times.")] = 0,
    triton: Annotated[
        str, typer.Option(envvar="CXR_TRITON", help="host:port of Triton's gRPC service.")
    ] = DEFAULT_ADDRESSES["triton"],
    timeout: Timeout = 30.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    as_json: Json = False,
) -> None:
    """Send requests to a served model in closed and open loops, and report the results."""
    from bench.report.write import write_report
    from bench.run import Options, parse_numbers, run_bench, strip_histograms
    from cli.show import print_json
    from cli.show_bench import print_bench
    from contract.errors import ConfigError

    if baseline and repository is None and bundle is None:
        raise ConfigError("--baseline needs --repository, --bundle or both.")
    if via == "bytes" and (transport, compression) != ("auto", "none"):
        raise ConfigError("--transport and --compression need --via client.")
    options = Options(
        triton=triton,
        model=model,
        table=table,
        cases=cases,
        concurrency=parse_numbers(concurrency, "--concurrency", int),
        rates=parse_numbers(rate, "--rate", float),
        arrivals=arrivals,
        in_flight=in_flight,
        batch=batch,
        length=length,
        duration_s=duration,
        count=count,
        repeats=repeats,
        warmup_max_s=warmup,
        tolerance=tolerance,
        budget=budget,
        resolution=resolution,
        repository=repository,
        bundle=bundle,
        baseline_batches=parse_numbers(baseline_batch, "--baseline-batch", int),
        server_pids=tuple(server_pid or ()),
        metrics_url=metrics,
        via=via,
        seed=seed,
        timeout_s=timeout,
        carrier=transport,
        compression=compression,
    )
    console = make_console(as_json)
    report = run_bench(console, options)
    files = write_report(report, out) if out else []
    if as_json:
        print_json(strip_histograms(report))
        return
    print_bench(console, report)
    if files:
        console.print(f"Report: {escape(files[1])}", soft_wrap=True)


@bench_app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="Report A: bench.json or its directory.")],
    second: Annotated[Path, typer.Argument(help="Report B.")],
    as_json: Json = False,
) -> None:
    """Compare two reports: B / A for each row of the same name, and whether the difference exceeds the noise."""
    from bench.run import compare_files
    from cli.show import print_json
    from cli.show_bench import print_ratios

    ratios, mismatches = compare_files(first, second)
    values = [ratio.to_dict() for ratio in ratios]
    if as_json:
        print_json({"ratios": values, "mismatches": mismatches})
        return
    console = make_console(False)
    print_ratios(console, values, f"{second} / {first}")
    for text in mismatches:
        console.print(f"[yellow]{escape(text)}[/yellow]", soft_wrap=True)


@bench_app.command("profile")
def profile(
    repository: Annotated[Path, typer.Argument(help="Model repository, published by `cxr export`.")],
    table: Annotated[Path, typer.Option(help="Studies table with the cases to run.")],
    model: Annotated[str, typer.Option(help="Published model to run.")] = "predict_study_tensors",
    length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens per text. Shorter texts are padded, longer ones left out."),
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Number of different cases.")] = 8,
    runs: Annotated[int, typer.Option(min=1, help="Number of timed runs.")] = 40,
    as_json: Json = False,
) -> None:
    """Show the time of each graph and kind of operation in a published model, without a server."""
    from bench.profile import profile_model
    from cli.show import print_json
    from cli.show_bench import print_profile

    profile_result = profile_model(repository, table, model=model, length=length, cases=cases, runs=runs)
    print_json(profile_result.to_dict()) if as_json else print_profile(make_console(False), profile_result)


@bench_app.command("table")
def table(
    root: Annotated[
        Path, typer.Argument(help="Directory with the studies and models that `make bench` made.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Directory for table.json and table.md. Default: ROOT.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds to measure each load.")] = 12.0,
    runs: Annotated[int, typer.Option(min=1, help="How often each part is measured.")] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Part: latency, throughput, files, precision, published, perf_analyzer or swap. Repeatable. "
            "Default: all."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare serving with its targets: ratios measured in one run, with pass or fail for each row."""
    from bench.targets.table import measure_table
    from cli.show import print_json
    from cli.show_bench import print_table

    console = make_console(as_json)
    report = measure_table(console, root, out or root, seconds=seconds, runs=runs, only=only or ())
    print_json(report) if as_json else print_table(console, report)


@bench_app.command("retrieval")
def retrieval(
    out: Annotated[
        Path, typer.Argument(help="Directory for table.json and table.md, and for stores meanwhile.")
    ],
    cases: Annotated[int, typer.Option(min=1000, help="Number of stored cases.")] = 100_000,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds to measure each load.")] = 6.0,
    runs: Annotated[int, typer.Option(min=1, help="How often each row is measured.")] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Part: random, mixture, writes or kinds. Repeatable. Default: all."),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[:PARAMETER=VALUE,...]", help="Of the part kinds. Repeatable. Default: rabitq."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the retrieval sidecar with raw FAISS and with the disk, with pass or fail for each row."""
    from bench.retrieval.table import KINDS, measure_retrieval
    from cli.show import print_json
    from cli.show_bench import print_table

    console = make_console(as_json)
    report = measure_retrieval(
        console, out, cases=cases, seconds=seconds, runs=runs, only=only or (), kinds=kind or KINDS
    )
    print_json(report) if as_json else print_table(console, report)


@bench_app.command("gpu")
def gpu(
    out: Annotated[
        Path, typer.Argument(help="Directory for gpu.json and gpu.md. An earlier run in it is continued.")
    ],
    device: Annotated[
        Literal["cuda", "cpu"], typer.Option(help="Device to measure. cpu tries the command without a GPU.")
    ] = "cuda",
    size: Annotated[
        str, typer.Option(help="Size of the model: a training config such as published or demo.")
    ] = "published",
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Longest duration of the whole run, in minutes.")
    ] = 8.0,
    seconds: Annotated[float, typer.Option(min=0.01, help="Seconds to measure each figure.")] = 0.5,
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,2,4,8,16,32,64",
    vectors: Annotated[
        int, typer.Option(min=1000, help="Number of embeddings that FAISS searches.")
    ] = 100_000,
    only: Annotated[list[str] | None, typer.Option(help="Part to measure. Repeatable. Default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Measure one GPU: PyTorch, ONNX Runtime, gates, search, shared memory, TensorRT. No network is needed.

    If packages are missing, `python -m bench.gpu OUT --wheels FOLDER` first installs them from a folder.
    """
    from bench.gpu.log import Settings
    from bench.gpu.run import run_gpu
    from bench.run import parse_numbers
    from cli.show import print_json

    console = make_console(as_json)
    sizes = parse_numbers(batches, "--batches", int)
    settings = Settings(device, size, seconds=seconds, batches=sizes, vectors=vectors)
    report = run_gpu(console, out, settings, minutes=minutes, only=tuple(only or ()))
    print_json(report) if as_json else console.print(f"Report: {escape(out / 'gpu.md')}", soft_wrap=True)


@bench_app.command("soak")
def soak(
    repository: Annotated[
        Path, typer.Argument(help="Model repository, published by `cxr export`. A copy of it is served.")
    ],
    minutes: Annotated[
        float,
        typer.Option(
            min=0, help="Minutes to run. Every event happens at least once, which takes some minutes."
        ),
    ] = 60.0,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle of the repository, to swap versions too.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for soak.json, soak.md and the server's log.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Event to run. Repeatable. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed for the drawn cases.")] = 0,
    as_json: Json = False,
) -> None:
    """Test a server under faults and three times its load. Clients check every answer, and a ledger every write."""
    from bench.faults.namespaces import enter_namespaces

    enter_namespaces(sys.argv[1:])
    from bench.faults.soak import run_soak
    from cli.show import print_json
    from cli.show_bench import print_soak

    console = make_console(as_json)
    report = run_soak(
        console, repository, minutes=minutes, bundle=bundle, out=out, only=tuple(only or ()), seed=seed
    )
    print_json(report) if as_json else print_soak(console, report)
