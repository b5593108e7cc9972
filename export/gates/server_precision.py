"""The gate at the server during an export: run real cases through the loaded version too.

`export.gates.server` compares a server with the answers in its own configs, on random requests. An export also has the
bundle, the float32 graphs and real cases. So the server must be within the profile's limits on these cases as well.
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
from export.gates.requests import Request, draw_requests
from export.gates.server import Agreement, StoredAnswers, collect_answers, compare_answers, run_request
from export.graphs.checks import read_sizes
from export.profiles import Profile

MOST_CASES: Final = 64  # enough for AUROC and AP, and a small load for a server with other clients


@dataclass(frozen=True)
class ServerCheck:
    """A loaded version against its stored answers, and against float32 on real cases."""

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
        """Return both reports as Markdown tables."""
        return f"{self.stored.to_markdown()}\n{self.precision.to_markdown()}"


def store_answers(bundle: Bundle, graphs: Mapping[str, Path], profile: Profile) -> StoredAnswers:
    """Return the answers of graphs to the random requests of the kinds that the model was trained for.

    The answers to other kinds come from untrained weights. They lie close to any threshold, so another runtime may flip
    them.

    Args:
        bundle: The bundle that the graphs were made from.
        graphs: Graph name -> file of graphs that passed the gates, in the split layout.
        profile: The settings of the graphs, and the limits for a server.
    """
    run = bind_sessions(open_profile(bundle, graphs, profile))
    requests = [request for request in draw_requests_for(bundle) if request.kind in bundle.trained_ways]
    answers = collect_answers(partial(run_request, run), requests)
    return StoredAnswers(profile.name, profile.limits, answers)


def draw_requests_for(bundle: Bundle) -> list[Request]:
    """Return the random requests for a bundle's sizes."""
    limits = read_token_limits(bundle)
    return draw_requests(read_sizes(bundle)["S"], int(limits.vocabulary_size or 1), limits.max_length)


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
    """Compare a version that a server has loaded with its stored answers and with float32.

    Args:
        bundle: The bundle.
        graphs: Graph name -> file of the profile.
        profile: The profile with the limits.
        cases: Real cases. The first 64 run, those with image and report before the others.
        served: The loaded version.
        reference: Float32 graphs that agree with PyTorch.
        stored: The stored answers of `graphs`.

    Raises:
        ServiceError: The server does not answer.
    """
    requests = [request for request in draw_requests_for(bundle) if request.kind in stored.answers]
    answers = collect_answers(partial(run_request, served.run, layout=served.layout), requests)
    agreement = compare_answers(stored, answers, bundle.decisions, served.runtime, bundle.label_part)
    chosen = sorted(cases, key=lambda case: (case.pixels is None) + (not case.has_text))[:MOST_CASES]
    precision = measure_precision(bundle, graphs, profile, chosen, reference=reference, served=served)
    return ServerCheck(agreement, precision)
