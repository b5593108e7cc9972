"""The gate at the server while a bundle is published: the cases of the precision gate, through the loaded version.

`export.gates.server` holds a server to what its own configs state, with drawn questions alone. Here the exporter has
the bundle, the float32 graphs and real cases at hand: the server must be within the limits of the profile on those too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from contract.bundle import Bundle
from contract.runtime.walk import bind_sessions
from export.configs import read_token_limits
from export.gates.parity import ParityCase
from export.gates.precision import ServedGraphs, measure_precision, open_profile
from export.gates.precision_report import PrecisionReport
from export.gates.questions import Question, draw_questions
from export.gates.server import Agreement, StoredAnswers, ask_graphs, collect_answers, compare_answers
from export.graphs.checks import read_sizes
from export.profiles import Profile

MOST_CASES: Final = 64  # through a server that answers others meanwhile; enough for AUROC and AP


@dataclass(frozen=True)
class ServerCheck:
    """A loaded version against the answers that are stored with it, and against float32 on real cases."""

    stored: Agreement
    precision: PrecisionReport

    @property
    def failures(self) -> list[str]:
        """One clause for each measure that is beyond its limit."""
        return [*self.stored.failures, *self.precision.failures]

    @property
    def passed(self) -> bool:
        """Whether every measure is within its limit."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return both reports as JSON-ready values."""
        return {
            "stored": self.stored.to_dict(),
            "precision": self.precision.to_dict(),
            "passed": self.passed,
        }

    def to_markdown(self) -> str:
        """Return both reports as tables for people."""
        return f"{self.stored.to_markdown()}\n{self.precision.to_markdown()}"


def store_answers(bundle: Bundle, graphs: Mapping[str, Path], profile: Profile) -> StoredAnswers:
    """Ask graphs that passed the gates the drawn questions, of the kinds that the model was trained for.

    What it was not trained for is no gate's: random weights are near to any threshold, and any runtime may cross it.

    Args:
        bundle: The bundle that they were made from.
        graphs: Graph name -> file, encoders and fusion apart.
        profile: Says how they run, and how far a server may be from their answers.
    """
    run = bind_sessions(open_profile(bundle, graphs, profile))
    questions = [question for question in draw_for(bundle) if question.kind in bundle.trained_ways]
    answers = collect_answers(partial(ask_graphs, run), questions)
    return StoredAnswers(profile.name, profile.limits, answers)


def draw_for(bundle: Bundle) -> list[Question]:
    """Return the questions that fit a bundle's sizes."""
    limits = read_token_limits(bundle)
    return draw_questions(read_sizes(bundle)["S"], int(limits.vocabulary_size or 1), limits.max_length)


def check_server(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    profile: Profile,
    cases: Sequence[ParityCase],
    served: ServedGraphs,
    *,
    reference: Mapping[str, Path],
    stored: StoredAnswers,
) -> ServerCheck:
    """Measure a version that a server has loaded; the report says whether it passed.

    Args:
        bundle: The bundle.
        graphs: The graphs of the profile by name.
        profile: Its limits count.
        cases: Real cases; 64 are asked, those with image and report first.
        served: The loaded version.
        reference: Float32 graphs that agree with PyTorch.
        stored: What `graphs` answered.

    Raises:
        ServiceError: The server did not answer.
    """
    questions = [question for question in draw_for(bundle) if question.kind in stored.answers]
    found = collect_answers(partial(ask_graphs, served.run, layout=served.layout), questions)
    agreement = compare_answers(stored, found, bundle.decisions, served.runtime)
    chosen = sorted(cases, key=lambda case: (case.pixels is None) + (not case.has_text))[:MOST_CASES]
    real = measure_precision(bundle, graphs, profile, chosen, reference=reference, served=served)
    return ServerCheck(agreement, real)
