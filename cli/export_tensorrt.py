"""`cxr export tensorrt`: TensorRT plans of exported graphs, or the commands that build them elsewhere."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from cli.progress import show_progress
from contract.errors import ConfigError

if TYPE_CHECKING:
    from export.tensorrt.build import PlanExport
    from export.tensorrt.graph import Precision


def export_tensorrt(
    console: Console,
    source: Path,
    out: Path,
    *,
    precision: str,
    typical_batch: int,
    workspace_mib: int,
    cuda_graphs: bool = False,
) -> "PlanExport":
    """Build plans of a bundle or a published repository into `out`, or write how to build them.

    Raises:
        ConfigError: A path or an option cannot be used, or the machine cannot do what is asked.
        ArtifactError: A graph holds what TensorRT cannot take, or its build failed.
    """
    if find_spec("onnx") is None or find_spec("tritonclient") is None:
        raise ConfigError("Export needs the 'export' extra: pip install 'cxr-serving[export]'.")
    from export.tensorrt.build import PlanSettings, export_plans

    settings = PlanSettings(cast("Precision", precision), typical_batch, workspace_mib, cuda_graphs)
    with show_progress(console, "Building plans") as progress:
        return export_plans(source, out, settings, progress)


def print_plans(console: Console, result: "PlanExport") -> None:
    """Print what was built, or that nothing was and what to run."""
    for sentence in result.to_sentences():
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    for command in result.commands:
        console.print(f"\n{command}", highlight=False, markup=False, soft_wrap=True)
