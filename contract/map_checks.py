"""What `cxr evaluate explain` measured about the maps of one bundle, and which map may stand as a reason.

A map is a picture of where a model looks. It may stand as a reason only if two things were measured on the same bundle:
it depends on what the model learned (sanity), and it finds drawn findings better than the centre of the picture.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from contract.errors import ArtifactError

if TYPE_CHECKING:
    from contract.bundle import Bundle

FOLDER: Final = "explanations"
FILE: Final = "explanations.json"
FORMAT: Final = 1
UNCHECKED: Final = (
    "Whether such maps point at findings was not measured for this bundle and this kind of input: "
    "`cxr evaluate explain` measures it."
)


@dataclass(frozen=True)
class MapCheck:
    """The measurement of the maps for one way to read a study.

    Attributes:
        default: Key of the method whose map may be shown; None if no method passed.
        failed: Key of each method that did not pass -> the reason, one clause without a full stop.
        findings: Number of findings with a box that were measured.
        passed: Keys of the methods that passed.
    """

    default: str | None
    failed: Mapping[str, str]
    findings: int
    passed: tuple[str, ...] = ()

    def describe(self, method: str, title: str) -> str:
        """Return one sentence about a method that did not pass or was not measured; "" for one that passed."""
        if method in self.passed:
            return ""
        start = f"Do not read the map of {title} as a reason"
        if method not in self.failed:
            return f"{start}: it was not measured for this bundle and this kind of input."
        return f"{start}: {self.failed[method]} ({self.findings} findings measured)."

    @property
    def refusal(self) -> str:
        """One sentence that says why no map is shown; "" if there is a default."""
        if self.default is not None:
            return ""
        reasons = "; ".join(dict.fromkeys(self.failed.values()))
        return f"No map is shown as a reason, because none passed its checks on this bundle: {reasons}."


def read_map_check(bundle: "Bundle", kind: str) -> MapCheck | None:
    """Return what was measured for one way to read a study; None if it was not measured for this very model.

    Args:
        bundle: A verified bundle.
        kind: "study", "image" or "text".

    Raises:
        ArtifactError: The file of the measurement is damaged.
    """
    name = f"{FOLDER}/{FILE}"
    if name not in bundle.manifest["files"]:
        return None
    path = bundle.path / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["fingerprint"] != bundle.fingerprint:
            return None
        gate = content["ways"].get(kind, {}).get("gate")
        return None if gate is None else _parse_gate(gate)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is not a measurement of explanations. Measure again with `cxr evaluate explain`."
        ) from error


def _parse_gate(gate: Mapping[str, Any]) -> MapCheck:
    failed = {key: str(row["reason"]) for key, row in gate["methods"].items() if not row["passed"]}
    passed = tuple(key for key, row in gate["methods"].items() if row["passed"])
    default = gate["default"]
    return MapCheck(None if default is None else str(default), failed, int(gate["findings"]), passed)
