"""Tabulate several evaluated bundles, such as an ablation or a series of seeds.

The figures and their intervals come from `cxr evaluate`; those of two views come from training.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contract import bundle as files
from contract.errors import ConfigError
from contract.signatures import TrustedKeys

EVALUATION: Final = Path("evaluation") / "evaluation.json"
_FAIR: Final = "model, findings - TF-IDF + LR, findings"  # the search, against its fair control
Figure = tuple[float, float, float]  # value, and the 95 % interval's ends


@dataclass(frozen=True)
class Row:
    """One bundle: its config's name, seed, training time in seconds, and column title -> figure."""

    name: str
    seed: int
    seconds: float
    figures: dict[str, Figure]


def read_rows(bundles: Sequence[Path], trust: TrustedKeys | None = None) -> list[Row]:
    """Read evaluated bundles. With `trust`, one of its keys must have signed each.

    Raises:
        ConfigError: A bundle was not evaluated, or evaluated without intervals.
        ArtifactError: A directory is not a bundle, or is damaged or not signed.
    """
    return [_read_row(path, trust) for path in bundles]


def choose_columns(rows: Sequence[Row], wanted: Sequence[str] = ()) -> list[str]:
    """Return the titles of the columns: the wanted ones, or all that at least one row has, in a fixed order.

    Raises:
        ConfigError: A column does not exist.
    """
    unknown = [title for title in wanted if title not in _COLUMNS]
    if unknown:
        raise ConfigError(f"There is no column {unknown[0]!r}. Choose from {', '.join(_COLUMNS)}.")
    return list(wanted) or [title for title in _COLUMNS if any(title in row.figures for row in rows)]


def format_markdown(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """Return the rows as a Markdown table, with their mean if all have the same config; see `choose_columns`."""
    columns = choose_columns(rows, columns)
    lines = [f"| config | seed | {' | '.join(columns)} | s |", f"|---|---|{'---|' * (len(columns) + 1)}"]
    for row in rows:
        cells = [format_figure(row.figures.get(title)) for title in columns]
        lines.append(f"| {row.name} | {row.seed} | {' | '.join(cells)} | {row.seconds:.0f} |")
    if len(rows) > 1 and len({row.name for row in rows}) == 1:
        lines.append(
            f"| {rows[0].name} | mean | {' | '.join(_average(rows, title) for title in columns)} | |"
        )
    return "\n".join(lines) + "\n"


def _average(rows: Sequence[Row], title: str) -> str:
    """Return the mean of a figure over the rows; "-" if a row lacks it."""
    values = [row.figures[title][0] for row in rows if title in row.figures]
    return f"{sum(values) / len(values):.3f}" if len(values) == len(rows) else "-"


def format_figure(figure: Figure | None) -> str:
    """Write a figure with its interval."""
    return "-" if figure is None else f"{figure[0]:.3f} ({figure[1]:.2f}-{figure[2]:.2f})"


def _read_row(path: Path, trust: TrustedKeys | None) -> Row:
    bundle = files.load_bundle(path, trust=trust)
    try:
        results = json.loads((bundle.path / EVALUATION).read_text(encoding="utf-8"))
        results["trained"] = json.loads((bundle.path / files.METRICS).read_text(encoding="utf-8")).get(
            "test", {}
        )
        figures = {title: figure for title, read in _COLUMNS.items() if (figure := read(results)) is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} was not evaluated. Run `cxr evaluate` with --bundle {path} first."
        ) from error
    training = bundle.config.get("training", {})
    name, seed = str(training.get("name", path.name)), int(training.get("seed", 0))
    return Row(name, seed, float(bundle.manifest.get("seconds", 0.0)), figures)


def _read_macro(results: Mapping[str, Any], key: str, metric: str) -> Figure | None:
    for row in results["classification"]:
        if row["key"] == key:
            return _read_interval(row["macro"].get(metric))
    return None


def _read_trained(results: Mapping[str, Any], way: str, metric: str) -> Figure | None:
    """Return a figure that training measured, because a served model reads only one view."""
    return _read_interval(results["trained"].get(way, {}).get("macro", {}).get(metric))


def _read_search(results: Mapping[str, Any], title: str, metric: str) -> Figure | None:
    rows = results["retrieval"]["test_to_train"]["without_normal"]
    return next((_read_interval(row["values"].get(metric)) for row in rows if row["title"] == title), None)


