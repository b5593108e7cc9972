"""The patient: sizes and shapes of one chest, in centimetres. Findings change them before drawing.

Frontal coordinates: x to the patient's left (the viewer's right), y down, origin in the middle of the chest.
Lateral coordinates: x from the chest's front (negative) to its back.
"""

from dataclasses import dataclass

import numpy as np

from training.phantom.film import Placement, Points, make_curve

SIDES = {"right": -1, "left": 1}  # sign of x; the patient's right is on the viewer's left


@dataclass(frozen=True)
class Anatomy:
    """One patient; lengths in cm.

    Attributes:
        half_width: Half of the chest's inner width.
        apex: y of the top of the lungs.
        dome: y of the top of the right hemidiaphragm; `left_drop` further down on the left.
        sulcus: How far below the dome the costophrenic angle lies.
        heart_ratio: Width of the heart relative to the chest's inner width (cardiothoracic ratio).
        knob: Radius of the aortic knob.
        tortuosity: How far the descending aorta swings out.
        scoliosis: How far the spine leaves the midline; the sign is the side.
        flatness: 0 for round domes of the diaphragm, 1 for flat ones.
        raised: How far each dome stands above its normal place (right, left).
        habitus: Thickness of the soft tissue, 0 slender to 1 heavy.
        breasts: Whether breast shadows lie over the lung bases.
        arm_angle_deg: How far the arms are held away from the body.
        air: Air in the lungs relative to a normal breath.
    """

    half_width: float = 13.0
    apex: float = -12.0
    dome: float = 7.5
    left_drop: float = 1.2
    sulcus: float = 4.2
    heart_ratio: float = 0.45
    knob: float = 1.8
    tortuosity: float = 0.0
    scoliosis: float = 0.0
    flatness: float = 0.0
    raised: tuple[float, float] = (0.0, 0.0)
    habitus: float = 0.4
    breasts: bool = False
    arm_angle_deg: float = 15.0
    air: float = 1.0

    def get_dome(self, side: int) -> float:
        """Return the y of a dome's top; `side` is -1 for the right and 1 for the left."""
        return self.dome + (self.left_drop if side > 0 else 0) - self.raised[0 if side < 0 else 1]

    def get_sulcus(self, side: int) -> float:
        """Return the y of a costophrenic angle. A raised dome hardly moves it."""
        return self.dome + (self.left_drop / 2 if side > 0 else 0) + self.sulcus

    def get_heart(self) -> tuple[float, float]:
        """Return how far the heart reaches to the right and to the left of the midline."""
        width = self.heart_ratio * 2 * self.half_width
        return 0.34 * width, 0.66 * width

    def get_spine(self, y: float | Points) -> Points:
        """Return the x of the spine's middle at a height (frontal view)."""
        return np.asarray(self.scoliosis * np.exp(-(((np.asarray(y) + 1.0) / 7.5) ** 2)))

    def outline_dome(self, side: int) -> Points:
        """Return the diaphragm from the costophrenic angle to the midline (frontal view)."""
        top, angle, wall = self.get_dome(side), self.get_sulcus(side), self.half_width
        flat = self.flatness
        return make_curve(
            [
                (side * (wall - 0.1), angle),
                (side * (wall - 1.5), top + (angle - top) * (0.42 + 0.20 * flat)),
                (side * (wall - 3.8), top + 0.55 + 0.3 * flat),
                (side * 6.6, top + 0.3 * flat),
                (side * 4.0, top + 0.8 - 0.3 * flat),
                (side * 1.2, top + 2.3 - 1.0 * flat),
            ]
        )

    def outline_lung(self, side: int) -> Points:
        """Return the outline of one lung (frontal view)."""
        top, wall, angle = self.apex, self.half_width, self.get_sulcus(side)
        deep = angle - top
        chest = [
            (side * 1.6, top + 2.4),
            (side * 2.6, top + 0.8),
            (side * 4.8, top),
            (side * 0.60 * wall, top + 0.07 * deep),
            (side * 0.80 * wall, top + 0.21 * deep),
            (side * 0.93 * wall, top + 0.41 * deep),
            (side * wall, top + 0.62 * deep),
            (side * (wall + 0.15), top + 0.87 * deep),
            (side * (wall - 0.1), angle),
        ]
        return np.concatenate([make_curve(chest), self.outline_dome(side)])

    def outline_heart(self) -> Points:
        """Return the outline of the heart (frontal view)."""
        right, left = self.get_heart()
        base = self.dome + self.left_drop + 1.6
        return make_curve(
            [
                (1.0, -4.6),
                (3.2, -3.4),
                (0.60 * left, -0.8),
                (0.86 * left, 2.2),
                (1.0 * left, base - 3.4),
                (0.95 * left, base - 1.0),
                (0.45 * left, base + 0.6),
                (-0.30 * right, base + 0.6),
                (-0.85 * right, base - 1.6),
                (-1.0 * right, base - 4.6),
                (-0.88 * right, 1.2),
                (-2.8, -2.2),
            ],
            closed=True,
        )

    def outline_aorta(self) -> Points:
        """Return the middle line of the arch and the descending aorta (frontal view)."""
        bow = self.tortuosity
        return make_curve(
            [
                (0.4, -4.4 - 0.3 * bow),
                (2.2 + 0.25 * bow, -5.4 - 0.35 * bow),
                (2.6 + 0.5 * bow, -3.0),
                (2.2 + 1.0 * bow, 1.0),
                (1.6 + 0.7 * bow, 5.5),
                (0.9, 10.0),
            ]
        )

    def get_lateral_dome(self, x: float | Points, side: int = -1) -> Points:
        """Return the y of a hemidiaphragm (lateral view) at `x` between -10 and 10."""
        top = self.get_dome(side) - 1.5
        flat = 1 - 0.55 * self.flatness
        known = np.array([-10.0, -7.5, -4.0, 0.0, 4.0, 8.0, 10.0])
        heights = np.array([1.7, 0.5, 0.0, 0.7, 2.6, 5.0, 6.4])
        return np.interp(x, known, top + heights * flat)

    def outline_lateral_lung(self, side: int = -1) -> Points:
        """Return the outline of the lungs (lateral view) down to the hemidiaphragm of `side`."""
        top, deep = self.apex, 1 + 0.12 * self.flatness
        front = [(1.5, top), (-2.2, top + 1.1), (-5.8 * deep, top + 4.0), (-8.2 * deep, top + 8.5)]
        front += [(-9.6 * deep, top + 13.5), (-10.0 * deep, float(self.get_lateral_dome(-10.0, side)))]
        low = float(self.get_lateral_dome(10.0, side))
        back = [(10.0, low), (10.6, low - 4.0), (10.9, top + 10.5), (9.6, top + 4.6), (6.4, top + 0.9)]
        floor = np.linspace(-10.0 * deep, 10.0, 24)
        dome = np.stack([floor, self.get_lateral_dome(np.clip(floor, -10, 10), side)], axis=1)
        return np.concatenate([make_curve(front), dome, make_curve([*back, (1.5, top)])])

    def outline_lateral_spine(self) -> Points:
        """Return the middle line of the vertebral bodies (lateral view), from the neck to the loins."""
        return make_curve(
            [(2.8, -19.0), (3.6, -14.0), (6.2, -7.0), (7.2, -0.5), (6.6, 6.0), (5.0, 12.5), (3.8, 21.0)]
        )


