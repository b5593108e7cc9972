"""`cxr export`: publish a bundle, take the publication back, hold a server to it."""

from pathlib import Path
from typing import Annotated

import typer

from cli.default_command import DefaultCommandGroup
from cli.options import Json, make_console

Load = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Let the Triton that runs there (gRPC) take the change at once."),
]
AdminKey = Annotated[
    Path, typer.Option(help="Key file of that Triton, which `cxr serve` writes into its logs directory.")
]
ADMIN_KEY = Path("logs") / "runtime" / "admin_key"

export_app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    help="Publish a bundle for Triton or the hub; take a publication back; verify what a server answers.",
)


@export_app.command(DefaultCommandGroup.default, hidden=True)
def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory, made by `cxr train`.")],
    table: Annotated[
        Path | None, typer.Option(help="Studies table whose cases the parity gate runs.")
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="Model repository to publish into; one published before gets a new version."),
    ] = None,
    target: Annotated[str, typer.Option(help="What the graphs run on: cpu, gpu or tensorrt.")] = "cpu",
    variant: Annotated[
        str, typer.Option(help="What the server is tuned for: latency or throughput.")
    ] = "latency",
    profile: Annotated[str, typer.Option(help="Precision: fp32, bf16, fp16 or int8.")] = "fp32",
    graphs: Annotated[
        str, typer.Option(help="split, or fused: encoders and fusion in one graph for each kind of question.")
    ] = "split",
    cores: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cores of the machine that serves: processes that read images. Default: this one's."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the repository whole, with all its versions.")
    ] = False,
    hub_folder: Annotated[
        Path | None, typer.Option(help="Folder to write for the Hugging Face hub; must not exist.")
    ] = None,
    load: Load = None,
    admin_key: AdminKey = ADMIN_KEY,
    as_json: Json = False,
) -> None:
    """Convert a bundle to ONNX, hold it against PyTorch on real cases, publish it for Triton or the hub."""
    from cli.export import Publication, export_bundle, print_export
    from cli.show import print_json

    console = make_console(as_json)
    publication = Publication(target, variant, profile, graphs, replace, load, admin_key, cores)
    result = export_bundle(
        console, bundle, table=table, repository=repository, hub_folder=hub_folder, publication=publication
    )
    print_json(result.to_dict()) if as_json else print_export(console, result)


@export_app.command("rollback")
def rollback(
    repository: Annotated[Path, typer.Argument(help="Model repository, published by `cxr export`.")],
    to: Annotated[
        int | None,
        typer.Option(metavar="VERSION", help="The version that answers. Default: the oldest one kept."),
    ] = None,
    load: Load = None,
    admin_key: AdminKey = ADMIN_KEY,
    as_json: Json = False,
) -> None:
    """Let an earlier version answer again, or the one that --to names; a repetition changes nothing."""
    from cli.export import print_rollback, roll_back
    from cli.show import print_json

    console = make_console(as_json)
    result = roll_back(console, repository, to=to, load=load, admin_key=admin_key)
    print_json(result.to_dict()) if as_json else print_rollback(console, result)


@export_app.command("verify")
def verify(
    triton: Annotated[str, typer.Argument(metavar="HOST:PORT", help="gRPC address of a running Triton.")],
    as_json: Json = False,
) -> None:
    """Ask a running Triton what its graphs answered when they were published; exit code 3 where it differs."""
    from cli.export_served import print_verified, require_passed, verify_server
    from cli.show import print_json

    console = make_console(as_json)
    result = verify_server(console, triton)
    print_json(result.to_dict()) if as_json else print_verified(console, result)
    require_passed(result)


@export_app.command("retire")
def retire(
    repository: Annotated[Path, typer.Argument(help="Model repository, published by `cxr export`.")],
    version: Annotated[
        int | None,
        typer.Option(metavar="VERSION", help="The version to remove. Default: the one that does not answer."),
    ] = None,
    load: Load = None,
    admin_key: AdminKey = ADMIN_KEY,
    as_json: Json = False,
) -> None:
    """Remove the version that does not answer; a running server unloads it and has its memory back."""
    from cli.export_served import print_retired, retire_version
    from cli.show import print_json

    console = make_console(as_json)
    result = retire_version(console, repository, version=version, load=load, admin_key=admin_key)
    print_json(result.to_dict()) if as_json else print_retired(console, result)


@export_app.command("tensorrt")
def tensorrt(
    source: Annotated[
        Path, typer.Argument(help="Bundle directory, or a model repository published by `cxr export`.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the plans; new, empty, or of an earlier run.")],
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 or bf16; a graph that was converted keeps its own.")
    ] = "fp16",
    typical_batch: Annotated[int, typer.Option(help="Batch size that the plans are tuned for, 1 to 32.")] = 8,
    workspace_mib: Annotated[int, typer.Option(help="GPU memory that the builder may use, in MiB.")] = 4096,
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs", help="Let Triton capture small shapes as CUDA graphs; takes GPU memory for each."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Build TensorRT plans; where TensorRT is missing, write the commands and configs to build them elsewhere."""
    from cli.export_tensorrt import export_tensorrt, print_plans
    from cli.show import print_json

    console = make_console(as_json)
    result = export_tensorrt(
        console,
        source,
        out,
        precision=precision,
        typical_batch=typical_batch,
        workspace_mib=workspace_mib,
        cuda_graphs=cuda_graphs,
    )
    print_json(result.to_dict()) if as_json else print_plans(console, result)
