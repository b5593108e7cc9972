"""NVIDIA's Triton images (NGC) that published repositories support, and the versions in each.

This is the only list of them. Tests check the Dockerfile, compose.yaml, pyproject.toml and the documentation against
it (tests/docker/test_ngc.py), and run every published graph on the ONNX Runtime of the oldest and of the default
release (tests/export/graphs/test_ngc_runtimes.py). `cxr doctor` compares this machine with it.

Releases before 25.07 have known holes that allow remote code execution (CVE-2025-23310, 23311, 23319, 23320, 23334).

Sources: github.com/triton-inference-server/server, branch r25.07 and so on. TRITON_VERSION; build.py for ONNX Runtime
(`ort_version`) and for numpy (`numpy<2`, of which 1.26 is the one for Python 3.12); docs/introduction/compatibility.md
for Python. CUDA: docs.nvidia.com/deeplearning/triton-inference-server/release-notes; for 25.07, 25.09, 25.11, 26.01,
26.03 and 26.05, whose pages were not at hand, the vLLM image of the same release in compatibility.md.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class NgcRelease:
    """One release: `nvcr.io/nvidia/tritonserver:<tag>-py3` and what is in it."""

    tag: str
    triton: str
    onnxruntime: str
    cuda: str

    @property
    def image(self) -> str:
        """The name of the image in NVIDIA's registry."""
        return f"nvcr.io/nvidia/tritonserver:{self.tag}-py3"


PYTHON: Final = "3.12"  # in all of them
# numpy in the image, and after the extra `triton` is installed for the python models. The Python backend runs on both
# since 25.01: pybind11 2.12 in CMakeLists.txt of triton-inference-server/python_backend.
NUMPY: Final = ("1.26", "2")

RELEASES: Final[tuple[NgcRelease, ...]] = (
    NgcRelease("25.07", "2.59.1", "1.22.0", "12.9"),
    NgcRelease("25.08", "2.60.0", "1.23.0", "13.0"),
    NgcRelease("25.09", "2.61.0", "1.23.0", "13.0"),
    NgcRelease("25.10", "2.62.0", "1.23.1", "13.0"),
    NgcRelease("25.11", "2.63.0", "1.23.2", "13.0"),
    NgcRelease("25.12", "2.64.0", "1.23.2", "13.1"),
    NgcRelease("26.01", "2.65.0", "1.23.2", "13.1"),
    NgcRelease("26.02", "2.66.0", "1.24.1", "13.1"),
    NgcRelease("26.03", "2.67.0", "1.24.2", "13.2"),
    NgcRelease("26.04", "2.68.0", "1.24.4", "13.2"),
    NgcRelease("26.05", "2.69.0", "1.24.4", "13.2"),
    NgcRelease("26.06", "2.70.0", "1.24.4", "13.3"),
    NgcRelease("26.07", "2.71.0", "1.27.0", "13.3"),
)
OLDEST: Final = RELEASES[0]
DEFAULT: Final = RELEASES[-1]  # of docker/triton.Dockerfile and compose.yaml
OLDEST_ONNXRUNTIME: Final = (1, 21)  # 1.20 crashed with 4 texts of 256 tokens
