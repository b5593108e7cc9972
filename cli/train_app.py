"""`cxr train`: train a model, compare two runs, list configs."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich import box
from rich.console import Console

from cli.console import Table as RichTable
from cli.console import escape
from cli.default_command import DefaultCommandGroup
from cli.options import Json, Table, make_console

if TYPE_CHECKING:
    from contract.bundle import Bundle
    from training.compare import Comparison, Difference, TrainingRun
    from training.config.settings import TrainConfig

_MOST_EPOCHS: Final = 20  # validated epochs that a comparison prints; --json has all


train_app = typer.Typer(
    cls=DefaultCommandGroup, no_args_is_help=True, help="Train a model; compare two runs; list configs."
)


@train_app.command(DefaultCommandGroup.default, hidden=True)
def train(
    table: Table,
    out: Annotated[Path, typer.Option(help="Bundle directory to write; must not exist.")],
    config: Annotated[
        str | None,
        typer.Option(
            help="Name of a config (`cxr train configs` lists them) or a TOML file.",
            show_default="demo, or that of the bundle of --from",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="BUNDLE",
            help="Start from the weights and the vocabulary of this bundle, which must have the same architecture.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.NAME=VALUE",
            help="Change a setting of the config, as optimizer.learning_rate=1e-3 or seed=1; may be repeated. "
            "`cxr train configs NAME` shows every setting.",
        ),
    ] = None,
    image_weights: Annotated[
        str | None,
        typer.Option(help="Image weights: a file, a directory or a timm / hub id. Sets weights.image."),
    ] = None,
    text_weights: Annotated[
        str | None, typer.Option(help="BERT weights: a directory or a hub id. Sets weights.text.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Sets loop.epochs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of split and training. Sets seed.")] = None,
    split_file: Annotated[
        Path | None,
        typer.Option(
            help="Published split to use: JSON with train, validation and test, or CSV with id and split."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Image cache of the table, made by `cxr data cache`.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Directory for checkpoints and metrics of the run.", show_default="OUT.run"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in its directory where it stopped.")
    ] = False,
    log_with: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="Where to log: tensorboard (into the run's directory), wandb, mlflow or none; may be repeated.",
            show_default="tensorboard",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model on a studies table and write it, with its measured results, as a bundle.

    Starts from a config, changes the settings given here, and prints them all.

    The run's directory keeps every epoch's figures and, while it trains, a checkpoint for --resume.

    With --from it goes on from a trained bundle: all of it, or without the encoders that --set weights.freeze=["image"]
    leaves as they are. Calibration, thresholds and the lexical part are fitted anew.

    Started by torchrun, every process trains and the first one reports.
    """
    from cli.show import print_json, print_metrics
    from cli.watch import show_training
    from training.checkpoint import name_run
    from training.config.toml_file import parse_settings
    from training.trackers import make_trackers

    given = {
        "weights.image": image_weights,
        "weights.text": text_weights,
        "loop.epochs": epochs,
        "seed": seed,
    }
    changes = parse_settings(settings or ()) | {
        key: value for key, value in given.items() if value is not None
    }
    chosen, bundle = _choose_config(config, start, changes)
    first = os.environ.get("RANK", "0") == "0"
    trackers = make_trackers(log_with or ["tensorboard"]) if first else []
    run = run or name_run(out)
    console = make_console(as_json) if first else Console(quiet=True)
    if not as_json:
        _print_config(console, chosen)

    from training.train import train as train_model  # heavy, and a wrong setting is told before

    stages = {"pretraining": chosen.pretraining.epochs, "training": chosen.loop.epochs}
    with show_training(console, stages) as watcher:
        result = train_model(
            chosen,
            table,
            out,
            split_file=split_file,
            cache=cache,
            run=run,
            resume=resume,
            start=bundle,
            watcher=watcher,
            trackers=trackers,
        )
    if as_json and first:
        print_json(
            {
                "bundle": str(result.bundle),
                "run": str(run),
                "config": asdict(chosen),
                "metrics": result.metrics,
            }
        )
    elif first:
        print_metrics(console, result.metrics)
        console.print(f"Bundle: {escape(result.bundle)}\nRun:    {escape(run)}", soft_wrap=True)


