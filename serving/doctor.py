"""The checks of `cxr doctor` on this machine. Every check returns a result; none raises."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from contract import ngc
from contract.errors import CxrError
from contract.installation import HOME, describe_shadowed
from serving.triton import build_environment, find_missing_libraries, find_triton

_MIN_MEMORY_GIB: Final = 4.0
_FAISS: Final = ("faiss-cpu", "faiss-gpu-cu12", "faiss-gpu-cu13")
# pip's distribution names. Of those joined by |, one is enough.
EXTRAS: Final[dict[str, str]] = {
    "client": "numpy pydicom tritonclient protobuf defusedxml typer rich",
    "image": "pillow opencv-python-headless|opencv-python pylibjpeg pylibjpeg-openjpeg imagecodecs",
    "train": (
        "torch timm transformers tokenizers safetensors pyarrow scikit-learn datasketch iterative-stratification "
        "matplotlib accelerate tensorboard huggingface_hub mapie"
    ),
    "export": "onnx onnxscript onnxruntime|onnxruntime-gpu",
    "serve": "nvidia-pytriton tokenizers cryptography",
    "retrieval": "grpcio grpcio-health-checking prometheus-client faiss-cpu|faiss-gpu-cu12|faiss-gpu-cu13",
    "explain": "captum highdicom",
    "openvino": "openvino",
    "bench": "hdrhistogram psutil matplotlib",
}


@dataclass(frozen=True)
class Check:
    """The result of one check. If `ok` is False, something is missing and `detail` says what to do."""

    name: str
    ok: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def run_checks() -> list[Check]:
    """Run all checks; return their results in display order. A GPU is never required."""
    examine: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
        ("python", _check_python),
        ("cpu cores", _check_cores),
        ("memory", _check_memory),
        ("packages", _check_packages),
        *((f"extra: {name}", lambda name=name: _check_extra(name)) for name in EXTRAS),  # type: ignore[misc]
        ("tritonserver", _check_triton),
        ("onnxruntime", _check_onnxruntime),
        ("openvino", _check_openvino),
        ("faiss", _check_faiss),
        ("gpu", _check_gpu),
    ]
    return [_run(name, look) for name, look in examine]


def _run(name: str, look: Callable[[], tuple[bool, str]]) -> Check:
    try:
        return Check(name, *look())
    except CxrError as error:
        return Check(name, False, str(error))
    except Exception as error:  # a broken package may raise any error at import
        return Check(name, False, f"{type(error).__name__}: {error}")


def _check_python() -> tuple[bool, str]:
    ok = sys.version_info >= (3, 11) and sys.platform == "linux"
    return ok, f"{platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"


def _check_cores() -> tuple[bool, str]:
    return True, f"{len(os.sched_getaffinity(0))} usable"


def _check_memory() -> tuple[bool, str]:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total, free = kib["MemTotal"] / 2**20, kib["MemAvailable"] / 2**20
    detail = f"{free:.1f} of {total:.1f} GiB available"
    return free >= _MIN_MEMORY_GIB, detail if free >= _MIN_MEMORY_GIB else f"{detail}; training needs 4 GiB"


def _check_packages() -> tuple[bool, str]:
    shadowed = describe_shadowed()
    return shadowed is None, shadowed or f"all of cxr from {HOME}"


def _check_extra(name: str) -> tuple[bool, str]:
    installed: list[str] = []
    missing: list[str] = []
    for entry in EXTRAS[name].split():
        alternatives = entry.split("|")
        versions = [f"{package} {version}" for package in alternatives if (version := _read_version(package))]
        (installed if versions else missing).append(versions[0] if versions else alternatives[0])
    if not missing:
        return True, ", ".join(installed)
    extra = {"client": "", "retrieval": "[retrieval,cpu]", "export": "[export,cpu]"}.get(name, f"[{name}]")
    return False, f"lacks {', '.join(missing)}: pip install 'cxr-serving{extra}'"


def _read_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_triton() -> tuple[bool, str]:
    installation = find_triton()
    environment = build_environment(installation, Path(sys.prefix))
    missing = [
        library
        for program in (installation.server, installation.stub)
        for library in find_missing_libraries(program, environment)
    ]
    if missing:
        return (
            False,
            f"{installation.server} needs {', '.join(sorted(set(missing)))}: install the system packages",
        )
    return True, f"nvidia-pytriton {installation.version}, every library found"


def _check_onnxruntime() -> tuple[bool, str]:
    try:
        import onnxruntime
    except ImportError:
        return False, "not installed: pip install 'cxr-serving[cpu]' (or [gpu])"
    version = str(onnxruntime.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < ngc.OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, ngc.OLDEST_ONNXRUNTIME))
        return False, f"{version}, but the graphs need {oldest} or newer: pip install --upgrade onnxruntime"
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return True, (
        f"{version} with {', '.join(providers)}; NVIDIA's images {ngc.OLDEST.tag} to {ngc.DEFAULT.tag} hold "
        f"{ngc.OLDEST.onnxruntime} to {ngc.DEFAULT.onnxruntime}"
    )


def _check_openvino() -> tuple[bool, str]:
    try:
        import openvino
    except ImportError:
        return (
            True,
            "not installed; only the profiles bf16 and int8 need it: pip install 'cxr-serving[openvino]'",
        )
    from contract.runtime.openvino import has_bf16

    has = has_bf16()
    version = openvino.__version__.partition("-")[0]
    return True, f"{version}, bfloat16 {'yes' if has else 'no: use the profile fp32 or int8'}"


def _check_faiss() -> tuple[bool, str]:
    packages = [name for name in _FAISS if _read_version(name)]
    if not packages:
        return False, "not installed: pip install 'cxr-serving[cpu]' (or [gpu])"
    if len(packages) > 1:
        return False, f"{' and '.join(packages)} replace each other's files: keep one"
    return True, f"{packages[0]} {_read_version(packages[0])}"


def _check_gpu() -> tuple[bool, str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return True, "none: everything runs on the CPU"
    return True, "; ".join(line.strip() for line in answer.stdout.splitlines() if line.strip())
