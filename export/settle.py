"""Convert graphs to a profile, with as many products in float32 as its limits need.

A few products cause most of the int8 error. The worst is the last one of an encoder, because no residual is added to
its result. These two always stay in float32. They are a hundredth of the multiplications of Swin-T and BERT-base, and a
fifth to a half of the cosine distance of the demo's model. If the limits are still missed, the products with the
largest differences (`export.sensitivity`) stay in float32 too: one, two, four and so on, up to the profile's
`kept_share`, until all cases are within the limits. The limits do not change.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from contract.bundle import Bundle
from export.gates.parity import ParityCase
from export.gates.precision import ENCODERS, KINDS, Gate, Progress, require_passed
from export.gates.precision_report import PrecisionReport
from export.gates.requests import Kind
from export.graphs.convert import ConvertedGraphs, convert_graphs
from export.profiles import Profile
from export.sensitivity import Product, Sensitivity, list_products

WORST: Final = 16  # number of cases, of each kind beyond a limit, that rank the products


def settle_graphs(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    profile: Profile,
    cases: Sequence[ParityCase],
    out: Path,
    progress: Progress | None = None,
    *,
    target: str | None = None,
) -> tuple[ConvertedGraphs, PrecisionReport]:
    """Convert graphs to a profile and require that they are within its limits.

    Args:
        bundle: The verified bundle.
        graphs: Graph name -> file in float32 that passed `check_parity`.
        profile: The conversion and the limits.
        cases: See `check_precision`.
        out: Directory for the new files.
        progress: Called with (number of finished steps, number of all steps) of each measurement.
        target: See `convert_graphs`.

    Returns:
        The graphs and their report, within the limits.

    Raises:
        ConfigError, TensorError, FingerprintError, ArtifactError: See `convert_graphs` and `check_precision`.
        ParityError: A measure is beyond its limit, although as many products are in float32 as the profile allows.
    """
    gate = Gate(bundle, cases, reference=graphs)
    products = list_products(graphs) if profile.kept_share else []
    most = int(profile.kept_share * len(products))
    kept = find_last(products)[:most]

    def settle() -> tuple[ConvertedGraphs, PrecisionReport]:
        nodes: dict[str, list[str]] = {}  # graph -> its products in float32
        for product in kept:
            nodes.setdefault(product.graph, []).append(product.node)
        converted = convert_graphs(bundle, graphs, profile, out, target=target, kept=nodes)
        report = gate.measure(converted.paths, profile, progress)
        return converted, replace(report, kept=tuple(map(str, kept)), products=len(products))

    converted, report = settle()
    if report.passed:
        return converted, report
    beyond, others = report.failures[0], [product for product in products if product not in kept]
    ranked = _rank(bundle, graphs, profile, gate, report, others, out / "alone")
    for count in _list_counts(most - len(kept)):
        kept += islice(ranked, count)
        converted, report = settle()
        if report.passed:
            return converted, replace(report, beyond_with_fewer=beyond)
    require_passed(report)
    return converted, report


def find_last(products: Sequence[Product]) -> list[Product]:
    """Return the last product of each encoder."""
    last = {product.graph: product for product in products if product.graph in ENCODERS}
    return list(last.values())


def _rank(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    profile: Profile,
    gate: Gate,
    report: PrecisionReport,
    products: Sequence[Product],
    scratch: Path,
) -> Iterator[Product]:
    missed = {row.kind for row in report.gated if row.list_failures(profile.limits)}
    worst: dict[Kind, list[ParityCase]] = {
        kind: gate.find_worst(kind, profile.limits, WORST) for kind in KINDS if kind in missed
    }
    yield from Sensitivity(bundle, graphs, profile, worst, scratch).rank(products)


def _list_counts(most: int) -> Iterator[int]:
    """Yield 1, 1, 2, 4 and so on. Their sum is `most`."""
    count = total = min(1, most)
    while count:
        yield count
        count = min(total, most - total)
        total += count
