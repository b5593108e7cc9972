"""The normal chest from the side, with the front of the body on the viewer's left."""

import numpy as np

from training.phantom.anatomy import Anatomy
from training.phantom.film import Film, Points, make_curve


def paint_lateral(film: Film, anatomy: Anatomy, generator: np.random.Generator) -> None:
    """Draw a chest without findings onto an empty film."""
    _paint_body(film, anatomy)
    _paint_lungs(film, anatomy)
    _paint_heart(film, anatomy)
    _paint_vessels(film, generator)
    _paint_spine(film, anatomy)
    _paint_ribs(film, anatomy)
    _paint_abdomen(film, anatomy, generator)


def get_lateral_heart(anatomy: Anatomy) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return centre and radii of the heart."""
    size = 0.6 * 2 * anatomy.half_width * anatomy.heart_ratio  # its depth grows more slowly than its width
    half = 2.0 + 0.42 * size
    return (-8.8 + half, anatomy.dome - 1.3 - 0.45 * half), (half, 0.82 * half)


def get_vertebrae(anatomy: Anatomy) -> list[Points]:
    """Return the outlines of the vertebral bodies, (4, 2): upper front, upper back, lower back, lower front."""
    line = anatomy.outline_lateral_spine()
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    outlines = []
    start = 0.4
    while start < way[-1] - 3:
        height = 1.75 + 0.013 * start
        ends = np.stack([np.interp([start, start + height], way, line[:, axis]) for axis in (0, 1)], axis=1)
        along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
        across = np.array([along[1], -along[0]]) * (1.25 + 0.012 * start)
        outlines.append(np.array([ends[0] - across, ends[0] + across, ends[1] + across, ends[1] - across]))
        start += height + 0.45
    return outlines


def _paint_body(film: Film, anatomy: Anatomy) -> None:
    fat = anatomy.habitus
    front = [(-3.5, -30), (-3.6, -19), (-6.0, anatomy.apex - 1.5), (-10.0, -5.5), (-12.0 - fat, 1.0)]
    front += [(-11.8 - 2.5 * fat, 8.0), (-12.0 - 3.5 * fat, 15.0), (-11.0 - 3.0 * fat, 30)]
    back = [
        (11.0 + fat, 30),
        (11.4 + fat, 14.0),
        (13.0 + fat, 4.0),
        (13.8 + fat, -4.0),
        (12.5 + fat, -11.0),
        (8.0, -17.0),
        (6.0, -30),
    ]
    torso = film.fill(np.concatenate([make_curve(front), make_curve(back)]), soft_cm=0.05)
    depth = film.bulge(torso, 7.5)
    low = film.make_gradient((0, -8.0), (0, 12.0))
    film.body += depth * (0.46 + 0.14 * fat + 0.14 * low) + torso * np.float32(0.04)
    arms = film.fill(
        [
            (-16, -30),
            (-13, -16.5),
            (-6.0, anatomy.apex + 0.8),
            (4.0, anatomy.apex + 1.2),
            (8.0, -15),
            (4.0, -30),
        ],
        soft_cm=0.5,
    )
    film.body = np.maximum(film.body, film.bulge(arms, 4.0) * np.float32(0.42))
    humerus = film.stroke([np.array([(-11.0, -26.0), (1.0, anatomy.apex + 0.5)])], 2.0, soft_cm=0.1)
    film.bone += humerus * np.float32(0.07)
    if anatomy.breasts:
        breast = film.ellipse((-11.0, anatomy.dome - 3.0), (3.0 + fat, 4.2), angle_deg=15, soft_cm=0.5)
        film.body += breast * np.minimum(film.body * 5, 1) * np.float32(0.07)


def _paint_lungs(film: Film, anatomy: Anatomy) -> None:
    near = film.fill(anatomy.outline_lateral_lung(-1), soft_cm=0.06)
    far = film.fill(anatomy.outline_lateral_lung(1), soft_cm=0.06)
    film.shapes |= {"right lung": near, "left lung": far}
    film.lung = np.maximum(near, far)
    thick = 0.5 * (film.bulge(near, 5.0) + film.bulge(far, 5.0))
    film.air += (thick * 0.75 + 0.125 * (near + far)) * np.float32(anatomy.air)
    up = film.make_gradient((0, anatomy.apex + 6.5), (0, anatomy.apex - 1.0))
    film.air *= 1 - 0.75 * up  # the shoulders hide the apices
    film.body -= film.stroke(
        [make_curve([(-0.3, -22), (0.2, -13), (1.9, -4.0)])], 1.7, soft_cm=0.15
    ) * np.float32(0.10)


def _paint_heart(film: Film, anatomy: Anatomy) -> None:
    centre, radii = get_lateral_heart(anatomy)
    heart = film.ellipse(centre, radii, angle_deg=28, soft_cm=0.7) * film.lung
    root = film.fill(
        make_curve(
            [
                (centre[0] - 1.0, centre[1]),
                (-4.0, -5.5),
                (-1.0, -7.0),
                (1.5, -3.5),
                (centre[0] + 2.5, centre[1]),
            ],
            closed=True,
        ),
        soft_cm=0.4,
    )
    bow = anatomy.tortuosity
    line = make_curve(
        [
            (-3.4, -2.0),
            (-2.2, -5.6 - 0.3 * bow),
            (1.2, -7.2 - 0.5 * bow),
            (4.4 + 0.3 * bow, -5.0),
            (5.6 + 0.8 * bow, 0.0),
            (5.2 + 0.6 * bow, 9.0),
        ]
    )
    aorta = film.stroke([line], anatomy.knob * 1.25, soft_cm=0.2)
    film.shapes |= {"heart": heart, "aorta": aorta}
    film.replace_air(
        np.maximum.reduce([heart * 0.68, root * 0.5, aorta * np.float32(0.20 + 0.12 * bow)]), 0.0
    )
    film.body += film.bulge(heart, 4.0) * np.float32(0.05)


def _paint_vessels(film: Film, generator: np.random.Generator) -> None:
    lines: list[list[Points]] = [[], [], []]
    for angle in np.deg2rad(np.arange(0, 360, 24.0)):
        start, heading = np.array([1.2, -2.2]), angle + generator.normal(0, 0.1)
        for level, length in enumerate((3.2, 3.0, 2.6)):
            end = start + length * np.array([np.cos(heading), np.sin(heading)])
            lines[level].append(np.stack([start, end]))
            if level:
                fork = heading + generator.choice([-1, 1]) * generator.uniform(0.3, 0.6)
                lines[level].append(
                    np.stack([start, start + length * np.array([np.cos(fork), np.sin(fork)])])
                )
            start, heading = end, heading + generator.normal(0, 0.25)
    hilum = film.ellipse((1.2, -2.0), (1.9, 2.5), angle_deg=-20, soft_cm=0.5)
    film.vessels += hilum * np.float32(0.07) * film.lung
    inside = film.lung * np.minimum(film.air * 1.5, 1)  # vessels over the heart are hardly visible
    for group, width, strength in zip(lines, (0.45, 0.28, 0.18), (0.042, 0.038, 0.032), strict=True):
        film.vessels += film.stroke(group, width, soft_cm=width * 0.4) * inside * np.float32(strength)


def _paint_spine(film: Film, anatomy: Anatomy) -> None:
    bodies, edges, arches = film.blank(), [], []
    for outline in get_vertebrae(anatomy):
        bodies = np.maximum(bodies, film.fill(outline, soft_cm=0.08))
        edges.append(np.concatenate([outline, outline[:1]]))
        back = (outline[1] + outline[2]) / 2
        arches.append(make_curve([back, back + (1.6, 0.2), back + (3.4, 1.8)]))
    film.shapes["spine"] = bodies
    shade = film.make_gradient((0, -14.0), (0, -3.0)) * (1 - 0.35 * film.make_gradient((0, -2.0), (0, 8.0)))
    film.bone += (bodies * np.float32(0.05) + film.stroke(edges, 0.28, soft_cm=0.1) * np.float32(0.05)) * (
        0.35 + 0.65 * film.lung
    )
    film.bone += film.stroke(arches, 0.9, soft_cm=0.3) * np.float32(0.04)
    film.body += film.stroke([anatomy.outline_lateral_spine() + (1.0, 0)], 5.0, soft_cm=0.9) * (
        0.16 - 0.08 * shade
    )


def _paint_ribs(film: Film, anatomy: Anatomy) -> None:
    ribs = []
    for number in range(10):
        y = anatomy.apex + 1.0 + 2.1 * number
        ribs += [
            make_curve(
                [
                    (8.2, y),
                    (11.0 - depth, y + 0.8 + depth),
                    (9.2, y + 3.2),
                    (3.0, y + 5.2),
                    (-4.0, y + 8.0),
                ]
            )
            for depth in (0.0, 0.7)
        ]
    outer, inner = film.stroke(ribs, 0.95, soft_cm=0.1), film.stroke(ribs, 0.55, soft_cm=0.12)
    fade = film.make_gradient((-7.0, 0), (9.0, 0)) * film.make_gradient(
        (0, anatomy.dome + 9), (0, anatomy.dome)
    )
    film.bone += (outer * 0.06 - inner * 0.025) * fade
    front = [(-6.0, anatomy.apex + 2.6), (-8.9, anatomy.apex + 8.5), (-10.4, anatomy.apex + 13.5)]
    breastbone = film.stroke([make_curve(front)], 1.1, soft_cm=0.1)
    film.bone += breastbone * np.float32(0.07)
    blade = film.fill(
        make_curve([(6.0, -14.0), (11.5, -10.0), (10.8, -1.0), (9.6, -0.5), (7.2, -9.0)], closed=True),
        soft_cm=0.3,
    )
    film.bone += blade * np.float32(0.045)


def _paint_abdomen(film: Film, anatomy: Anatomy, generator: np.random.Generator) -> None:
    low = film.make_gradient((0, anatomy.dome - 2.0), (0, anatomy.dome + 5.0)) * (1 - film.lung)
    film.body += low * np.float32(0.15) * np.minimum(film.body * 3, 1)
    dome = float(anatomy.get_lateral_dome(-2.0, 1))
    bubble = film.ellipse(
        (generator.uniform(-5, -1), dome + 3.2),
        (generator.uniform(1.4, 2.6), generator.uniform(0.9, 1.5)),
        soft_cm=0.1,
    )
    gas = bubble
    for _ in range(generator.integers(3, 7)):
        spot = (generator.uniform(-10, 3), dome + generator.uniform(6, 14))
        bowel = film.ellipse(spot, (generator.uniform(0.8, 1.8), generator.uniform(0.7, 1.4)), soft_cm=0.3)
        gas = np.maximum(gas, bowel * np.float32(0.6))
    film.body -= gas * (1 - 0.5 * film.lung) * np.float32(generator.uniform(0.16, 0.26))
