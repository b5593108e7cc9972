"""`cxr train`: train a model, compare runs, list configs."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli.console import Table as RichTable
from cli.console import escape
from cli.default_command import DefaultCommandGroup
from cli.options import Cache, Json, Resamples, Table, make_console
from cli.signing import RequireSignature, find_trust

if TYPE_CHECKING:
    from contract.bundle import Bundle
    from contract.signatures import TrustedKeys
    from training.config.settings import TrainConfig

train_app = typer.Typer(
    cls=DefaultCommandGroup, no_args_is_help=True, help="Train a model, compare runs, list configs."
)


@train_app.command(DefaultCommandGroup.default, hidden=True)
def train(
    table: Table,
    out: Annotated[Path, typer.Option(help="Bundle directory to write. Must not exist.")],
    config: Annotated[
        str | None,
        typer.Option(
            help="Name of a config (`cxr train configs` lists them) or a TOML file.",
            show_default="demo, or the config of the --from bundle",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="BUNDLE",
            help="Start from the weights and the vocabulary of this bundle. Its architecture must be the same.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.NAME=VALUE",
            help="Change a setting of the config, such as optimizer.learning_rate=1e-3 or seed=1. Repeatable. "
            "`cxr train configs NAME` prints every setting.",
        ),
    ] = None,
    image_weights: Annotated[
        str | None,
        typer.Option(help="Image weights: a file, a directory, or a timm or hub id. Sets weights.image."),
    ] = None,
    text_weights: Annotated[
        str | None, typer.Option(help="BERT weights: a directory, or a hub id. Sets weights.text.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of epochs. Sets loop.epochs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for split and training. Sets seed.")] = None,
    split_file: Annotated[
        Path | None,
        typer.Option(help="Published split: JSON with train, validation and test, or CSV with id and split."),
    ] = None,
    cache: Cache = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Directory for checkpoints and metrics of the run.", show_default="OUT.run"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in its directory.")
    ] = False,
    log_with: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="Where to log: tensorboard (in the run's directory), wandb, mlflow or none. Repeatable.",
            show_default="tensorboard",
        ),
    ] = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Train a model on a studies table and write it as a bundle, with its test results.

    The command loads a config, applies the options, and prints every setting.

    The run's directory holds the figures of every epoch and, during training, a checkpoint for --resume.

    With --from, training starts from a trained bundle. --set weights.freeze=["image"] keeps an encoder unchanged.
    Calibration, thresholds and the lexical part are fitted again.

    Under torchrun every process trains, and the first one prints the results.
    """
    from cli.show import print_json, print_metrics
    from cli.watch import show_training
    from training.checkpoint import name_run
    from training.config.toml_file import parse_settings
    from training.trackers import make_trackers

    options = {
        "weights.image": image_weights,
        "weights.text": text_weights,
        "loop.epochs": epochs,
        "seed": seed,
    }
    changes = parse_settings(settings or ()) | {
        key: value for key, value in options.items() if value is not None
    }
    chosen, bundle = _choose_config(config, start, changes, find_trust(require_signature))
    first = os.environ.get("RANK", "0") == "0"
    trackers = make_trackers(log_with or ["tensorboard"]) if first else []
    run = run or name_run(out)
    console = make_console(as_json) if first else Console(quiet=True)
    if not as_json:
        _print_config(console, chosen)

    from training.train import train as train_model  # a slow import, so a wrong setting is reported before it

    with show_training(console, chosen.loop.epochs) as watcher:
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
    a: Annotated[
        Path, typer.Argument(help="First run: a bundle or a run directory. The run may still be training.")
    ],
    b: Annotated[Path, typer.Argument(help="Second run.")],
    as_json: Json = False,
) -> None:
    """Show how two runs differ: settings, validation scores, test results, time."""
    from cli.show import print_json
    from cli.show_comparison import print_comparison
    from training.compare import compare_runs

    comparison = compare_runs(a, b)
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_comparison(make_console(False), comparison)


@train_app.command("table")
def show_table(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles that `cxr evaluate` has evaluated.")],
    column: Annotated[
        list[str] | None, typer.Option(help="Column to show. Repeatable. Default: all columns.")
    ] = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Print the results of several bundles as one Markdown table: an ablation, or a series of seeds."""
    from cli.show import print_json
    from training.evaluation.results_table import format_markdown, read_rows

    rows = read_rows(bundles, find_trust(require_signature))
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
    cache: Cache = None,
    resamples: Resamples = 1000,
    seed: Annotated[int, typer.Option(help="Seed for the resamples.")] = 0,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Compare several models with the image controls, each on its own test split; print averages and paired tests."""
    from cli.show import print_json
    from contract.bundle import load_bundle
    from training.evaluation.series import ask_members, format_series, measure_series

    console, trust = make_console(True), find_trust(require_signature)
    with console.status("Predicting with the models"):
        loaded = [load_bundle(bundle, trust=trust) for bundle in bundles]
        members = ask_members(loaded, table, cache=cache)
    series = measure_series(members, seed=seed, resamples=resamples)
    if as_json:
        print_json(asdict(series))
    else:
        typer.echo(format_series(series), nl=False)


@train_app.command("configs")
def show_configs(
    name: Annotated[
        str | None, typer.Argument(help="Config to print in full, as a TOML file that you can edit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the built-in configs, or print one with every setting."""
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
    summaries = {
        config_name: next((line for line in read_header(config_name)[1:] if line), "")
        for config_name in list_configs()
    }
    if as_json:
        print_json(summaries)
        return
    table = RichTable(box=None, pad_edge=False, show_header=False)
    for config_name, summary in summaries.items():
        table.add_row(f"[bold]{escape(config_name)}[/bold]", escape(summary))
    make_console(False).print(table, highlight=False)


def _choose_config(
    name: str | None, start: Path | None, changes: Mapping[str, object], trust: "TrustedKeys | None"
) -> "tuple[TrainConfig, Bundle | None]":
    """Return the named config, or the start bundle's config, with the changes applied; and the start bundle."""
    from contract.bundle import load_bundle
    from training.config.toml_file import change_config, load_config

    if start is None:
        return load_config(name or "demo", changes), None
    from training.start import read_start_config  # slow import

    bundle = load_bundle(start, convert=True, trust=trust)
    if name is not None:
        return load_config(name, changes), bundle
    return change_config(read_start_config(bundle), changes), bundle


def _print_config(console: Console, config: "TrainConfig") -> None:
    from training.config.toml_file import format_config

    console.print(f"[dim]{escape(format_config(config))}[/dim]", highlight=False, soft_wrap=True)
