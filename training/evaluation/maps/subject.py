"""What is measured: one finding of one case, and the function that makes its maps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.image.frame import Corners, Frame

Array = NDArray[np.float32]
CENTRE: Final = "centre"
RANDOM: Final = "random"
CONTROLS: Final = {CENTRE: "centre of the picture", RANDOM: "random map"}


@dataclass(frozen=True)
class MethodFacts:
    """A method that is measured.

    Attributes:
        key: Its name.
        title: Its display name.
        signed: Whether values below 0 speak against the finding.
        complete: Whether it promises that its values sum to the difference of the logits.
        is_slow: Whether it is left out of what needs many maps (sensitivity, randomised weights).
    """

    key: str
    title: str
    signed: bool = False
    complete: bool = False
    is_slow: bool = False


@dataclass(frozen=True, eq=False)
class Map:
    """One map.

    Attributes:
        values: (H, H), as the method gives it.
        shown: (S, S), -1 to 1, as it is drawn; below 0 it speaks against the finding.
        seconds: Time that it took.
        delta: Share of the difference of the logits that the sum misses; None if the method promises no sum.
    """

    values: Array
    shown: Array
    seconds: float
    delta: float | None = None

    @property
    def strength(self) -> Array:
        """(S, S), 0 to 1: how strongly it speaks for the finding."""
        strength: Array = np.maximum(self.shown, 0)
        return strength


class CaseInputs(Protocol):
    """One case as tensors; see `client.explain.case.Inputs`."""

    @property
    def pixels(self) -> Any:
        """(1, 1, S, S) float32, 0 to 255."""

    @property
    def input_ids(self) -> Any:
        """(1, L) int64, or None without a report."""

    @property
    def attention_mask(self) -> Any:
        """(1, L) int64, or None without a report."""


# Model, case, index of the label, key of the method -> the map.
MakeMap = Callable[[Any, Any, int, str], Map]


@dataclass(frozen=True, eq=False)
class Subject:
    """One finding of one case.

    Attributes:
        study_id: Its study.
        patient_id: Its patient; patients are drawn anew for intervals.
        label: Index of the label.
        inputs: The case as tensors.
        frame: Where the radiograph lies in the square.
        boxes: Boxes of the finding in the square, in pixels.
        image: The file of the image.
    """

    study_id: str
    patient_id: str
    label: int
    inputs: CaseInputs
    frame: Frame
    boxes: tuple[Corners, ...]
    image: Path

    def draw_boxes(self) -> NDArray[np.bool_]:
        """Return (S, S): which pixels lie in a box of the finding. Each box has at least one pixel."""
        size = self.frame.size
        mask = np.zeros((size, size), np.bool_)
        for x0, y0, x1, y1 in self.boxes:
            left, top = (min(max(int(np.floor(edge)), 0), size - 1) for edge in (x0, y0))
            right, bottom = (int(np.ceil(edge)) for edge in (x1, y1))
            mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
        return mask

    def draw_frame(self) -> NDArray[np.bool_]:
        """Return (S, S): which pixels show the radiograph."""
        mask = np.zeros((self.frame.size,) * 2, np.bool_)
        mask[self.frame.cut(self.frame.size)] = True
        return mask
