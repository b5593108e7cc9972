"""Find and run the tritonserver of the nvidia-pytriton wheel.

That tritonserver has only the python backend. The backend directory made here adds `backends/onnxruntime/model.py`, a
python-based backend with the name that the model repository uses. So the same repository runs here and on the full
Triton image. pytriton itself is never imported.
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

from contract.access import ADMIN_HEADER
from contract.errors import ConfigError
from contract.repository import read_published
from contract.runtime.embedded import SERVER_NAME

INSTALL_HINT: Final = "pip install 'cxr-serving[serve,cpu]'"
ADMIN_KEY_FILE: Final = "admin_key"  # in the runtime directory of a stack
EXIT_TIMEOUT_S: Final = 3  # for running requests; unloading python models one by one would take about 10 s
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108
_BACKENDS: Final = Path(__file__).parent / "backends"
# Python executes a line of a .pth file that begins with "import". Without this line Python writes a __pycache__ beside
# model.py. Triton takes that for a change and would reload the serving version whenever another version is published.
_NO_BYTECODE: Final = "import sys; sys.dont_write_bytecode = True"
# glibc returns a freed block of some megabytes to the kernel and gets the next one page by page. A radiograph of 15 MB
# is copied several times, and that took a quarter of the time of `preprocess_image`. With these settings a process
# keeps up to 512 MiB of the memory that it used. (mallopt(3); 32 MiB is the highest threshold.)
_ALLOCATOR: Final = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20)}
# Environment variables of a client that no server needs. A client's token stays with the client.
_SECRETS: Final = frozenset({"CXR_TOKEN", "CXR_ADMIN_KEY"})
_STUB: Final = "triton_python_backend_stub"
_SOCKET_PORT: Final = 1
# Triton compares a header with this value, which no HTTP header can hold.
_CLOSED: Final = f"model-repository,logging,trace:{ADMIN_HEADER}=closed\n"


@dataclass(frozen=True)
class TritonInstallation:
    """The paths of the parts of the wheel."""

    version: str  # of nvidia-pytriton
    server: Path  # the tritonserver program
    python_backend: Path  # directory with libtriton_python.so
    stub: Path  # the stub program for the running Python version
    caches: Path
    libraries: Path  # nvidia_pytriton.libs


@dataclass(frozen=True)
class TritonAddresses:
    """The addresses of one Triton: a socket file for gRPC, which only this user can reach, and loopback ports."""

    grpc: Path
    http: int
    metrics: int


def write_socket_url(path: Path) -> str:
    """Return the gRPC address of a Triton that listens on a socket file (`TritonAddresses.grpc`)."""
    return f"unix:{path}:{_SOCKET_PORT}"


def find_triton() -> TritonInstallation:
    """Find the tritonserver of the installed nvidia-pytriton wheel.

    Raises:
        ConfigError: The wheel is missing or incomplete, or has no stub for this Python version.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ConfigError(f"Serving needs the 'serve' extra: {INSTALL_HINT}.")
    root = Path(spec.origin).parent / "tritonserver"
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    installation = TritonInstallation(
        version=importlib.metadata.version("nvidia-pytriton"),
        server=root / "bin" / "tritonserver",
        python_backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / minor / _STUB,
        caches=root / "caches",
        libraries=root.parents[1] / "nvidia_pytriton.libs",
    )
    if not installation.stub.is_file() and installation.stub.parents[1].is_dir():
        have = ", ".join(sorted(path.name for path in installation.stub.parents[1].iterdir()))
        raise ConfigError(f"The nvidia-pytriton wheel serves Python {have}, not {minor}.")
    for path in (
        installation.server,
        installation.python_backend,
        installation.stub,
        installation.caches,
        installation.libraries,
    ):
        if not path.exists():
            raise ConfigError(f"The nvidia-pytriton wheel lacks {path}: {INSTALL_HINT} --force-reinstall.")
    return installation


