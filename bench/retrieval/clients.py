"""Many clients in a process of their own, each with one request at a time. Their messages are serialised beforehand.

    python -m bench.retrieval.clients ADDRESS REQUESTS CLIENTS

REQUESTS is a file of messages, each with its length before it. Each line of standard input is a number of seconds to
send for; the answer is a line with the number of answers per second, and the median and the 99th percentile of their
times in milliseconds.
"""

import asyncio
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from bench.retrieval.sidecar import SEARCH
from contract.address import CHANNEL_OPTIONS
from contract.errors import ServerError

_FEWEST: Final = 2  # searches; fewer have no percentiles


@dataclass(frozen=True)
class Load:
    """Answers per second, and median and 99th percentile of their times in milliseconds."""

    rate: float
    p50_ms: float
    p99_ms: float


class Clients:
    """The process of the clients."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def send(self, seconds: float) -> Load:
        """Let all clients send for some seconds.

        Raises:
            ServerError: The process ended, because a search failed or too few were answered. It wrote the reason.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ServerError(
                f"The clients ended with code {self._process.wait()}; standard error holds the reason."
            )
        return Load(*map(float, line.split()))


@contextmanager
def start_clients(address: str, messages: Sequence[bytes], count: int, file: Path) -> Iterator[Clients]:
    """Start the process, and end it when the block ends. `file` is written for its messages."""
    file.write_bytes(b"".join(struct.pack("<I", len(message)) + message for message in messages))
    command = [sys.executable, "-m", "bench.retrieval.clients", address, str(file), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Clients(process)
        finally:
            process.terminate()


async def _serve_commands(address: str, messages: list[bytes], count: int) -> None:
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        call = channel.unary_unary(SEARCH)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            times: list[float] = []
            began = time.perf_counter()
            end = began + float(line)
            await asyncio.gather(
                *(_send(call, messages[place:] + messages[:place], end, times) for place in range(count))
            )
            rate = len(times) / (time.perf_counter() - began)
            if len(times) < _FEWEST:
                sys.exit(
                    f"{len(times)} searches were answered in {float(line):g} s; at least {_FEWEST} are needed."
                )
            p99 = statistics.quantiles(times, n=100)[-1]
            print(rate, 1e3 * statistics.median(times), 1e3 * p99, flush=True)


async def _send(
    call: grpc.aio.UnaryUnaryMultiCallable, messages: list[bytes], end: float, times: list[float]
) -> None:
    """Send the messages one after another, again and again, until the end."""
    while True:
        for message in messages:
            began = time.perf_counter()
            if began > end:
                return
            await call(message, timeout=60)
            times.append(time.perf_counter() - began)


def read_messages(file: Path) -> list[bytes]:
    """Return the messages of a file."""
    data, place, messages = file.read_bytes(), 0, []
    while place < len(data):
        (size,) = struct.unpack_from("<I", data, place)
        messages.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    return messages


if __name__ == "__main__":
    asyncio.run(_serve_commands(sys.argv[1], read_messages(Path(sys.argv[2])), int(sys.argv[3])))