def _read_lead(results: Mapping[str, Any], key: str, control: str, metric: str) -> Figure | None:
    """Return the difference between model and control in a metric of a way; None in an older evaluation."""
    rows = (results.get("paired") or {}).get("classification", ())
    return next(
        (
            _read_interval(row["values"].get(metric))
            for row in rows
            if row["key"] == key and row.get("control", f"tfidf/{key}") == control
        ),
        None,
    )


def _read_search_lead(results: Mapping[str, Any], title: str, metric: str) -> Figure | None:
    rows = (results.get("paired") or {}).get("retrieval", {}).get("without_normal", ())
    return next((_read_interval(row["values"].get(metric)) for row in rows if row["title"] == title), None)


def _read_pairs(results: Mapping[str, Any], title: str, metric: str) -> Figure | None:
    return next(
        (_read_interval(row["values"].get(metric)) for row in results["pairs"] if row["title"] == title), None
    )


def _read_interval(interval: Mapping[str, float] | None) -> Figure | None:
    return None if interval is None else (interval["value"], interval["low"], interval["high"])


_COLUMNS: Final[dict[str, Callable[[Any], Figure | None]]] = {
    "image AUROC": lambda results: _read_macro(results, "image", "auroc"),
    "image AP": lambda results: _read_macro(results, "image", "ap"),
    "pixels AUROC": lambda results: _read_macro(results, "pixels", "auroc"),
    "HOG AUROC": lambda results: _read_macro(results, "hog", "auroc"),
    "AUROC - pixels": lambda results: _read_lead(results, "image", "pixels", "auroc"),
    "AUROC - HOG": lambda results: _read_lead(results, "image", "hog", "auroc"),
    "two views AUROC": lambda results: _read_trained(results, "views", "auroc"),
    "findings AUROC": lambda results: _read_macro(results, "findings", "auroc"),
    "findings AP": lambda results: _read_macro(results, "findings", "ap"),
    "findings F1": lambda results: _read_macro(results, "findings", "f1"),
    "TF-IDF AP": lambda results: _read_macro(results, "tfidf/findings", "ap"),
    "TF-IDF F1": lambda results: _read_macro(results, "tfidf/findings", "f1"),
    "masked AUROC": lambda results: _read_macro(results, "findings_masked", "auroc"),
    "masked AP": lambda results: _read_macro(results, "findings_masked", "ap"),
    "masked F1": lambda results: _read_macro(results, "findings_masked", "f1"),
    "TF-IDF masked AP": lambda results: _read_macro(results, "tfidf/findings_masked", "ap"),
    "TF-IDF masked F1": lambda results: _read_macro(results, "tfidf/findings_masked", "f1"),
    "study AUROC": lambda results: _read_macro(results, "image+findings", "auroc"),
    "P@5 by image": lambda results: _read_search(results, "model, image", "p@5"),
    "P@5 by findings": lambda results: _read_search(results, "model, findings", "p@5"),
    "P@5 TF-IDF": lambda results: _read_search(results, "TF-IDF, findings", "p@5"),
    "P@5 TF-IDF + LR": lambda results: _read_search(results, "TF-IDF + LR, findings", "p@5"),
    "P@5 random": lambda results: _read_search(results, "random order", "p@5"),
    "nDCG@5 by findings": lambda results: _read_search(results, "model, findings", "ndcg@5"),
    "nDCG@5 TF-IDF": lambda results: _read_search(results, "TF-IDF, findings", "ndcg@5"),
    "nDCG@5 TF-IDF + LR": lambda results: _read_search(results, "TF-IDF + LR, findings", "ndcg@5"),
    "AP - TF-IDF": lambda results: _read_lead(results, "findings", "tfidf/findings", "ap"),
    "masked AP - TF-IDF": lambda results: _read_lead(
        results, "findings_masked", "tfidf/findings_masked", "ap"
    ),
    "P@5 - TF-IDF + LR": lambda results: _read_search_lead(results, _FAIR, "p@5"),
    "nDCG@5 - TF-IDF + LR": lambda results: _read_search_lead(results, _FAIR, "ndcg@5"),
    "report → image R@10": lambda results: _read_pairs(results, "report → image", "r@10"),
}
