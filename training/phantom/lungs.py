"""Findings of the lungs: drawn on a film that shows a normal chest."""

from dataclasses import replace

import numpy as np

from training.phantom.anatomy import Anatomy
from training.phantom.film import Film, Plane, make_blob, make_curve
from training.phantom.finding import Finding, Mark, join_heading, pick, pick_site, place, unite
from training.phantom.frontal import grow_vessels, stroke_vessels

Generator = np.random.Generator
_LOBES = ("upper lobe", "middle lobe", "lower lobe")


def choose_consolidation(generator: Generator) -> Finding:
    """Choose an airspace disease."""
    side = pick(generator, "right", "left")
    site = pick_site(generator, side, _LOBES)
    head = pick(generator, "Airspace Disease", "Airspace Disease", "Consolidation", "Pneumonia", "Infiltrate")
    degree = pick(generator, "", "", "mild", "moderate")
    where = site if head == "Pneumonia" else f"lung/{site}"
    return Finding("consolidation", (join_heading(head, where, side, degree),), side, site, degree)


def draw_consolidation(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Cloud a part of a lobe, with patchy edges and a few open bronchi."""
    x, y, _ = place(anatomy, finding, finding.signs[0], generator)
    return [Mark(_draw_cloud(film, (x, y), finding, generator) * (film.lung > 0.5))]


def draw_consolidation_lateral(
    film: Film, anatomy: Anatomy, finding: Finding, generator: Generator
) -> list[Mark]:
    """Cloud the same lobe from the side."""
    _, y, z = place(anatomy, finding, finding.signs[0], generator)
    return [Mark(_draw_cloud(film, (z, y), finding, generator, strength=0.8) * (film.lung > 0.5))]


def _draw_cloud(
    film: Film, centre: tuple[float, float], finding: Finding, generator: Generator, *, strength: float = 1.0
) -> Plane:
    radius = generator.uniform(3.2, 4.6) * (0.8 if finding.degree == "mild" else 1.0)
    outline = make_blob(generator, centre, radius, rough=0.18)
    cloud = film.fill(outline, soft_cm=0.9)
    patchy = np.clip(0.85 + 0.13 * film.make_texture(generator, 1.6), 0, 1.1)
    mask = np.minimum(cloud * patchy, 1) * film.lung
    film.replace_air(mask * np.float32(0.85 * strength), 0.03)
    bronchi = []
    for angle, bend in zip(generator.uniform(0, 6.28, 3), generator.uniform(-0.7, 0.7, 3), strict=True):
        turn = angle + bend * np.array([0, 0.4, 1])
        way = radius * np.array([[0.15], [0.5], [0.8]])
        bronchi.append(make_curve(np.array(centre) + way * np.stack([np.cos(turn), np.sin(turn)], axis=1)))
    film.body -= film.stroke(bronchi, 0.3, soft_cm=0.12) * mask * np.float32(0.06)
    return cloud


def choose_atelectasis(generator: Generator) -> Finding:
    """Choose plate-like bands at the base."""
    side, degree = pick(generator, "right", "left", "bilateral"), pick(generator, "", "mild", "")
    heading = join_heading("Pulmonary Atelectasis", "base", side, degree)
    return Finding("atelectasis", (heading,), side, "base", degree)


def draw_atelectasis(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw bands over the diaphragm."""
    return [Mark(_draw_bands(film, anatomy, finding, sign, generator)) for sign in finding.signs]


def _draw_bands(film: Film, anatomy: Anatomy, finding: Finding, sign: int, generator: Generator) -> Plane:
    bands = []
    for step in range(1 if finding.degree == "mild" else 3):
        y = anatomy.get_dome(sign) - 1.4 - 1.5 * step + generator.uniform(-0.3, 0.3)
        start, length = generator.uniform(3.8, 5.5), generator.uniform(5.0, 7.5)
        tilt = generator.uniform(-0.25, 0.35)
        bands.append(
            make_curve(
                [
                    (sign * start, y),
                    (sign * (start + length / 2), y + tilt * length / 2 - 0.2),
                    (sign * min(start + length, anatomy.half_width - 0.6), y + tilt * length),
                ]
            )
        )
    mask = film.stroke(bands, 0.65, soft_cm=0.12) * film.lung
    film.bone += mask * np.float32(0.16)
    return mask


def draw_atelectasis_lateral(
    film: Film, anatomy: Anatomy, finding: Finding, _generator: Generator
) -> list[Mark]:
    """Draw the bands from the side."""
    y = float(anatomy.get_lateral_dome(0.0, finding.signs[0])) - 1.8
    lines = [
        make_curve([(-4.0, y - 0.5 - step), (0.5, y + 0.1 - step), (5.0, y + 1.0 - step)])
        for step in (0.0, 1.5)
    ]
    mask = film.stroke(lines, 0.55, soft_cm=0.12) * film.lung
    film.bone += mask * np.float32(0.10)
    return [Mark(mask)]


def choose_collapse(generator: Generator) -> Finding:
    """Choose the volume loss of a whole lobe."""
    side, site = pick(generator, "right", "left"), pick(generator, "upper lobe", "lower lobe")
    heading = pick(generator, f"Pulmonary Atelectasis/{site}/{side}", f"Volume Loss/lung/{site}/{side}")
    return Finding("collapse", (heading,), side, site)


def draw_collapse(film: Film, anatomy: Anatomy, finding: Finding, _generator: Generator) -> list[Mark]:
    """Draw the lobe as a dense wedge."""
    sign = finding.signs[0]
    top, dome, wall = anatomy.apex, anatomy.get_dome(sign), anatomy.half_width
    if finding.site == "upper lobe":
        edge = make_curve(
            [(sign * 1.2, top + 9.5), (sign * 0.45 * wall, top + 6.6), (sign * wall, top + 6.2)]
        )
        outline = [*edge, (sign * wall, top - 1), (sign * 1.2, top - 1)]
    else:
        out = 0.0 if sign < 0 else 0.14  # the heart covers much of the left lower lobe
        edge = make_curve(
            [
                (sign * 1.8, dome - 9.0),
                (sign * (0.42 + out) * wall, dome - 3.0),
                (sign * (0.72 + out) * wall, dome + 1.8),
            ]
        )
        outline = [*edge, (sign * 0.6 * wall, dome + 3), (sign * 1.2, dome + 3.0)]
    mask = film.fill(outline, soft_cm=0.15) * film.shapes["right lung" if sign < 0 else "left lung"]
    film.body += mask * np.float32(0.11)
    film.replace_air(mask * np.float32(0.92), 0.0)
    return [Mark(mask)]


def draw_collapse_lateral(
    film: Film, anatomy: Anatomy, finding: Finding, _generator: Generator
) -> list[Mark]:
    """Draw the wedge from the side."""
    top = anatomy.apex
    low = float(anatomy.get_lateral_dome(8.0, finding.signs[0]))
    wedge = (
        [(1.0, -2.0), (-2.5, top + 1.5), (-8.5, top + 7.5)]
        if finding.site == "upper lobe"
        else [(4.0, low - 9), (3.0, low - 1), (10.5, low + 2), (10.8, low - 8)]
    )
    mask = film.fill(wedge, soft_cm=0.3) * film.lung
    film.replace_air(mask * np.float32(0.75), 0.02)
    return [Mark(mask)]


def choose_nodule(generator: Generator) -> Finding:
    """Choose one to three nodules."""
    side = pick(generator, "right", "left")
    site = pick_site(generator, side, _LOBES)
    many = pick(generator, "", "", "multiple")
    return Finding("nodule", (join_heading("Nodule", "lung", site, side, many),), side, site, many)


def draw_nodule(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw round shadows of 1.6 to 3 cm."""
    return _draw_nodules(film, anatomy, finding, generator)


def draw_nodule_lateral(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw the same nodules from the side."""
    return _draw_nodules(film, anatomy, finding, generator, strength=0.7)


def _draw_nodules(
    film: Film, anatomy: Anatomy, finding: Finding, generator: Generator, *, strength: float = 1.0
) -> list[Mark]:
    masks = []
    for _ in range(int(generator.integers(3, 5)) if finding.degree else 1):
        x, y, z = place(anatomy, finding, finding.signs[0], generator)
        spread = generator.uniform(-3.0, 3.0, 2) if finding.degree else np.zeros(2)
        radius = generator.uniform(0.75, 1.1) if finding.degree else generator.uniform(1.0, 1.5)
        centre = ((z if film.lateral else x) + spread[0], y + spread[1])
        mask = film.fill(make_blob(generator, centre, radius, rough=0.05), soft_cm=0.15) * film.lung
        film.bone += mask * np.float32(0.18 * strength)
        masks.append(mask)
    return [Mark(unite(film, masks))]


def choose_mass(generator: Generator) -> Finding:
    """Choose a mass."""
    side = pick(generator, "right", "left")
    site = pick_site(generator, side, _LOBES)
    degree = pick(generator, "", "large")
    return Finding("mass", (join_heading("Mass", "lung", site, side, degree),), side, site, degree)


def draw_mass(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw a dense, lobulated body of 5 to 8 cm with a sharp edge."""
    x, y, _ = place(anatomy, finding, finding.signs[0], generator)
    return _draw_lump(film, (x, y), finding, generator)


def draw_mass_lateral(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw the mass from the side."""
    _, y, z = place(anatomy, finding, finding.signs[0], generator)
    return _draw_lump(film, (z, y), finding, generator)


def _draw_lump(film: Film, centre: tuple[float, float], finding: Finding, generator: Generator) -> list[Mark]:
    radius = generator.uniform(2.9, 3.6) if finding.degree else generator.uniform(2.3, 2.9)
    mask = film.fill(make_blob(generator, centre, radius, rough=0.09), soft_cm=0.12) * film.lung
    film.body += film.bulge(mask, radius) * np.float32(0.10)
    film.replace_air(mask * np.float32(0.7), 0.04)
    return [Mark(mask)]


def choose_granuloma(generator: Generator) -> Finding:
    """Choose calcified granulomas, some of them in the lymph nodes of the hilum."""
    side = pick(generator, "right", "left")
    site = pick_site(generator, side, ("upper lobe", "middle lobe", "lower lobe", "base"))
    heading = join_heading("Calcified Granuloma", "lung", site, side)
    if generator.random() < 0.5:
        return Finding(
            "granuloma", (heading, f"Calcinosis/lung/hilum/lymph nodes/{side}"), side, site, "multiple"
        )
    return Finding("granuloma", (f"{heading}/multiple",), side, site, "multiple")


def draw_granuloma(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw small, very dense spots with sharp edges."""
    return _draw_spots(film, anatomy, finding, generator)


def draw_granuloma_lateral(
    film: Film, anatomy: Anatomy, finding: Finding, generator: Generator
) -> list[Mark]:
    """Draw the same spots from the side."""
    return _draw_spots(film, anatomy, finding, generator)


def _draw_spots(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    sign = finding.signs[0]
    spots = [place(anatomy, finding, sign, generator) for _ in range(int(generator.integers(3, 6)))]
    groups = [
        [(x + 1.6 * generator.uniform(-1, 1), y + 1.6 * generator.uniform(-1, 1), z) for x, y, z in spots]
    ]
    if len(finding.headings) > 1:
        nodes = generator.uniform((2.8, -4.0, 0.0), (4.6, 1.0, 2.5), (4, 3))
        groups.append([(sign * x, y, z) for x, y, z in nodes])
    return [
        Mark(_draw_calcified(film, group, generator), heading)
        for group, heading in zip(groups, finding.headings, strict=True)
    ]


def _draw_calcified(film: Film, spots: list[tuple[float, float, float]], generator: Generator) -> Plane:
    masks = []
    for x, y, z in spots:
        radius = generator.uniform(0.38, 0.62)
        centre = (z if film.lateral else x, y)
        masks.append(film.fill(make_blob(generator, centre, radius, rough=0.08), soft_cm=0.03) * film.lung)
    mask = unite(film, masks)
    film.bone += mask * np.float32(0.42 if not film.lateral else 0.3)
    return mask


def choose_hyperinflation(generator: Generator) -> Finding:
    """Choose overfilled lungs."""
    degree = pick(generator, "", "mild", "severe")
    first = join_heading("Lung/hyperdistention", degree)
    more = pick(
        generator, "", "Emphysema", "Diaphragm/bilateral/flattened", "Pulmonary Disease, Chronic Obstructive"
    )
    return Finding("hyperinflation", (first, more) if more else (first,), "bilateral", "", degree)


def inflate(anatomy: Anatomy, finding: Finding) -> Anatomy:
    """Push the diaphragm down and flat, darken the lungs, narrow the heart unless it is enlarged."""
    extent = {"mild": 0.65, "": 0.85, "severe": 1.1}[finding.degree]
    return replace(
        anatomy,
        dome=anatomy.dome + 2.2 * extent,
        sulcus=anatomy.sulcus - 1.9 * extent,
        flatness=min(1.0, 0.9 * extent),
        air=anatomy.air * (1 + 0.16 * extent),
        heart_ratio=anatomy.heart_ratio - (0.05 * extent if anatomy.heart_ratio < 0.5 else 0.0),
    )


def choose_hypoinflation(generator: Generator) -> Finding:
    """Choose lungs without a full breath."""
    degree = pick(generator, "", "", "mild")
    return Finding("hypoinflation", (join_heading("Lung/hypoinflation", degree),), "bilateral", "", degree)


def deflate(anatomy: Anatomy, finding: Finding) -> Anatomy:
    """Raise both halves of the diaphragm and crowd the lungs."""
    extent = 0.75 if finding.degree else 1.0
    return replace(anatomy, dome=anatomy.dome - 3.6 * extent, air=anatomy.air * (1 - 0.13 * extent))


def show_lungs(film: Film, _anatomy: Anatomy, _finding: Finding, _generator: Generator) -> list[Mark]:
    """Return the lungs: they were reshaped as a whole."""
    return [Mark(film.lung)]


def choose_fibrosis(generator: Generator) -> Finding:
    """Choose an interstitial pattern of the lower lungs."""
    degree = pick(generator, "", "severe", "mild")
    head = pick(
        generator,
        "Pulmonary Fibrosis/bilateral",
        "Lung Diseases, Interstitial/diffuse",
        "Pulmonary Fibrosis/base/bilateral",
    )
    return Finding("fibrosis", (join_heading(head, degree),), "bilateral", "base", degree)


def draw_fibrosis(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw a net of strands, densest at the periphery of the bases."""
    low = film.make_gradient((0, anatomy.apex + 4.0), (0, anatomy.dome - 1.0))
    outer = np.maximum(film.make_gradient((2.0, 0), (9.0, 0)), film.make_gradient((-2.0, 0), (-9.0, 0)))
    return _draw_net(film, finding, low * (0.35 + 0.65 * outer), generator)


def draw_fibrosis_lateral(film: Film, anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Draw the net from the side, densest at the back."""
    low = film.make_gradient((0, anatomy.apex + 5.0), (0, anatomy.dome))
    back = 0.4 + 0.6 * film.make_gradient((-4.0, 0), (7.0, 0))
    return _draw_net(film, finding, low * back, generator)


def _draw_net(film: Film, finding: Finding, where: Plane, generator: Generator) -> list[Mark]:
    extent = {"mild": 0.7, "": 0.9, "severe": 1.15}[finding.degree]
    mask = where * np.minimum(film.air * 1.6, 1) * film.lung
    fine, coarse = film.make_texture(generator, 0.55), film.make_texture(generator, 0.95)
    net = np.exp(-((fine / 0.35) ** 2)) * 0.6 + np.exp(-((coarse / 0.3) ** 2)) * 0.8
    film.bone += mask * net.astype(np.float32) * np.float32(0.20 * extent)
    film.body += mask * np.float32(0.05 * extent)
    return [Mark(mask)]


def choose_congestion(generator: Generator) -> Finding:
    """Choose congested vessels."""
    degree = pick(generator, "", "", "mild")
    return Finding("congestion", (join_heading("Pulmonary Congestion", degree),), "bilateral", "", degree)


def draw_congestion(film: Film, _anatomy: Anatomy, finding: Finding, generator: Generator) -> list[Mark]:
    """Widen the vessels around both hila, up to the apices, in a haze."""
    extent = 0.8 if finding.degree else 1.05
    marks = []
    for sign in (-1, 1):
        root = (sign * 3.3, -1.6 if sign < 0 else -2.4)
        tree = stroke_vessels(film, grow_vessels(generator, root, sign), (1.15, 0.80, 0.5, 0.3))
        haze = film.ellipse((root[0] + sign * 1.5, root[1] + 0.3), (3.6, 6.0), soft_cm=1.5)
        inside = film.lung * np.minimum(film.air * 1.5, 1)
        film.vessels += (tree * np.float32(0.17 * extent) + haze * np.float32(0.13 * extent)) * inside
        marks.append(Mark(np.maximum(film.soften(tree, 0.2), haze) * inside))
    return marks


def draw_congestion_lateral(
    film: Film, _anatomy: Anatomy, finding: Finding, generator: Generator
) -> list[Mark]:
    """Thicken the hila from the side."""
    extent = 0.8 if finding.degree else 1.05
    spokes = [
        make_curve([(1.2, -2.2), (1.2 + 5 * np.cos(a), -2.2 + 5 * np.sin(a))])
        for a in generator.uniform(0, 6.28, 12)
    ]
    haze = film.ellipse((1.2, -1.5), (4.0, 5.0), soft_cm=1.4) * film.lung
    mask = np.maximum(film.stroke(spokes, 0.7, soft_cm=0.2) * film.lung, haze)
    film.vessels += mask * np.float32(0.10 * extent)
    return [Mark(mask)]
