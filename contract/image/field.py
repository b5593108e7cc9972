"""Which part of a radiograph is image, and the grey range of that part.

Shutters (DICOM PS3.3 C.7.6.11) cut off what is no image: it becomes black. Collimators (DICOM PS3.3 C.8.7.3) shade
what was not exposed, and programs put constant borders and labels around and into the image: that stays as it is,
because the picture's geometry is what attribution maps are laid over, but it has no say in the grey range of an image
without a window.
"""

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.image import dicom_file

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PERCENTILES: Final = (0.5, 99.5)  # of the field; hot pixels, markers and wires may be clipped, anatomy hardly
SAMPLE_SIDE: Final = 256  # the range is found on every n-th pixel: at most so many a side
_SMALLEST_FIELD: Final = (
    0.05  # share of the image; a field smaller than that is a mistake, and the whole image counts
)
_FRAME_SHARE: Final = 0.2  # of the outermost pixels; what is level over less is no border
_BRIGHT_SPREAD: Final = 0.02  # of the grey range, between the darkest and the brightest pixel of one border
_DARK_SPREAD: Final = 0.002
_SPIKE_SHARE: Final = 0.005  # of the pixels; as many as a percentile leaves out
_SPIKE_HEIGHT: Final = 20.0  # times the median number of pixels of one value
_AIR_SHARE: Final = 0.4  # of the field's range, at most added for a dark area that may be air
_LINE_SHARE: Final = 0.9  # of a border; what is so much whole rows and columns was made by a program

Mask = NDArray[np.bool_]
Values = NDArray[np.float32]


def find_shutter(dataset: "Dataset", part: str) -> Mask | None:
    """Return where an image is seen through its shutter or collimator, None where it names no usable one.

    Args:
        dataset: A checked data set.
        part: "Shutter" or "Collimator", of which the elements are named alike.

    Returns:
        (rows, columns) bool.
    """
    shape = int(dataset.Rows), int(dataset.Columns)
    seen = np.ones(shape, bool)
    kinds = dicom_file.read_numbers(dataset, f"{part}Shape")
    try:
        for kind in kinds:
            seen &= _draw_opening(dataset, part, str(kind).strip().upper(), shape)
    except (IndexError, TypeError, ValueError, OverflowError):
        return None
    return seen if kinds and seen.mean() > _SMALLEST_FIELD and not seen.all() else None


def _draw_opening(dataset: "Dataset", part: str, kind: str, shape: tuple[int, int]) -> Mask:
    """Draw one opening; rows and columns are counted from 1, and edges belong to the opening."""
    import cv2

    if kind == "RECTANGULAR":
        names = ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
        top, bottom, left, right = (_read_places(dataset, f"{part}{name}Edge")[0] for name in names)
        seen = np.zeros(shape, bool)
        seen[max(top - 1, 0) : max(bottom, 0), max(left - 1, 0) : max(right, 0)] = True
        return seen
    canvas = np.zeros(shape, np.uint8)
    if kind == "CIRCULAR":
        row, column = _read_places(dataset, f"CenterOfCircular{part}")
        radius = abs(_read_places(dataset, f"RadiusOfCircular{part}")[0])
        cv2.circle(canvas, (column - 1, row - 1), radius, 1, thickness=-1)
    elif kind == "POLYGONAL":
        places = np.array(_read_places(dataset, f"VerticesOfThePolygonal{part}")).reshape(-1, 2)
        cv2.fillPoly(canvas, [places[:, ::-1].astype(np.int32) - 1], 1)
    else:  # BITMAP: an overlay, and overlays are not read
        canvas[:] = 1
    return canvas.astype(bool)


def _read_places(dataset: "Dataset", name: str) -> list[int]:
    places = [int(number) for number in dicom_file.read_numbers(dataset, name)]
    if not places or max(abs(place) for place in places) > 2**15:
        raise ValueError(name)
    return places


