"""`cxr bench`: measure the served model and the baselines on real cases, and make a report."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console

from contract.connection import PLAIN, Connection
from contract.errors import ConfigError
from contract.signatures import TrustedKeys

if TYPE_CHECKING:
    from bench.load.arrivals import Arrivals
    from bench.load.budget import Found
    from bench.load.generator import Observer, Phases, Request
    from bench.load.inputs import Arrays, RawCase
    from bench.load.requests import Signature
    from bench.load.sample import Sample
    from bench.report.compare import Ratio
    from bench.report.measure import Subject
    from client.channel import Carrier, Compression
    from client.triton import TritonTransport
    from serving.inprocess import InProcess

_PHANTOM_SCALE = 0.125  # side relative to a real radiograph
BOTH_AT_ONCE = "in-process, encoders at once"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """The options of `cxr bench run`; see its help."""

    triton: str
    model: str
    table: Path | None = None
    cases: int = 16
    concurrency: tuple[int, ...] = (1,)
    rates: tuple[float, ...] = ()
    arrivals: "Arrivals" = "poisson"
    in_flight: int = 64
    batch: int = 1
    length: int | None = None
    duration_s: float = 10.0
    count: int | None = None
    repeats: int = 5
    warmup_max_s: float = 30.0
    tolerance: float = 0.1
    budget: str | None = None
    resolution: float = 0.05
    repository: Path | None = None
    bundle: Path | None = None
    baseline_batches: tuple[int, ...] = ()
    server_pids: tuple[int, ...] = ()
    metrics_url: str | None = None
    via: Literal["bytes", "client"] = "bytes"
    seed: int = 0
    timeout_s: float = 30.0
    carrier: "Carrier" = "auto"
    compression: "Compression" = "none"
    connection: Connection = PLAIN
    trust: TrustedKeys | None = None

    def describe(self) -> dict[str, Any]:
        """Return the settings that affect the figures, JSON-ready. The token is not among them."""
        left_out = {"table", "repository", "bundle", "connection", "trust"}
        values = {name: value for name, value in vars(self).items() if name not in left_out}
        tls = self.connection.tls
        return values | {"tls": "none" if tls is None else "server" if tls.cert is None else "mutual"}

    @property
    def phases(self) -> "Phases":
        """Durations of warm-up and measurement of each row, over all its repeats."""
        from bench.load.generator import Phases

        return Phases(
            duration_s=self.duration_s,
            count=self.count,
            warmup_max_s=self.warmup_max_s,
            tolerance=self.tolerance,
        )


@dataclass(frozen=True)
class Inputs:
    """The requests, one for each case, and their source."""

    signature: "Signature"
    requests: "list[Arrays]"
    source: str
    remake: "Callable[[int], list[Arrays]]"  # the same cases in batches of another size


def run_bench(console: Console, options: Options) -> dict[str, Any]:
    """Run the measurements and return the report.

    Raises:
        ConfigError: Options do not fit each other or the model.
        InputError, ServiceError: The first request fails.
    """
    from bench.load.budget import Budget
    from bench.load.inputs import describe_inputs
    from bench.report.measure import measure
    from bench.report.write import make_report
    from client.channel import ChannelSettings
    from client.triton import TritonTransport

    budget = Budget.parse(options.budget) if options.budget else None
    with ExitStack() as stack, console.status("Preparing requests") as status:
        settings = ChannelSettings(options.carrier, options.compression, connection=options.connection)
        transport = TritonTransport(options.triton, settings)
        stack.callback(transport.close)
        inputs = _prepare(options, transport)
        request = _make_served(stack, options, transport, inputs)
        request(0)  # a wrong address, model or input fails now
        observer = _make_observer(stack, options)
        subjects = _make_subjects(options, inputs, request, observer)
        rows = measure(
            subjects,
            options.phases,
            repeats=options.repeats,
            progress=lambda done, total, name: status.update(f"[{done}/{total}] {name}".replace("[", "\\[")),
        )
        best = max(
            (x.throughput for row in rows[: len(options.concurrency)] for x in row.samples), default=10.0
        )
        budget_result = _search(budget, options, request, 0.5 * best, status.update) if budget else None
        data = {"source": inputs.source, **describe_inputs(inputs.requests)}
        return make_report(
            rows, model=options.model, data=data, settings=options.describe(), budget=budget_result
        )


def _prepare(options: Options, transport: "TritonTransport") -> Inputs:
    from bench.load.inputs import draw_inputs, prepare_inputs
    from bench.load.requests import read_signature

    signature = read_signature(options.triton, options.model, options.timeout_s, options.connection)
    names = tuple(signature.inputs)

    def ask(model: str, inputs: Any, outputs: Sequence[str]) -> "Arrays":
        return transport.infer(model, inputs, outputs, options.timeout_s)

    if options.table is not None:
        text_mode = transport.read_model(options.timeout_s).text_mode
        cases = _read_cases(options.table, options, text_mode)
        source = f"{len(cases)} real cases of the studies table {options.table.name}"
    elif (drawn := _draw_phantoms(options)) is not None:
        cases, source = drawn, f"{len(drawn)} drawn phantoms, no real radiographs"
    else:
        model = transport.read_model(options.timeout_s)
        sizes = {"image_size": model.image_size, "length": options.length or min(128, model.max_length)}

        def draw(batch: int) -> "list[Arrays]":
            return draw_inputs(names, **sizes, batch=batch, count=options.cases, seed=options.seed)

        return Inputs(signature, draw(options.batch), "random pixels and token ids", draw)

    def make(batch: int) -> "list[Arrays]":
        return prepare_inputs(ask, names, cases, batch=batch, length=options.length)

    return Inputs(signature, make(options.batch), source, make)


def _read_cases(table: Path, options: Options, text_mode: str) -> "list[RawCase]":
    from training.data.rows import read_rows

    rows = read_rows(table)
    order = np.random.default_rng(options.seed).permutation(len(rows))
    return make_raw_cases((rows[index] for index in order), options.cases, text_mode)


def make_raw_cases(rows: Iterator[dict[str, Any]], count: int, text_mode: str) -> "list[RawCase]":
    """Return the first `count` studies with an image and text, as files. Raise ConfigError if there is none."""
    from bench.load.inputs import RawCase
    from client.inputs import read_image_file
    from training.data.rows import get_image, get_report, has_text

    cases: list[RawCase] = []
    for row in rows:
        image = get_image(row)
        if image is None or not image.is_file() or not has_text(row, text_mode):
            continue
        cases.append(RawCase(read_image_file(image), get_report(row).encode()))
        if len(cases) == count:
            break
    if not cases:
        raise ConfigError("No study of the table has both an image file on this machine and a report.")
    return cases


def _draw_phantoms(options: Options) -> "list[RawCase] | None":
    """Return drawn studies; None without the `train` extra, which draws them."""
    try:
        from training.data.openi import build_table
        from training.phantom import draw_dataset
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "phantoms"
        draw_dataset(root, studies=options.cases, seed=options.seed, scale=_PHANTOM_SCALE, workers=1)
        return make_raw_cases(iter(build_table(root, root).to_pylist()), options.cases, "findings")


def _make_served(
    stack: ExitStack, options: Options, transport: "TritonTransport", inputs: Inputs
) -> "Request":
    from bench.load.requests import BytesSender, make_client_request, serialise

    if options.via == "client":
        outputs = inputs.signature.outputs
        return make_client_request(transport, options.model, inputs.requests, outputs, options.timeout_s)
    payloads = [serialise(inputs.signature, request) for request in inputs.requests]
    sender = BytesSender(options.triton, payloads, options.timeout_s, options.connection)
    stack.callback(sender.close)
    return sender


def _make_observer(stack: ExitStack, options: Options) -> "Observer":
    from bench.report.process import ProcessTree, find_server
    from bench.report.server import ServerObserver, read_gpus

    pids = list(options.server_pids) or find_server(options.triton)
    if options.metrics_url:
        read_gpus(options.metrics_url)  # a wrong address fails now
    observer = ServerObserver(
        options.triton,
        timeout_s=options.timeout_s,
        processes=ProcessTree(pids) if pids else None,
        metrics_url=options.metrics_url,
        connection=options.connection,
    )
    stack.callback(observer.close)
    return observer


def _make_subjects(
    options: Options, inputs: Inputs, request: "Request", observer: "Observer"
) -> "list[Subject]":
    from bench.load.generator import ClosedLoop, OpenLoop
    from bench.report.measure import SERVED, Subject

    loads: list[ClosedLoop | OpenLoop] = [ClosedLoop(workers) for workers in options.concurrency]
    loads += [OpenLoop(rate, options.arrivals, options.in_flight, options.seed) for rate in options.rates]
    subjects = [Subject(SERVED, request, load, options.batch, observer) for load in loads]
    for batch in options.baseline_batches or (options.batch,):
        requests = inputs.requests if batch == options.batch else inputs.remake(batch)
        for target, baseline in _make_baselines(options, inputs.signature, requests):
            baseline(0)
            subjects.append(Subject(target, baseline, ClosedLoop(1), batch))
    return subjects


def _make_baselines(
    options: Options, signature: "Signature", requests: "list[Arrays]"
) -> "Iterator[tuple[str, Request]]":
    """Yield the baselines, which answer the same requests without a server."""
    if options.repository is not None:
        from serving.inprocess import InProcess

        one = InProcess(options.repository)
        yield "in-process", answer_here(one, options.model, requests)
        if len(one.describe(options.model)) > 2 and "study" in options.model:
            both = InProcess(options.repository, concurrent=True)
            yield BOTH_AT_ONCE, answer_here(both, options.model, requests)
    if options.bundle is not None:
        yield "torch eager fp32", make_eager(options.bundle, signature, requests, options.trust)


def make_eager(
    path: Path, signature: "Signature", requests: "Sequence[Arrays]", trust: TrustedKeys | None = None
) -> "Request":
    """Return the bundle's PyTorch model as a `Request`, without compilation and with one thread per core.

    Raises:
        ConfigError: The model does not read tensors, or the `train` extra is missing.
        ArtifactError: The bundle is damaged.
        SignatureError: No key of `trust` signed the bundle.
    """
    from bench.report.machine import count_cores
    from contract.bundle import load_bundle
    from contract.tensors import ATTENTION_MASK, INPUT_IDS, PIXELS

    order = (PIXELS.name, INPUT_IDS.name, ATTENTION_MASK.name)
    if set(signature.inputs) - set(order):
        raise ConfigError(
            f"--bundle needs a model that reads tensors, but {signature.model} reads raw files."
        )
    import torch

    from training.model.model import load_model

    torch.set_num_threads(count_cores())
    model = load_model(load_bundle(path, trust=trust))
    tensors = [{name: torch.from_numpy(array) for name, array in request.items()} for request in requests]

    def request(number: int) -> None:
        chosen = tensors[number % len(tensors)]
        with torch.inference_mode():
            model(*(chosen.get(name) for name in order))

    return request


def _search(budget: Any, options: Options, request: "Request", start: float, say: Say) -> "Found":
    from dataclasses import replace

    from bench.load.budget import find_rate
    from bench.load.generator import OpenLoop, run_load

    trials = 0

    def try_rate(rate: float) -> "Sample":
        nonlocal trials
        trials += 1
        say(f"{budget.name}: trying {rate:.2f} requests/s (trial {trials})")
        lasts = max(options.duration_s, budget.least_requests / rate)
        phases = replace(options.phases.shorten(), duration_s=lasts, count=None)
        load = OpenLoop(rate, options.arrivals, options.in_flight, options.seed + trials)
        return run_load(request, load, phases)

    return find_rate(try_rate, budget, start=start, resolution=options.resolution)


def answer_here(published: "InProcess", model: str, requests: "Sequence[Arrays]") -> "Request":
    """Return a `Request` that runs a published model in this process. The answers are discarded."""

    def request(number: int) -> None:
        published.run(model, requests[number % len(requests)])

    return request


def parse_numbers(text: str | None, option: str, kind: "type[int] | type[float]") -> tuple[Any, ...]:
    """Parse a list such as 1,2,4. A ConfigError names the option."""
    try:
        values = tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise ConfigError(f"{option} needs numbers separated by commas, such as 1,2,4.") from error
    if any(not value > 0 for value in values):
        raise ConfigError(f"{option} needs numbers above 0.")
    return values


def compare_files(first: Path, second: Path) -> tuple["list[Ratio]", list[str]]:
    """Return the ratios of two reports, and their other differences."""
    from bench.report.compare import compare_reports, list_mismatches, read_report

    reports = read_report(first), read_report(second)
    return compare_reports(*reports), list_mismatches(*reports)


def strip_histograms(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report for --json, without the histograms, which are in the file."""
    copy = json.loads(json.dumps(report))
    for row in copy["rows"]:
        row.pop("histogram", None)
    return dict(copy)
