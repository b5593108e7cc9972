"""The precision gate: compare the graphs of a precision profile with float32 on real cases.

The parity gate compares the float32 graphs with PyTorch under strict tolerances. This gate runs the converted graphs in
sequence, with `contract.runtime.session` and the settings of the served models. It measures the differences that a user
would notice: in probabilities, decisions, AUROC, average precision, embeddings and nearest neighbours. The limits are
those of the profile (`export.profiles`). They apply to each of study, image and text that the model was trained for,
both to single cases and to batches. The other kinds are measured without a limit, because the answers of untrained
weights have no meaning.

With few cases one flipped decision can be a larger share than the limit. One flip is therefore always allowed.
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
from export.gates.requests import Kind
from export.profiles import Limits, Profile

Runner = RunGraph[NDArray[Any]]
Answers = dict[str, Mapping[str, NDArray[Any]]]  # graph -> its outputs by name
Progress = Callable[[int, int], None]
KINDS: Final[tuple[Kind, ...]] = ("study", "image", "text")
ALONE: Final = 16  # number of cases that also run alone
ENCODERS: Final = ("image_encoder", "text_encoder")


@dataclass(frozen=True)
class ServedGraphs:
    """Graphs that a running server has loaded.

    Attributes:
        run: Runs one of them at the server.
        layout: "split" or "fused".
        runtime: Description of the server's runtime.
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
    """Compare the graphs of a profile with float32, and require that they are within its limits.

    Args:
        bundle: The verified bundle.
        graphs: Graph name -> file, converted for the profile (`export.graphs.convert.convert_graphs`).
        profile: The settings of the graphs, and the limits.
        cases: Real cases, best the test split with labels. At least one has text. Nearest neighbours need 12 cases.
        progress: Called with (number of finished batches, number of all batches).
        reference: Float32 graphs that passed `check_parity`, to compare with. None: the PyTorch model.

    Returns:
        The report, within the limits.

    Raises:
        ConfigError: No case has text, or this machine cannot run the profile.
        TensorError: The pixels have another size than the model's.
        FingerprintError: A graph comes from another bundle.
        ParityError: A measure is beyond its limit. The message names the profile, the kind, the measure and the limit.
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
    """Compare the graphs of a profile with float32. Return the report even if a measure is beyond its limit.

    For the arguments and the errors see `check_precision`. With `served` the graphs of a running server run instead of
    the files, and only the names of the files are used.
    """
    return Gate(bundle, cases, reference=reference).measure(graphs, profile, progress, served=served)


class Gate:
    """Real cases and their answers in float32, which are computed once for all profiles."""

    def __init__(
        self, bundle: Bundle, cases: Sequence[ParityCase], *, reference: Mapping[str, Path] | None = None
    ) -> None:
        """Check the cases. For the arguments see `check_precision`."""
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
        """Compare the graphs of a profile with float32; see `measure_precision`."""
        sessions = {} if served else open_profile(self._bundle, graphs, profile)
        run, layout = (served.run, served.layout) if served else (bind_sessions(sessions), "split")
        total = -(-len(self.cases) // MAX_BATCH_SIZE) + min(len(self.cases), ALONE)
        record = self._record = _Record()
        for done, (size, batch, expected) in enumerate(self._list_expected()):
            if progress:
                progress(done, total)
            record.add(size, batch, expected, run_batch(run, batch, layout))
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
                    self._bundle.label_part,
                )
                for (size, kind), answers in record.list_answers()
            ),
            graphs=record.list_graphs(),
            not_gated=explain_not_gated(self._bundle.trained_ways),
        )

    def find_worst(self, kind: Kind, limits: Limits, count: int) -> list[ParityCase]:
        """Return the cases with the largest differences in a batch of the last measurement, largest first."""
        answers = self._record.answers[MAX_BATCH_SIZE, kind]
        order = np.argsort(-answers.compare(limits, self._bundle.label_part))[:count]
        return [self.cases[answers.cases[row]] for row in order]

    def _list_expected(self) -> Iterator[tuple[int, "Batch", Answers]]:
        if self._expected:
            yield from self._expected
            return
        run, expected = load_reference(self._bundle, self._reference), []
        for size, batch in make_batches(self._bundle, self.cases):
            expected.append((size, batch, run_batch(run, batch)))
            yield expected[-1]
        self._expected = expected  # only when it is complete


def explain_not_gated(trained: Sequence[str]) -> dict[str, str]:
    """Return kind -> reason, of the kinds that the model was not trained for; see `Bundle.trained_ways`."""
    lacking = {"study": "an image and a report", "image": "an image", "text": "a report"}
    return {kind: f"no training study has {lacking[kind]}" for kind in KINDS if kind not in trained}


def require_passed(report: PrecisionReport) -> None:
    """Raise ParityError if a measure is beyond its limit."""
    for failure in report.failures:
        raise ParityError(f"Profile {report.profile} is not published: {failure}.")


def open_profile(bundle: Bundle, graphs: Mapping[str, Path], profile: Profile) -> dict[str, Session]:
    """Open every graph with the settings of a profile.

    Raises:
        ConfigError: This machine lacks what the profile needs.
        FingerprintError: A graph comes from another bundle.
        ArtifactError: A graph is missing or cannot be read.
    """
    config = {"optimization": profile.make_optimization()}
    return open_graphs(bundle, graphs, config, kind=profile.target.upper())


def load_reference(bundle: Bundle, reference: Mapping[str, Path] | None) -> Runner:
    """Return a function that runs a graph in float32: these graphs on ONNX Runtime, or the modules of PyTorch."""
    if reference is not None:
        from export.profiles import load_profile

        return bind_sessions(open_profile(bundle, reference, load_profile("fp32")))
    import torch

    from training.model.model import graph_modules, load_model

    modules = graph_modules(load_model(bundle))

    def run(graph: str, inputs: Arrays) -> Arrays:
        spec = MODELS[graph]
        with torch.inference_mode():
            result: Any = modules[graph](*(torch.from_numpy(inputs[tensor.name]) for tensor in spec.inputs))
        outputs = result if isinstance(result, tuple) else (result,)
        return {tensor.name: value.numpy() for tensor, value in zip(spec.outputs, outputs, strict=True)}

    return run


class Batch:
    """Some cases as tensors. `rows[kind]` are the numbers of the cases that have the inputs of that kind."""

    def __init__(self, tokenizer: ReportTokenizer, max_length: int, cases: Mapping[int, ParityCase]) -> None:
        pixels = {number: case.pixels for number, case in cases.items() if case.pixels is not None}
        images = list(pixels)
        texts = [number for number, case in cases.items() if case.has_text]
        both = sorted(set(images) & set(texts))
        self.rows: dict[Kind, list[int]] = {"study": both, "image": images, "text": texts}
        self.inputs: Arrays = {}
        if images:
            self.inputs["pixels"] = np.stack(list(pixels.values()))
        if texts:
            tokens = tokenizer.encode([cases[number].text or "" for number in texts], max_length)
            self.inputs |= {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}

    def select(self, kind: Kind, graph: str, values: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the inputs of a kind's fusion or fused graph: the rows of the cases that have this kind."""
        chosen = {}
        for tensor in (MODELS | FUSED)[graph].inputs:
            own: Kind = "image" if tensor in (IMAGE_TOKENS, VIEWS) else "text"
            positions = [self.rows[own].index(case) for case in self.rows[kind]]
            chosen[tensor.name] = np.ascontiguousarray(values[tensor.name][positions])
        return chosen


