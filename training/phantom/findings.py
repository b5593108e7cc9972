"""The kinds of findings on phantoms: how often they are drawn, and which kinds exclude each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from training.data.mesh import map_heading, map_headings
from training.phantom import chest, lungs, pleura
from training.phantom.anatomy import Anatomy
from training.phantom.film import Film, Plane
from training.phantom.finding import Finding, Mark, hide

Choose = Callable[[np.random.Generator], Finding]
Reshape = Callable[[Anatomy, Finding], Anatomy]
Draw = Callable[[Film, Anatomy, Finding, np.random.Generator], list[Mark]]


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        name: Also its key in `wordings`.
        share: Share of the studies with it, before exclusions.
        choose: Draws side, site, degree and the MeSH headings.
        frontal: Draws it from the front and returns its marks; none if it cannot be seen.
        lateral: The same from the side.
        reshape: Changes the patient before anything is drawn.
        group: Kinds of one group exclude each other.
        apart: Kinds that it would displace or cover.
    """

    name: str
    share: float
    choose: Choose
    frontal: Draw
    lateral: Draw
    reshape: Reshape | None = None
    group: str = ""
    apart: tuple[str, ...] = ()


_IN_LUNG: Final = ("consolidation", "atelectasis", "collapse", "nodule", "mass", "granuloma", "fibrosis")
# Kinds are drawn in this order, because air and fluid around the lung replace what is in it.
KINDS: Final = (
    Kind(
        "consolidation",
        0.075,
        lungs.choose_consolidation,
        lungs.draw_consolidation,
        lungs.draw_consolidation_lateral,
    ),
    Kind(
        "atelectasis", 0.05, lungs.choose_atelectasis, lungs.draw_atelectasis, lungs.draw_atelectasis_lateral
    ),
    Kind(
        "collapse",
        0.03,
        lungs.choose_collapse,
        lungs.draw_collapse,
        lungs.draw_collapse_lateral,
        apart=("atelectasis", "consolidation"),
    ),
    Kind("nodule", 0.06, lungs.choose_nodule, lungs.draw_nodule, lungs.draw_nodule_lateral),
    Kind("mass", 0.06, lungs.choose_mass, lungs.draw_mass, lungs.draw_mass_lateral),
    Kind("granuloma", 0.07, lungs.choose_granuloma, lungs.draw_granuloma, lungs.draw_granuloma_lateral),
    Kind(
        "fibrosis",
        0.06,
        lungs.choose_fibrosis,
        lungs.draw_fibrosis,
        lungs.draw_fibrosis_lateral,
        group="pattern",
    ),
    Kind(
        "congestion",
        0.06,
        lungs.choose_congestion,
        lungs.draw_congestion,
        lungs.draw_congestion_lateral,
        group="pattern",
    ),
    Kind("pneumothorax", 0.06, pleura.choose_pneumothorax, pleura.draw_pneumothorax, hide, apart=_IN_LUNG),
    Kind(
        "effusion",
        0.085,
        pleura.choose_effusion,
        pleura.draw_effusion,
        pleura.draw_effusion_lateral,
        apart=("consolidation",),
    ),
    Kind(
        "hyperinflation",
        0.07,
        lungs.choose_hyperinflation,
        lungs.show_lungs,
        lungs.show_lungs,
        lungs.inflate,
        "volume",
    ),
    Kind(
        "hypoinflation",
        0.06,
        lungs.choose_hypoinflation,
        lungs.show_lungs,
        lungs.show_lungs,
        lungs.deflate,
        "volume",
    ),
    Kind(
        "cardiomegaly",
        0.09,
        chest.choose_cardiomegaly,
        chest.show_heart,
        chest.show_heart,
        chest.enlarge_heart,
    ),
    Kind("aorta", 0.07, chest.choose_aorta, chest.show_aorta, chest.show_aorta, chest.swing_aorta),
    Kind("adenopathy", 0.06, chest.choose_adenopathy, chest.draw_adenopathy, chest.draw_adenopathy_lateral),
    Kind(
        "diaphragm",
        0.035,
        chest.choose_diaphragm,
        chest.show_dome,
        chest.show_dome_lateral,
        chest.raise_dome,
        "volume",
    ),
    Kind("hernia", 0.035, chest.choose_hernia, chest.draw_hernia, chest.draw_hernia_lateral),
    Kind("fracture", 0.06, chest.choose_fracture, chest.draw_fracture, hide),
    Kind(
        "spondylosis", 0.075, chest.choose_spondylosis, chest.draw_spondylosis, chest.draw_spondylosis_lateral
    ),
    Kind("scoliosis", 0.06, chest.choose_scoliosis, chest.show_spine, hide, chest.bend_spine),
    Kind("device", 0.075, chest.choose_device, chest.draw_device, chest.draw_device_lateral),
    Kind("abdomen", 0.06, chest.choose_abdomen, chest.draw_abdomen, hide),
)
KIND_BY_NAME: Final = {kind.name: kind for kind in KINDS}


def can_stand_together(first: Kind, second: Kind) -> bool:
    """Whether one study may show both kinds."""
    if first.name == second.name or (first.group and first.group == second.group):
        return False
    return first.name not in second.apart and second.name not in first.apart


def get_categories(findings: tuple[Finding, ...]) -> frozenset[str]:
    """Return the categories that the findings' headings stand for."""
    return map_headings([heading for finding in findings for heading in finding.headings])


def reshape(anatomy: Anatomy, findings: tuple[Finding, ...]) -> Anatomy:
    """Return the patient, changed by the findings."""
    for finding in findings:
        change = KIND_BY_NAME[finding.kind].reshape
        if change is not None:
            anatomy = change(anatomy, finding)
    return anatomy


def draw_finding(
    film: Film, anatomy: Anatomy, finding: Finding, seed: tuple[int, ...]
) -> list[dict[str, object]]:
    """Draw one finding and return its boxes.

    Args:
        film: A film with the patient on it.
        anatomy: The patient after `reshape`.
        finding: What to draw.
        seed: Seed of its details, equal for both views so that heights agree.

    Returns:
        For each mark of the finding and each category of its headings, {"category", "box": [x0, y0, x1, y1],
        "heading"}, in pixels with x1 and y1 excluded; empty if the finding cannot be seen in this view.
    """
    kind = KIND_BY_NAME[finding.kind]
    draw = kind.lateral if film.lateral else kind.frontal
    boxes: list[dict[str, object]] = []
    for mark in draw(film, anatomy, finding, np.random.default_rng(seed)):
        box = find_box(mark.mask)
        if box is not None:
            boxes += [
                {"category": category, "box": list(box), "heading": heading}
                for heading in ((mark.heading,) if mark.heading else finding.headings)
                for category in sorted(map_heading(heading))
            ]
    return boxes


def find_box(mask: Plane, *, least: float = 0.15) -> tuple[int, int, int, int] | None:
    """Return x0, y0, x1, y1 around the pixels of a mask that reach `least`; None for an empty mask."""
    seen = mask >= least
    columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    if not columns.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
