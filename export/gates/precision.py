"""The second gate: do the graphs of a precision profile answer as float32 does, on real cases?

`check_parity` holds the exported graphs to PyTorch strictly. This gate takes graphs that were converted since, runs
them by `contract.runtime.session` under the settings that they will be served with, chained as Triton chains them, and
measures what a person would notice: probabilities, decisions, AUROC and AP, embeddings and whom they find. The limits
are the profile's (`export.profiles`). Each of study, image and text that the model was trained for must meet them, each
case alone and in batches. What it was not trained for is measured and not held to anything: such answers mean nothing,
and random weights are as near to any threshold.

A share of flipped decisions that few cases cannot show, because one decision is more than that, is read as one flip.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.errors import ParityError
from contract.report.text import ReportTokenizer
from contract.runtime.session import Session
from contract.runtime.walk import Arrays, RunGraph, bind_sessions, list_graphs, open_graphs, walk_graphs
from contract.tensors import FUSED, GRAPHS, IMAGE_TOKENS, MAX_BATCH_SIZE, MODELS, VIEWS
from export.gates.parity import ParityCase, complete_cases
from export.gates.precision_report import GraphPrecision, PrecisionReport, measure_distances, measure_kind
from export.gates.questions import Kind
from export.profiles import Limits, Profile

Runner = RunGraph[NDArray[Any]]
Answers = dict[str, Mapping[str, NDArray[Any]]]  # graph -> its outputs by name
Progress = Callable[[int, int], None]
KINDS: Final[tuple[Kind, ...]] = ("study", "image", "text")
ALONE: Final = 16  # so many cases are asked alone too
ENCODERS: Final = ("image_encoder", "text_encoder")


@dataclass(frozen=True)
class ServedGraphs:
    """Graphs that a running server has loaded.

    Attributes:
        run: Asks one of them.
        layout: "split" or "fused", as they were published.
        runtime: What runs them, for people.
    """

    run: Runner
    layout: str
    runtime: str


def check_precision(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    profile: Profile,
    cases: Sequence[ParityCase],
    progress: Progress | None = None,
    *,
    reference: Mapping[str, Path] | None = None,
) -> PrecisionReport:
    """Hold the graphs of a profile to its limits.

    Args:
        bundle: The verified bundle.
        graphs: Graph name -> file, converted for the profile (`export.graphs.convert.convert_graphs`).
        profile: Says how the graphs run and how far they may be off.
        cases: Real cases, best the test split with labels: at least one with text, 12 for the nearest cases.
        progress: Called with (batches done, batches in all).
        reference: Float32 graphs that passed `check_parity`, to compare with; None: the PyTorch model.

    Returns:
        The report, within the limits.

    Raises:
        ConfigError: No case has text, or this machine cannot run the profile.
        TensorError: Pixels have another size than the model's.
        FingerprintError: A graph comes from another bundle.
        ParityError: A measure is beyond its limit; the message names profile, kind, measure, found and allowed.
    """
    report = measure_precision(bundle, graphs, profile, cases, progress, reference=reference)
    require_passed(report)
    return report


def measure_precision(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    profile: Profile,
    cases: Sequence[ParityCase],
    progress: Progress | None = None,
    *,
    reference: Mapping[str, Path] | None = None,
    served: ServedGraphs | None = None,
) -> PrecisionReport:
    """Measure as `check_precision` does, and return the report also where it did not pass.

    With `served` the graphs of a running server are asked instead of the files, of which only the names count then.
    """
    return Gate(bundle, cases, reference=reference).measure(graphs, profile, progress, served=served)


class Gate:
    """Real cases, and what float32 answers to them: computed once for all graphs that are held to it."""

    def __init__(
        self, bundle: Bundle, cases: Sequence[ParityCase], *, reference: Mapping[str, Path] | None = None
    ) -> None:
        """Take the cases; see `check_precision`."""
        self._bundle, self._reference = bundle, reference
        self._count = len(cases)
        self.cases = complete_cases(bundle, cases)
        self._expected: list[tuple[int, Batch, Answers]] = []
        self._record = _Record()

    def measure(
        self,
        graphs: Mapping[str, Path],
        profile: Profile,
        progress: Progress | None = None,
        *,
        served: ServedGraphs | None = None,
    ) -> PrecisionReport:
        """Measure the graphs of a profile; see `measure_precision`."""
        sessions = {} if served else open_profile(self._bundle, graphs, profile)
        run, layout = (served.run, served.layout) if served else (bind_sessions(sessions), "split")
        total = -(-len(self.cases) // MAX_BATCH_SIZE) + min(len(self.cases), ALONE)
        record = self._record = _Record()
        for done, (size, batch, expected) in enumerate(self._list_expected()):
            if progress:
                progress(done, total)
            record.add(size, batch, expected, ask(run, batch, layout))
        if progress:
            progress(total, total)
        return PrecisionReport(
            profile=profile.name,
            limits=profile.limits,
            fingerprint=self._bundle.fingerprint,
            reference="PyTorch float32"
            if self._reference is None
            else "float32 graphs that agree with PyTorch",
            runtimes=dict.fromkeys(graphs, served.runtime)
            if served
            else {name: session.describe() for name, session in sessions.items()},
            cases=self._count,
            kinds=tuple(
                measure_kind(
                    self._bundle.decisions.of(kind),
                    kind,
                    size,
                    answers,
                    [self.cases[case] for case in answers.cases],
                )
                for (size, kind), answers in record.list_answers()
            ),
            graphs=record.list_graphs(),
            not_gated=explain_not_gated(self._bundle.trained_ways),
        )

    def find_worst(self, kind: Kind, limits: Limits, count: int) -> list[ParityCase]:
        """Return the cases, asked in a batch, whose answers were the furthest off at the last measurement."""
        answers = self._record.answers[MAX_BATCH_SIZE, kind]
        order = np.argsort(-answers.compare(limits))[:count]
        return [self.cases[answers.cases[place]] for place in order]

    def _list_expected(self) -> Iterator[tuple[int, "Batch", Answers]]:
        if self._expected:
            yield from self._expected
            return
        run, made = load_reference(self._bundle, self._reference), []
        for size, batch in make_batches(self._bundle, self.cases):
            made.append((size, batch, ask(run, batch)))
            yield made[-1]
        self._expected = made  # all of them


def explain_not_gated(trained: Sequence[str]) -> dict[str, str]:
    """Return why each kind that a model was not trained for is held to nothing; see `Bundle.trained_ways`."""
    lacking = {"study": "an image and a report", "image": "an image", "text": "a report"}
    return {kind: f"no training study has {lacking[kind]}" for kind in KINDS if kind not in trained}


def require_passed(report: PrecisionReport) -> None:
    """Raise ParityError for the first measure that is beyond its limit."""
    for failure in report.failures:
        raise ParityError(f"Profile {report.profile} is not published: {failure}.")


def open_profile(bundle: Bundle, graphs: Mapping[str, Path], profile: Profile) -> dict[str, Session]:
    """Open every graph as it will be served under a profile.

    Raises:
        ConfigError: This machine lacks what the profile needs.
        FingerprintError: A graph comes from another bundle.
        ArtifactError: A graph is missing or cannot be read.
    """
    config = {"optimization": profile.make_optimization()}
    return open_graphs(bundle, graphs, config, kind=profile.target.upper())


def load_reference(bundle: Bundle, reference: Mapping[str, Path] | None) -> Runner:
    """Return what answers in float32: these graphs on ONNX Runtime, or the PyTorch model."""
    if reference is not None:
        from export.profiles import load_profile

        return bind_sessions(open_profile(bundle, reference, load_profile("fp32")))
    import torch

    from training.model.model import graph_modules, load_model

    modules = graph_modules(load_model(bundle))

    def run(graph: str, inputs: Arrays) -> Arrays:
        spec = MODELS[graph]
        with torch.inference_mode():
            answer: Any = modules[graph](*(torch.from_numpy(inputs[tensor.name]) for tensor in spec.inputs))
        outputs = answer if isinstance(answer, tuple) else (answer,)
        return {tensor.name: value.numpy() for tensor, value in zip(spec.outputs, outputs, strict=True)}

    return run


class Batch:
    """Some cases as tensors; `places[kind]` are the positions of the cases that can be asked as that kind."""

    def __init__(self, tokenizer: ReportTokenizer, max_length: int, cases: Mapping[int, ParityCase]) -> None:
        pixels = {place: case.pixels for place, case in cases.items() if case.pixels is not None}
        images = list(pixels)
        texts = [place for place, case in cases.items() if case.has_text]
        both = sorted(set(images) & set(texts))
        self.places: dict[Kind, list[int]] = {"study": both, "image": images, "text": texts}
        self.inputs: Arrays = {}
        if images:
            self.inputs["pixels"] = np.stack(list(pixels.values()))
        if texts:
            tokens = tokenizer.encode([cases[place].text or "" for place in texts], max_length)
            self.inputs |= {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}

    def select(self, kind: Kind, graph: str, values: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the inputs of a kind's fusion or fused graph: the rows of the cases that have this kind."""
        chosen = {}
        for tensor in (MODELS | FUSED)[graph].inputs:
            own: Kind = "image" if tensor in (IMAGE_TOKENS, VIEWS) else "text"
            rows = [self.places[own].index(place) for place in self.places[kind]]
            chosen[tensor.name] = np.ascontiguousarray(values[tensor.name][rows])
        return chosen


