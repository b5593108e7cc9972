"""The normal chest from the front (PA and AP)."""

import cv2
import numpy as np

from training.phantom.anatomy import SIDES, Anatomy
from training.phantom.film import Film, Plane, Points, make_curve

RIBS = 11


def paint_frontal(film: Film, anatomy: Anatomy, generator: np.random.Generator) -> None:
    """Draw a chest without findings onto an empty film."""
    _paint_body(film, anatomy, generator)
    _paint_lungs(film, anatomy)
    _paint_mediastinum(film, anatomy)
    _paint_vessels(film, anatomy, generator)
    _paint_spine(film, anatomy)
    _paint_ribs(film, anatomy)
    _paint_shoulders(film, anatomy)
    _paint_abdomen(film, anatomy, generator)


def get_wall(anatomy: Anatomy, y: float | Points) -> Points:
    """Return the distance of the chest's inner wall from the midline at a height."""
    top, wall = anatomy.apex, anatomy.half_width
    heights = top + (anatomy.get_sulcus(-1) - top) * np.array([-0.04, 0.0, 0.07, 0.21, 0.41, 0.66, 1.25])
    return np.interp(y, heights, [4.0, 5.4, 0.62 * wall, 0.80 * wall, 0.93 * wall, wall, wall + 0.3])


def get_rib(anatomy: Anatomy, side: int, number: int) -> tuple[Points, Points]:
    """Return the posterior and the anterior part of a rib; `number` counts from 0, the first rib."""
    y = anatomy.apex + 0.2 + 2.12 * number
    wall = float(get_wall(anatomy, y + 2.4)) + 0.35
    spine = float(anatomy.get_spine(y))
    back = make_curve(
        [
            (spine + side * 1.7, y),
            (spine * 0.6 + side * 0.30 * wall, y - 0.75),
            (side * 0.62 * wall, y + 0.1),
            (side * 0.88 * wall, y + 1.5),
            (side * wall, y + 3.3),
        ]
    )
    front = make_curve(
        [
            (side * wall, y + 3.3),
            (side * 0.97 * wall, y + 4.6),
            (side * 0.80 * wall, y + 6.2),
            (side * 0.52 * wall, y + 7.6),
            (side * 0.36 * wall, y + 8.0),
        ]
    )
    return back, front


def grow_vessels(
    generator: np.random.Generator, root: tuple[float, float], side: int, *, reach_cm: float = 1.0
) -> list[list[Points]]:
    """Grow a tree of vessels from the hilum; one list of lines for each generation, thick to thin."""
    generations: list[list[Points]] = [[] for _ in range(4)]
    growing = [(np.array(root), np.deg2rad(angle)) for angle in np.linspace(-75, 80, 8)]
    for lines, length in zip(generations, (3.4, 2.9, 2.3, 1.8), strict=True):
        tips = []
        for start, angle in growing:
            bent = angle + generator.normal(0, 0.18)
            middle = start + length / 2 * reach_cm * np.array([side * np.cos(angle), np.sin(angle)])
            end = middle + length / 2 * reach_cm * np.array([side * np.cos(bent), np.sin(bent)])
            lines.append(np.array([start, middle, end]))
            spread = generator.uniform(0.25, 0.5)
            tips += [(end, bent - spread), (end, bent + spread)]
        growing = tips
    return generations


def stroke_vessels(film: Film, generations: list[list[Points]], widths_cm: tuple[float, ...]) -> Plane:
    """Return the density of a tree of vessels."""
    density = film.blank()
    for lines, width, strength in zip(generations, widths_cm, (1.0, 0.8, 0.6, 0.4), strict=True):
        np.maximum(
            density, film.stroke(lines, width, soft_cm=width * 0.3) * np.float32(strength), out=density
        )
    return density


