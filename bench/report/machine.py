"""Describe the machine and software of a measurement: processor, versions, commit."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

_FLAGS: Final = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512f", "avx512_vnni", "avx2")
_PACKAGES: Final = (
    "cxr-serving",
    "numpy",
    "onnxruntime",
    "openvino",
    "torch",
    "tritonclient",
    "grpcio",
    "protobuf",
    "faiss-cpu",
    "faiss-gpu-cu12",
    "nvidia-pytriton",
)


def describe_machine() -> dict[str, Any]:
    """Return the machine and the software as JSON-ready values. Unknown values are left out or None."""
    info = _read_cpu_info()
    flags = info.get("flags", info.get("Features", "")).split()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": count_cores(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gib": _read_memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _find_version(name))},
        "commit": read_commit(Path(__file__).resolve().parents[2]),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_commit(directory: Path) -> str | None:
    """Return the git commit of a directory, with "+" if files differ from it; None without git."""
    commit = _ask_git(directory, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    return commit + ("+" if _ask_git(directory, "status", "--porcelain", "--untracked-files=no") else "")


def describe_command() -> str:
    """Return the command line as a user would type it."""
    import shlex

    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _ask_git(directory: Path, *command: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *command], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _read_cpu_info() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _read_memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
