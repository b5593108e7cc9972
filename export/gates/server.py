"""The gate at the server: compare the answers of a running server with those of the graphs that passed the other gates.

`cxr export` runs the graphs on random requests (`export.gates.requests`), some of them with several views. It writes
their answers and the limits of the profile into the configs of `predict_*_tensors`. Any client can later send the same
requests to a server, whatever its runtime: another ONNX Runtime, CUDA, TensorRT or OpenVINO. This module imports
neither torch nor onnxruntime.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.decisions import Decisions
from contract.errors import ArtifactError, ServerError
from contract.runtime.walk import RunGraph, list_graphs, walk_graphs
from contract.tensors import EMBEDDING, PROBABILITIES
from contract.training_data import WAYS
from export.gates.measures import compute_cosines, count_flips, find_largest_difference
from export.gates.requests import Request
from export.profiles import Limits

STORED: Final = "gate"  # parameter of `predict_*_tensors`
_OUTPUTS: Final = (PROBABILITIES.name, EMBEDDING.name)
_DTYPE: Final = np.dtype("<f4")


@dataclass(frozen=True)
class StoredAnswers:
    """The answers of a profile's graphs that passed the gates, and the limits for the answers of a server.

    Attributes:
        profile: Name of the precision profile.
        limits: Limits of the profile.
        answers: Kind -> (M, K + D) float32, one row for each case of the random requests: the probabilities, then the
            embedding. A kind without an entry is not compared.
    """

    profile: str
    limits: Limits
    answers: Mapping[str, NDArray[np.float32]]

    def write(self, kind: str) -> str:
        """Return the answers of one kind as the text of a config parameter."""
        rows = self.answers[kind]
        return json.dumps(
            {
                "profile": self.profile,
                "limits": asdict(self.limits),
                "shape": rows.shape,
                "answers": base64.b64encode(rows.astype(_DTYPE).tobytes()).decode("ascii"),
            }
        )

    @classmethod
    def read(cls, parameters: Mapping[str, str], *, source: str) -> "StoredAnswers":
        """Parse the texts that `write` returned.

        Args:
            parameters: Kind -> text of the config parameter, or "".
            source: Where the parameters come from, for messages.

        Raises:
            ArtifactError: All parameters are missing, or one is damaged.
        """
        try:
            values = {kind: json.loads(parameters[kind]) for kind in WAYS if parameters.get(kind)}
            answers = {
                kind: np.frombuffer(base64.b64decode(value["answers"], validate=True), _DTYPE)
                .reshape(value["shape"])
                .astype(np.float32)
                for kind, value in values.items()
            }
            first = next(iter(values.values()))
            return cls(str(first["profile"]), Limits(**first["limits"]), answers)
        except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{source} holds no readable answers to compare with. Publish the bundle again with `cxr export`."
            ) from error


@dataclass(frozen=True)
class KindAgreement:
    """The differences between a server and the stored answers for one kind of request."""

    kind: str
    cases: int
    decisions: int
    flips: int
    probability_difference: float
    embedding_cosine: float

    def list_failures(self, limits: Limits) -> list[str]:
        """Return one clause for each measure that is beyond its limit. NaN is beyond every limit."""
        failures = []
        if not self.probability_difference <= limits.probability_difference:
            failures.append(
                f"probability_difference of {self.kind} is {self.probability_difference:.6g}, but must be at most "
                f"{limits.probability_difference:g}"
            )
        if not self.embedding_cosine >= limits.embedding_cosine:
            failures.append(
                f"embedding_cosine of {self.kind} is {self.embedding_cosine:.6g}, but must be at least "
                f"{limits.embedding_cosine:g}"
            )
        if self.flips > max(1, limits.flip_share * self.decisions):  # one flip is always allowed
            failures.append(f"{self.flips} of {self.decisions} decisions of {self.kind} flip")
        return failures


@dataclass(frozen=True)
class Agreement:
    """A server against the stored answers; `server` describes its runtime."""

    server: str
    profile: str
    limits: Limits
    kinds: tuple[KindAgreement, ...]

    @property
    def failures(self) -> list[str]:
        """One clause for each measure that is beyond its limit."""
        return [failure for row in self.kinds for failure in row.list_failures(self.limits)]

    @property
    def passed(self) -> bool:
        """Whether every measure is within its limit."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, with None for values that are not finite."""
        values = {**asdict(self), "passed": self.passed, "failures": self.failures}
        for row in values["kinds"]:
            row.update({key: None for key, value in row.items() if isinstance(value, float) and isnan(value)})
        return values

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        limits = self.limits
        cases = sum(row.cases for row in self.kinds)
        lines = [
            f"Profile {self.profile} through {self.server} against the graphs that passed the gates: {cases} random "
            "cases",
            "",
            "| input | cases | largest change of a probability | flips | of | smallest cosine | |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {x.kind} | {x.cases} | {x.probability_difference:.1e} | {x.flips} | {x.decisions} "
                f"| {x.embedding_cosine:.6f} | {'FAILED' if x.list_failures(limits) else 'ok'} |"
                for x in self.kinds
            ),
            f"| limit | | {limits.probability_difference:g} | {limits.flip_share:.2%} | "
            f"| {limits.embedding_cosine:g} | |",
        ]
        return "\n".join(lines) + "\n"