def _paint_body(film: Film, anatomy: Anatomy, generator: np.random.Generator) -> None:
    fat = anatomy.habitus
    outer = anatomy.half_width + 2.4 + 3.6 * fat
    shoulder = anatomy.apex - 0.3
    half = [(5.3 + fat, -30), (5.4 + fat, shoulder - 5.0), (8.5, shoulder - 3.2), (14.5, shoulder - 1.8)]
    half += [(18.5, shoulder + 0.2), (20.0, shoulder + 4.0), (outer + 1.8, -1.0), (outer, 4.0)]
    half += [(outer + 0.2, 12.0), (outer + 0.8, 30)]
    right = make_curve(half)
    torso = film.fill(np.concatenate([right, right[::-1] * (-1, 1)]), soft_cm=0.05)
    depth = film.bulge(torso, 7.0)
    low = film.make_gradient((0, -10.0), (0, 14.0))
    film.body += depth * (0.50 + 0.16 * fat + 0.14 * low) + torso * np.float32(0.04)
    for side in SIDES.values():
        arm, bone = _place_arm(anatomy, side, generator)
        mask = film.fill(arm, soft_cm=0.05)
        film.body = np.maximum(film.body, film.bulge(mask, 4.5) * np.float32(0.34 + 0.1 * fat)) + 0.05 * mask
        _stroke_bone(film, [bone], 2.2, 0.10, soft_cm=0.12)
    if anatomy.breasts:
        _paint_breasts(film, anatomy, generator)


def _place_arm(anatomy: Anatomy, side: int, generator: np.random.Generator) -> tuple[Points, Points]:
    angle = np.deg2rad(anatomy.arm_angle_deg + generator.normal(0, 3))
    shoulder = np.array([side * 17.4, anatomy.apex + 2.6])
    down = np.array([side * np.sin(angle), np.cos(angle)])
    across = np.array([down[1], -down[0]])
    half = 3.4 + 1.6 * anatomy.habitus
    arm = [
        shoulder - 3 * down + across * half * 0.6,
        shoulder + across * half,
        shoulder + 26 * down + across * half * 0.8,
    ]
    arm += [
        shoulder + 26 * down - across * half * 0.8,
        shoulder + across * -half,
        shoulder - 3 * down - across * half * 0.6,
    ]
    return np.array(arm), make_curve([shoulder, shoulder + 12 * down, shoulder + 26 * down])


def _paint_breasts(film: Film, anatomy: Anatomy, generator: np.random.Generator) -> None:
    height = anatomy.dome - 2.0 + generator.normal(0, 0.8)
    size = 5.0 + 1.8 * anatomy.habitus
    for side in SIDES.values():
        mask = film.ellipse((side * 8.6, height), (size * 1.1, size * 0.95), soft_cm=0.4)
        low = film.make_gradient((0, height - 5.0), (0, height + 3.5))
        film.body += mask * low * np.float32(0.07 + 0.06 * anatomy.habitus)


def _paint_lungs(film: Film, anatomy: Anatomy) -> None:
    for name, side in SIDES.items():
        mask = film.fill(anatomy.outline_lung(side), soft_cm=0.06)
        film.shapes[f"{name} lung"] = mask
        film.air += (film.bulge(mask, 5.0) * 0.72 + mask * 0.28) * np.float32(anatomy.air)
    film.lung = np.minimum(film.shapes["right lung"] + film.shapes["left lung"], 1)
    trachea = film.stroke([make_curve([(0.1, -24), (0.1, -12), (0.35, -4.8)])], 1.7, soft_cm=0.15)
    bronchi = film.stroke(
        [make_curve([(0.35, -5.0), (-2.6, -2.4)]), make_curve([(0.35, -5.0), (3.4, -2.2)])], 1.1
    )
    film.body -= np.maximum(trachea, film.soften(bronchi, 0.2) * 0.7) * np.float32(0.10)


