"""`cxr export tensorrt`: build TensorRT plans of exported graphs, or write the commands that build them."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from cli.progress import show_progress
from contract.errors import ConfigError
from contract.signatures import TrustedKeys

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
    trust: TrustedKeys | None = None,
) -> "PlanExport":
    """Build plans of a bundle or a published repository into `out`, or write the commands to build them there.

    Raises:
        ConfigError: A path or an option cannot be used, or the machine cannot build with these options.
        ArtifactError: TensorRT does not support a graph, or its build failed.
    """
    if find_spec("onnx") is None or find_spec("tritonclient") is None:
        raise ConfigError("Export needs the 'export' extra: pip install 'cxr-serving[export]'.")
    from export.tensorrt.build import PlanSettings, export_plans

    settings = PlanSettings(cast("Precision", precision), typical_batch, workspace_mib, cuda_graphs)
    with show_progress(console, "Building plans") as progress:
        return export_plans(source, out, settings, progress, trust=trust)


def print_plans(console: Console, result: "PlanExport") -> None:
    """Print the built plans, or the commands that build them."""
    for sentence in result.to_sentences():
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    for command in result.commands:
        console.print(f"\n{command}", highlight=False, markup=False, soft_wrap=True)
