"""Which products of a model lose the most when they are computed in int8?

One product after the other is converted alone, all else staying in float32, and the answers are compared: the
differences of single products add up to those of all, nearly. Not each has to be tried. Of a graph that is beyond its
share one half is converted, then the other; the half that is further off is split first, until it is one product.
"""

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.runtime.session import Session, open_session
from contract.runtime.walk import Arrays, bind_sessions
from contract.tensors import GRAPHS, MODELS
from export.gates.parity import ParityCase
from export.gates.precision import ask, load_reference, make_batches
from export.gates.precision_report import measure_distances
from export.gates.questions import Kind
from export.graphs.convert import find_products, quantize_to_int8
from export.profiles import Profile


@dataclass(frozen=True)
class Product:
    """A matrix product with a weight.

    Attributes:
        graph: Name of its graph.
        node: Name of its node.
        shape: (K, N) of the weight.
    """

    graph: str
    node: str
    shape: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.graph}/{self.node} ({self.shape[0]} x {self.shape[1]})"


def list_products(graphs: Mapping[str, Path]) -> list[Product]:
    """Return the products of float32 graphs that int8 is for, graph by graph."""
    return [
        Product(name, node, shape) for name in GRAPHS for node, shape in find_products(graphs[name]).items()
    ]


class Sensitivity:
    """Some cases, their answers in float32, and what int8 changes in them."""

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, Path],
        profile: Profile,
        cases: Mapping[Kind, Sequence[ParityCase]],
        scratch: Path,
    ) -> None:
        """Ask the float32 graphs.

        Args:
            bundle: The verified bundle.
            graphs: Graph name -> file in float32.
            profile: Says how int8 runs, and the limits that differences are measured by.
            cases: Of each kind that matters, at most 32.
            scratch: Directory for graphs; made if needed.
        """
        self._graphs, self._profile, self._scratch = graphs, profile, scratch
        self._products: dict[str, list[str]] = {}  # graph -> names of its products
        self._float32 = load_reference(bundle, graphs)
        batches = {kind: next(make_batches(bundle, chosen))[1] for kind, chosen in cases.items()}
        self._expected = {kind: (batch, ask(self._float32, batch)) for kind, batch in batches.items()}

    def rank(self, products: Sequence[Product]) -> Iterator[Product]:
        """Yield those of these products that answer the kinds, the one that loses the most first."""
        order = itertools.count()  # of equals, the first found goes first
        heap: list[tuple[float, int, list[Product]]] = []

        def add(segment: list[Product]) -> None:
            if segment:
                heapq.heappush(heap, (-self.measure(segment), next(order), segment))

        for name in GRAPHS:
            if any(self._answers(name, kind) for kind in self._expected):
                add([product for product in products if product.graph == name])
        while heap:
            _, _, segment = heapq.heappop(heap)
            if len(segment) == 1:
                yield segment[0]
                continue
            add(segment[: len(segment) // 2])
            add(segment[len(segment) // 2 :])

    def measure(self, segment: Sequence[Product]) -> float:
        """Return how far the answers are off, as a share of the limits, with these products of one graph in int8."""
        name = segment[0].graph
        chosen = {product.node for product in segment}
        path = self._scratch / f"{name}.onnx"
        if name not in self._products:  # it takes reading the whole graph
            self._products[name] = list(find_products(self._graphs[name]))
        kept = [node for node in self._products[name] if node not in chosen]
        quantize_to_int8(self._graphs[name], path, kept=kept)
        config = {"optimization": self._profile.make_optimization()}
        session = open_session(path, config, kind=self._profile.target.upper())
        return max(self._compare(kind, name, session) for kind in self._expected if self._answers(name, kind))

    def _compare(self, kind: Kind, changed: str, session: Session) -> float:
        (batch, expected), fusion = self._expected[kind], f"fusion_{kind}"

        def run(graph: str, inputs: Arrays) -> Mapping[str, NDArray[Any]]:
            if graph == changed:
                return bind_sessions({graph: session})(graph, inputs)
            return self._float32(graph, inputs) if graph == fusion else expected[graph]

        found, before = ask(run, batch)[fusion], expected[fusion]
        pairs = ((before[output], found[output]) for output in ("probabilities", "embedding"))
        return float(np.mean(measure_distances(self._profile.limits, *pairs)))

    @staticmethod
    def _answers(graph: str, kind: Kind) -> bool:
        """Whether a graph takes part in the answer to a kind of question."""
        fusion = MODELS[f"fusion_{kind}"]
        return graph == fusion.name or bool(set(MODELS[graph].outputs) & set(fusion.inputs))