def make_batches(bundle: Bundle, cases: Sequence[ParityCase]) -> Iterator[tuple[int, Batch]]:
    """Yield batches with their nominal size: all cases in full batches, then the first cases alone."""
    tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
    max_length = int(bundle.config.get("max_length", 256))
    for size, count in ((MAX_BATCH_SIZE, len(cases)), (1, min(len(cases), ALONE))):
        for start in range(0, count, size):
            chosen = {number: cases[number] for number in range(start, min(start + size, count))}
            yield size, Batch(tokenizer, max_length, chosen)


def run_batch(run: Runner, batch: Batch, layout: str = "split") -> Answers:
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
        if batch.rows[kind]:
            graph = list_graphs(kind, layout)[-1]
            outputs = walk_graphs([graph], run, batch.select(kind, graph, values))
            answers[f"fusion_{kind}"] = outputs[graph]
    return answers


class _Answers:
    """The expected and the actual answers of one kind of request; M cases in all."""

    def __init__(self) -> None:
        self.cases: list[int] = []
        self._parts: dict[tuple[str, str], list[Any]] = {}

    def add(
        self,
        cases: list[int],
        expected: Mapping[str, NDArray[Any]],
        actual: Mapping[str, NDArray[Any]],
    ) -> None:
        """Append the answers of a batch."""
        self.cases += cases
        for side, arrays in (("expected", expected), ("actual", actual)):
            for output in ("probabilities", "embedding"):
                self._parts.setdefault((side, output), []).append(arrays[output])

    def read(self, output: str) -> tuple[Any, Any]:
        """Return the expected and the actual array of an output, both (M, ...)."""
        return np.concatenate(self._parts["expected", output]), np.concatenate(self._parts["actual", output])

    def compare(self, limits: Limits, label_part: int) -> NDArray[np.float64]:
        """Return the difference of each case (M,); see `measure_distances`."""
        return measure_distances(limits, self.read("probabilities"), self.read("embedding"), label_part)


