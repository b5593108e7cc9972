"""The sidecar's command.

    python -m retrieval.server --store DIRECTORY --address 127.0.0.1:8005

It listens at once, reports SERVING (grpc.health.v1) when its index is built from the store, and shuts down cleanly
on SIGTERM or SIGINT. `contract.protection` describes TLS and tokens. Exit codes: 0 stopped; 2 a setting is wrong
(address or store in use, no GPU); 3 the store is damaged. A directory holds an index for each model
(`retrieval.indexes`), and so does a Milvus database (`contract.case_store` has the forms of --store). While no server
uses the store,

    python -m retrieval.server --store DIRECTORY --forget FINGERPRINT     removes one of them
    python -m retrieval.server --store DIRECTORY --remove-damaged         removes damaged rows
    python -m retrieval.server --store DIRECTORY --compact                writes the files anew, without gaps
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final

from contract import telemetry
from contract.access import hide_bad_headers
from contract.connection import quiet_grpc
from contract.errors import ConfigError, CxrError
from contract.metrics_page import add_arguments as add_metrics_arguments
from contract.metrics_page import open_page
from contract.protection import add_arguments, read_arguments
from contract.stop_signals import open_events
from contract.telemetry import Observer, set_up_log
from retrieval.kinds import FLAT, GROWTH, RECALL_FLOOR

if TYPE_CHECKING:
    from retrieval.backend import CaseBackend

DEFAULT_ADDRESS: Final = "127.0.0.1:8005"
_BUILT: Final = b"\0"  # event in the pipe: the index is built; a signal is its number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sidecar until a signal stops it; return the exit code."""
    options = parse_arguments(arguments)
    quiet_grpc()
    set_up_log(telemetry.read_arguments(options))
    hide_bad_headers()
    try:
        is_maintenance = options.forget or options.remove_damaged or options.compact
        maintain_and_tell(options) if is_maintenance else serve(options)
    except CxrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def serve(options: argparse.Namespace) -> None:
    """Open the store, serve it until SIGTERM or SIGINT, and close it.

    Raises:
        ConfigError: The store or the address is in use, or a package or the GPU is missing.
        ArtifactError: The store is damaged.
    """
    try:
        from retrieval.listener import SidecarServer
        from retrieval.service import RetrievalService
        from retrieval.stores import open_backend
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed: pip install 'cxr-serving[retrieval,faiss-cpu]'."
        ) from error
    with (
        closing(Observer("cxr-retrieval", telemetry.read_arguments(options))) as observer,
        open_events() as (events, tell),
        closing(open_backend(options)) as backend,
    ):
        protection = read_arguments(options)
        server = SidecarServer(RetrievalService(backend), options.address, protection, observer)
        try:
            with open_page(options, backend.metrics.registry, protection):
                built = backend.start()
                built.add_done_callback(lambda _: os.write(tell, _BUILT))
                if os.read(events, 1) == _BUILT:
                    built.result()
                    server.announce()
                    _tell_ready(server.address, backend)
                    os.read(events, 1)
        finally:
            server.stop()
    _say("Stopped.")


def _tell_ready(address: str, backend: "CaseBackend") -> None:
    entry = backend.default
    model = f"model {entry.fingerprint[:12]}" if entry.fingerprint else "no model yet"
    _say(f"Ready on {address}: {entry.count()} cases, {model}, {backend.description}.")
    for line in backend.describe():
        print(line, file=sys.stderr, flush=True)


def maintain_and_tell(options: argparse.Namespace) -> None:
    """Do what `retrieval.stores.maintain` offers, and print what was done."""
    from retrieval.stores import maintain

    for sentence in maintain(options):
        _say(sentence)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m retrieval.server", description="Similar-case search over gRPC (retrieval.proto)."
    )
    parser.add_argument(
        "--store",
        required=True,
        help="Directory of the cases, or milvus://HOST:PORT/DATABASE. Created if missing.",
    )
    parser.add_argument(
        "--address",
        default=DEFAULT_ADDRESS,
        help="host:port to listen on; port 0 chooses a free one. (%(default)s)",
    )
    parser.add_argument(
        "--fingerprint",
        help="Fingerprint of the served model (64 hex digits). Default: the model of the first cases.",
    )
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="cpu", help="Where FAISS searches. (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=_parse_threads, help="OpenMP threads of FAISS on CPU. Default: one per core."
    )
    parser.add_argument(
        "--codes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Keep codes of 8 bits beside the embeddings, on CPU: a quarter more memory, faster single queries, the "
        "same answers. (--codes)",
    )
    parser.add_argument(
        "--index",
        default=FLAT,
        metavar="KIND[:PARAMETER=VALUE,...]",
        help="Kind of index: flat compares every case; hnsw, ivf_flat, sq8, ivf_pq and rabitq are faster with many "
        "cases and may miss one, on CPU. (%(default)s)",
    )
    parser.add_argument(
        "--recall-floor",
        type=_parse_share,
        default=RECALL_FLOOR,
        help="Smallest recall@10, 0 to 1, measured on the stored cases, with which such a kind may answer. "
        "(%(default)s)",
    )
    parser.add_argument(
        "--rebuild-growth",
        type=_parse_share,
        default=GROWTH,
        help="Share of new cases after which such a kind is built anew, above 0. (%(default)s)",
    )
    parser.add_argument(
        "--forget",
        metavar="FINGERPRINT",
        help="Remove the index of the model with this fingerprint (8 or more digits), and exit.",
    )
    parser.add_argument("--remove-damaged", action="store_true", help="Remove damaged rows, and exit.")
    parser.add_argument(
        "--compact",
        action="store_true",
        help="Write the files anew, without gaps and what deleted cases left in them, and exit.",
    )
    add_arguments(parser)
    add_metrics_arguments(parser)
    telemetry.add_arguments(parser)
    return parser.parse_args(arguments)


def _parse_share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be 0 to 1")
    return value


def _parse_threads(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 1024:
        raise argparse.ArgumentTypeError("must be 1 to 1024")
    return count


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
