"""Fluid and air around the lungs: drawn on a film that shows a normal chest."""

import numpy as np

from training.phantom.anatomy import Anatomy
from training.phantom.film import Film, make_curve
from training.phantom.finding import Finding, Mark, join_heading, pick

Generator = np.random.Generator
_EFFUSION_CM = {"small": 3.6, "moderate": 6.0, "large": 10.0}
_GAP = {"small": 0.85, "moderate": 0.74, "large": 0.55}  # size of the collapsed lung relative to its space


def choose_effusion(generator: Generator) -> Finding:
    """Choose a pleural effusion; a small one may be indexed by the angle that it blunts."""
    side = pick(generator, "right", "left", "bilateral")
    degree = pick(generator, "small", "small", "moderate", "moderate", "large")
    heading = join_heading("Pleural Effusion", side, degree)
    if degree == "small" and generator.random() < 0.3:
        heading = join_heading("Costophrenic Angle", side, "blunted")
    return Finding("effusion", (heading,), side, "", degree)


def draw_effusion(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Fill the pleural space from below up to a meniscus that climbs along the chest wall."""
    marks = []
    for sign in finding.signs:
        wall, angle = anatomy.half_width, anatomy.get_sulcus(sign)
        height = _EFFUSION_CM[finding.degree] * generator.uniform(0.85, 1.15)
        top = angle - height
        meniscus = make_curve(
            [
                (sign * (wall + 0.6), top - 1.2),
                (sign * (wall - 1.4), top + 0.9),
                (sign * 0.6 * wall, top + 2.3),
                (sign * 1.5, top + 2.6),
            ]
        )
        pool = film.fill([*meniscus, (sign * 1.5, angle + 1), (sign * (wall + 0.6), angle + 1)], soft_cm=0.22)
        mask = pool * film.shapes["right lung" if sign < 0 else "left lung"]
        film.replace_air(mask, 0.05)
        marks.append(Mark(mask))
    return marks


def draw_effusion_lateral(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Fill the posterior sulcus."""
    sign = finding.signs[0]
    low = float(anatomy.get_lateral_dome(10.0, sign))
    height = _EFFUSION_CM[finding.degree] * generator.uniform(0.85, 1.15)
    top = low - height
    meniscus = make_curve([(11.4, top - 1.5), (8.5, top + 0.8), (3.0, top + 1.6), (-10.0, top + 1.2)])
    mask = film.fill([*meniscus, (-10, low + 2), (11.4, low + 2)], soft_cm=0.25) * film.lung
    film.replace_air(mask * (0.9 if finding.side == "bilateral" else 0.7), 0.04)
    return [Mark(mask)]


def choose_pneumothorax(generator: Generator) -> Finding:
    """Choose a pneumothorax."""
    side, degree = pick(generator, "right", "left"), pick(generator, "small", "moderate", "moderate", "large")
    site = "apex" if degree == "small" else ""
    return Finding("pneumothorax", (join_heading("Pneumothorax", site, side, degree),), side, site, degree)


def draw_pneumothorax(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Let the lung fall together towards its hilum: a white line, and beyond it air without vessels.

    A small one lies only over the apex.
    """
    sign = finding.signs[0]
    size = _GAP[finding.degree] + generator.uniform(-0.04, 0.04)
    hilum = np.array([sign * 2.6, anatomy.apex + 0.62 * (anatomy.get_dome(sign) - anatomy.apex)])
    shrink = np.array([size, 0.35 + 0.65 * size if finding.degree == "large" else 0.5 + 0.5 * size])
    full = anatomy.outline_lung(sign)
    extent = np.ones((len(full), 1))
    if finding.site == "apex":
        extent = np.clip((hilum[1] - full[:, 1:]) / (hilum[1] - anatomy.apex), 0, 1)
    outline = full + (hilum - full) * (1 - shrink) * extent
    whole = film.shapes["right lung" if sign < 0 else "left lung"]
    lung = film.fill(outline, soft_cm=0.06)
    space = np.clip(whole - lung, 0, 1) * np.minimum(film.air * 2, 1)
    film.vessels *= 1 - space
    film.air += space * (1.12 - film.air)
    film.air *= 1 - (0.45 * (1 - size) * (finding.site != "apex")) * lung
    line = outline[(extent > 0)[:, 0]]
    edge = film.stroke([line], 0.22, soft_cm=0.04) * film.lung
    film.bone += edge * np.minimum(film.air, 1) * np.float32(0.13)
    return [Mark(np.maximum(space, 0.3 * lung * (finding.degree == "large")))]
