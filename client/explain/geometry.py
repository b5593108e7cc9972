"""Maps back onto the radiograph: the fit into a square is undone, and the sides of the patient are marked if known."""

import numpy as np
from numpy.typing import NDArray

from client.explain.maps import Array, import_cv2
from contract.image.frame import Frame
from contract.image.read import load_sizes

Picture = NDArray[np.uint8]


def load_original(data: bytes, frame: Frame) -> Picture:
    """Return the radiograph at full resolution as it is displayed: (rows, columns) uint8, 0 is black.

    Args:
        data: The file, which was read before.
        frame: Where it lies in the square of the model.
    """
    return load_pictures(data, frame)[0]


def load_pictures(data: bytes, frame: Frame, *sides: int) -> list[Picture]:
    """Return the radiograph as `load_original` does, then squares (side, side) that it is fitted into.

    Args:
        data: The file, which was read before.
        frame: Where it lies in the square of the model.
        sides: Side of each square, in pixels.
    """
    size = max(frame.rows, frame.columns)
    whole, *squares = (found.pixels[0] for found in load_sizes(data, (size, *sides)))
    return [whole[frame.cut(size)], *squares]


def unfit_map(values: Array, frame: Frame) -> Array:
    """Return a map of the square on the radiograph: (rows, columns) float32. The padding is cut off.

    Args:
        values: (S, S), over the whole square, of the size that `frame` states.
        frame: Where the radiograph lies in the square.
    """
    cv2 = import_cv2()
    part = values[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
    large = cv2.resize(part, (frame.columns, frame.rows), interpolation=cv2.INTER_LINEAR)
    whole: Array = large.astype(np.float32)
    return whole


def find_sides(orientation: str) -> tuple[str, str] | None:
    r"""Return the sides of the patient at the left and the right edge of the picture, "R" or "L"; None if not known.

    Args:
        orientation: DICOM Patient Orientation (PS3.3 C.7.6.1.1.1): the direction of the rows to the right, and of the
            columns downward, such as L\F.
    """
    across = orientation.split("\\", maxsplit=1)[0]
    if across.startswith("L"):
        return ("R", "L")
    return ("L", "R") if across.startswith("R") else None
