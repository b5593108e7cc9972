"""The Triton of the nvidia-pytriton wheel: where it lies and how it is run.

That tritonserver ships the python backend only. A backend directory put together here adds
`backends/onnxruntime/model.py`, a python-based backend of the name that the model repository asks for, so
that one repository runs here and, unchanged, on the full Triton image. pytriton itself is never imported.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contract.errors import ConfigError
from contract.repository import read_published
from contract.runtime.embedded import SERVER_NAME

INSTALL_HINT: Final = "pip install 'cxr-serving[serve,cpu]'"
ADMIN_HEADER: Final = "cxr-admin-key"
ADMIN_KEY_FILE: Final = "admin_key"  # in the runtime directory of a stack
EXIT_TIMEOUT_S: Final = 3  # for requests under way; unloading python models one by one would take about 10 s
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108
_BACKENDS: Final = Path(__file__).parent / "backends"
# A line of a .pth file that begins with "import" is run. Without it Python writes a __pycache__ beside model.py, and
# Triton takes that for a change: it would load a version that serves again whenever another one is published.
_NO_BYTECODE: Final = "import sys; sys.dont_write_bytecode = True"
# glibc gives a block of some megabytes back to the kernel when it is freed and gets the next one page by page. A
# radiograph of 15 MB is copied several times on its way; that took a quarter of the time of `preprocess_image`. Kept is
# what one process had in use at most, up to 512 MiB. (mallopt(3); 32 MiB is the highest threshold there is.)
_ALLOCATOR: Final = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20)}
_STUB: Final = "triton_python_backend_stub"
_SOCKET_PORT: Final = 1


@dataclass(frozen=True)
class TritonInstallation:
    """Where the parts of the wheel lie."""

    version: str  # of nvidia-pytriton
    server: Path  # the tritonserver program
    python_backend: Path  # directory with libtriton_python.so
    stub: Path  # the stub program for the running Python version
    caches: Path
    libraries: Path  # nvidia_pytriton.libs


@dataclass(frozen=True)
class TritonAddresses:
    """Where one Triton listens: a socket file for gRPC, which only this user can reach, and loopback ports."""

    grpc: Path
    http: int
    metrics: int


def write_socket_url(path: Path) -> str:
    """Return the gRPC address of a Triton that was told to listen at a socket file (`TritonAddresses.grpc`)."""
    return f"unix:{path}:{_SOCKET_PORT}"


def find_triton() -> TritonInstallation:
    """Locate the tritonserver of the installed nvidia-pytriton wheel.

    Raises:
        ConfigError: The wheel is missing or incomplete, or has no stub for this Python version.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ConfigError(f"Serving needs the 'serve' extra: {INSTALL_HINT}.")
    root = Path(spec.origin).parent / "tritonserver"
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = TritonInstallation(
        version=importlib.metadata.version("nvidia-pytriton"),
        server=root / "bin" / "tritonserver",
        python_backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / minor / _STUB,
        caches=root / "caches",
        libraries=root.parents[1] / "nvidia_pytriton.libs",
    )
    if not found.stub.is_file() and found.stub.parents[1].is_dir():
        have = ", ".join(sorted(path.name for path in found.stub.parents[1].iterdir()))
        raise ConfigError(f"The nvidia-pytriton wheel serves Python {have}, not {minor}.")
    for path in (found.server, found.python_backend, found.stub, found.caches, found.libraries):
        if not path.exists():
            raise ConfigError(f"The nvidia-pytriton wheel lacks {path}: {INSTALL_HINT} --force-reinstall.")
    return found