def find_range(words: NDArray[Any], values: Values, seen: Mask, *, inverted: bool) -> tuple[float, float]:
    """Return the values that become black and white (or white and black) in an image without window.

    Percentiles of the field: borders that touch the edge of the image, and single values that stand out as labels burnt
    into the image do, are left out. They are level areas, so that no anatomy can lose contrast by it.

    A border must be level over a fifth of the outermost pixels. On the dark side it must have almost one value, as
    programs make it; but a saturated detector makes the air around the patient so, too. What is dark, and no frame
    of whole rows and columns, is therefore taken for air, and the range reaches towards it, by 0.4 of the field's
    own range at most: that is more than the step from air to skin, and less than would leave a chest foggy.

    Args:
        words: (rows, columns) sample of the words of the image.
        values: What each word means, (2**bits,).
        seen: (rows, columns), False where there is no image.
        inverted: Whether small values are shown bright.
    """
    import cv2

    shown = values[words] * np.float32(-1 if inverted else 1)
    if not seen.any():
        seen = np.ones_like(seen)
    dark, bright = _find_borders(shown, seen)
    # Where a border ends, pixels are neither border nor image.
    borders = cv2.dilate((dark | bright).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    field = _drop_spikes(words, seen & ~borders)
    if field.sum() < _SMALLEST_FIELD * seen.sum():
        field = seen
    low, high = (float(end) for end in np.percentile(shown[field], PERCENTILES))
    if not low < high:  # nearly all pixels are equal: what little differs is the image
        return float(values[words[seen]].min()), float(values[words[seen]].max())
    air = shown[seen & ~field & (shown < low) & ~_find_lines(dark)]
    if air.size > _SPIKE_SHARE * seen.sum():
        low = max(float(np.median(air)), low - _AIR_SHARE * (high - low))
    return (-high, -low) if inverted else (low, high)


def _find_borders(shown: Values, seen: Mask) -> tuple[Mask, Mask]:
    """Mark the level areas that reach the edge of the image, dark ones and bright ones."""
    import cv2

    frame = _find_frame(seen)
    low, high = (float(end) for end in np.percentile(shown[seen], PERCENTILES))
    smooth = cv2.medianBlur(np.ascontiguousarray(shown), 5)  # a border that was exposed a little is noisy
    lower = shown <= (low + high) / 2
    found = []
    for half, image, spread in ((lower, shown, _DARK_SPREAD), (~lower, smooth, _BRIGHT_SPREAD)):
        borders = np.zeros(seen.shape, bool)
        for _ in range(2):
            borders |= _grow_border(image, seen & half & ~borders, frame, spread * (high - low))
        found.append(borders)
    return found[0], found[1]


def _find_lines(border: Mask) -> Mask:
    """Return a border that is a frame of whole rows and columns, nothing where it has another shape."""
    rows, columns = (border.mean(axis=axis) > _LINE_SHARE for axis in (1, 0))
    lines = rows[:, None] | columns[None, :]
    return lines if border[lines].sum() > _LINE_SHARE * border.sum() else np.zeros_like(border)


def _find_frame(seen: Mask) -> Mask:
    """Mark the outermost pixels of the part that is seen."""
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    inside = np.zeros(seen.shape, bool)
    inside[rows[0] + 1 : rows[-1], columns[0] + 1 : columns[-1]] = True
    return seen & ~inside


def _grow_border(image: Values, free: Mask, frame: Mask, spread: float) -> Mask:
    """Return the areas of the commonest level on the frame that touch it; none where it is not common enough."""
    import cv2

    edge = np.sort(image[frame & free])
    counts = np.searchsorted(edge, edge + np.float32(spread), side="right") - np.arange(edge.size)
    if not edge.size or counts.max() < _FRAME_SHARE * frame.sum():
        return np.zeros(free.shape, bool)
    start = edge[counts.argmax()]
    found = free & (image >= start) & (image <= start + np.float32(spread))
    labels = cv2.connectedComponents(found.astype(np.uint8), connectivity=4)[1]
    return np.asarray(found & np.isin(labels, np.unique(labels[frame & found])))


def _drop_spikes(words: NDArray[Any], field: Mask) -> Mask:
    """Return the field without the values that far more pixels have than have others."""
    counts = np.bincount(words[field])
    if not counts.size:
        return field
    usual = float(np.median(counts[counts > 0]))
    spikes = counts > max(_SPIKE_SHARE * counts.sum(), _SPIKE_HEIGHT * usual)
    return np.asarray(field & ~spikes[np.minimum(words, counts.size - 1)])
