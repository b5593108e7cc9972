"""Run NVIDIA's perf_analyzer on the same requests, to check this package's generator.

Version 2.51.0 is in the wheel tritonclient==2.51.0. Later versions are distributed separately.
"""

import csv
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.load.inputs import Arrays
from contract.errors import ConfigError, ServerError

_WINDOWS: Final = 3
_TIMEOUT_S: Final = 300.0


def run_perf_analyzer(
    program: str, url: str, model: str, requests: Sequence[Arrays], *, seconds: float
) -> float:
    """Return the median latency in ms that perf_analyzer measures with one request in flight.

    Args:
        program: The executable.
        url: host:port of Triton's gRPC service.
        model: Name of the served model.
        requests: Inputs of the model, each a batch of one, with equal shapes.
        seconds: Duration of three windows. They are not checked for a steady state.

    Raises:
        ConfigError: The program cannot be started.
        ServerError: perf_analyzer failed, did not end in time, or wrote no median.
    """
    with tempfile.TemporaryDirectory(prefix="cxr-perf-") as scratch:
        data, out = Path(scratch) / "data.json", Path(scratch) / "out.csv"
        data.write_text(json.dumps({"data": [_describe(inputs) for inputs in requests]}), encoding="utf-8")
        command = [program, "-m", model, "-u", url, "-i", "grpc", "--input-data", str(data), "-f", str(out)]
        command += ["--concurrency-range", "1", "--percentile", "50", "-r", str(_WINDOWS), "-s", "999"]
        command += ["-p", str(round(1000 * seconds / _WINDOWS))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except OSError as error:
            raise ConfigError(f"{program} cannot be started: {error.strerror}.") from error
        except subprocess.TimeoutExpired as error:
            raise ServerError(f"{program} did not end within {_TIMEOUT_S:g} s.") from error
        if done.returncode:
            raise ServerError(f"{program} ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
        try:
            with out.open(encoding="utf-8") as file:
                return float(next(csv.DictReader(file))["p50 latency"]) / 1e3
        except (OSError, StopIteration, KeyError, ValueError) as error:
            raise ServerError(f"{program} wrote no median latency: {done.stderr.strip()[-300:]}") from error


def _describe(inputs: Arrays) -> dict[str, object]:
    return {
        name: {"content": array.ravel().tolist(), "shape": list(array.shape[1:])}
        for name, array in inputs.items()
    }
