"""The record beside each TensorRT plan: what it was built from, with, and for. It tells whether a plan can be used."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contract.bundle import compute_sha256
from contract.errors import ArtifactError
from export.tensorrt.builders import Gpu, PlanBuilder
from export.tensorrt.graph import PlanRequest
from export.tensorrt.operators import Version


def check_plan(plan: Path, version: Version, gpu: Gpu) -> None:
    """Check with the record beside a plan that the plan fits a machine.

    Args:
        plan: A `model.plan` that `export_plans` built.
        version: Release of TensorRT on the machine: major, minor and patch.
        gpu: The machine's GPU.

    Raises:
        ArtifactError: The record is missing, the plan was changed, or it was built for another release or compute
            capability. The message holds both values.
    """
    record = _read_record(plan)
    if record is None:
        raise ArtifactError(f"{plan} has no readable record beside it. Build it with `cxr export tensorrt`.")
    machine = {"tensorrt": format_numbers(version), "compute_capability": format_numbers(gpu.capability)}
    for key, value in machine.items():
        if record.get(key) != value:
            label = key.replace("_", " ").replace("tensorrt", "TensorRT")
            raise ArtifactError(
                f"{plan} was built for {label} {record.get(key)}, but this machine has {value}. Build it again here."
            )
    if record.get("plan_sha256") != compute_sha256(plan):
        raise ArtifactError(f"{plan} is not the file that its record describes. Build it again.")


def make_record(builder: PlanBuilder, gpu: Gpu, request: PlanRequest, fingerprint: str) -> dict[str, Any]:
    """Return the record of a plan: all that decides what the plan is. `plan_sha256` comes when it is built."""
    profiles = [
        {
            name: {bound: list(sizes) for bound, sizes in bounds._asdict().items()}
            for name, bounds in profile.items()
        }
        for profile in request.profiles
    ]
    return {
        "fingerprint": fingerprint,
        "graph_sha256": compute_sha256(request.graph),
        "tensorrt": format_numbers(builder.version),
        "builder": builder.name,
        "gpu": gpu.name,
        "compute_capability": format_numbers(gpu.capability),
        "precision": request.precision,
        "workspace_mib": request.workspace_mib,
        "profiles": profiles,
        "parity": "not checked",
    }


def is_current(plan: Path, record: Mapping[str, Any]) -> bool:
    """Whether a plan exists, is the file that its record describes, and would be built in the same way now."""
    earlier = _read_record(plan)
    if earlier is None or not plan.is_file():
        return False
    sha256 = earlier.pop("plan_sha256", None)
    return earlier == record and sha256 == compute_sha256(plan)


def name_record(plan: Path) -> Path:
    """Return the path of the record of a plan."""
    return plan.with_name(f"{plan.name}.json")


def _read_record(plan: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(name_record(plan).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def format_numbers(numbers: tuple[int, ...], separator: str = ".") -> str:
    """Return a release or a compute capability as text."""
    return separator.join(map(str, numbers))
