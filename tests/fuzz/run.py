"""Coverage-guided fuzzing of one target for a bounded time.

    python tests/fuzz/run.py image --seconds 120

It starts from `corpus/<target>` and what earlier runs kept in `.fuzz/<target>`. A finding ends the run with
the input in `.fuzz/<target>-crash-*`; fix it, and keep the input, made small, as `corpus/<target>/found-*`.
"""

import argparse
import os
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MEMORY_MB = 2048  # decoding the largest image that is read takes about half of it
SECONDS_PER_INPUT = 20
INSTRUMENTED = ["contract", "training", "pydicom", "defusedxml", "xml", "tarfile", "gzip"]

sys.path[:0] = [str(ROOT), str(HERE)]


def main() -> None:
    """Fuzz until the time is over or something is found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=("image", "text", "archive"))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="End after so many inputs.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / ".fuzz", help="Where new inputs are kept.")
    options = parser.parse_args()
    _keep_freed_memory_out()

    with warnings.catch_warnings(), atheris.instrument_imports(include=INSTRUMENTED):
        warnings.simplefilter("ignore")
        import pydicom.pixels  # noqa: F401 - the readers import it when they run, uninstrumented
        import targets

    found = options.work / options.target
    found.mkdir(parents=True, exist_ok=True)
    settings = {
        "max_total_time": options.seconds,
        "runs": options.runs,
        "seed": options.seed,
        "timeout": SECONDS_PER_INPUT,
        "rss_limit_mb": MEMORY_MB,
        "max_len": 2**14,
        "dict": HERE / f"{options.target}.dict",
        "artifact_prefix": f"{found}-",
        "print_final_stats": 1,
    }
    arguments = [f"-{name}={value}" for name, value in settings.items()]
    corpus = [str(found), str(HERE / "corpus" / options.target)]
    atheris.Setup(
        [sys.argv[0], *arguments, *corpus],
        lambda data: targets.run_target(options.target, data),
        custom_mutator=find_mutator(options.target),
    )
    atheris.Fuzz()


def _keep_freed_memory_out() -> None:
    """Start again with glibc returning large blocks as soon as they are free: what grows then is a leak."""
    name = "MALLOC_MMAP_THRESHOLD_"
    if name not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, name: str(2**17)})


def find_mutator(target: str) -> Callable[[bytes, int, int], bytes]:
    """Return the mutator of a target as `atheris.Setup` takes it."""
    import mutate

    change = {"image": mutate.mutate_image, "text": mutate.mutate_text, "archive": mutate.mutate_archive}[
        target
    ]

    def mutate_input(data: bytes, max_size: int, seed: int) -> bytes:
        return change(data, max_size, random.Random(seed), atheris.Mutate)

    return mutate_input


if __name__ == "__main__":
    main()
