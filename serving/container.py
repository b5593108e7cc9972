"""The first process of the Triton image. It runs Triton, and exits with it or when Triton no longer infers.

    python -m serving.container tritonserver --model-repository=/models ...

A repository is refused before the start if the image's "onnxruntime" backend would run it differently than at the
gates. A Triton with the embedded backend gets a name that shows it (`contract.runtime.embedded`).
Docker and Kubernetes restart a container that exits, but do not notice one that hangs. Meanwhile this process also
removes the files of dead clients in a shared /dev/shm (`serving.regions`).
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from contract.errors import ConfigError, CxrError
from contract.probe_case import PROBED
from contract.repository import read_published
from contract.runtime.embedded import SERVER_NAME, explain_refusal, is_embedded
from contract.stop_signals import open_events
from serving.probe import make_own_connection
from serving.reload import find_embedded_only
from serving.watch import TritonWatch

_BACKENDS: Final = "/opt/tritonserver/backends"  # Triton's default
_LOOK_S: Final = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until it exits or hangs; return the exit code of the container.

    SIGTERM and SIGINT end Triton in order, also those that come before Triton starts. Without a handler the kernel
    would not deliver them, because this is the first process of its container.
    """
    command = list(sys.argv[1:] if arguments is None else arguments)
    with open_events() as (events, _):
        return _run(command, events)


def _run(command: list[str], events: int) -> int:
    port = _find_option(command, "grpc-port", "8001")
    try:
        command += _name_server(command)
        tls_dir = os.environ.get("CXR_TLS_DIR")
        connection = make_own_connection(Path(tls_dir) if tls_dir else None)
    except CxrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    try:
        process = subprocess.Popen(command, start_new_session=True)
    except FileNotFoundError:
        print(f"{command[0]} is not installed here. Run this command in Triton's image.", file=sys.stderr)
        return 127  # like a shell
    watch = TritonWatch(f"127.0.0.1:{port}", process.pid, PROBED, up=False, connection=connection)
    try:
        while (code := process.poll()) is None:
            if watch.verdict is not None:
                print(f"Stopping Triton: {watch.verdict}", file=sys.stderr, flush=True)
                return 1
            if select.select([events], [], [], _LOOK_S)[0]:
                os.read(events, 64)
                process.terminate()
        return code if code >= 0 else 128 - code
    finally:
        watch.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _find_option(command: Sequence[str], name: str, default: str) -> str:
    """Return the last value of an option of tritonserver, given as --name=value or as --name value."""
    value = default
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == f"--{name}":
            value = following
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
    return value


def _name_server(command: Sequence[str]) -> list[str]:
    """Return the option with the server's name by its backend. Raise ConfigError if it cannot run the repository."""
    if is_embedded(Path(_find_option(command, "backend-directory", _BACKENDS))):
        return [] if _find_option(command, "id", "") else [f"--id={SERVER_NAME}"]
    repository = Path(_find_option(command, "model-repository", ""))
    if find_embedded_only(repository):
        profile = str(read_published(repository).to_dict().get("profile"))
        raise ConfigError(explain_refusal(f"The repository {repository}", profile))
    return []


if __name__ == "__main__":
    sys.exit(main())
