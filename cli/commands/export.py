"""`cxr export`: publish a bundle, roll back to an earlier version, verify a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.connection import takes_connection
from cli.default_command import DefaultCommandGroup
from cli.options import Json, make_console
from cli.signing import PasswordFile, RequireSignature, Sign, find_trust, open_key
from contract.connection import PLAIN, Connection
from contract.errors import ConfigError

if TYPE_CHECKING:
    from cli.export_servers import Servers

Load = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST:PORT",
        help="gRPC address of a running Triton, which loads the change at once. Repeat it for all servers of the "
        "repository: all of them change, or none.",
    ),
]
AdminKey = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Admin key of that Triton: the file that `cxr serve` writes into its logs directory, or one with a token "
        "of the role admin. Give it once for all servers, or once for each, in the order of --load. Default: "
        "logs/runtime/admin_key.",
    ),
]
ADMIN_KEY = Path("logs") / "runtime" / "admin_key"


def _find_servers(
    load: list[str] | None, repository: Path | None, admin_keys: list[Path] | None, connection: Connection
) -> "Servers | None":
    """Return the servers of --load; None without it."""
    from cli.export_servers import Servers

    if not load:
        return None
    if repository is None:
        raise ConfigError("--load needs --repository, and cannot be combined with --replace.")
    return Servers(load, repository, admin_keys or [ADMIN_KEY], connection)


export_app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    help="Publish a bundle for Triton or the hub; roll back to an earlier version; verify a server.",
)


@export_app.command(DefaultCommandGroup.default, hidden=True)
@takes_connection
def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory, made by `cxr train`.")],
    table: Annotated[Path | None, typer.Option(help="Studies table with cases for the parity gate.")] = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="Model repository to publish into. An existing one gets a new version."),
    ] = None,
    target: Annotated[
        str, typer.Option(help="Hardware and runtime of the graphs: cpu, gpu or tensorrt.")
    ] = "cpu",
    variant: Annotated[str, typer.Option(help="Tune the server for latency or throughput.")] = "latency",
    profile: Annotated[str, typer.Option(help="Precision: fp32, bf16, fp16 or int8.")] = "fp32",
    graphs: Annotated[
        str,
        typer.Option(help="split: separate encoders and fusion. fused: one graph for each kind of input."),
    ] = "split",
    cores: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cores of the serving machine; one image reader runs on each. Default: as here."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the whole repository, with all its versions.")
    ] = False,
    require_signature: RequireSignature = None,
    hub_folder: Annotated[
        Path | None, typer.Option(help="Folder to write for the Hugging Face hub. Must not exist.")
    ] = None,
    load: Load = None,
    admin_key: AdminKey = None,
    sign: Sign = None,
    password_file: PasswordFile = None,
    connection: Connection = PLAIN,
    as_json: Json = False,
) -> None:
    """Convert a bundle to ONNX, compare it with PyTorch on real cases, publish it for Triton or the hub."""
    from cli.export import Publication, export_bundle, print_export
    from cli.export_servers import shown_after
    from cli.show import print_json

    console = make_console(as_json)
    servers = _find_servers(load, repository, admin_key, connection)
    publication = Publication(
        target,
        variant,
        profile,
        graphs,
        replace,
        servers,
        cores,
        key=open_key(sign, password_file),
        trust=find_trust(require_signature),
    )
    with shown_after(console, servers):
        result = export_bundle(
            console,
            bundle,
            table=table,
            repository=repository,
            hub_folder=hub_folder,
            publication=publication,
        )
    print_json(result.to_dict()) if as_json else print_export(console, result)


@export_app.command("rollback")
@takes_connection
def rollback(
    repository: Annotated[Path, typer.Argument(help="Model repository, published by `cxr export`.")],
    to: Annotated[
        int | None,
        typer.Option(metavar="VERSION", help="Version to switch to. Default: the oldest kept version."),
    ] = None,
    load: Load = None,
    admin_key: AdminKey = None,
    sign: Sign = None,
    password_file: PasswordFile = None,
    connection: Connection = PLAIN,
    as_json: Json = False,
) -> None:
    """Switch back to an earlier version. A second call changes nothing."""
    from cli.export import print_rollback, roll_back
    from cli.export_servers import shown_after
    from cli.show import print_json

    console = make_console(as_json)
    servers = _find_servers(load, repository, admin_key, connection)
    key = open_key(sign, password_file)
    with shown_after(console, servers):
        result = roll_back(console, repository, to=to, servers=servers, key=key)
    print_json(result.to_dict()) if as_json else print_rollback(console, result)


@export_app.command("verify")
@takes_connection
def verify(
    triton: Annotated[
        list[str], typer.Argument(metavar="HOST:PORT...", help="gRPC addresses of running Tritons.")
    ],
    connection: Connection = PLAIN,
    as_json: Json = False,
) -> None:
    """Compare the answers of running Tritons with those at publication. Exit code 3: they differ."""
    from cli.export_served import print_verified, require_passed, verify_servers
    from cli.show import print_json

    console = make_console(as_json)
    result = verify_servers(console, triton, connection)
    print_json(result.to_dict()) if as_json else print_verified(console, result)
    require_passed(result)


@export_app.command("retire")
@takes_connection
def retire(
    repository: Annotated[Path, typer.Argument(help="Model repository, published by `cxr export`.")],
    version: Annotated[
        int | None,
        typer.Option(metavar="VERSION", help="Version to remove. Default: the version that does not answer."),
    ] = None,
    load: Load = None,
    admin_key: AdminKey = None,
    sign: Sign = None,
    password_file: PasswordFile = None,
    connection: Connection = PLAIN,
    as_json: Json = False,
) -> None:
    """Remove the version that does not answer. Running servers unload it and free its memory."""
    from cli.export_retire import print_retired, retire_version
    from cli.export_servers import shown_after
    from cli.show import print_json

    console = make_console(as_json)
    servers = _find_servers(load, repository, admin_key, connection)
    key = open_key(sign, password_file)
    with shown_after(console, servers):
        result = retire_version(console, repository, version=version, servers=servers, key=key)
    print_json(result.to_dict()) if as_json else print_retired(console, result)


@export_app.command("tensorrt")
def tensorrt(
    source: Annotated[
        Path, typer.Argument(help="Bundle directory, or a model repository published by `cxr export`.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the plans: new, empty, or from an earlier run.")],
    precision: Annotated[
        str, typer.Option(help="Precision: fp32, fp16 or bf16. A float32 graph is converted first.")
    ] = "fp16",
    typical_batch: Annotated[int, typer.Option(help="Batch size to tune the plans for, 1 to 32.")] = 8,
    workspace_mib: Annotated[int, typer.Option(help="GPU memory that the builder may use, in MiB.")] = 4096,
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs", help="Let Triton capture small shapes as CUDA graphs. Each one takes GPU memory."
        ),
    ] = False,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Build TensorRT plans. Without TensorRT, write the commands and configs to build them on another machine."""
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
        trust=find_trust(require_signature),
    )
    print_json(result.to_dict()) if as_json else print_plans(console, result)
