"""A radiograph under construction: shapes in centimetres go in, layers of density come out.

Everything is drawn in the coordinates of the patient (centimetres; origin in the middle of the chest, y down)
and mapped to pixels by one affine map, so that a picture looks the same at every size. Absorption adds up along the
ray, so there are layers: soft tissue, minus the air of the lungs, plus vessels, bone and metal. `develop` turns their
sum into grey.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Plane = NDArray[np.float32]
Points = NDArray[np.float64]

FILM_CM: Final = 43.0  # the long side of the usual cassette, 35 cm x 43 cm (Open-i: Cassette Size)
_SUBPIXEL_BITS: Final = 4
_LARGE_SIGMA: Final = 6.0  # pixels; a larger blur is done on a reduced copy


@dataclass(frozen=True)
class Placement:
    """How the patient stands before the film and how it was exposed.

    Attributes:
        shift_cm: Movement of the patient on the film (x, y).
        rotation_deg: Tilt of the patient in the film's plane.
        zoom: Size of the patient on the film.
        exposure: Added to the grey, about -0.05 to 0.05.
        contrast: Factor on the density, about 0.9 to 1.1.
        noise: Standard deviation of the quantum noise in grey, 0.005 to 0.02.
    """

    shift_cm: tuple[float, float] = (0.0, 0.0)
    rotation_deg: float = 0.0
    zoom: float = 1.0
    exposure: float = 0.0
    contrast: float = 1.0
    noise: float = 0.01


@dataclass
class Film:
    """Layers of one radiograph, each (rows, columns) float32.

    Attributes:
        body: Soft tissue, in units of density.
        lung: Share of lung in a pixel, 0 to 1, through the whole chest.
        air: Air in the lungs, 0 to about 1. Fluid or tissue in a lung reduces it.
        vessels: Vessels and other strands inside the lungs. They vanish with the air.
        bone: Bones, calcium and metal. Nothing hides them.
    """

    rows: int
    columns: int
    lateral: bool
    placement: Placement
    body: Plane = field(init=False)
    lung: Plane = field(init=False)
    air: Plane = field(init=False)
    vessels: Plane = field(init=False)
    bone: Plane = field(init=False)
    shapes: dict[str, Plane] = field(init=False, default_factory=dict)  # organs that findings refer to

    def __post_init__(self) -> None:
        for name in ("body", "lung", "air", "vessels", "bone"):
            setattr(self, name, self.blank())
        self.pixels_per_cm = max(self.rows, self.columns) / FILM_CM * self.placement.zoom
        angle = np.deg2rad(self.placement.rotation_deg)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._matrix = turn * self.pixels_per_cm
        self._offset = np.array([self.columns, self.rows]) / 2 + np.array(self.placement.shift_cm) * (
            self.pixels_per_cm
        )

    def blank(self) -> Plane:
        """Return an empty layer."""
        return np.zeros((self.rows, self.columns), np.float32)

    def to_pixels(self, points: ArrayLike) -> Points:
        """Map (N, 2) centimetres (x, y) to pixels."""
        return np.asarray(points, float).reshape(-1, 2) @ self._matrix.T + self._offset

    def fill(self, points: ArrayLike, *, soft_cm: float = 0.0) -> Plane:
        """Return a mask (0 to 1) of the polygon `points`, (N, 2) centimetres, with an edge `soft_cm` wide."""
        mask, outline = np.zeros((self.rows, self.columns), np.uint8), self._fixed(points)
        cv2.fillPoly(mask, [outline], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        return self._finish(mask, outline, np.float32(1 / 255), soft_cm)

    def stroke(self, lines: list[Points], width_cm: float, *, soft_cm: float = 0.0) -> Plane:
        """Return a mask of lines `width_cm` wide; lines thinner than a pixel become fainter instead."""
        width = width_cm * self.pixels_per_cm
        mask, points = np.zeros((self.rows, self.columns), np.uint8), self._fixed(np.concatenate(lines))
        ends = np.cumsum([len(line) for line in lines])[:-1]
        thick = max(1, round(width))
        cv2.polylines(mask, np.split(points, ends), False, 255, thick, cv2.LINE_AA, _SUBPIXEL_BITS)
        return self._finish(mask, points, np.float32(min(1.0, width) / 255), soft_cm, thick)

    def ellipse(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        *,
        angle_deg: float = 0.0,
        soft_cm: float = 0.0,
    ) -> Plane:
        """Return a mask of an ellipse."""
        return self.fill(make_ellipse(centre, radii, angle_deg), soft_cm=soft_cm)

    def soften(self, mask: Plane, sigma_cm: float) -> Plane:
        """Blur with a Gaussian of `sigma_cm`."""
        sigma = sigma_cm * self.pixels_per_cm
        if sigma < 0.3:
            return mask
        if sigma < _LARGE_SIGMA:
            return cv2.GaussianBlur(mask, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        (rows, columns), factor = mask.shape, int(sigma // (_LARGE_SIGMA / 2))
        size = (max(1, columns // factor), max(1, rows // factor))
        small = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
        blurred = cv2.GaussianBlur(small, (0, 0), sigma / factor, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(blurred, (columns, rows), interpolation=cv2.INTER_LINEAR)

    def bulge(self, mask: Plane, radius_cm: float) -> Plane:
        """Return the thickness of a rounded body over its outline: 0 at the edge, 1 from `radius_cm` inside."""
        inside = cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        depth = np.clip(inside / (radius_cm * self.pixels_per_cm), 0, 1)
        return np.sqrt(1 - (1 - depth) ** 2) * np.minimum(mask * 2, 1)

    def make_texture(self, generator: np.random.Generator, grain_cm: float) -> Plane:
        """Return smooth noise (mean 0, deviation about 1) whose grains are `grain_cm` wide, at any film size."""
        height, width = (
            max(4, round(side / (grain_cm * self.pixels_per_cm))) for side in (self.rows, self.columns)
        )
        coarse = generator.standard_normal((height, width), dtype=np.float32)
        fine = cv2.resize(coarse, (self.columns, self.rows), interpolation=cv2.INTER_CUBIC)
        return fine * np.float32(1.3)

    def make_gradient(self, start: tuple[float, float], end: tuple[float, float]) -> Plane:
        """Return a layer that rises from 0 at `start` to 1 at `end` (centimetres), flat beyond them."""
        first, last = self.to_pixels([start, end])
        way = (last - first) / np.sum((last - first) ** 2)
        x = (np.arange(self.columns, dtype=np.float32) - first[0]) * way[0]
        y = (np.arange(self.rows, dtype=np.float32) - first[1]) * way[1]
        return np.clip(y[:, None] + x[None, :], 0, 1).astype(np.float32)

    def replace_air(self, mask: Plane, density: float) -> None:
        """Fill the lungs with something solid where `mask` is set; `density` is added to it."""
        left = 1 - np.clip(mask, 0, 1)
        self.air *= left
        self.vessels *= left
        self.body += mask * np.float32(density)

    def develop(self, generator: np.random.Generator) -> Plane:
        """Return the picture, (rows, columns) float32 in 0..1; air is 0, bone near 1."""
        density = self.body - np.float32(0.43) * self.air + self.vessels + self.bone
        density = self.soften(density, 0.02) * np.float32(self.placement.contrast)
        grey = 1.04 * (1 - np.exp(-1.9 * np.maximum(density, 0) ** 1.25)) + self.placement.exposure * (
            density > 0.02
        )
        noise = generator.standard_normal(grey.shape, dtype=np.float32) * np.float32(self.placement.noise)
        return np.clip(grey + noise * (0.4 + 0.6 * grey), 0, 1).astype(np.float32)

    def _finish(
        self,
        mask: NDArray[np.uint8],
        points: NDArray[np.int32],
        strength: np.float32,
        soft_cm: float,
        thick: int = 1,
    ) -> Plane:
        """Scale and soften a drawn mask, only around its `points`, because the rest is empty."""
        reach = thick + 2 + int(np.ceil(4 * soft_cm * self.pixels_per_cm))
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        rows, columns = (
            slice(max(0, (low >> _SUBPIXEL_BITS) - reach), max(0, (high >> _SUBPIXEL_BITS) + reach))
            for low, high in ((top, bottom), (left, right))
        )
        plane, part = self.blank(), mask[rows, columns]
        if part.size:
            plane[rows, columns] = self.soften(part.astype(np.float32) * strength, soft_cm)
        return plane

    def _fixed(self, points: ArrayLike) -> NDArray[np.int32]:
        return np.rint(self.to_pixels(points) * 2**_SUBPIXEL_BITS).astype(np.int32)


def make_curve(points: ArrayLike, *, closed: bool = False, steps: int = 8) -> Points:
    """Return a smooth line through `points` (Catmull-Rom spline), `steps` points for each piece."""
    given = np.asarray(points, float).reshape(-1, 2)
    if closed:
        padded = np.concatenate([given[-1:], given, given[:2]])
    else:
        padded = np.concatenate([2 * given[:1] - given[1:2], given, 2 * given[-1:] - given[-2:-1]])
    pieces = np.stack([padded[:-3], padded[1:-2], padded[2:-1], padded[3:]], axis=1)
    line = (_weigh_spline(steps) @ pieces).reshape(-1, 2)
    return line if closed else np.concatenate([line, given[-1:]])


@cache
def _weigh_spline(steps: int) -> Points:
    """Return the weights of four neighbouring points, (steps, 4), along the piece between the middle two."""
    t = np.linspace(0, 1, steps, endpoint=False)
    weights = [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    return 0.5 * np.stack(weights, axis=1)


def make_ellipse(centre: tuple[float, float], radii: tuple[float, float], angle_deg: float = 0.0) -> Points:
    """Return the outline of an ellipse, 40 points."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    angle = np.deg2rad(angle_deg)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    outline = np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1)
    return outline + np.asarray(centre)


def make_blob(
    generator: np.random.Generator, centre: tuple[float, float], radius_cm: float, *, rough: float = 0.15
) -> Points:
    """Return the outline of an irregular round body."""
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radii = radius_cm * (1 + rough * generator.standard_normal(12).clip(-2, 2))
    outline = np.stack([radii * np.cos(turn), radii * np.sin(turn)], axis=1) + np.asarray(centre)
    return make_curve(outline, closed=True, steps=4)
