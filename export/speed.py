"""Compare the speed of two precision profiles on this machine.

Both profiles run the same case in alternation, many times, so other work of the machine slows both. The medians count.
The time of a study is the sum of both encoders and the fusion, as one client sees it. For a model that was trained on
reports or images alone, it is the sum of one encoder and its fusion.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.errors import ArtifactError, ConfigError
from contract.report.text import ReportTokenizer
from contract.runtime.walk import Arrays, RunGraph, bind_sessions, list_graphs, walk_graphs
from export.gates.parity import ParityCase
from export.gates.precision import open_profile
from export.profiles import Profile

# The inputs that a case of each kind must have.
_NEEDED: Final[dict[str, str]] = {"study": "an image and a report", "image": "an image", "text": "a report"}
_WARM_UP: Final = 3
_ROUNDS: Final = 21


@dataclass(frozen=True)
class SpeedReport:
    """Median milliseconds of each graph at batch 1, of a profile and of the profile that it must beat."""

    profile: str
    against: str
    kind: str  # of the case: "study", "image" or "text"
    tokens: int  # length of the padded text; 0 without a text
    profile_ms: dict[str, float]
    against_ms: dict[str, float]

    @property
    def ratio(self) -> float:
        """The speed of the profile over that of the other profile; above 1 it is faster."""
        return sum(self.against_ms.values()) / sum(self.profile_ms.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {**asdict(self), "ratio": self.ratio}

    def to_sentence(self) -> str:
        """Return the verdict in one line."""
        return (
            f"A case ({self.kind}, {self.tokens} tokens) takes {sum(self.profile_ms.values()):.1f} ms under "
            f"{self.profile}, "
            f"{sum(self.against_ms.values()):.1f} ms under {self.against} ({self.ratio:.2f} times as fast)"
        )


def compare_speed(
    bundle: Bundle,
    sides: Sequence[tuple[Profile, Mapping[str, Path]]],
    cases: Sequence[ParityCase],
    *,
    rounds: int = _ROUNDS,
) -> SpeedReport:
    """Time a profile and the profile that it must beat.

    Args:
        bundle: The verified bundle.
        sides: The profile and its graphs, then the profile to beat and its graphs.
        cases: Real cases. The first one with the inputs that the model was trained on runs.
        rounds: Number of timed runs of each side.

    Raises:
        ConfigError: No case has these inputs, or this machine cannot run a profile.
        ArtifactError: A graph is missing or comes from another bundle.
    """
    kind = bundle.trained_ways[0]
    graphs_of_kind, inputs = list_graphs(kind), _make_inputs(bundle, cases, kind)
    runners = [bind_sessions(open_profile(bundle, graphs, profile)) for profile, graphs in sides]
    times: list[dict[str, list[float]]] = [{graph: [] for graph in graphs_of_kind} for _ in sides]
    for number in range(_WARM_UP + rounds):
        for run, measured in zip(runners, times, strict=True):
            for graph, seconds in _time_graphs(graphs_of_kind, run, inputs).items():
                if number >= _WARM_UP:
                    measured[graph].append(seconds)
    medians = [
        {graph: float(np.median(values)) * 1e3 for graph, values in measured.items()} for measured in times
    ]
    (profile, _), (against, _) = sides
    tokens = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return SpeedReport(profile.name, against.name, kind, tokens, *medians)


def require_faster(report: SpeedReport) -> None:
    """Raise ArtifactError with both times unless the profile is faster than the profile that it must beat."""
    if report.ratio <= 1:
        raise ArtifactError(
            f"Profile {report.profile} is not published, because it is not faster on this machine: "
            f"{report.to_sentence()}. Export with --profile {report.against}."
        )


def _make_inputs(bundle: Bundle, cases: Sequence[ParityCase], kind: str) -> Arrays:
    image, text = kind != "text", kind != "image"
    usable = (
        case for case in cases if (case.pixels is not None or not image) and (case.has_text or not text)
    )
    if (case := next(usable, None)) is None:
        raise ConfigError(
            f"Timing a profile needs a case with {_NEEDED[kind]}. Give a studies table that has one."
        )
    inputs: Arrays = {}
    if image and case.pixels is not None:
        inputs["pixels"] = case.pixels[None]
    if text:
        tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
        tokens = tokenizer.encode([case.text or ""], int(bundle.config.get("max_length", 256)))
        inputs |= {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    return inputs


def _time_graphs(graphs: Sequence[str], run: RunGraph[NDArray[Any]], inputs: Arrays) -> dict[str, float]:
    """Run one case and return the seconds of each graph."""
    seconds: dict[str, float] = {}

    def run_timed(graph: str, tensors: Arrays) -> Mapping[str, NDArray[Any]]:
        start = time.perf_counter()
        outputs = run(graph, tensors)
        seconds[graph] = time.perf_counter() - start
        return outputs

    walk_graphs(graphs, run_timed, inputs)
    return seconds
