"""Is a precision profile worth it here? Both run the same case on this machine, one after the other, many times.

The time of a study is that of both encoders and the fusion, one after the other, as one client sees them. Of a model
that was trained on reports or images alone, it is that of the one encoder and its fusion. Medians of alternating runs,
so that whatever else the machine does meanwhile falls on both.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from contract.bundle import Bundle
from contract.errors import ArtifactError, ConfigError
from contract.report.text import ReportTokenizer
from contract.runtime.session import Session
from contract.tensors import MODELS
from export.gates.parity import Arrays, ParityCase
from export.gates.precision import open_profile
from export.profiles import Profile

# The graphs that are timed, and what the case must have.
_KINDS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "study": (("image_encoder", "text_encoder", "fusion_study"), "an image and a report"),
    "image": (("image_encoder", "fusion_image"), "an image"),
    "text": (("text_encoder", "fusion_text"), "a report"),
}
_WARM_UP: Final = 3
_ROUNDS: Final = 21


@dataclass(frozen=True)
class SpeedReport:
    """Median milliseconds of each graph at batch 1, under a profile and under the one to beat."""

    profile: str
    against: str
    kind: str  # of the case: "study", "image" or "text"
    tokens: int  # length of the text, padded; 0 without one
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
    """Time a profile and the one it must beat.

    Args:
        bundle: The verified bundle.
        sides: The profile with its graphs, then the one to beat with its graphs.
        cases: The first one is asked that has what the model was trained on, best an image and a report.
        rounds: How often each side is timed.

    Raises:
        ConfigError: There is no such case, or this machine cannot run a profile.
        ArtifactError: A graph is missing or comes from another bundle.
    """
    kind = bundle.trained_ways[0]
    steps, inputs = _KINDS[kind][0], _make_inputs(bundle, cases, kind)
    sessions = [open_profile(bundle, graphs, profile) for profile, graphs in sides]
    times: list[dict[str, list[float]]] = [{step: [] for step in steps} for _ in sides]
    for done in range(_WARM_UP + rounds):
        for opened, found in zip(sessions, times, strict=True):
            for step, seconds in _time_steps(opened, steps, inputs).items():
                if done >= _WARM_UP:
                    found[step].append(seconds)
    medians = [{step: float(np.median(values)) * 1e3 for step, values in found.items()} for found in times]
    (profile, _), (against, _) = sides
    tokens = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return SpeedReport(profile.name, against.name, kind, tokens, *medians)


def require_faster(report: SpeedReport) -> None:
    """Raise ArtifactError, with both times, unless the profile is faster than the one it must beat."""
    if report.ratio <= 1:
        raise ArtifactError(
            f"Profile {report.profile} is not published, for it is not faster here: {report.to_sentence()}."
        )


def _make_inputs(bundle: Bundle, cases: Sequence[ParityCase], kind: str) -> Arrays:
    image, text = kind != "text", kind != "image"
    usable = (
        case for case in cases if (case.pixels is not None or not image) and (case.has_text or not text)
    )
    if (case := next(usable, None)) is None:
        raise ConfigError(f"Timing a profile needs a case with {_KINDS[kind][1]}.")
    inputs: Arrays = {}
    if image and case.pixels is not None:
        inputs["pixels"] = case.pixels[None]
    if text:
        tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
        tokens = tokenizer.encode([case.text or ""], int(bundle.config.get("max_length", 256)))
        inputs |= {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    return inputs


def _time_steps(sessions: Mapping[str, Session], steps: Sequence[str], inputs: Arrays) -> dict[str, float]:
    """Run one case and return the seconds of each graph."""
    values, seconds = dict(inputs), {}
    for step in steps:
        spec = MODELS[step]
        names = [tensor.name for tensor in spec.outputs]
        feeds = {tensor.name: values[tensor.name] for tensor in spec.inputs}
        start = time.perf_counter()
        answers = sessions[step].run(names, feeds)
        seconds[step] = time.perf_counter() - start
        values |= dict(zip(names, answers, strict=True))
    return seconds