def assemble_backends(installation: TritonInstallation, directory: Path) -> Path:
    """Fill `directory` (replaced) with the backends that the model repository asks for; return it.

    The wheel keeps the stub for each Python version apart from the backend, which expects it beside itself.

    Raises:
        ConfigError: The directory cannot be written.
    """
    try:
        if directory.exists():
            shutil.rmtree(directory)
        python = directory / "python"
        shutil.copytree(installation.python_backend, python, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(installation.stub, python / _STUB)
        shutil.copytree(
            _BACKENDS, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror or error}.") from error
    return directory


def assemble_python(directory: Path, import_paths: Sequence[str]) -> Path:
    """Make `directory` (replaced) a virtual environment with the import path of this interpreter.

    The stub embeds libpython in isolated mode: it ignores PYTHONPATH and takes the environment of the first
    `python3` in PATH. A .pth file in this one adds the directory that holds `contract` and this very
    interpreter's own import path, so that models see the same packages however Python was started.

    Raises:
        ConfigError: The directory cannot be written.
    """
    try:
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(directory)
        packages = next((directory / "lib").glob("python3*/site-packages"))
        lines = [_NO_BYTECODE, *import_paths]
        (packages / "stack.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except (OSError, StopIteration, subprocess.CalledProcessError) as error:
        raise ConfigError(f"No Python environment can be made in {directory}: {error}.") from error
    return directory


def list_import_paths() -> list[str]:
    """Return where this interpreter finds packages: first this project, never the standard library."""
    here = str(Path(__file__).resolve().parents[1])
    standard = {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib")}
    paths = [str(Path(path).resolve()) for path in sys.path if path and Path(path).is_dir()]
    kept = [path for path in paths if path not in standard and not path.endswith("lib-dynload")]
    return list(dict.fromkeys([here, *kept]))


def build_environment(installation: TritonInstallation, python: Path) -> dict[str, str]:
    """Return the environment for Triton: its libraries, libpython, and `python` (see `assemble_python`)."""
    environment = dict(os.environ)
    libraries = [str(installation.libraries), str(sysconfig.get_config_var("LIBDIR") or "")]
    libraries.append(environment.get("LD_LIBRARY_PATH", ""))
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in libraries if path)
    environment["PATH"] = os.pathsep.join([str(python / "bin"), environment.get("PATH", "")])
    environment.pop("PYTHONHOME", None)
    for name, value in _ALLOCATOR.items():
        environment.setdefault(name, value)
    return environment


def build_command(
    installation: TritonInstallation,
    repository: Path,
    backends: Path,
    addresses: TritonAddresses,
    region_prefix: str,
    admin_key: str,
    *,
    rate_limited: bool = False,
    http_inference: bool = False,
) -> list[str]:
    """Return the command line of a Triton that answers on this machine only and serves every model or ends.

    Model control is "explicit": every model of the repository is loaded at the start, and a new version when
    `serving.reload` asks for it. Who asks must show the key: the model-repository calls are restricted on gRPC and
    HTTP alike, so no client changes models. So are those that change the log and tracing: a client could fill the
    disk, or silence what is wrong. (A user of this machine who may read other processes' command
    lines can read the key there; Triton takes it in no other way.) Configurations are complete, so
    auto-complete is off, which also saves one start of Python a model.

    Args:
        installation: Where the wheel lies.
        repository: The published model repository.
        backends: What `assemble_backends` made.
        addresses: Where it listens.
        region_prefix: Of the shared-memory regions (`name_regions`).
        admin_key: What a caller must show to change models (`make_admin_key`).
        rate_limited: Whether the configs hold rate limits to keep (`contract.repository.Published.rate_limited`).
        http_inference: Whether Triton's own HTTP front end listens too, for trusted callers alone. Triton 2.51 ends
            with SIGSEGV when a POST of some megabytes comes as a form (curl's default) or in a million chunks.
    """
    restricted = f"model-repository,logging,trace:{ADMIN_HEADER}={admin_key}"
    return [
        str(installation.server),
        f"--id={SERVER_NAME}",
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--cache-directory={installation.caches}",
        f"--backend-config=python,shm-region-prefix-name={region_prefix}",
        f"--backend-config=onnxruntime,shm-region-prefix-name={region_prefix}",
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--grpc-restricted-protocol={restricted}",
        f"--http-restricted-api={restricted}",
        f"--rate-limit={'execution_count' if rate_limited else 'off'}",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        *(
            ["--http-address=127.0.0.1", f"--http-port={addresses.http}"]
            if http_inference
            else ["--allow-http=false"]
        ),
        # Triton writes address:port, which gRPC reads as one path.
        f"--grpc-address=unix:{addresses.grpc}",
        f"--grpc-port={_SOCKET_PORT}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={addresses.metrics}",
        "--log-verbose=0",
        "--log-info=true",
    ]


def make_admin_key(path: Path) -> str:
    """Write a new random key into a file (replaced) that only this user may read; return the key.

    Raises:
        ConfigError: The file cannot be written.
    """
    key = secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be somebody's link
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="ascii") as file:
            file.write(f"{key}\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error
    return key


def read_admin_key(path: Path) -> str:
    """Return the key of a running stack from its file.

    Raises:
        ConfigError: There is no such file, it cannot be read or it is empty.
    """
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no admin key {path}: `cxr serve` writes it into its logs directory; name it with --admin-key."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The admin key {path} cannot be read: {type(error).__name__}.") from error
    if not key:
        raise ConfigError(f"The admin key {path} is empty.")
    return key


def name_regions(log_dir: Path) -> str:
    """Return the prefix of the shared-memory regions of the stack that logs into `log_dir`."""
    return f"cxr_{hashlib.sha256(os.fsencode(log_dir)).hexdigest()[:16]}_"


def remove_regions(region_prefix: str) -> None:
    """Remove the shared memory that Triton leaves in /dev/shm when it is killed while models unload."""
    for region in _SHARED_MEMORY.glob(f"{region_prefix}*"):
        with contextlib.suppress(OSError):
            region.unlink()


def protect_regions(region_prefix: str) -> None:
    """Take these regions, which hold radiographs and reports, from the eyes of other users of this machine.

    The python backend makes them readable by everybody, whatever the umask; nobody opens them anew once a model runs.
    """
    for region in _SHARED_MEMORY.glob(f"{region_prefix}*"):
        with contextlib.suppress(OSError):
            if region.stat().st_mode & 0o077:
                region.chmod(0o600)


def read_fingerprint(repository: Path) -> str:
    """Return the fingerprint of the model that a published repository serves.

    Raises:
        ArtifactError: The directory is no published model repository, or its marker is damaged.
    """
    return read_published(repository).fingerprint


def find_missing_libraries(program: Path, environment: dict[str, str]) -> list[str]:
    """Return the shared libraries that the dynamic linker does not find for a program (empty: all there)."""
    traced = subprocess.run(
        [str(program)],
        env={**environment, "LD_TRACE_LOADED_OBJECTS": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return [line.split("=>")[0].strip() for line in traced.stdout.splitlines() if "not found" in line]
