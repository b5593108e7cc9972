"""Where a radiograph lies in the square that the model reads, and the way back from the square to the radiograph."""

from dataclasses import dataclass

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1; x to the right, y down, x1 and y1 excluded


@dataclass(frozen=True)
class Frame:
    """The place of a radiograph in a square. The radiograph is scaled to fit, and centred on black.

    Attributes:
        rows: Height of the radiograph as it is displayed, in pixels.
        columns: Width of the radiograph, in pixels.
        size: Side of the square, in pixels.
        top: First row of the square that shows the radiograph.
        left: First column of the square that shows the radiograph.
        height: Height of the radiograph in the square, in pixels.
        width: Width of the radiograph in the square, in pixels.
    """

    rows: int
    columns: int
    size: int
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def fit(cls, rows: int, columns: int, size: int) -> "Frame":
        """Return the place of a radiograph of `rows` x `columns` pixels in a square of `size` pixels.

        Args:
            rows: Height of the radiograph, at least 1.
            columns: Width of the radiograph, at least 1.
            size: Side of the square, at least 1.
        """
        scale = size / max(rows, columns)
        height, width = (max(1, round(side * scale)) for side in (rows, columns))
        return cls(rows, columns, size, (size - height) // 2, (size - width) // 2, height, width)

    def place_box(self, box: Corners) -> Corners:
        """Return a box of the radiograph as a box of the square, both in pixels."""
        across, down = self.width / self.columns, self.height / self.rows
        x0, y0, x1, y1 = box
        return (
            self.left + x0 * across,
            self.top + y0 * down,
            self.left + x1 * across,
            self.top + y1 * down,
        )

    def cut(self, size: int) -> tuple[slice, slice]:
        """Return the rows and the columns of the radiograph in the same square of another size.

        Args:
            size: Side of that square, in pixels.
        """
        other = Frame.fit(self.rows, self.columns, size)
        return slice(other.top, other.top + other.height), slice(other.left, other.left + other.width)
