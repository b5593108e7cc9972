"""A run with its own /dev/shm, its own small disk and its own network, so that faults do not disturb other programs.

`unshare` (util-linux) gives the command its own mount and network namespaces. Where that is not allowed, the run goes
on without them, and the faults that need them are skipped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from contract.errors import ConfigError

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108
FAR_ADDRESS: Final = "10.111.0.1"  # an address of this machine that can be cut off; only in an own network
_VARIABLE: Final = "CXR_SOAK_NAMESPACES"  # "memory", "network", both, or "" in a run that was started again
_MEMORY_BYTES: Final = 512 * 2**20
_DISK_BYTES: Final = 256 * 2**20


def enter_namespaces(arguments: list[str]) -> None:
    """Run this command again with its own /dev/shm and network, as far as this user may have them.

    Args:
        arguments: The arguments of `cxr`.
    """
    program = shutil.which("unshare")
    if program is None or _VARIABLE in os.environ:
        return
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    # A new network has no loopback until `ip` (iproute2) turns it on.
    for options, trial in (
        ([*user, "--mount", "--net"], ["sh", "-c", "ip link set lo up"]),
        ([*user, "--mount"], ["true"]),
    ):
        if subprocess.run([program, *options, *trial], check=False, capture_output=True).returncode == 0:
            break
    else:
        return
    mount = f"mount -t tmpfs -o size={_MEMORY_BYTES},mode=1777 cxr-soak {SHARED_MEMORY}"
    parts = [f'{_VARIABLE}=""', f'if {mount} 2>/dev/null; then {_VARIABLE}="memory"; fi']
    if "--net" in options:
        network = f"ip link set lo up 2>/dev/null && ip address add {FAR_ADDRESS}/32 dev lo 2>/dev/null"
        parts.append(f'if {network}; then {_VARIABLE}="${_VARIABLE} network"; fi')
    script = "; ".join([*parts, f"export {_VARIABLE}", 'exec "$@"'])
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    again = [sys.executable, "-P", "-m", "cxr", *arguments]
    os.execv(program, [program, *options, "sh", "-c", script, "sh", *again])  # noqa: S606


def has_own_memory() -> bool:
    """Whether this run has its own /dev/shm."""
    return "memory" in _list_owned()


def has_own_network() -> bool:
    """Whether this run has its own network, with `FAR_ADDRESS`."""
    return "network" in _list_owned()


@contextmanager
def mount_small_disk(directory: Path) -> Iterator[bool]:
    """Put a small file system of its own at an empty directory; yield whether that was possible.

    It is possible in a run with its own /dev/shm, which has its own mounts.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not has_own_memory():
        yield False
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "cxr-soak-disk", str(directory)]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=False, capture_output=True)


def set_network(*, up: bool) -> None:
    """Make `FAR_ADDRESS` reachable or not. Packets of open connections to it are lost meanwhile.

    Raises:
        ConfigError: `ip` refused it.
    """
    command = ["ip", "address", "add" if up else "del", f"{FAR_ADDRESS}/32", "dev", "lo"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise ConfigError(f"The network cannot be changed: {done.stderr.strip()}")


def _list_owned() -> list[str]:
    return os.environ.get(_VARIABLE, "").split()