def make_batches(bundle: Bundle, cases: Sequence[ParityCase]) -> Iterator[tuple[int, Batch]]:
    """Yield batches with their nominal size: all cases in full batches, then the first ones alone."""
    tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
    max_length = int(bundle.config.get("max_length", 256))
    for size, count in ((MAX_BATCH_SIZE, len(cases)), (1, min(len(cases), ALONE))):
        for start in range(0, count, size):
            chosen = {place: cases[place] for place in range(start, min(start + size, count))}
            yield size, Batch(tokenizer, max_length, chosen)


def ask(run: Runner, batch: Batch, layout: str = "split") -> Answers:
    """Return the outputs of every graph that can read cases of the batch.

    A request has one kind (`contract.runtime.walk.list_graphs`), but a batch here holds cases of all kinds. So each
    encoder runs once for all kinds, and each fusion graph reads the token rows of its own cases. A fused graph encodes
    its cases itself, and its outputs are returned under the name of the fusion graph.
    """
    encoders = [
        encoder
        for encoder in ENCODERS
        if layout == "split" and MODELS[encoder].inputs[0].name in batch.inputs
    ]
    answers = walk_graphs(encoders, run, batch.inputs)
    values = {
        **batch.inputs,
        **{name: array for tokens in answers.values() for name, array in tokens.items()},
    }
    for kind in KINDS:
        if batch.places[kind]:
            graph = list_graphs(kind, layout)[-1]
            outputs = walk_graphs([graph], run, batch.select(kind, graph, values))
            answers[f"fusion_{kind}"] = outputs[graph]
    return answers


