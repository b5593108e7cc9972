"""Two Triton backends are called "onnxruntime": NVIDIA's, in C++, and the one of this project, "embedded".

Both read the same config.pbtxt, and Triton reports both alike: as backend "onnxruntime" with the platform
"onnxruntime_onnx". They differ in one point that changes answers. Graphs of the accelerator "openvino" on a processor
(profiles int8 and bf16) are run by the embedded backend on OpenVINO itself, as their parameters say and as they were
gated. NVIDIA's backend hands them to the OpenVINO provider of ONNX Runtime without those parameters, or, where it was
built without that provider, cannot load them.

So whoever starts a Triton with the embedded backend names the server `SERVER_NAME` (`--id`), which any client can read
from the server's metadata; NVIDIA's images name theirs "triton".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

BACKEND: Final = "onnxruntime"
SERVER_NAME: Final = "cxr-embedded-onnxruntime"
REQUIRED_BACKEND: Final = (
    "required_backend"  # parameter of ensembles whose graphs run on the embedded backend alone
)
EMBEDDED: Final = "embedded"
_LIBRARY: Final = f"libtriton_{BACKEND}.so"
_CODE: Final = "model.py"


def needs_embedded(config: Mapping[str, Any]) -> bool:
    """Return whether a graph's config, as Triton's JSON, asks for what the embedded backend alone honours."""
    if config.get("backend", BACKEND) != BACKEND:
        return False
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    listed = accelerators.get("cpu_execution_accelerator", [])
    return any(entry.get("name") == "openvino" for entry in listed)


def is_embedded(backends: Path) -> bool:
    """Return whether a backend directory holds the embedded backend; Triton takes a library before a model.py."""
    directory = backends / BACKEND
    return (directory / _CODE).is_file() and not (directory / _LIBRARY).is_file()


def explain_refusal(what: str, profile: str) -> str:
    """Return the sentence for a repository that the backend there cannot honour.

    Args:
        what: What is refused, and where: "The repository /models".
        profile: Its precision profile.
    """
    return (
        f"{what} holds graphs of the profile {profile}, which NVIDIA's onnxruntime backend would not run as they were "
        "gated: serve them with `cxr serve`, or publish with --profile fp32."
    )