@train_app.command("compare")
def compare(
    a: Annotated[Path, typer.Argument(help="Bundle, or run directory of a run that may still be going on.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    as_json: Json = False,
) -> None:
    """Show how two runs differ: settings, validation scores, test results, time."""
    from cli.show import print_json
    from training.compare import compare_runs

    comparison = compare_runs(a, b)
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_comparison(make_console(False), comparison)


@train_app.command("table")
def show_table(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles that `cxr evaluate` has measured.")],
    column: Annotated[
        list[str] | None, typer.Option(help="Show this figure only; may be repeated. Default: all there are.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what several evaluated bundles reached as one Markdown table: an ablation, or a series of seeds."""
    from cli.show import print_json
    from training.evaluation.results_table import format_markdown, read_rows

    rows = read_rows(bundles)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        typer.echo(format_markdown(rows, column or ()), nl=False)


@train_app.command("series")
def show_series(
    table: Table,
    bundles: Annotated[
        list[Path], typer.Argument(help="Bundles of one config, trained on this table with several splits.")
    ],
    cache: Annotated[
        Path | None, typer.Option(help="Image cache of the table, made by `cxr data cache`.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=0, help="How often patients are drawn anew.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of these draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Hold several models against the controls of images: each on its own test split, averaged, tested in pairs."""
    from cli.show import print_json
    from contract.bundle import load_bundle
    from training.evaluation.series import ask_members, format_series, measure_series

    console = make_console(True)
    with console.status("Asking the models"):
        members = ask_members([load_bundle(bundle) for bundle in bundles], table, cache=cache)
    series = measure_series(members, seed=seed, resamples=resamples)
    if as_json:
        print_json(asdict(series))
    else:
        typer.echo(format_series(series), nl=False)


@train_app.command("configs")
def show_configs(
    name: Annotated[
        str | None, typer.Argument(help="Print this config in full, as a TOML file to start from.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the configs that come with the package, or print one with every setting."""
    from cli.show import print_json
    from training.config.toml_file import format_config, list_configs, load_config, read_header

    if name is not None:
        config = load_config(name)
        if as_json:
            print_json(asdict(config))
        else:
            header = "".join(f"# {line}".rstrip() + "\n" for line in read_header(name))
            typer.echo(f"{header}\n{format_config(config)}", nl=False)
        return
    found = {each: next((line for line in read_header(each)[1:] if line), "") for each in list_configs()}
    if as_json:
        print_json(found)
        return
    table = RichTable(box=None, pad_edge=False, show_header=False)
    for each, prose in found.items():
        table.add_row(f"[bold]{escape(each)}[/bold]", escape(prose))
    make_console(False).print(table, highlight=False)


def _choose_config(
    name: str | None, start: Path | None, changes: Mapping[str, object]
) -> "tuple[TrainConfig, Bundle | None]":
    """Return the named config, or that of the bundle to start from, with the changes; and the bundle."""
    from contract.bundle import load_bundle
    from training.config.toml_file import change_config, load_config

    if start is None:
        return load_config(name or "demo", changes), None
    from training.start import read_start_config  # heavy

    bundle = load_bundle(start, convert=True)
    if name is not None:
        return load_config(name, changes), bundle
    return change_config(read_start_config(bundle), changes), bundle


def _print_config(console: Console, config: "TrainConfig") -> None:
    from training.config.toml_file import format_config

    console.print(f"[dim]{escape(format_config(config))}[/dim]", highlight=False, soft_wrap=True)


def print_comparison(console: Console, comparison: "Comparison") -> None:
    """Print two runs side by side: what differs, the course, the results, and what to know before comparing."""
    a, b = comparison.a, comparison.b
    for letter, one in (("A", a), ("B", b)):
        console.print(f"{letter}  {_describe_run(one)}", highlight=False, soft_wrap=True)
    settings = _make_table("Settings that differ", "", "A", "B")
    for name, values in comparison.settings.items():
        settings.add_row(escape(name), *(escape("-" if value is None else str(value)) for value in values))
    scores = _make_table("Validation score", "", "A", "B")
    for epoch, *points in _thin(comparison):
        bests = (run.best is not None and run.best[0] == epoch for run in (a, b))
        scores.add_row(str(epoch), *(_mark(value, best) for value, best in zip(points, bests, strict=True)))
    console.print(settings if comparison.settings else "\nNo setting differs.")
    if comparison.scores:
        console.print(scores)
    if comparison.test:
        console.print(_tabulate_test(comparison.test))
        console.print(
            "[dim]Macro means with 95 % intervals of each run alone; they do not tell whether a difference is "
            "more than chance.[/dim]"
        )
    for note in comparison.notes:
        console.print(f"[bold yellow]Note:[/bold yellow] {escape(note)}", highlight=False, soft_wrap=True)


def _describe_run(run: "TrainingRun") -> str:
    parts = [f"[bold]{escape(str(run.path))}[/bold]", f"{len(run.history)} epochs"]
    if run.best:
        parts.append(f"best {run.best[1]:.4f} in epoch {run.best[0]}")
    if run.seconds is not None:
        parts.append(f"{run.seconds:.0f} s{f' on {escape(run.device)}' if run.device else ''}")
    return ", ".join(parts)


def _thin(comparison: "Comparison") -> list[tuple[int, float | None, float | None]]:
    """Return at most about `_MOST_EPOCHS` epochs, evenly spread; the best ones and the last are among them."""
    rows = comparison.scores
    step = -(-len(rows) // _MOST_EPOCHS) or 1
    kept = {run.best[0] for run in (comparison.a, comparison.b) if run.best}
    return [row for place, row in enumerate(reversed(rows)) if place % step == 0 or row[0] in kept][::-1]


def _mark(value: float | None, best: bool) -> str:
    if value is None:
        return "-"
    return f"[bold]{value:.4f}[/bold]" if best else f"{value:.4f}"


def _tabulate_test(test: "Mapping[str, Mapping[str, Difference]]") -> RichTable:
    from cli.show import KIND_TITLES, format_interval

    table = _make_table("Test split", "Read from", "", "A", "B", "B - A")
    for way, figures in test.items():
        for place, (name, figure) in enumerate(figures.items()):
            change = "-" if figure.change is None else f"{figure.change:+.3f}"
            title = KIND_TITLES.get(way, way) if place == 0 else ""
            values = (format_interval(value) for value in (figure.a, figure.b))
            table.add_row(title, "F1" if name == "f1" else name.upper(), *values, change)
    return table


def _make_table(title: str, *columns: str) -> RichTable:
    table = RichTable(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for place, column in enumerate(columns):
        numeric = place > 0 and column != ""
        table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric)
    return table
