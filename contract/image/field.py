"""Find the field, the part of a radiograph that shows the image, and its grey range.

Shutters (DICOM PS3.3 C.7.6.11) mark pixels that are not image; they become black. Collimators (DICOM PS3.3 C.8.7.3)
leave a part unexposed, and programs add constant borders and labels. These stay in the picture, so that its geometry
does not change (attribution maps are drawn over it). But they do not influence the grey range of an image without a
window.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.image.record import Opening, Shutter

PERCENTILES: Final = (0.5, 99.5)  # of the field; clips hot pixels, markers and wires, hardly any anatomy
SAMPLE_SIDE: Final = 256  # the range is measured on every n-th pixel, with at most this many per side
# Share of the image. A smaller field is an error, and the whole image is used instead.
_SMALLEST_FIELD: Final = 0.05
_FRAME_SHARE: Final = 0.2  # share of the outermost pixels; a constant area over less of them is not a border
_BRIGHT_SPREAD: Final = 0.02  # of the grey range: brightest minus darkest pixel of one border
_DARK_SPREAD: Final = 0.002
_SPIKE_SHARE: Final = 0.005  # share of the pixels; the same share that a percentile leaves out
_SPIKE_HEIGHT: Final = 20.0  # multiple of the median number of pixels per value
_AIR_SHARE: Final = 0.4  # of the field's range; the most that is added for a dark area that may be air
_LINE_SHARE: Final = 0.9  # share of a border; if so much of it is whole rows and columns, a program made it

Mask = NDArray[np.bool_]
Values = NDArray[np.float32]


def draw_shutter(shutter: Shutter | None, shape: tuple[int, int]) -> Mask | None:
    """Return the part of an image inside its shutter or collimator; None if it has no usable one.

    Args:
        shutter: A shutter or a collimator; None without one.
        shape: Rows and columns of the image.

    Returns:
        (rows, columns) bool.
    """
    if shutter is None:
        return None
    visible = np.ones(shape, bool)
    for opening in shutter.openings:
        drawn = _draw_opening(shutter, opening, shape)
        if drawn is None:
            return None
        visible &= drawn
    return visible if visible.mean() > _SMALLEST_FIELD and not visible.all() else None


def _draw_opening(shutter: Shutter, opening: Opening, shape: tuple[int, int]) -> Mask | None:
    """Draw one opening; None if the shutter does not state where it is. The edges are inside."""
    import cv2

    canvas = np.zeros(shape, np.uint8)
    if opening == "RECTANGULAR" and shutter.edges is not None:
        top, bottom, left, right = shutter.edges
        canvas[max(top - 1, 0) : max(bottom, 0), max(left - 1, 0) : max(right, 0)] = 1
    elif opening == "CIRCULAR" and shutter.centre is not None and shutter.radius is not None:
        row, column = shutter.centre
        cv2.circle(canvas, (column - 1, row - 1), shutter.radius, 1, thickness=-1)
    elif opening == "POLYGONAL" and shutter.vertices:
        vertices = np.array(shutter.vertices, np.int32)
        cv2.fillPoly(canvas, [vertices[:, ::-1] - 1], 1)
    else:
        return None
    return canvas.astype(bool)


def find_range(words: NDArray[Any], values: Values, seen: Mask) -> tuple[float, float]:
    """Return the values that become black and white in an image without window.

    These are percentiles of the field. Borders at the edge of the image are left out, and so are single values with
    very many pixels, such as burnt-in labels. Both are constant areas, so no anatomy loses contrast.

    A border must be constant over a fifth of the outermost pixels. A dark border must have almost one value, as
    programs make it. But a saturated detector makes the air around the patient constant too. So a dark area that is
    not a frame of whole rows and columns is taken for air, and the range is extended towards it by at most 0.4 of the
    field's range. That is more than the step from air to skin, but too little to make a chest look foggy.

    Args:
        words: (rows, columns) sample of the words of the image.
        values: Value of each word, (2**bits,); small ones are dark.
        seen: (rows, columns), False where there is no image.
    """
    import cv2

    shown = values[words]
    if not seen.any():
        seen = np.ones_like(seen)
    dark, bright = _find_borders(shown, seen)
    # The pixels at the inner edge of a border are neither border nor image.
    borders = cv2.dilate((dark | bright).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    field = _drop_spikes(words, seen & ~borders)
    if field.sum() < _SMALLEST_FIELD * seen.sum():
        field = seen
    low, high = (float(end) for end in np.percentile(shown[field], PERCENTILES))
    if not low < high:  # nearly all pixels are equal: use the full range of the few that differ
        return float(values[words[seen]].min()), float(values[words[seen]].max())
    air = shown[seen & ~field & (shown < low) & ~_find_lines(dark)]
    if air.size > _SPIKE_SHARE * seen.sum():
        low = max(float(np.median(air)), low - _AIR_SHARE * (high - low))
    return low, high


def _find_borders(shown: Values, seen: Mask) -> tuple[Mask, Mask]:
    """Return masks of the dark and the bright constant areas that touch the edge of the image."""
    import cv2

    frame = _find_frame(seen)
    low, high = (float(end) for end in np.percentile(shown[seen], PERCENTILES))
    smooth = cv2.medianBlur(np.ascontiguousarray(shown), 5)  # a slightly exposed border is noisy
    lower = shown <= (low + high) / 2
    found = []
    for half, image, spread in ((lower, shown, _DARK_SPREAD), (~lower, smooth, _BRIGHT_SPREAD)):
        borders = np.zeros(seen.shape, bool)
        for _ in range(2):
            borders |= _grow_border(image, seen & half & ~borders, frame, spread * (high - low))
        found.append(borders)
    return found[0], found[1]


def _find_lines(border: Mask) -> Mask:
    """Return the border if it is a frame of whole rows and columns, else an empty mask."""
    rows, columns = (border.mean(axis=axis) > _LINE_SHARE for axis in (1, 0))
    lines = rows[:, None] | columns[None, :]
    return lines if border[lines].sum() > _LINE_SHARE * border.sum() else np.zeros_like(border)


def _find_frame(seen: Mask) -> Mask:
    """Return a mask of the outermost pixels of the visible part."""
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    inside = np.zeros(seen.shape, bool)
    inside[rows[0] + 1 : rows[-1], columns[0] + 1 : columns[-1]] = True
    return seen & ~inside


def _grow_border(image: Values, free: Mask, frame: Mask, spread: float) -> Mask:
    """Return the areas that touch the frame and have its commonest level; none if it is not common enough."""
    import cv2

    edge = np.sort(image[frame & free])
    counts = np.searchsorted(edge, edge + np.float32(spread), side="right") - np.arange(edge.size)
    if not edge.size or counts.max() < _FRAME_SHARE * frame.sum():
        return np.zeros(free.shape, bool)
    start = edge[counts.argmax()]
    level = free & (image >= start) & (image <= start + np.float32(spread))
    labels = cv2.connectedComponents(level.astype(np.uint8), connectivity=4)[1]
    return np.asarray(level & np.isin(labels, np.unique(labels[frame & level])))


def _drop_spikes(words: NDArray[Any], field: Mask) -> Mask:
    """Return the field without values that have far more pixels than the others."""
    counts = np.bincount(words[field])
    if not counts.size:
        return field
    usual = float(np.median(counts[counts > 0]))
    spikes = counts > max(_SPIKE_SHARE * counts.sum(), _SPIKE_HEIGHT * usual)
    return np.asarray(field & ~spikes[np.minimum(words, counts.size - 1)])
