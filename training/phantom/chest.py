"""Findings of the heart, vessels, bones, diaphragm and abdomen, and devices."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from training.phantom.anatomy import Anatomy
from training.phantom.film import Film, Plane, make_blob, make_curve, make_ellipse
from training.phantom.finding import Finding, Mark, join_heading, pick, unite
from training.phantom.frontal import get_rib
from training.phantom.lateral import get_vertebrae

Generator = np.random.Generator


def choose_cardiomegaly(generator: Generator) -> Finding:
    """Choose an enlarged heart."""
    degree = pick(generator, "", "mild", "moderate", "severe")
    return Finding("cardiomegaly", (join_heading("Cardiomegaly", degree),), "", "", degree)


def enlarge_heart(anatomy: Anatomy, finding: Finding) -> Anatomy:
    """Widen the heart to a cardiothoracic ratio of 0.55 to 0.68."""
    ratio = {"mild": 0.55, "": 0.60, "moderate": 0.62, "severe": 0.68}[finding.degree]
    return replace(anatomy, heart_ratio=ratio + 0.3 * (anatomy.heart_ratio - 0.435))


def show_heart(film: Film, _anatomy: Anatomy, _finding: Finding, _generator: Generator) -> list[Mark]:
    """Return the heart."""
    return [Mark(film.shapes["heart"])]


def choose_aorta(generator: Generator) -> Finding:
    """Choose a tortuous aorta."""
    degree = pick(generator, "", "", "mild")
    heading = pick(generator, "Aorta/tortuous", "Aorta, Thoracic/tortuous", "Aorta, Thoracic/prominent")
    more = ("Calcinosis/aorta",) if generator.random() < 0.3 else ()
    return Finding("aorta", (join_heading(heading, degree), *more), "", "calcified" if more else "", degree)


def swing_aorta(anatomy: Anatomy, finding: Finding) -> Anatomy:
    """Widen the arch and let the descending aorta swing out."""
    extent = 1.9 if finding.degree else 2.8
    return replace(anatomy, tortuosity=extent, knob=anatomy.knob + 0.28 * extent)


def show_aorta(film: Film, anatomy: Anatomy, finding: Finding, _generator: Generator) -> list[Mark]:
    """Return the aorta, with a calcified arch if the headings state it."""
    marks = [Mark(film.shapes["aorta"], finding.headings[0])]
    if finding.site == "calcified" and not film.lateral:
        knob = (1.95 + 0.35 * anatomy.tortuosity, -5.3 - 0.5 * anatomy.tortuosity)
        arc = make_ellipse(knob, (anatomy.knob * 0.9, anatomy.knob * 0.95))[26:40]
        rim = film.stroke([arc], 0.22, soft_cm=0.04)
        film.bone += rim * np.float32(0.25)
        marks.append(Mark(rim, finding.headings[1]))
    return marks


def choose_adenopathy(generator: Generator) -> Finding:
    """Choose enlarged lymph nodes."""
    side = pick(generator, "bilateral", "bilateral", "right", "left")
    heading = pick(generator, f"Lymph Nodes/{side}/enlarged", f"Lung/hilum/lymph nodes/{side}/enlarged")
    return Finding("adenopathy", (heading,), side, "hilum")


def draw_adenopathy(film: Film, _anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw lobulated hila, and a shadow beside the trachea."""
    marks = []
    for sign in finding.signs:
        root = -1.4 if sign < 0 else -2.2
        spots = [(sign * 4.3, root - 1.5, 1.7), (sign * 5.2, root + 0.8, 1.9), (sign * 4.2, root + 2.9, 1.5)]
        spots += [(sign * 2.9, -7.4, 1.5)] if sign < 0 else []
        mask = _draw_lumps(film, spots, generator)
        film.replace_air(mask * np.float32(0.85), 0.05)
        marks.append(Mark(mask))
    return marks


def draw_adenopathy_lateral(
    film: Film, _anatomy: Anatomy, _finding: Finding, generator: Generator
) -> list[Mark]:
    """Draw lumps around the hilum."""
    spots = [(1.3, -3.9, 1.4), (-0.5, -2.7, 1.7), (0.7, -0.3, 1.8), (2.6, -1.6, 1.7), (1.1, -2.0, 1.6)]
    mask = _draw_lumps(film, spots, generator)
    film.replace_air(mask * np.float32(0.6), 0.06)
    return [Mark(mask)]


