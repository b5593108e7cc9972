"""Start `cxr bench gpu` on a machine with few packages: first install missing packages from a folder of wheels.

    python -m bench.gpu OUT --wheels FOLDER

It needs only Python and pip, and no network. All other arguments are passed to the command.
"""

import os
import subprocess
import sys
from pathlib import Path

from contract.installation import HOME


def install_wheels(folder: Path, site: Path) -> str:
    """Install every wheel of a folder into a separate directory; return pip's error message, or ""."""
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        return f"{folder} holds no wheels."
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    done = subprocess.run(
        [*command, "--target", str(site), *wheels], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stderr.strip() or f"pip ended with {done.returncode}."


def main(arguments: list[str]) -> int:
    """Install the wheels, then run the command in a new Python; return its exit code."""
    words, environment = list(arguments), dict(os.environ)
    paths = [str(HOME)]
    if "--wheels" in words:
        index = words.index("--wheels")
        folder = Path(words[index + 1]) if index + 1 < len(words) else Path()
        del words[index : index + 2]
        site = Path(words[0] if words else ".") / "site"
        if trouble := install_wheels(folder, site):
            print(f"Error: The wheels cannot be installed: {trouble}", file=sys.stderr)
            return 2
        paths.append(str(site.resolve()))
    paths += [path for path in [environment.get("PYTHONPATH", "")] if path]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "cxr", "bench", "gpu", *words]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
