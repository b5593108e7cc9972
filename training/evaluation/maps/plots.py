"""Draw the results of `training.evaluation.maps`."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from contract.files import write_file
from training.evaluation.maps.sanity import MOST_SIMILAR
from training.evaluation.maps.subject import CONTROLS

PLOTS: Final = {
    "pointing": "Pointing game with 95 % intervals",
    "cascade": "Similarity of the map to that of a model whose parts are random, from the logits down",
}
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_map_plots(results: Mapping[str, Any], directory: Path) -> None:
    """Write a picture of each of `PLOTS` for each way: <name>-<way>.png."""
    for way, found in results["ways"].items():
        write_file(directory / f"pointing-{way}.png", _draw_pointing(found, results["titles"]))
        write_file(directory / f"cascade-{way}.png", _draw_cascade(found, results["titles"]))


def _start() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_pointing(found: Mapping[str, Any], titles: Mapping[str, str]) -> bytes:
    figure, axes = _start()
    names = {**titles, **CONTROLS}
    rows = list(reversed(found["localisation"].items()))
    for place, (key, row) in enumerate(rows):
        value = row["pointing"]
        colour = "#777777" if key in CONTROLS else _COLOURS[0]
        axes.plot([value["low"], value["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(value["value"], place, "o", color=colour)
    centre = found["localisation"]["centre"]["pointing"]["value"]
    axes.axvline(centre, color="#777777", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [names[key] for key, _ in rows])
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"pointing game, {found['findings']} findings")
    return _save(figure)


def _draw_cascade(found: Mapping[str, Any], titles: Mapping[str, str]) -> bytes:
    figure, axes = _start()
    markers = "osv^Dx"
    parts: list[str] = []
    for number, (key, row) in enumerate(found["cascades"].items()):
        parts = row["parts"]
        axes.plot(
            range(len(parts) + 1),
            [1.0, *row["ssim"]],
            marker=markers[number % len(markers)],
            color=_COLOURS[number % len(_COLOURS)],
            label=titles[key],
        )
    axes.axhline(MOST_SIMILAR, color="#777777", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(parts) + 1), ["trained", *parts], rotation=30, ha="right")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("SSIM")
    axes.set_xlabel("random down to this part; dotted: the limit at the end")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure)