def assemble_backends(installation: TritonInstallation, directory: Path) -> Path:
    """Fill `directory` (replaced) with the backends that the model repository needs; return it.

    The wheel keeps the stubs, one per Python version, in another folder than the backend, which expects its stub beside
    itself.

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

    The stub embeds libpython in isolated mode: it ignores PYTHONPATH and uses the environment of the first `python3` in
    PATH. A .pth file in this environment adds the directory of `contract` and this interpreter's import path, so models
    see the same packages however Python was started.

    Raises:
        ConfigError: The directory cannot be written.
    """
    try:
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(directory)
        packages = next((directory / "lib").glob("python3*/site-packages"))
        lines = [_NO_BYTECODE, *import_paths]
        (packages / "stack.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except (OSError, StopIteration, subprocess.CalledProcessError) as error:
        raise ConfigError(f"Cannot create a Python environment in {directory}: {error}.") from error
    return directory


def list_import_paths() -> list[str]:
    """Return this interpreter's import path: first this project, without the standard library."""
    here = str(Path(__file__).resolve().parents[1])
    standard = {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib")}
    paths = [str(Path(path).resolve()) for path in sys.path if path and Path(path).is_dir()]
    own_paths = [path for path in paths if path not in standard and not path.endswith("lib-dynload")]
    return list(dict.fromkeys([here, *own_paths]))


def copy_environment() -> dict[str, str]:
    """Return the environment of this process for a server: without the secrets of a client."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}


def build_environment(installation: TritonInstallation, python: Path) -> dict[str, str]:
    """Return the environment for Triton: its libraries, libpython, and `python` (see `assemble_python`)."""
    environment = copy_environment()
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
    *,
    rate_limited: bool = False,
    http_inference: bool = False,
    otlp: str | None = None,
) -> list[str]:
    """Return the command line of a Triton that listens only on this machine and serves every model or exits.

    Model control is "explicit": every model of the repository is loaded at the start, and a new version when
    `serving.reload` requests it. Triton's gRPC socket is in a folder of this user alone, and the relay in front of it
    decides who may change models, the log or tracing (`serving.relay`). So no key is on this command line, where other
    users could read it. Over HTTP nobody may change them. The configs are complete, so auto-complete is off, which also
    saves one start of Python per model.

    Args:
        installation: Paths of the wheel.
        repository: The published model repository.
        backends: Directory of `assemble_backends`.
        addresses: Addresses to listen on.
        region_prefix: Prefix of the shared-memory regions (`name_regions`).
        rate_limited: Whether the configs have rate limits (`contract.repository.Published.rate_limited`).
        http_inference: Whether Triton's own HTTP front end listens too, only for trusted callers. Triton 2.51 crashes
            with SIGSEGV on a POST of some megabytes that is a form (curl's default) or has a million chunks.
        otlp: Where Triton exports the spans of all inferences: an OTLP receiver over HTTP, such as
            http://127.0.0.1:4318/v1/traces. None: nowhere.
    """
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
        f"--http-restricted-api={_CLOSED}",
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
        # Triton joins address and port with a colon, and gRPC reads the result as one path.
        f"--grpc-address=unix:{addresses.grpc}",
        f"--grpc-port={_SOCKET_PORT}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={addresses.metrics}",
        *(
            [
                "--trace-config=mode=opentelemetry",
                "--trace-config=level=TIMESTAMPS",
                "--trace-config=rate=1",
                f"--trace-config=opentelemetry,url={otlp}",
            ]
            if otlp
            else []
        ),
        "--log-verbose=0",
        "--log-info=true",
    ]


def make_admin_key(path: Path) -> str:
    """Write a new random key into a file (replaced) that only this user can read; return the key.

    Raises:
        ConfigError: The file cannot be written.
    """
    key = secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link of another user
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="ascii") as file:
            file.write(f"{key}\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error
    return key


def read_admin_key(path: Path) -> str:
    """Return the key of a running stack from its file.

    Raises:
        ConfigError: The file does not exist, cannot be read or is empty.
    """
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no admin key {path}. `cxr serve` writes it into its logs directory. Give its path: --admin-key."
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
    """Remove the shared memory that Triton leaves in /dev/shm if it is killed while models unload."""
    for region in _SHARED_MEMORY.glob(f"{region_prefix}*"):
        with contextlib.suppress(OSError):
            region.unlink()


def protect_regions(region_prefix: str) -> None:
    """Make these regions, which hold radiographs and reports, unreadable for other users of this machine.

    The python backend makes them readable for all users, whatever the umask. No process opens them again once a model
    runs.
    """
    for region in _SHARED_MEMORY.glob(f"{region_prefix}*"):
        with contextlib.suppress(OSError):
            if region.stat().st_mode & 0o077:
                region.chmod(0o600)


def read_fingerprint(repository: Path) -> str:
    """Return the fingerprint of the model that a published repository serves.

    Raises:
        ArtifactError: The directory is not a published model repository, or its marker is damaged.
    """
    return read_published(repository).fingerprint


def find_missing_libraries(program: Path, environment: dict[str, str]) -> list[str]:
    """Return the shared libraries of a program that the dynamic linker does not find."""
    traced = subprocess.run(
        [str(program)],
        env={**environment, "LD_TRACE_LOADED_OBJECTS": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return [line.split("=>")[0].strip() for line in traced.stdout.splitlines() if "not found" in line]
