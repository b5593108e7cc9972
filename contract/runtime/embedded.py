"""Two Triton backends are called "onnxruntime": NVIDIA's, in C++, and the one of this project, "embedded".

Both read the same config.pbtxt, and Triton reports both in the same way: as backend "onnxruntime" with the platform
"onnxruntime_onnx". One difference changes answers. The embedded backend runs graphs of the accelerator "openvino" on a
processor (profiles int8 and bf16) on OpenVINO itself, with their parameters, as at the gates. NVIDIA's backend passes
them to the OpenVINO provider of ONNX Runtime without those parameters. If it was built without that provider, it cannot
load them.

So a Triton with the embedded backend is started with the server name `SERVER_NAME` (`--id`). Every client can read it
from the server's metadata. NVIDIA's images have the name "triton".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

BACKEND: Final = "onnxruntime"
SERVER_NAME: Final = "cxr-embedded-onnxruntime"
REQUIRED_BACKEND: Final = (
    "required_backend"  # parameter of ensembles whose graphs run only on the embedded backend
)
EMBEDDED: Final = "embedded"
_LIBRARY: Final = f"libtriton_{BACKEND}.so"
_CODE: Final = "model.py"


def needs_embedded(config: Mapping[str, Any]) -> bool:
    """Return whether a graph's config, as Triton's JSON, needs the embedded backend."""
    if config.get("backend", BACKEND) != BACKEND:
        return False
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    listed = accelerators.get("cpu_execution_accelerator", [])
    return any(entry.get("name") == "openvino" for entry in listed)


def is_embedded(backends: Path) -> bool:
    """Return whether a backend directory holds the embedded backend. Triton prefers a library to a model.py."""
    directory = backends / BACKEND
    return (directory / _CODE).is_file() and not (directory / _LIBRARY).is_file()


def explain_refusal(what: str, profile: str) -> str:
    """Return the error message for a repository that needs the embedded backend.

    Args:
        what: The refused repository or server, such as "The repository /models".
        profile: Its precision profile.
    """
    return (
        f"{what} holds graphs of the profile {profile}, which NVIDIA's onnxruntime backend would run differently than "
        "at the gates. Serve them with `cxr serve`, or publish with --profile fp32."
    )
