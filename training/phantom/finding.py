"""One finding of a study, and positions in the lungs."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from training.phantom.anatomy import SIDES, Anatomy
from training.phantom.film import Film, Plane


@dataclass(frozen=True)
class Finding:
    """A finding of a study. The report and both pictures are made from it.

    Attributes:
        kind: Name of its `Kind`.
        headings: MeSH major headings.
        side: "right", "left", "bilateral" or "".
        site: Location, in the words of the headings: "upper lobe", "base"; or a variant of the kind.
        degree: "mild", "moderate", "severe", "small", "large" or "".
    """

    kind: str
    headings: tuple[str, ...]
    side: str = ""
    site: str = ""
    degree: str = ""

    @property
    def signs(self) -> tuple[int, ...]:
        """Signs of x of the sides concerned."""
        return (-1, 1) if self.side in {"bilateral", ""} else (SIDES[self.side],)


class Mark(NamedTuple):
    """One visible part of a finding.

    Attributes:
        mask: Share of each pixel that it covers, 0 to 1.
        heading: The heading that it shows; "" for the whole finding.
    """

    mask: Plane
    heading: str = ""


def join_heading(*parts: str) -> str:
    """Join the parts of a heading that are not empty."""
    return "/".join(part for part in parts if part)


def pick(generator: np.random.Generator, *choices: str) -> str:
    """Return one of the choices."""
    return choices[int(generator.integers(len(choices)))]


def pick_site(generator: np.random.Generator, side: str, sites: tuple[str, ...]) -> str:
    """Return one of the sites; the left lung has a lingula where the right has a middle lobe."""
    site = pick(generator, *sites)
    return "lingula" if site == "middle lobe" and side == "left" else site


def place(
    anatomy: Anatomy, finding: Finding, sign: int, generator: np.random.Generator
) -> tuple[float, float, float]:
    """Return (x, y, z) in cm of a spot in the finding's part of the lung; z runs from front to back."""
    wall, floor, top = anatomy.half_width, anatomy.get_dome(sign), anatomy.apex
    height = floor - top
    x, y, z = {
        "apex": (0.42 * wall, top + 0.17 * height, 2.0),
        "upper lobe": (0.56 * wall, top + 0.33 * height, -0.5),
        "middle lobe": (0.52 * wall, top + 0.70 * height, -5.0),
        "lingula": (0.66 * wall, top + 0.70 * height, -5.5),
        "lower lobe": (0.60 * wall, top + 0.74 * height, 5.5),
        "base": (0.64 * wall, top + 0.86 * height, 4.5),
    }[finding.site or "lower lobe"]
    jitter = generator.uniform(-1, 1, 3)
    return sign * (x + 1.2 * jitter[0]), y + 1.3 * jitter[1], z + 1.0 * jitter[2]


def unite(film: Film, masks: list[Plane]) -> Plane:
    """Return the union of masks."""
    return np.maximum.reduce([film.blank(), *masks])


def hide(_film: Film, _anatomy: Anatomy, _finding: Finding, _generator: np.random.Generator) -> list[Mark]:
    """Draw nothing: the finding cannot be seen in this view."""
    return []