def collect_answers(
    run: Callable[[Request], Mapping[str, NDArray[Any]]], requests: Sequence[Request]
) -> dict[str, NDArray[np.float32]]:
    """Run all requests; return kind -> (M, K + D) float32.

    Args:
        run: Runs one request and returns its outputs by name.
        requests: The requests.

    Raises:
        ServerError: An output does not have one row for each case.
    """
    rows: dict[str, list[NDArray[Any]]] = {}
    for request in requests:
        answer = run(request)
        parts = [np.asarray(answer[name]) for name in _OUTPUTS]
        if any(part.ndim != 2 or len(part) != request.batch_size for part in parts):
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            raise ServerError(
                f"The server answered a request of {request.batch_size} cases with tensors of shape {shapes}."
            )
        rows.setdefault(request.kind, []).append(np.concatenate(parts, axis=1))
    return {kind: np.concatenate(rows[kind]).astype(np.float32) for kind in WAYS if kind in rows}


def run_request(
    run: RunGraph[NDArray[Any]], request: Request, *, layout: str = "split"
) -> Mapping[str, NDArray[Any]]:
    """Run the graphs of a request in sequence; return the outputs of the last one, the fusion or the fused graph."""
    graphs = list_graphs(request.kind, layout)
    return walk_graphs(graphs, run, request.inputs)[graphs[-1]]


def compare_answers(
    stored: StoredAnswers,
    answers: Mapping[str, NDArray[np.float32]],
    decisions: Decisions,
    server: str,
    label_part: int,
) -> Agreement:
    """Compare the answers of a server with the stored answers.

    Args:
        stored: Stored answers of the served version.
        answers: Kind -> (M, K + D), as `collect_answers` returns it.
        decisions: Decisions of the served model.
        server: Description of the server's runtime.
        label_part: Length of the label part of the embeddings.

    Raises:
        ServerError: The answers have another shape than the stored answers.
    """
    kinds = tuple(_compare(stored, answers, decisions, label_part))
    return Agreement(server, stored.profile, stored.limits, kinds)


def _compare(
    stored: StoredAnswers,
    answers: Mapping[str, NDArray[np.float32]],
    decisions: Decisions,
    label_part: int,
) -> Iterator[KindAgreement]:
    for kind, expected in stored.answers.items():
        actual = answers[kind]
        if expected.shape != actual.shape:
            raise ServerError(
                f"The answers to {kind} requests have the shape {list(actual.shape)}, not {list(expected.shape)}."
            )
        labels = decisions.of(kind)
        probabilities = (expected[:, : len(labels)], actual[:, : len(labels)])
        embeddings = (expected[:, len(labels) :], actual[:, len(labels) :])
        finite = np.isfinite(actual).all()
        yield KindAgreement(
            kind=kind,
            cases=len(expected),
            decisions=probabilities[0].size,
            flips=count_flips(labels, *probabilities),
            probability_difference=find_largest_difference(*probabilities),
            embedding_cosine=(
                float(compute_cosines(*embeddings, label_part).min()) if finite else float("nan")
            ),
        )
