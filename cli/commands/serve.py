"""The command `cxr serve`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.options import Json
from cli.serve_config import FILE_VARIABLE, load_config
from cli.signing import RequireSignature


def serve(
    repository: Annotated[Path, typer.Option(help="Model repository, published by `cxr export`.")],
    store: Annotated[
        str,
        typer.Option(help="Directory of the case store, or milvus://HOST:PORT/DATABASE. Created if missing."),
    ],
    logs: Annotated[Path, typer.Option(help="Directory for the servers' logs.")] = Path("logs"),
    http_port: Annotated[
        int, typer.Option(help="HTTP port for health checks (GET /v2/health/ready).")
    ] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port of Triton.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of Triton's metrics (Prometheus).")] = 8002,
    retrieval_port: Annotated[int, typer.Option(help="gRPC port of the retrieval sidecar.")] = 8005,
    relay_metrics_port: Annotated[
        int, typer.Option(help="Port of the relay's metrics, and of Triton's under /triton/metrics; 0: none.")
    ] = 0,
    retrieval_metrics_port: Annotated[int, typer.Option(help="Port of the sidecar's metrics; 0: none.")] = 0,
    metrics_host: Annotated[
        str,
        typer.Option(
            help="Address of the metrics of relay and sidecar. One that a network can reach needs --tls-dir and "
            "--tokens."
        ),
    ] = "127.0.0.1",
    http_inference: Annotated[
        bool,
        typer.Option(
            "--http-inference",
            help="Also allow inference on the HTTP port, for trusted callers only. A POST must have the Content-Type "
            "application/octet-stream or application/json and must not come in very many chunks. Other requests can "
            "crash Triton 2.51.",
        ),
    ] = False,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. One that a network can reach needs --tls-dir and --tokens."),
    ] = "127.0.0.1",
    tls_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="CXR_TLS_DIR",
            help="Folder with server.crt, server.key and ca.crt (`cxr certs`): all ports speak TLS.",
        ),
    ] = None,
    tls_require_client: Annotated[
        bool,
        typer.Option(
            "--tls-require-client", help="Require a client certificate that ca.crt signed (mutual TLS)."
        ),
    ] = False,
    tokens: Annotated[
        Path | None, typer.Option(help="Tokens file (`cxr certs token`). Without it no call needs a token.")
    ] = None,
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="Form of the log lines of the relay and the sidecar.")
    ] = "text",
    log_calls: Annotated[
        int,
        typer.Option(min=0, max=100_000, help="Log each call, at most this many in a second; 0: no calls."),
    ] = 0,
    otlp: Annotated[
        str | None,
        typer.Option(
            help="Spans of relay and sidecar go to this OTLP receiver (gRPC), http://127.0.0.1:4317."
        ),
    ] = None,
    triton_otlp: Annotated[
        str | None,
        typer.Option(
            help="Spans of Triton go to this one (OTLP over HTTP), http://127.0.0.1:4318/v1/traces."
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Allow a --host on a network without --tls-dir or without --tokens."),
    ] = False,
    index: Annotated[
        str,
        typer.Option(
            metavar="KIND[:PARAMETER=VALUE,...]",
            help="Index of the similar cases: flat compares all; hnsw, ivf_flat, sq8, ivf_pq and rabitq may miss one.",
        ),
    ] = "flat",
    recall_floor: Annotated[
        float,
        typer.Option(min=0, max=1, help="Smallest measured recall@10 with which such an index answers."),
    ] = 0.95,
    require_signature: RequireSignature = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar=FILE_VARIABLE,
            is_eager=True,
            callback=load_config,
            help="File with any of these options as name = value in its section [serve]. The command line and the "
            "environment come before it.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run Triton and the retrieval sidecar on this machine until Ctrl-C. Restart a server that exits or hangs."""
    from contract.protection import Protection
    from contract.signatures import TrustedKeys
    from contract.telemetry import Telemetry
    from serving.process import TerminationGuard

    with TerminationGuard():
        from cli.serve import serve_until_stopped
        from serving.stack import IndexSettings

        ports = (
            http_port,
            grpc_port,
            metrics_port,
            retrieval_port,
            relay_metrics_port,
            retrieval_metrics_port,
        )
        serve_until_stopped(
            repository,
            store,
            logs,
            ports,
            http_inference=http_inference,
            host=host,
            metrics_host=metrics_host,
            telemetry=Telemetry(log_format, log_calls, otlp),
            triton_otlp=triton_otlp,
            index=IndexSettings(index, recall_floor),
            protection=Protection(tls_dir, tls_require_client, tokens, insecure=insecure),
            trust=TrustedKeys.find(require_signature),
            as_json=as_json,
        )
