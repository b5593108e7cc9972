"""The command `cxr evaluate`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.commands.evaluate_explain import evaluate_explain
from cli.connection import takes_connection
from cli.console import escape
from cli.default_command import DefaultCommandGroup
from cli.options import Cache, Json, Resamples, Table, Timeout, TritonUrls, make_console
from cli.signing import RequireSignature, tell_of_signature
from contract.connection import PLAIN, Connection
from contract.errors import ConfigError

evaluate_app = typer.Typer(
    cls=DefaultCommandGroup, no_args_is_help=True, help="Evaluate a model, its controls, or its explanations."
)
evaluate_app.command("explain")(evaluate_explain)


@evaluate_app.command(DefaultCommandGroup.default, hidden=True)
@takes_connection
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
    cache: Cache = None,
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
    resamples: Resamples = 1000,
    seed: Annotated[int, typer.Option(help="Seed for splits, controls and resamples.")] = 0,
    triton: TritonUrls = None,
    timeout: Timeout = 30.0,
    connection: Connection = PLAIN,
    require_signature: RequireSignature = None,
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
    from contract.signatures import TrustedKeys
    from training.evaluation.split_predictions import Options

    options, console = Options(seed, resamples), make_console(as_json)
    if bundle is None:
        if served or split_file or out or cache or external:
            raise ConfigError("--served, --split-file, --external, --cache and --out need --bundle.")
        controls = evaluate_controls(
            console, table, splits=splits, keep_duplicates=keep_duplicates, options=options
        )
        print_json(controls) if as_json else print_controls(console, controls)
        return
    loaded = load_bundle(bundle, trust=TrustedKeys.find(require_signature))
    external = plan_external(loaded, table, external=external, split_file=split_file, out=out)
    # Send whole files, because the server's reading of them is to be measured too.
    settings: dict[str, Any] = {"timeout_s": timeout, "shrink": False, **connection.as_arguments()}
    with CxrClient(triton, **settings) if served else nullcontext() as client:
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
    signed = loaded.is_signed
    written = write_results(answers, results, loaded, out)
    if as_json:
        print_json({**results, "written": str(written)})
    else:
        print_results(console, results)
        console.print(f"All results, with plots: {escape(written)}", soft_wrap=True)
        tell_of_signature(console, signed, loaded)
