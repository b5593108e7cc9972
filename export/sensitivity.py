"""Rank the matrix products of a model by the accuracy that they lose in int8.

A group of products is converted to int8, all other products stay in float32, and the answers are compared with float32.
The difference of a group is nearly the sum of the differences of its products. So a binary search finds the products
with the largest differences: each graph is one group at first, and the group with the largest difference is split into
halves until it holds one product.
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
from contract.runtime.walk import Arrays, bind_sessions, list_graphs
from contract.tensors import GRAPHS
from export.gates.parity import ParityCase
from export.gates.precision import load_reference, make_batches, run_batch
from export.gates.precision_report import measure_distances
from export.gates.requests import Kind
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
    """Return the products of float32 graphs that int8 can convert, graph by graph."""
    return [
        Product(name, node, shape) for name in GRAPHS for node, shape in find_products(graphs[name]).items()
    ]


class Sensitivity:
    """The differences that int8 causes in the answers to some cases."""

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, Path],
        profile: Profile,
        cases: Mapping[Kind, Sequence[ParityCase]],
        scratch: Path,
    ) -> None:
        """Run the float32 graphs.

        Args:
            bundle: The verified bundle.
            graphs: Graph name -> file in float32.
            profile: The int8 profile: the settings of the graphs, and the limits as the scale of differences.
            cases: Kind of request -> at most 32 cases. Other kinds are ignored.
            scratch: Directory for graphs. It is created if it does not exist.
        """
        self._graphs, self._profile, self._scratch = graphs, profile, scratch
        self._label_part = bundle.label_part
        self._products: dict[str, list[str]] = {}  # graph -> names of its products
        self._float32 = load_reference(bundle, graphs)
        batches = {kind: next(make_batches(bundle, chosen))[1] for kind, chosen in cases.items()}
        self._expected = {kind: (batch, run_batch(self._float32, batch)) for kind, batch in batches.items()}

    def rank(self, products: Sequence[Product]) -> Iterator[Product]:
        """Yield the products that take part in the answers, the one with the largest difference first."""
        order = itertools.count()  # breaks ties between equal differences
        heap: list[tuple[float, int, list[Product]]] = []

        def add(segment: list[Product]) -> None:
            if segment:
                heapq.heappush(heap, (-self.measure(segment), next(order), segment))

        for name in GRAPHS:
            if any(name in list_graphs(kind) for kind in self._expected):
                add([product for product in products if product.graph == name])
        while heap:
            _, _, segment = heapq.heappop(heap)
            if len(segment) == 1:
                yield segment[0]
                continue
            add(segment[: len(segment) // 2])
            add(segment[len(segment) // 2 :])

    def measure(self, segment: Sequence[Product]) -> float:
        """Return the mean difference as a multiple of the limits, with these products of one graph in int8."""
        name = segment[0].graph
        chosen = {product.node for product in segment}
        path = self._scratch / f"{name}.onnx"
        if name not in self._products:  # reads the whole graph, so only once
            self._products[name] = list(find_products(self._graphs[name]))
        kept = [node for node in self._products[name] if node not in chosen]
        quantize_to_int8(self._graphs[name], path, kept=kept)
        config = {"optimization": self._profile.make_optimization()}
        session = open_session(path, config, kind=self._profile.target.upper())
        return max(self._compare(kind, name, session) for kind in self._expected if name in list_graphs(kind))

    def _compare(self, kind: Kind, changed: str, session: Session) -> float:
        (batch, expected), fusion = self._expected[kind], f"fusion_{kind}"

        def run(graph: str, inputs: Arrays) -> Mapping[str, NDArray[Any]]:
            if graph == changed:
                return bind_sessions({graph: session})(graph, inputs)
            return self._float32(graph, inputs) if graph == fusion else expected[graph]

        actual = run_batch(run, batch)[fusion]
        probabilities, embeddings = (
            (expected[fusion][output], actual[output]) for output in ("probabilities", "embedding")
        )
        distances = measure_distances(self._profile.limits, probabilities, embeddings, self._label_part)
        return float(np.mean(distances))