class _Record:
    """All answers by batch size and kind, and the differences of each graph's outputs."""

    def __init__(self) -> None:
        self.answers: dict[tuple[int, Kind], _Answers] = {}
        # Graph, output -> sum of squares of the difference, and of the expected values.
        self._squares: dict[tuple[str, str], list[float]] = {}

    def add(self, size: int, batch: Batch, expected: Answers, actual: Answers) -> None:
        """Add one batch."""
        for kind in KINDS:
            if batch.rows[kind]:
                answers = self.answers.setdefault((size, kind), _Answers())
                answers.add(batch.rows[kind], expected[f"fusion_{kind}"], actual[f"fusion_{kind}"])
        for graph in expected.keys() & actual.keys():  # a fused graph has no outputs of encoders
            for output, value in expected[graph].items():
                self._add_squares(graph, output, value, actual[graph][output], batch)

    def _add_squares(self, graph: str, output: str, expected: Any, actual: Any, batch: Batch) -> None:
        if output == "text_tokens":  # no graph reads the tokens on padding
            real = batch.inputs["attention_mask"].astype(bool)
            expected, actual = expected[real], actual[real]
        sums = self._squares.setdefault((graph, output), [0.0, 0.0])
        wide = expected.astype(np.float64)
        sums[0] += float(((actual - wide) ** 2).sum())
        sums[1] += float((wide**2).sum())

    def list_answers(self) -> list[tuple[tuple[int, Kind], _Answers]]:
        """Return the answers, first those of batches, then those of single cases, in the order of `KINDS`."""
        return sorted(self.answers.items(), key=lambda item: (-item[0][0], KINDS.index(item[0][1])))

    def list_graphs(self) -> tuple[GraphPrecision, ...]:
        """Return the differences of all outputs, with the graphs in the order of `contract.tensors.GRAPHS`."""
        return tuple(
            GraphPrecision(graph, tensor.name, float(np.sqrt(sums[0] / max(sums[1], 1e-300))))
            for graph in GRAPHS
            for tensor in MODELS[graph].outputs
            if (sums := self._squares.get((graph, tensor.name)))
        )
