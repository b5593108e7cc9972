"""Is a precision profile worth it here? Both run the same case on this machine, one after the other, many times.

The time of a study is that of both encoders and the fusion, one after the other, as one client sees them. Medians of
alternating runs, so that whatever else the machine does meanwhile falls on both.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from contract.bundle import Bundle
from contract.errors import ArtifactError, ConfigError
from contract.runtime import Session
from contract.tensors import MODELS
from contract.text import ReportTokenizer
from export.parity import Arrays, ParityCase
from export.precision import open_profile
from export.profiles import Profile

STEPS: Final = ("image_encoder", "text_encoder", "fusion_study")
_WARM_UP: Final = 3
_ROUNDS: Final = 21


@dataclass(frozen=True)
class SpeedReport:
    """Median milliseconds of each graph of a study at batch 1, under a profile and under the one to beat."""

    profile: str
    against: str
    tokens: int  # length of the text, padded
    profile_ms: dict[str, float]
    against_ms: dict[str, float]

    @property
    def ratio(self) -> float:
        """How many times as fast the profile is; above 1 it wins."""
        return sum(self.against_ms.values()) / sum(self.profile_ms.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {**asdict(self), "ratio": self.ratio}

    def to_sentence(self) -> str:
        """Return the verdict in one line."""
        return (
            f"A study of {self.tokens} tokens takes {sum(self.profile_ms.values()):.1f} ms under {self.profile}, "
            f"{sum(self.against_ms.values()):.1f} ms under {self.against} ({self.ratio:.2f} times as fast)"
        )


def compare_speed(
    bundle: Bundle,
    sides: Sequence[tuple[Profile, Mapping[str, Path]]],
    cases: Sequence[ParityCase],
    *,
    rounds: int = _ROUNDS,
) -> SpeedReport:
    """Time a profile and the one it must beat.

    Args:
        bundle: The verified bundle.
        sides: The profile with its graphs, then the one to beat with its graphs.
        cases: The first one with image and text is asked.
        rounds: How often each side is timed.

    Raises:
        ConfigError: No case has both, or this machine cannot run a profile.
        ArtifactError: A graph is missing or comes from another bundle.
    """
    inputs = _make_inputs(bundle, cases)
    sessions = [open_profile(bundle, graphs, profile) for profile, graphs in sides]
    times: list[dict[str, list[float]]] = [{step: [] for step in STEPS} for _ in sides]
    for done in range(_WARM_UP + rounds):
        for opened, found in zip(sessions, times, strict=True):
            for step, seconds in _time_study(opened, inputs).items():
                if done >= _WARM_UP:
                    found[step].append(seconds)
    medians = [{step: float(np.median(values)) * 1e3 for step, values in found.items()} for found in times]
    (profile, _), (against, _) = sides
    return SpeedReport(profile.name, against.name, inputs["input_ids"].shape[1], *medians)


def require_faster(report: SpeedReport) -> None:
    """Raise ArtifactError, with both times, unless the profile is faster than the one it must beat."""
    if report.ratio <= 1:
        raise ArtifactError(
            f"Profile {report.profile} is not published, for it is not faster here: {report.to_sentence()}."
        )


def _make_inputs(bundle: Bundle, cases: Sequence[ParityCase]) -> Arrays:
    case = next((case for case in cases if case.pixels is not None and case.has_text), None)
    if case is None or case.pixels is None:
        raise ConfigError("Timing a profile needs a case with an image and a report.")
    tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
    tokens = tokenizer.encode([case.text or ""], int(bundle.config.get("max_length", 256)))
    return {
        "pixels": case.pixels[None],
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
    }


def _time_study(sessions: Mapping[str, Session], inputs: Arrays) -> dict[str, float]:
    """Run one study and return the seconds of each graph."""
    values, seconds = dict(inputs), {}
    for step in STEPS:
        spec = MODELS[step]
        names = [tensor.name for tensor in spec.outputs]
        feeds = {tensor.name: values[tensor.name] for tensor in spec.inputs}
        start = time.perf_counter()
        answers = sessions[step].run(names, feeds)
        seconds[step] = time.perf_counter() - start
        values |= dict(zip(names, answers, strict=True))
    return seconds
