"""`cxr serve`: run Triton and the sidecar on this machine until Ctrl-C."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cli.console import escape
from cli.options import make_console
from cli.show import print_json
from client import CxrClient
from contract.connection import is_local
from contract.protection import Protection
from contract.repository import MARKER, read_published
from contract.signatures import TrustedKeys
from contract.telemetry import Telemetry
from export.versions import settle
from serving.stack import IndexSettings, Ports, Stack


def serve_until_stopped(
    repository: Path,
    store: str,
    logs: Path,
    ports: Sequence[int],
    *,
    http_inference: bool,
    host: str,
    metrics_host: str,
    telemetry: Telemetry,
    triton_otlp: str | None,
    index: IndexSettings,
    protection: Protection,
    trust: TrustedKeys | None,
    as_json: bool,
) -> None:
    """Start both servers, print their addresses, and keep them running.

    `ports` are in the order of `serving.ports.Ports`. The other arguments are as in `Stack`.

    Raises:
        ConfigError, ArtifactError, ServiceError: The servers cannot be started; see `serving.stack.Stack`.
    """
    chosen = Ports(*ports)
    if trust is not None:
        read_published(repository, trust)  # before anything reads or restores another file
    if os.access(repository / MARKER, os.W_OK):
        settle(repository)  # undo an interrupted publication before Triton reads the repository
    console = make_console(as_json)
    servers = Stack(
        repository,
        store,
        ports=chosen,
        log_dir=logs,
        http_inference=http_inference,
        host=host,
        metrics_host=metrics_host,
        telemetry=telemetry,
        triton_otlp=triton_otlp,
        index=index,
        protection=protection,
        trust=trust,
    )
    with servers as stack:
        with console.status("Starting Triton and the sidecar"):
            seconds = stack.wait_ready()
        if as_json:
            print_json({**stack.describe(), "ready_s": round(seconds, 2)})
            sys.stdout.flush()
        for name, address in stack.describe().items():
            console.print(f"{name:<17} {escape(address)}", soft_wrap=True)
        for sentence in (*protection.find_warnings(), *_find_index_trouble(stack)):
            console.print(escape(sentence), soft_wrap=True)
        console.print(f"Ready after {seconds:.1f} s; Ctrl-C stops both.")
        stack.wait(_tell)


def _find_index_trouble(stack: Stack) -> list[str]:
    """Return what is wrong with the index, if anything: it may be damaged or belong to another model.

    Predictions still work. A token does not travel as plain text, not even to another address of this machine.
    """
    connection = stack.connection
    if connection.tls is None and not is_local(stack.triton_url):
        return []
    with CxrClient(stack.triton_url, stack.retrieval_url, **connection.as_arguments()) as client:
        trouble = client.health().retrieval
    return [trouble] if trouble else []


def _tell(sentence: str) -> None:
    """Print what happens to a server. A full disk or a closed output must not stop the servers."""
    with suppress(OSError):
        print(time.strftime("%H:%M:%S"), sentence, file=sys.stderr, flush=True)
