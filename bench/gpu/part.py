"""Run one part in its own process, so that a crash or a hang does not affect the other parts.

python -m bench.gpu.part NAME OUT DEADLINE SETTINGS
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.gpu.log import Log, OutOfTimeError, Settings, describe_failure

Measurement = Callable[[Log, Settings], None]
OUT_OF_TIME: Final = 75  # exit code: the next run measures the rest
# Part -> its function, and its share of the time while other parts follow.
PARTS: Final[dict[str, tuple[str, float]]] = {
    "peak": ("torch_part.measure_peak", 0.10),
    "model": ("onnx_part.make_model", 0.35),
    "torch": ("torch_part.measure_torch", 0.50),
    "onnx": ("onnx_part.measure_onnx", 0.50),
    "gates": ("onnx_part.measure_gates", 0.40),
    "faiss": ("other_parts.measure_faiss", 0.30),
    "shared memory": ("other_parts.measure_shared_memory", 0.50),
    "tensorrt": ("onnx_part.measure_tensorrt", 1.00),
}


def run_part(name: str, out: Path, deadline: float, settings: Settings) -> bool:
    """Measure the missing figures of one part; return whether all figures exist now.

    Args:
        name: One of `PARTS`.
        out: Directory of the run.
        deadline: `time.time()` after which no figure is started.
        settings: The settings.
    """
    log = Log(out, name, deadline)
    try:
        if settings.device == "cuda" and (reason := _find_no_gpu()):
            log.skip(name, reason)
        else:
            _load(name)(log, settings)
    except OutOfTimeError:
        log.skip("the rest", "The time was used up. Repeat the command to continue.")
        return False
    except Exception as error:  # errors before the first figure
        log.skip(name, describe_failure(error))
    log.save()
    return True


def _load(name: str) -> Measurement:
    module, _, function = PARTS[name][0].partition(".")
    imported = __import__(f"bench.gpu.{module}", fromlist=[function])
    measurement: Measurement = getattr(imported, function)
    return measurement


def _find_no_gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return ""
    return f"PyTorch {torch.__version__} finds no GPU here. Use --device cpu to try the command without one."


def main(arguments: list[str]) -> int:
    """Run one part; return the exit code."""
    name, out, deadline, settings = arguments
    done = run_part(name, Path(out), float(deadline), Settings.from_dict(json.loads(settings)))
    return 0 if done else OUT_OF_TIME


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