class _Answers:
    """What both sides said of one kind of question; lists of (M, ...) arrays."""

    def __init__(self) -> None:
        self.cases: list[int] = []
        self._parts: dict[tuple[str, str], list[Any]] = {}

    def add(
        self,
        places: list[int],
        expected: Mapping[str, NDArray[Any]],
        found: Mapping[str, NDArray[Any]],
    ) -> None:
        """Append the answers of a batch."""
        self.cases += places
        for side, arrays in (("expected", expected), ("found", found)):
            for output in ("probabilities", "embedding"):
                self._parts.setdefault((side, output), []).append(arrays[output])

    def read(self, output: str) -> tuple[Any, Any]:
        """Return all (M, ...) expected and found arrays of an output."""
        return np.concatenate(self._parts["expected", output]), np.concatenate(self._parts["found", output])

    def compare(self, limits: Limits) -> NDArray[np.float64]:
        """Return how far each case (M,) is off; see `measure_distances`."""
        return measure_distances(limits, *(self.read(output) for output in ("probabilities", "embedding")))


class _Record:
    """All answers, by batch size and kind, and how far each graph's outputs are off."""

    def __init__(self) -> None:
        self.answers: dict[tuple[int, Kind], _Answers] = {}
        self._squares: dict[tuple[str, str], list[float]] = {}  # of the difference, of the expected

    def add(self, size: int, batch: Batch, expected: Answers, found: Answers) -> None:
        """Note one batch."""
        for kind in KINDS:
            if batch.places[kind]:
                answers = self.answers.setdefault((size, kind), _Answers())
                answers.add(batch.places[kind], expected[f"fusion_{kind}"], found[f"fusion_{kind}"])
        for graph in expected.keys() & found.keys():  # fused graphs do not show what their encoders say
            for output, value in expected[graph].items():
                self._add_squares(graph, output, value, found[graph][output], batch)

    def _add_squares(self, graph: str, output: str, expected: Any, found: Any, batch: Batch) -> None:
        if output == "text_tokens":  # nothing reads those on padding
            real = batch.inputs["attention_mask"].astype(bool)
            expected, found = expected[real], found[real]
        sums = self._squares.setdefault((graph, output), [0.0, 0.0])
        wide = expected.astype(np.float64)
        sums[0] += float(((found - wide) ** 2).sum())
        sums[1] += float((wide**2).sum())

    def list_answers(self) -> list[tuple[tuple[int, Kind], _Answers]]:
        """Return the answers in batches first, each in the order of `KINDS`."""
        return sorted(self.answers.items(), key=lambda item: (-item[0][0], KINDS.index(item[0][1])))

    def list_graphs(self) -> tuple[GraphPrecision, ...]:
        """Return the differences, graphs in the order of `contract.tensors.GRAPHS`."""
        return tuple(
            GraphPrecision(graph, tensor.name, float(np.sqrt(sums[0] / max(sums[1], 1e-300))))
            for graph in GRAPHS
            for tensor in MODELS[graph].outputs
            if (sums := self._squares.get((graph, tensor.name)))
        )