def draw_anatomy(generator: np.random.Generator) -> Anatomy:
    """Draw a patient without findings."""
    woman = generator.random() < 0.5
    size = generator.normal(0.96 if woman else 1.04, 0.04)
    return Anatomy(
        half_width=13.0 * size + generator.normal(0, 0.35),
        apex=-12.0 * size + generator.normal(0, 0.5),
        dome=7.4 * size + generator.normal(0, 0.6),
        left_drop=max(0.2, generator.normal(1.2, 0.35)),
        sulcus=max(3.2, generator.normal(4.3, 0.4)),
        heart_ratio=float(np.clip(generator.normal(0.435, 0.022), 0.38, 0.48)),
        knob=max(1.4, generator.normal(1.75, 0.15)),
        tortuosity=max(0.0, generator.normal(0.0, 0.12)),
        scoliosis=generator.normal(0, 0.15),
        habitus=float(np.clip(generator.normal(0.4, 0.2), 0.05, 0.95)),
        breasts=bool(woman and generator.random() < 0.8),
        arm_angle_deg=generator.uniform(8, 26),
        air=generator.normal(1.0, 0.03),
    )


def draw_placement(generator: np.random.Generator, *, lateral: bool) -> Placement:
    """Draw how a patient stands before the film."""
    drop = 0.5 if lateral else -0.3
    return Placement(
        shift_cm=(generator.normal(0, 0.7), generator.normal(drop, 0.8)),
        rotation_deg=generator.normal(0, 1.4),
        zoom=float(np.clip(generator.normal(1.05, 0.04), 0.94, 1.16)),
        exposure=generator.normal(0, 0.02),
        contrast=float(np.clip(generator.normal(1.0, 0.05), 0.88, 1.12)),
        noise=generator.uniform(0.006, 0.018),
    )