def _draw_lumps(film: Film, spots: list[tuple[float, float, float]], generator: Generator) -> Plane:
    """Return round bodies inside the lungs; each spot is x, y, radius."""
    masks = []
    for x, y, radius in spots:
        centre = (x + generator.uniform(-0.3, 0.3), y + generator.uniform(-0.3, 0.3))
        masks.append(film.fill(make_blob(generator, centre, radius, rough=0.06), soft_cm=0.18))
    return unite(film, masks) * film.lung


def choose_diaphragm(generator: Generator) -> Finding:
    """Choose an elevated hemidiaphragm."""
    side = pick(generator, "right", "left")
    heading = pick(generator, f"Diaphragm/{side}/elevated", f"Diaphragmatic Eventration/{side}")
    return Finding("diaphragm", (heading,), side)


def raise_dome(anatomy: Anatomy, finding: Finding) -> Anatomy:
    """Raise one dome by 4 cm."""
    right, left = (4.2 if side == finding.side else 0.0 for side in ("right", "left"))
    return replace(anatomy, raised=(right, left))


def show_dome(film: Film, anatomy: Anatomy, finding: Finding, _generator: Generator) -> list[Mark]:
    """Return the area between the raised dome and its normal position."""
    sign = finding.signs[0]
    usual = replace(anatomy, raised=(0.0, 0.0)).outline_dome(sign)
    return [Mark(film.fill(np.concatenate([anatomy.outline_dome(sign), usual[::-1]])))]


def show_dome_lateral(film: Film, anatomy: Anatomy, finding: Finding, _generator: Generator) -> list[Mark]:
    """Return the same area from the side."""
    sign, x = finding.signs[0], np.linspace(-10, 10, 30)
    usual = replace(anatomy, raised=(0.0, 0.0))
    high = np.stack([x, anatomy.get_lateral_dome(x, sign)], axis=1)
    low = np.stack([x, usual.get_lateral_dome(x, sign)], axis=1)
    return [Mark(film.fill(np.concatenate([high, low[::-1]])))]


def choose_hernia(generator: Generator) -> Finding:
    """Choose a hiatal hernia."""
    degree = pick(generator, "", "large", "moderate")
    return Finding("hernia", (join_heading("Hernia, Hiatal", degree),), "", "retrocardiac", degree)


