"""First process of the Triton image: runs Triton, and ends with it, or when Triton no longer infers.

    python -m serving.container tritonserver --model-repository=/models ...

Docker and Kubernetes start a container again that has ended; neither looks into one that only stands still. What dead
clients left in a shared /dev/shm is removed meanwhile (`serving.regions`).
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from contract.probe_case import PROBED
from serving.watch import TritonWatch

_GRPC_PORT: Final = re.compile(r"--grpc-port=(\d+)")
_LOOK_S: Final = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until it ends or stands still; return the exit code for the container."""
    command = list(sys.argv[1:] if arguments is None else arguments)
    port = next((match[1] for word in reversed(command) if (match := _GRPC_PORT.fullmatch(word))), "8001")
    try:
        process = subprocess.Popen(command, start_new_session=True)
    except FileNotFoundError:
        print(f"{command[0]} is not installed here: run this in Triton's image.", file=sys.stderr)
        return 127  # as a shell says it
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.terminate())
    watch = TritonWatch(f"127.0.0.1:{port}", process.pid, PROBED, up=False)
    try:
        while (code := process.poll()) is None:
            if watch.verdict is not None:
                print(f"Triton is stopped: {watch.verdict}", file=sys.stderr, flush=True)
                return 1
            time.sleep(_LOOK_S)
        return code if code >= 0 else 128 - code
    finally:
        watch.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
