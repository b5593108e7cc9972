"""The third gate: does a running server answer as the graphs did that passed the gates before it?

Publishing asks the graphs the drawn questions (`export.gates.questions`) and lays their answers, with the limits of the
profile, into the configs of `predict_*_tensors`. Whoever reaches the server can then ask it the same, whatever runs
there: another ONNX Runtime, CUDA, TensorRT, OpenVINO. Numpy alone; torch and onnxruntime are not imported.
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
from export.gates.questions import Question
from export.profiles import Limits

STORED: Final = "gate"  # parameter of `predict_*_tensors`
_OUTPUTS: Final = (PROBABILITIES.name, EMBEDDING.name)
_DTYPE: Final = np.dtype("<f4")


@dataclass(frozen=True)
class StoredAnswers:
    """What the graphs of a profile answered when they passed the gates, and how far a server may be from it.

    Attributes:
        profile: Name of the precision profile.
        limits: Of the profile.
        answers: Kind -> (M, K + D) float32, for all cases of the drawn questions in turn: the probabilities, then the
            embedding. A kind that is not here is not held to anything.
    """

    profile: str
    limits: Limits
    answers: Mapping[str, NDArray[np.float32]]

    def write(self, kind: str) -> str:
        """Return the parameter for the config of one kind."""
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
        """Parse what `write` returned.

        Args:
            parameters: Kind -> parameter; empty where there is none.
            source: Who said it, for messages.

        Raises:
            ArtifactError: All are missing, or one is damaged.
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
                f"{source} holds no answers to compare with: publish the bundle again with `cxr export`."
            ) from error


@dataclass(frozen=True)
class KindAgreement:
    """How far a server is from the stored answers in one kind of question."""

    kind: str
    cases: int
    decisions: int
    flips: int
    probability_difference: float
    embedding_cosine: float

    def list_failures(self, limits: Limits) -> list[str]:
        """Return one clause for each measure that is beyond its limit; NaN is beyond every one."""
        found = []
        if not self.probability_difference <= limits.probability_difference:
            found.append(
                f"probability_difference of {self.kind} is {self.probability_difference:.6g}, allowed is at most "
                f"{limits.probability_difference:g}"
            )
        if not self.embedding_cosine >= limits.embedding_cosine:
            found.append(
                f"embedding_cosine of {self.kind} is {self.embedding_cosine:.6g}, allowed is at least "
                f"{limits.embedding_cosine:g}"
            )
        if self.flips > max(1, limits.flip_share * self.decisions):  # of so few decisions one shows nothing
            found.append(f"{self.flips} of {self.decisions} decisions of {self.kind} flip")
        return found


@dataclass(frozen=True)
class Agreement:
    """A server against the stored answers; `server` says what ran there."""

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
        """Return the report as JSON-ready values; what is not a finite number is None."""
        values = {**asdict(self), "passed": self.passed, "failures": self.failures}
        for row in values["kinds"]:
            row.update({key: None for key, value in row.items() if isinstance(value, float) and isnan(value)})
        return values

    def to_markdown(self) -> str:
        """Return the report as a table for people."""
        limits = self.limits
        cases = sum(row.cases for row in self.kinds)
        lines = [
            f"Profile {self.profile} through {self.server} against the graphs that passed the gates: {cases} drawn "
            "cases",
            "",
            "| asked | cases | probability, largest | flips | of | cosine, smallest | |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {x.kind} | {x.cases} | {x.probability_difference:.1e} | {x.flips} | {x.decisions} "
                f"| {x.embedding_cosine:.6f} | {'FAILED' if x.list_failures(limits) else 'ok'} |"
                for x in self.kinds
            ),
            f"| allowed | | {limits.probability_difference:g} | {limits.flip_share:.2%} | "
            f"| {limits.embedding_cosine:g} | |",
        ]
        return "\n".join(lines) + "\n"


def collect_answers(
    ask: Callable[[Question], Mapping[str, NDArray[Any]]], questions: Sequence[Question]
) -> dict[str, NDArray[np.float32]]:
    """Ask everything; return kind -> (M, K + D) float32.

    Raises:
        ServerError: An answer is not one row of each output for each case.
    """
    rows: dict[str, list[NDArray[Any]]] = {}
    for question in questions:
        answer = ask(question)
        parts = [np.asarray(answer[name]) for name in _OUTPUTS]
        if any(part.ndim != 2 or len(part) != question.batch_size for part in parts):
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            raise ServerError(f"{question.batch_size} cases were answered with tensors of {shapes}.")
        rows.setdefault(question.kind, []).append(np.concatenate(parts, axis=1))
    return {kind: np.concatenate(rows[kind]).astype(np.float32) for kind in WAYS if kind in rows}


def ask_graphs(
    run: RunGraph[NDArray[Any]], question: Question, *, layout: str = "split"
) -> Mapping[str, NDArray[Any]]:
    """Run the graphs of a request in sequence; return the outputs of the last one, the fusion or the fused graph."""
    graphs = list_graphs(question.kind, layout)
    return walk_graphs(graphs, run, question.inputs)[graphs[-1]]


def compare_answers(
    stored: StoredAnswers,
    found: Mapping[str, NDArray[np.float32]],
    decisions: Decisions,
    server: str,
) -> Agreement:
    """Hold what a server answered to what was stored.

    Args:
        stored: Of the version that was asked.
        found: Kind -> (M, K + D), as `collect_answers` returns it.
        decisions: Of the model that was asked.
        server: What ran there, for people.

    Raises:
        ServerError: The answers have another shape than the stored ones.
    """
    return Agreement(server, stored.profile, stored.limits, tuple(_compare(stored, found, decisions)))


def _compare(
    stored: StoredAnswers, found: Mapping[str, NDArray[np.float32]], decisions: Decisions
) -> Iterator[KindAgreement]:
    for kind, expected in stored.answers.items():
        answered = found[kind]
        if expected.shape != answered.shape:
            raise ServerError(
                f"The answers to {kind} have the shape {list(answered.shape)}, not {list(expected.shape)}."
            )
        labels = decisions.of(kind)
        known = (expected[:, : len(labels)], answered[:, : len(labels)])
        yield KindAgreement(
            kind=kind,
            cases=len(expected),
            decisions=known[0].size,
            flips=count_flips(labels, *known),
            probability_difference=find_largest_difference(*known),
            embedding_cosine=_find_smallest_cosine(expected[:, len(labels) :], answered[:, len(labels) :]),
        )


def _find_smallest_cosine(expected: NDArray[np.float32], answered: NDArray[np.float32]) -> float:
    return float(compute_cosines(expected, answered).min()) if np.isfinite(answered).all() else float("nan")