def _paint_mediastinum(film: Film, anatomy: Anatomy) -> None:
    heart = film.fill(anatomy.outline_heart(), soft_cm=0.10)
    middle = [(-2.4, anatomy.apex - 2), (-2.5, -8.0), (-2.6, -4.0), (-3.0, -1.0), (-2.2, 8.0), (-1.6, 24)]
    middle += [(1.8, 24), (2.0, 8.0), (2.6, -1.0), (2.3, -5.0), (2.2, -9.0), (2.6, anatomy.apex - 2)]
    centre = film.fill(make_curve(middle, closed=True), soft_cm=0.18)
    line = anatomy.outline_aorta()
    knob = (1.95 + 0.35 * anatomy.tortuosity, -5.3 - 0.5 * anatomy.tortuosity)
    arch = film.ellipse(knob, (anatomy.knob, anatomy.knob * 1.05), soft_cm=0.12)
    descending = film.stroke([line], 2.2 + 0.35 * anatomy.tortuosity, soft_cm=0.15)
    aorta = np.maximum(arch, descending)
    film.shapes |= {"heart": heart, "aorta": aorta}
    solid = np.maximum.reduce([heart * 0.96, centre * 0.9, arch * 0.92, descending * 0.55])
    film.replace_air(solid, 0.0)
    film.body += film.bulge(heart, 4.0) * np.float32(0.10) + film.soften(centre, 0.5) * np.float32(0.06)
    film.body += film.soften(aorta, 0.1) * np.float32(0.04)


def _paint_vessels(film: Film, anatomy: Anatomy, generator: np.random.Generator) -> None:
    for side in SIDES.values():
        root = (side * 3.3, -1.6 if side < 0 else -2.4)
        trees = stroke_vessels(film, grow_vessels(generator, root, side), (0.45, 0.27, 0.17, 0.11))
        blob = film.fill(
            make_curve(
                [
                    (side * 2.4, root[1] - 2.2),
                    (side * 4.0, root[1] - 0.8),
                    (side * 4.3, root[1] + 1.4),
                    (side * 3.4, root[1] + 3.4),
                    (side * 2.4, root[1] + 2.0),
                ],
                closed=True,
            ),
            soft_cm=0.35,
        )
        film.vessels += (
            (trees * np.float32(0.075) + blob * np.float32(0.14)) * film.lung * np.minimum(film.air * 1.4, 1)
        )


def _stroke_bone(
    film: Film, lines: list[Points], width_cm: float, density: float, *, soft_cm: float = 0.05
) -> None:
    """Draw a bone as a tube with dense edges, where the ray runs along the cortex."""
    outer = film.stroke(lines, width_cm, soft_cm=soft_cm)
    inner = film.stroke(lines, width_cm * 0.62, soft_cm=soft_cm + 0.05)
    film.bone += outer * np.float32(density) - inner * np.float32(density * 0.55)


def _paint_spine(film: Film, anatomy: Anatomy) -> None:
    discs, bodies, spines = [], [], []
    for y in np.arange(-24.0, 24.0, 2.35):
        x = float(anatomy.get_spine(y))
        half = 1.45 + 0.02 * (y + 12)
        bodies.append(
            np.array(
                [
                    (x - half, y + 0.15),
                    (x + half, y + 0.15),
                    (x + half, y + 2.1),
                    (x - half, y + 2.1),
                    (x - half, y + 0.15),
                ]
            )
        )
        discs.append(np.array([(x - half, y - 0.1), (x + half, y - 0.1)]))
        spines.append(make_curve([(x, y + 0.9), (x, y + 2.0)]))
    column = np.stack([anatomy.get_spine(np.linspace(-24, 24, 40)), np.linspace(-24, 24, 40)], axis=1)
    band = film.stroke([column], 3.0, soft_cm=0.15)
    film.shapes["spine"] = (
        band
        * film.make_gradient((0, anatomy.apex), (0, anatomy.apex + 1))
        * film.make_gradient((0, 14), (0, 13))
    )
    film.replace_air(band * np.float32(0.5), 0.0)
    film.bone += band * np.float32(0.055) + film.stroke(bodies, 0.3, soft_cm=0.12) * np.float32(0.035)
    film.bone += film.stroke(spines, 0.6, soft_cm=0.1) * np.float32(0.05)
    film.bone -= film.stroke(discs, 0.45, soft_cm=0.1) * np.float32(0.03)


