"""The parity gate: compare the outputs of the ONNX graphs with those of the PyTorch model on real cases.

The graphs run in sequence, as in Triton: a fusion graph reads the outputs of the encoder graphs. Each case runs as
study, image and text, as far as it has the inputs. It runs alone, in one batch with the others, and with a mirrored
copy of its image as a second view. Some reports are also shortened and lengthened, so that the smallest and the largest
token bucket are used.

Tolerances in float32: 1e-4 absolute for probabilities and attention; 1e-5 in cosine distance for embeddings, because
only their direction is used; 1e-3 of the largest value for tokens, because fusion normalises them. Text tokens on
padding are not compared, because no graph reads them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.errors import ConfigError, ParityError
from contract.report.text import ReportTokenizer
from contract.runtime.walk import Arrays, bind_sessions, list_graphs, open_graphs, walk_graphs
from contract.tensors import GRAPHS, MAX_BATCH_SIZE, MODELS, PIXELS, TOLERANCES
from export.gates.measures import compute_cosines
from export.gates.requests import Kind, Request
from export.graphs.checks import read_sizes
from training.model.model import CxrModel, load_model

MEASURES: Final[dict[str, str]] = {
    "image_tokens": "difference / largest value",
    "text_tokens": "difference / largest value",
    "embedding": "cosine distance",
}
_DEFAULT_MEASURE: Final = "difference"
_SHORT_WORDS: Final = 4


@dataclass(frozen=True)
class ParityCase:
    """One real case.

    Attributes:
        pixels: (1, S, S) uint8, or None for a case without an image.
        text: The part of the report that the model reads, or None.
        labels: (K,) bool in the order of `contract.labels`, True for a positive label. None: the case has no labels.
        known: (K,) bool, True where `labels` states the truth. None: everywhere.
    """

    pixels: NDArray[np.uint8] | None = None
    text: str | None = None
    labels: NDArray[np.bool_] | None = None
    known: NDArray[np.bool_] | None = None

    @property
    def has_text(self) -> bool:
        """Whether the text has at least one word."""
        return bool(self.text and self.text.strip())


@dataclass(frozen=True)
class OutputParity:
    """The largest difference in one output of one graph; NaN if a value was not finite."""

    graph: str
    output: str
    measure: str
    difference: float
    tolerance: float
    answers: int  # number of compared cases

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance (NaN is not)."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class ParityReport:
    """The cases of a comparison and the largest differences."""

    fingerprint: str
    cases: int
    batch_sizes: tuple[int, ...]
    text_lengths: tuple[int, ...]  # tokens, padded
    versions: dict[str, str]
    outputs: tuple[OutputParity, ...]
    drawn_pixels: bool = False  # no case had an image, so random pixels were used

    @property
    def passed(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(output.passed for output in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {**asdict(self), "passed": self.passed}

    def to_sentence(self) -> str:
        """Return the verdict in one line."""
        graphs = len({x.graph for x in self.outputs})
        worst = max(x.difference for x in self.outputs if x.output == "probabilities")
        verdict = "agree with" if self.passed else "differ from"
        return (
            f"{len(self.outputs)} outputs of {graphs} graphs {verdict} PyTorch on {self.cases} cases "
            f"(largest difference of a probability {worst:.1e}, limit {TOLERANCES['probabilities']:.0e})"
        )

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [
            f"{self.cases} cases, batches of {_join(self.batch_sizes)}, "
            f"texts of {_join(self.text_lengths)} tokens{', random pixels' if self.drawn_pixels else ''}; "
            + versions,
            "",
            "| graph | output | measure | largest | limit | |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {x.graph} | {x.output} | {x.measure} | {x.difference:.1e} | {x.tolerance:.0e} "
            f"| {'ok' if x.passed else 'FAILED'} |"
            for x in self.outputs
        ]
        return "\n".join(lines) + "\n"


def check_parity(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    cases: Sequence[ParityCase],
    progress: Callable[[int, int], None] | None = None,
) -> ParityReport:
    """Compare the graphs with the bundle's model on real cases.

    Args:
        bundle: The verified bundle.
        graphs: Graph name -> ONNX file.
        cases: Real cases, at least one with text. The first 32 of each kind are used. If no case has pixels, as for a
            model of reports, random pixels are used and the report says so.
        progress: Called with (number of finished batches, number of all batches).

    Returns:
        The report, with every output of every graph.

    Raises:
        ConfigError: No case has text.
        TensorError: The pixels have another size than the model's.
        FingerprintError: A graph comes from another bundle.
        ArtifactError: A graph is missing, or ONNX Runtime cannot read it.
        ParityError: A difference is larger than its tolerance. The message names graph, output and difference.
    """
    completed = complete_cases(bundle, cases)
    runner = _Runner(bundle, graphs)
    batches = list(_make_batches(bundle, completed))
    record = _Record()
    for done, batch in enumerate(batches):
        if progress:
            progress(done, len(batches))
        runner.compare(batch, record)
    if progress:
        progress(len(batches), len(batches))
    drawn_pixels = all(case.pixels is None for case in cases)
    report = record.to_report(bundle.fingerprint, len(cases), drawn_pixels)
    _require_passed(report)
    return report


def complete_cases(bundle: Bundle, cases: Sequence[ParityCase]) -> list[ParityCase]:
    """Check the cases. If none has both image and text, add one, so that every graph runs.

    Raises:
        ConfigError: No case has text.
        TensorError: The pixels have another size than the model's.
    """
    sizes = read_sizes(bundle)
    for case in cases:
        if case.pixels is not None:
            PIXELS.check(case.pixels[None], sizes)
    text = next((case.text for case in cases if case.has_text), None)
    if text is None:
        raise ConfigError(
            "The gates need at least one case with a report. Give a studies table that has one."
        )
    if any(case.pixels is not None and case.has_text for case in cases):
        return list(cases)
    pixels = next((case.pixels for case in cases if case.pixels is not None), None)
    if pixels is None:
        shape = (1, sizes["S"], sizes["S"])
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return [*cases, ParityCase(pixels, text)]


def _make_batches(bundle: Bundle, cases: Sequence[ParityCase]) -> Iterator[Request]:
    """Yield the requests of each kind: each case alone, then all in one batch, then all with a second view."""
    tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
    max_length = int(bundle.config.get("max_length", 256))

    def make(kind: Kind, chosen: Sequence[ParityCase], *, mirrored: bool = False) -> Request:
        inputs: Arrays = {}
        if kind != "text":
            pixels = np.stack([case.pixels for case in chosen if case.pixels is not None])  # (B, 1, S, S)
            inputs["pixels"] = np.concatenate([pixels, pixels[..., ::-1]], axis=1) if mirrored else pixels
        if kind != "image":
            tokens = tokenizer.encode([case.text or "" for case in chosen], max_length)
            inputs |= {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        return Request(kind, inputs)

    with_pixels = [case for case in cases if case.pixels is not None][:MAX_BATCH_SIZE]
    with_text = _vary_lengths([case for case in cases if case.has_text], max_length)[:MAX_BATCH_SIZE]
    with_both = [case for case in with_text if case.pixels is not None]
    groups: tuple[tuple[Kind, list[ParityCase]], ...] = (
        ("image", with_pixels),
        ("text", with_text),
        ("study", with_both),
    )
    for kind, members in groups:
        for case in members:
            yield make(kind, [case])
        if len(members) > 1:
            yield make(kind, members)
        if kind != "text":
            yield make(kind, members, mirrored=True)


def _vary_lengths(cases: list[ParityCase], max_length: int) -> list[ParityCase]:
    """Add a case with a few words of the given cases, and one with more words than the model reads."""
    source = next(case for case in cases if case.pixels is not None)
    words = " ".join(case.text or "" for case in cases).split()
    longest = " ".join(words * (1 + max_length // len(words)))
    short = ParityCase(source.pixels, " ".join(words[:_SHORT_WORDS]))
    return [short, ParityCase(source.pixels, longest), *cases]


class _Runner:
    """Runs the PyTorch model and the graphs on the same batches."""

    def __init__(self, bundle: Bundle, graphs: Mapping[str, Path]) -> None:
        self._model: CxrModel = load_model(bundle).eval()
        self._label_part = bundle.label_part
        self._run_graph = bind_sessions(open_graphs(bundle, graphs, {}))

    def compare(self, batch: Request, record: "_Record") -> None:
        """Run one batch through both and record the differences, encoders first."""
        expected = self._run_model(batch)
        for graph, outputs in walk_graphs(list_graphs(batch.kind), self._run_graph, batch.inputs).items():
            for output, actual in outputs.items():
                difference = _measure(output, expected[output], actual, batch.inputs, self._label_part)
                record.add(graph, output, difference, batch)

    def _run_model(self, batch: Request) -> Arrays:
        """Return the outputs of the encoders and the fusion by name.

        The model itself runs here, not the modules that the exporter wraps around it (`graph_modules`), so that an
        error in those is seen too.
        """
        fusion = f"fusion_{batch.kind}"
        tensors = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        model, mask = self._model, tensors.get("attention_mask")
        answers: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            if "pixels" in tensors:
                views = tensors["pixels"].split(1, dim=1)  # each (B, 1, S, S)
                answers["image_tokens"] = torch.cat([model.image_encoder(view) for view in views], dim=1)
            if "input_ids" in tensors:
                answers["text_tokens"] = model.text_encoder(tensors["input_ids"], mask)
            inputs = {**tensors, **answers}
            forward = getattr(model.fusion, f"forward_{batch.kind}")
            outputs = forward(*(inputs[tensor.name] for tensor in MODELS[fusion].inputs))
        answers |= {tensor.name: value for tensor, value in zip(MODELS[fusion].outputs, outputs, strict=True)}
        return {name: value.numpy() for name, value in answers.items()}


@dataclass
class _Record:
    """The largest difference so far of each output of each graph."""

    worst: dict[tuple[str, str], float] = field(default_factory=dict)
    answers: dict[tuple[str, str], int] = field(default_factory=dict)
    batch_sizes: set[int] = field(default_factory=set)
    text_lengths: set[int] = field(default_factory=set)

    def add(self, graph: str, output: str, difference: float, batch: Request) -> None:
        """Record one comparison. A NaN stays."""
        key, size = (graph, output), batch.batch_size
        self.worst[key] = float(np.maximum(self.worst.get(key, 0.0), difference))  # maximum keeps NaN
        self.answers[key] = self.answers.get(key, 0) + size
        self.batch_sizes.add(size)
        if "input_ids" in batch.inputs:
            self.text_lengths.add(batch.inputs["input_ids"].shape[1])

    def to_report(self, fingerprint: str, cases: int, drawn_pixels: bool) -> ParityReport:
        """Return the report, with the graphs in the order of `contract.tensors.GRAPHS`."""
        outputs = tuple(
            OutputParity(
                graph,
                tensor.name,
                MEASURES.get(tensor.name, _DEFAULT_MEASURE),
                self.worst[graph, tensor.name],
                TOLERANCES[tensor.name],
                self.answers[graph, tensor.name],
            )
            for graph in GRAPHS
            for tensor in MODELS[graph].outputs
        )
        versions = {"torch": str(torch.__version__), "onnxruntime": str(onnxruntime.__version__)}
        sizes, lengths = tuple(sorted(self.batch_sizes)), tuple(sorted(self.text_lengths))
        return ParityReport(fingerprint, cases, sizes, lengths, versions, outputs, drawn_pixels)


def _measure(
    output: str, expected: NDArray[Any], actual: NDArray[Any], inputs: Arrays, label_part: int
) -> float:
    """Return the difference in the measure of this output: NaN if a value is not finite, inf for another shape."""
    if expected.shape != actual.shape:
        return float("inf")
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    if output == "text_tokens":
        real = inputs["attention_mask"].astype(bool)
        expected, actual = expected[real], actual[real]
    if not np.isfinite(expected).all() or not np.isfinite(actual).all():
        return float("nan")
    if output == "embedding":
        return float(np.max(np.maximum(1.0 - compute_cosines(expected, actual, label_part), 0.0)))
    difference = float(np.abs(expected - actual).max())
    relative = output in ("image_tokens", "text_tokens")
    return difference / max(float(np.abs(expected).max()), 1e-12) if relative else difference


def _require_passed(report: ParityReport) -> None:
    """Raise ParityError for the first failure. Encoders come first, because their errors spread to the fusion."""
    for output in report.outputs:
        if not output.passed:
            raise ParityError(
                f"Graph {output.graph} answers differently from the model: {output.output} differs by "
                f"{output.difference:.2e} ({output.measure}), but the limit is {output.tolerance:.0e}."
            )


def _join(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)
