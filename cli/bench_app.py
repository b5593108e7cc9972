"""`cxr bench`: how fast a served model answers, beside the same work without a server."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.console import escape
from cli.options import Compression, Json, Timeout, Transport, TritonUrl, make_console

TRITON = "127.0.0.1:8001"

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure a served model: latency, throughput, where the time goes, the highest rate within a budget.",
)


@bench_app.command("run")
def run(
    model: Annotated[
        str,
        typer.Option(help="Served model: predict_study takes files, predict_study_tensors takes tensors."),
    ] = "predict_study_tensors",
    table: Annotated[
        Path | None,
        typer.Option(
            help="Studies table whose cases are sent; without it phantoms are drawn, or random tensors."
        ),
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="How many different cases.")] = 16,
    concurrency: Annotated[
        str, typer.Option(help="Closed loop: requests in flight; with commas, a sweep.")
    ] = "1,2,4,8",
    rate: Annotated[
        str | None, typer.Option(help="Open loop: requests a second; with commas, several rates.")
    ] = None,
    arrivals: Annotated[
        Literal["constant", "poisson"], typer.Option(help="Gaps of the open loop.")
    ] = "poisson",
    in_flight: Annotated[
        int, typer.Option(min=1, max=1024, help="Open loop: at most so many wait for an answer at once.")
    ] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Cases in a request.")] = 1,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens: pad shorter text to them and leave out longer.")
    ] = None,
    duration: Annotated[
        float, typer.Option(min=0.1, help="Seconds measured for each load, over all its repeats.")
    ] = 10.0,
    count: Annotated[
        int | None, typer.Option(min=1, help="Requests measured for each load, instead of a duration.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, max=100, help="How often each load is measured, in turn with the others.")
    ] = 5,
    warmup: Annotated[
        float, typer.Option(min=0, help="Seconds to wait, at most, for steady answers.")
    ] = 30.0,
    tolerance: Annotated[
        float, typer.Option(min=0.001, help="Steady: three windows differ by no more than this part.")
    ] = 0.1,
    budget: Annotated[
        str | None, typer.Option(help="Find the highest open-loop rate within it, such as p99=50ms.")
    ] = None,
    resolution: Annotated[
        float, typer.Option(min=0.001, help="How closely that rate is found, as a part of it.")
    ] = 0.05,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Also run the same requests in this process: --repository, --bundle or both are needed.",
        ),
    ] = False,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository whose graphs the baseline runs.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle whose PyTorch model is a baseline too (eager, fp32).")
    ] = None,
    baseline_batch: Annotated[
        str | None, typer.Option(help="Cases in a request of the baselines; with commas, a sweep.")
    ] = None,
    server_pid: Annotated[
        list[int] | None,
        typer.Option(
            help="Process of the server, for cores and memory; found where it listens here; repeatable."
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Triton's metrics, http://host:8002/metrics, for GPU use and memory.")
    ] = None,
    via: Annotated[
        Literal["bytes", "client"],
        typer.Option(help="Send ready-made bytes (measures the server) or call this project's client."),
    ] = "bytes",
    out: Annotated[Path | None, typer.Option(help="Directory for bench.json, bench.md and plots.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of cases and of arrivals.")] = 0,
    triton: TritonUrl = TRITON,
    timeout: Timeout = 30.0,
    transport: Transport = "auto",
    compression: Compression = "none",
    as_json: Json = False,
) -> None:
    """Send requests to a served model in closed and open loops, and report what was found."""
    from bench.report.write import write_report
    from bench.run import Options, parse_numbers, run_bench, strip_histograms
    from cli.bench_show import print_bench
    from cli.show import print_json
    from contract.errors import ConfigError

    if baseline and repository is None and bundle is None:
        raise ConfigError("--baseline needs --repository, --bundle or both.")
    if via == "bytes" and (transport, compression) != ("auto", "none"):
        raise ConfigError("--transport and --compression are the client's: add --via client.")
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
    """Compare two reports: B / A for each row of the same name, and whether that is more than noise."""
    from bench.run import compare_files
    from cli.bench_show import print_ratios
    from cli.show import print_json

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
    table: Annotated[Path, typer.Option(help="Studies table whose cases are asked.")],
    model: Annotated[str, typer.Option(help="Published model to run.")] = "predict_study_tensors",
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens: pad shorter text to them and leave out longer.")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="How many different cases.")] = 8,
    runs: Annotated[int, typer.Option(min=1, help="How many runs are timed.")] = 40,
    as_json: Json = False,
) -> None:
    """Show where the time of a published model goes, by graph and kind of operation, without a server."""
    from bench.profile import profile_model
    from cli.bench_show import print_profile
    from cli.show import print_json

    found = profile_model(repository, table, model=model, length=length, cases=cases, runs=runs)
    print_json(found.to_dict()) if as_json else print_profile(make_console(False), found)


@bench_app.command("table")
def table(
    root: Annotated[Path, typer.Argument(help="Directory that `make bench` filled with studies and models.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory for table.json and table.md; default: ROOT.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="How long each load is measured.")] = 12.0,
    runs: Annotated[int, typer.Option(min=1, help="How often each part is measured.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Part to measure; repeatable; default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Hold serving against its targets: ratios of what was measured in one run, with pass or fail for each row."""
    from bench.targets.table import measure_table
    from cli.bench_show import print_table
    from cli.show import print_json

    console = make_console(as_json)
    report = measure_table(console, root, out or root, seconds=seconds, runs=runs, only=only or ())
    print_json(report) if as_json else print_table(console, report)


@bench_app.command("gpu")
def gpu(
    out: Annotated[
        Path, typer.Argument(help="Directory for gpu.json and gpu.md; the same again goes on there.")
    ],
    device: Annotated[
        Literal["cuda", "cpu"], typer.Option(help="What is measured; cpu tries the command without a GPU.")
    ] = "cuda",
    size: Annotated[
        str, typer.Option(help="Size of the model: a training config such as base or demo.")
    ] = "base",
    minutes: Annotated[float, typer.Option(min=0.1, help="How long the whole may take.")] = 8.0,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long each figure is measured.")] = 0.5,
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,2,4,8,16,32,64",
    vectors: Annotated[int, typer.Option(min=1000, help="Embeddings that FAISS searches.")] = 100_000,
    only: Annotated[list[str] | None, typer.Option(help="Part to measure; repeatable; default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Measure one GPU: PyTorch, ONNX Runtime, gates, search, shared memory, TensorRT; no network is needed.

    Where packages are missing, `python -m bench.gpu OUT --wheels FOLDER` takes them from a folder first.
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
        Path, typer.Argument(help="Model repository, published by `cxr export`; a copy is served.")
    ],
    minutes: Annotated[
        float,
        typer.Option(min=0, help="How long; every event happens at least once, which takes some minutes."),
    ] = 60.0,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle of the repository: with it, versions are swapped too.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for soak.json, soak.md and what the server said.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Event to run; repeatable; default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Of the drawn cases.")] = 0,
    as_json: Json = False,
) -> None:
    """Torment a server by kill, stop, full shared memory, bad clients and swaps while clients compare answers."""
    from bench.faults.soak import enter_private_memory, run_soak
    from cli.bench_show import print_soak
    from cli.show import print_json

    enter_private_memory(sys.argv[1:])
    console = make_console(as_json)
    report = run_soak(
        console, repository, minutes=minutes, bundle=bundle, out=out, only=tuple(only or ()), seed=seed
    )
    print_json(report) if as_json else print_soak(console, report)