def _paint_ribs(film: Film, anatomy: Anatomy) -> None:
    backs, fronts = [], []
    for number in range(RIBS):
        for side in SIDES.values():
            back, front = get_rib(anatomy, side, number)
            backs.append(back)
            if number < 8:
                fronts.append(front)
    _stroke_bone(film, backs, 1.05, 0.095, soft_cm=0.08)
    before = film.bone.copy()
    _stroke_bone(film, fronts, 1.15, 0.055, soft_cm=0.12)
    fade = film.soften(np.abs(film.lung), 0.6)  # the cartilage near the breastbone hardly shows
    film.bone = before + (film.bone - before) * (0.15 + 0.85 * fade)


def _paint_shoulders(film: Film, anatomy: Anatomy) -> None:
    top = anatomy.apex
    for side in SIDES.values():
        clavicle = make_curve(
            [
                (side * 1.7, top + 1.6),
                (side * 4.5, top + 0.7),
                (side * 9.5, top - 0.9),
                (side * 13.5, top - 1.3),
                (side * 16.5, top - 1.0),
            ]
        )
        _stroke_bone(film, [clavicle], 1.2, 0.13, soft_cm=0.09)
        head = film.ellipse((side * 17.8, top + 2.2), (2.3, 2.4), soft_cm=0.12)
        film.bone += head * np.float32(0.06)
        blade = [
            (side * 12.8, top - 0.4),
            (side * 16.0, top + 1.5),
            (side * 14.6, top + 5.0),
            (side * 12.9, top + 12.0),
            (side * 11.9, top + 11.4),
            (side * 12.0, top + 3.5),
        ]
        scapula = film.fill(make_curve(blade, closed=True), soft_cm=0.25)
        edge = film.stroke([make_curve(blade[2:5])], 0.5, soft_cm=0.12)
        film.bone += scapula * np.float32(0.035) + edge * np.float32(0.06)


def _paint_abdomen(film: Film, anatomy: Anatomy, generator: np.random.Generator) -> None:
    below = film.make_gradient((0, anatomy.dome - 1.0), (0, anatomy.dome + 6.0)) * (1 - film.lung)
    film.body += below * np.float32(0.16) * np.minimum(film.body * 3, 1)
    dome = anatomy.get_dome(1)
    bubble = (generator.uniform(4.5, 6.5), dome + generator.uniform(2.6, 3.6))
    radii = (generator.uniform(1.6, 3.2), generator.uniform(1.0, 1.8))
    outline = make_curve(
        [
            (bubble[0] - radii[0], bubble[1] + radii[1]),
            (bubble[0] - radii[0] * 0.9, bubble[1] - radii[1] * 0.4),
            (bubble[0], bubble[1] - radii[1]),
            (bubble[0] + radii[0], bubble[1] - radii[1] * 0.2),
            (bubble[0] + radii[0], bubble[1] + radii[1]),
        ]
    )
    gas = film.fill(outline, soft_cm=0.08)
    for _ in range(generator.integers(3, 7)):
        spot = (generator.uniform(-9, 10), dome + generator.uniform(7, 13))
        bowel = film.ellipse(spot, (generator.uniform(0.8, 2.0), generator.uniform(0.6, 1.3)), soft_cm=0.3)
        gas = np.maximum(gas, bowel * np.float32(0.6))
    film.body -= gas * (1 - film.lung) * np.float32(generator.uniform(0.18, 0.30))


def stamp_marker(film: Film, picture: Plane, text: str) -> None:
    """Write the technician's lead letter into a corner of the picture, in place."""
    size = min(film.rows, film.columns)
    place = (round(film.columns * 0.90 - size * 0.01 * len(text)), round(film.rows * 0.09))
    cv2.putText(
        picture,
        text,
        place,
        cv2.FONT_HERSHEY_DUPLEX,
        size / 700,
        0.97,
        max(1, round(size / 300)),
        cv2.LINE_AA,
    )