def draw_hernia(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw the stomach behind the heart, with air over a fluid level."""
    radius = 3.6 if finding.degree == "large" else 2.9
    return _draw_pouch(film, (generator.uniform(0.8, 2.2), anatomy.dome - 1.6), radius, 0.24)


def draw_hernia_lateral(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw the hernia between heart and spine."""
    radius = 3.4 if finding.degree == "large" else 2.7
    return _draw_pouch(film, (generator.uniform(3.2, 4.4), anatomy.dome - 2.0), radius, 0.22)


def _draw_pouch(film: Film, centre: tuple[float, float], radius: float, air: float) -> list[Mark]:
    mask = film.ellipse(centre, (radius * 1.1, radius), soft_cm=0.1)
    film.replace_air(mask * np.float32(0.9), 0.05)
    level = centre[1] - 0.05 * radius
    box = film.fill(
        [
            (centre[0] - 9, level - 9),
            (centre[0] + 9, level - 9),
            (centre[0] + 9, level),
            (centre[0] - 9, level),
        ]
    )
    inside = film.ellipse(centre, (radius * 0.95, radius * 0.86), soft_cm=0.06)
    film.body -= inside * box * np.float32(air)
    return [Mark(mask)]


def choose_fracture(generator: Generator) -> Finding:
    """Choose broken ribs."""
    side, state = pick(generator, "right", "left"), pick(generator, "healed", "displaced", "healed")
    return Finding("fracture", (f"Fractures, Bone/ribs/{side}/multiple/{state}",), side, "ribs", state)


def draw_fracture(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Break three to five neighbouring ribs: a step in a displaced one, a lump of callus in a healed one."""
    sign, first, masks = finding.signs[0], int(generator.integers(2, 5)), []
    for number in range(first, first + int(generator.integers(3, 6))):
        back, _ = get_rib(anatomy, sign, number)
        spot = back[-9] + generator.uniform(-0.25, 0.25, 2)
        if finding.degree == "healed":
            mask = film.fill(
                make_blob(generator, tuple(spot), generator.uniform(0.85, 1.1), rough=0.12), soft_cm=0.1
            )
            film.bone += mask * np.float32(0.17)
        else:
            along = back[-5] - back[-13]
            along = along / np.linalg.norm(along)
            gap = film.stroke([np.stack([spot - along * 0.35, spot + along * 0.35])], 1.5, soft_cm=0.08)
            film.bone -= gap * np.float32(0.10)
            shift = np.array([-along[1], along[0]]) * sign * 0.9
            ends = [np.stack([spot - along * 1.9, spot - along * 0.25 + shift])]
            mask = np.maximum(gap, film.stroke(ends, 0.9, soft_cm=0.06))
            film.bone += film.stroke(ends, 0.9, soft_cm=0.06) * np.float32(0.15)
        masks.append(mask)
    return [Mark(unite(film, masks))]


def choose_spondylosis(generator: Generator) -> Finding:
    """Choose a worn spine."""
    heading = pick(
        generator,
        "Osteophyte/thoracic vertebrae/multiple",
        "Thoracic Vertebrae/degenerative",
        "Spondylosis/thoracic vertebrae",
    )
    degree = pick(generator, "", "moderate", "mild")
    return Finding("spondylosis", (join_heading(heading, degree),), "", "thoracic vertebrae", degree)


def draw_spondylosis(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw spurs that bridge the discs at both sides, and dense end plates."""
    spurs, plates = [], []
    for y in np.arange(-6.0, 12.0, 2.35):
        x = float(anatomy.get_spine(y))
        for sign in (-1, 1):
            size = generator.uniform(0.8, 1.4)
            spurs.append(
                _draw_spur(film, (x + sign * 1.3, y - 1.0), (x + sign * 1.3, y + 1.0), (sign * size, 0.0))
            )
        plates += [np.array([(x - 1.6, y + step), (x + 1.6, y + step)]) for step in (-0.3, 0.3)]
    mask = np.maximum(unite(film, spurs), film.stroke(plates, 0.3, soft_cm=0.06))
    film.bone += mask * np.float32(0.13 if finding.degree == "mild" else 0.18)
    return [Mark(mask)]


def draw_spondylosis_lateral(
    film: Film, anatomy: Anatomy, finding: Finding, generator: Generator
) -> list[Mark]:
    """Draw spurs that bridge the discs at the front, and dense end plates."""
    outlines, spurs, plates = get_vertebrae(anatomy), [], []
    for upper, lower in pairwise(outlines[4:14]):
        out = (upper[3] - upper[2]) / np.linalg.norm(upper[3] - upper[2])
        high, low = upper[3] + 0.6 * (upper[0] - upper[3]), lower[0] + 0.6 * (lower[3] - lower[0])
        spurs.append(_draw_spur(film, high, low, out * generator.uniform(0.9, 1.5)))
        plates += [upper[2:], lower[:2]]
    mask = np.maximum(unite(film, spurs), film.stroke(plates, 0.3, soft_cm=0.06))
    film.bone += mask * np.float32(0.14 if finding.degree == "mild" else 0.21)
    return [Mark(mask)]


def _draw_spur(film: Film, high: ArrayLike, low: ArrayLike, out: ArrayLike) -> Plane:
    """Return a spur from one vertebra to the next, bent outwards over the disc between them."""
    high, low, out = np.asarray(high), np.asarray(low), np.asarray(out)
    outer = [high, high + 0.25 * (low - high) + 0.7 * out, (high + low) / 2 + out]
    outer += [low + 0.25 * (high - low) + 0.7 * out, low]
    return film.fill(make_curve(outer), soft_cm=0.06)


def choose_scoliosis(generator: Generator) -> Finding:
    """Choose a curved spine."""
    side, degree = pick(generator, "right", "left"), pick(generator, "", "mild", "severe")
    return Finding(
        "scoliosis", (join_heading("Scoliosis/thoracic vertebrae", side, degree),), side, "", degree
    )


def bend_spine(anatomy: Anatomy, finding: Finding) -> Anatomy:
    """Bend the spine by 3 to 5 cm."""
    extent = {"mild": 2.8, "": 3.6, "severe": 4.8}[finding.degree]
    return replace(anatomy, scoliosis=finding.signs[0] * extent)


def show_spine(film: Film, _anatomy: Anatomy, _finding: Finding, _generator: Generator) -> list[Mark]:
    """Return the spine."""
    return [Mark(film.shapes["spine"])]


def choose_device(generator: Generator) -> Finding:
    """Choose a pacemaker or a central venous catheter."""
    if generator.random() < 0.5:
        return Finding("device", ("Implanted Medical Device/left",), "left", "pacemaker")
    side = pick(generator, "right", "left")
    return Finding("device", (f"Catheters, Indwelling/{side}",), side, "catheter")


def draw_device(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw metal: a generator with two leads, or a port with its catheter down to the right atrium."""
    sign, top = finding.signs[0], anatomy.apex
    x, y = sign * generator.uniform(8.6, 9.8), top + generator.uniform(2.8, 4.2)
    vein = [(x - sign * 2.0, y - 2.2), (sign * 4.0, top + 0.6), (-1.2 + sign * 0.8, top + 2.6), (-2.6, -6.0)]
    if finding.site == "catheter":
        port = film.ellipse((x, y + 1.5), (1.25, 1.35), soft_cm=0.05)
        line = make_curve([(x, y + 0.4), *vein, (-2.9, -2.4), (-2.7, 0.4)])
        mask = np.maximum(port, film.stroke([line], 0.34, soft_cm=0.04))
    else:
        case = film.fill(
            make_curve(
                [(x - 2.4, y), (x - 1.8, y + 2.6), (x + 1.8, y + 2.8), (x + 2.5, y - 0.2), (x, y - 1.2)],
                closed=True,
            )
        )
        _, left = anatomy.get_heart()
        atrium = make_curve([(x, y), *vein, (-2.8, -1.5), (-2.2, 2.8), (-3.0, 1.4)])
        ventricle = make_curve([(x, y), *vein, (-2.6, 0.5), (-0.6, 5.2), (0.62 * left, anatomy.dome + 0.6)])
        mask = np.maximum(case, film.stroke([atrium, ventricle], 0.34, soft_cm=0.04))
        film.bone += case * np.float32(0.35)
    film.bone += mask * np.float32(0.45)
    return [Mark(mask)]


def draw_device_lateral(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw the metal from the side: a thin case under the skin of the chest, and its leads."""
    y = anatomy.apex + generator.uniform(4.0, 5.5)
    leads = [make_curve([(-8.6, y), (-5.0, y - 3.0), (-1.5, -7.0), (-2.0, -2.0), (-2.2, 0.5)])]
    if finding.site == "pacemaker":
        leads.append(
            make_curve([(-8.6, y), (-5.0, y - 3.0), (-1.2, -7.0), (-2.4, 1.0), (-5.6, anatomy.dome - 1.0)])
        )
    case = film.ellipse((-9.6, y + 1.0), (0.55, 2.2 if finding.site == "pacemaker" else 1.2), angle_deg=28)
    mask = np.maximum(case, film.stroke(leads, 0.34, soft_cm=0.04))
    film.bone += mask * np.float32(0.5)
    return [Mark(mask)]


def choose_abdomen(generator: Generator) -> Finding:
    """Choose free air under the diaphragm or stones in the gallbladder."""
    if generator.random() < 0.5:
        return Finding("abdomen", ("Pneumoperitoneum",), "bilateral", "free air")
    return Finding("abdomen", ("Cholelithiasis",), "right", "stones")


def draw_abdomen(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw a dark crescent under each dome, or a group of rings under the liver's edge."""
    if finding.site == "free air":
        marks = []
        for sign in (-1, 1):
            dome = anatomy.outline_dome(sign)[6:-8]
            depth = generator.uniform(1.3, 2.0) * np.sin(np.linspace(0, np.pi, len(dome)))
            lower = dome + np.stack([np.zeros(len(dome)), 0.35 + depth], axis=1)
            mask = film.fill(np.concatenate([dome + (0, 0.3), lower[::-1]]), soft_cm=0.06)
            film.body -= mask * np.float32(0.40)
            marks.append(Mark(mask))
        return marks
    masks = []
    centre = (-generator.uniform(5.5, 7.5), min(anatomy.dome + generator.uniform(4.0, 5.2), 13.5))
    for _ in range(int(generator.integers(5, 9))):
        spot = (centre[0] + generator.uniform(-1.6, 1.6), centre[1] + generator.uniform(-1.2, 1.2))
        radius = generator.uniform(0.5, 0.8)
        masks.append(
            film.ellipse(spot, (radius, radius)) - 0.6 * film.ellipse(spot, (radius * 0.6, radius * 0.6))
        )
    mask = unite(film, masks)
    film.bone += mask * np.float32(0.35)
    return [Mark(mask)]
