"""What a damaged case store says, without the id of a case."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from contract.errors import ArtifactError

_SHOWN: Final = 5  # damaged rows in a message


def report_damage(path: Path, detail: str = "its content differs from what was written") -> ArtifactError:
    """Return the error of a file that cannot be used."""
    return ArtifactError(
        f"The case store {path} is damaged ({detail}). Restore it, or stop the sidecar, move the file elsewhere and "
        "index the cases again."
    )


def report_row(path: Path, sequence: int) -> ArtifactError:
    """Return the error of a damaged row."""
    return report_damage(path, f"row {sequence} differs from what was written")


def describe_rows(path: Path, damaged: Sequence[int]) -> str:
    """Return the numbers of damaged rows and what to do, as a sentence; "" if no row is damaged."""
    if not damaged:
        return ""
    rows = ", ".join(map(str, damaged[:_SHOWN])) + (", ..." if len(damaged) > _SHOWN else "")
    return (
        f"The case store {path} is damaged: {len(damaged)} of its rows ({rows}) differ from what was "
        "written and are left out. Index the cases again with `cxr index`. Then `python -m retrieval.server "
        f"--store {path.parent} --remove-damaged` removes the rows that are still damaged."
    )
