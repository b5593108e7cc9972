"""The `cxr` command: from Open-i files to served predictions, similar cases and explanations.

This file only assembles the commands of `cli.commands`. Each command imports its packages inside its function. So
`cxr --help` is quick, and an extra is needed only by the command that uses it.
"""

import os
import signal
from types import FrameType
from typing import Annotated

import typer

from cli.command import CommandGroup, open_streams, run, take_interrupts
from cli.commands.bench import bench_app
from cli.commands.calibrate import calibrate
from cli.commands.certs import certs_app
from cli.commands.data import data_app
from cli.commands.demo import demo
from cli.commands.doctor import doctor
from cli.commands.evaluate import evaluate_app
from cli.commands.explain import explain
from cli.commands.export import export_app
from cli.commands.index import index_app
from cli.commands.monitor import monitor_app
from cli.commands.predict import predict
from cli.commands.search import search
from cli.commands.serve import serve
from cli.commands.sign import sign_app
from cli.commands.train import train_app
from cli.options import print_version
from cli.serve_config import ENVIRONMENT as SERVE_ENVIRONMENT
from contract.connection import quiet_grpc

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Chest X-ray prediction, similar cases and explanations. Research and teaching only: never a diagnosis.",
)
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(export_app, name="export")
app.add_typer(index_app, name="index")
app.add_typer(bench_app, name="bench")
app.add_typer(certs_app, name="certs")
app.add_typer(monitor_app, name="monitor")
app.add_typer(sign_app, name="sign")
app.command()(demo)
app.command()(calibrate)
app.command(context_settings={"auto_envvar_prefix": SERVE_ENVIRONMENT})(serve)
app.command()(predict)
app.command()(search)
app.command()(explain)
app.command()(doctor)


@app.callback()
def set_up(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Read the options that come before a command."""
    # OpenMP reads this variable when torch is loaded. By default its threads spin while they wait for each other,
    # which wastes time when another program uses a core: on 2 cores, beside one such program, training took 3.7 times
    # as long. `cxr bench` keeps the default: on a machine without other programs, PyTorch is a tenth slower without
    # spinning.
    if context.invoked_subcommand != "bench":
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command. SIGTERM and SIGHUP stop its child processes and clean up, as Ctrl-C does."""
    open_streams()
    quiet_grpc()
    run(_start)


def _start() -> None:
    take_interrupts()
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, _stop)
    app()
