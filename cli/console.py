"""Where the commands print: values stand there as they are, and tables keep their columns at every width.

Rich turns `:heart:` into an emoji and `[x]` into markup, and an escape sequence in a file name would steer the
terminal. Ids, paths, findings and reports come from others: whoever prints one wraps it in `escape`.
"""

import re
from typing import Any, Final

from rich import markup, table
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement

NARROW: Final = 60  # columns of the terminal
_SHORT: Final = 8  # letters of a figure
_LEAST: Final = 4
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed


class CommandConsole(Console):
    """A console that shows no emoji and no colours of its own; its markup is for the words of this package."""

    def __init__(self, **settings: Any) -> None:
        """Take what `rich.console.Console` takes."""
        super().__init__(**{"emoji": False, "highlight": False, **settings})

    def on_broken_pipe(self) -> None:
        """Leave it to `cli.command`: nobody reads any more, as after `| head -1`."""
        raise  # noqa: PLE0704 - rich calls this where it handles the BrokenPipeError


def escape(value: object) -> str:
    """Return a value of somebody else as markup that shows it literally; control characters by their codes."""
    text = _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", str(value))
    return markup.escape(text)


class Table(table.Table):
    """A table in which columns give way to each other: a long word is broken, and no column is left blank."""

    def add_column(self, header: RenderableType = "", *arguments: Any, **settings: Any) -> None:
        """Add a column; see `rich.table.Table`. What does not fit goes on in the next line."""
        super().add_column(header, *arguments, **{"overflow": "fold", **settings})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it; on a narrow terminal without lines between columns."""
        if options.max_width < NARROW:
            self.box = self.box and SIMPLE_HEAD
            self.pad_edge, self.padding = False, (0, 1, 0, 0)
        self._share_width(console, options)
        yield from super().__rich_console__(console, options)

    def _share_width(self, console: Console, options: ConsoleOptions) -> None:
        """Where the columns do not fit, let the widest give way first; rich alone would leave short ones blank."""
        wanted = [
            max(Measurement.get(console, options, cell).maximum for cell in (column.header, *column.cells))
            for column in self.columns
        ]
        padding = sum(self._get_padding_width(place) for place in range(len(wanted)))
        room = options.max_width - self._extra_width - padding
        if sum(wanted) <= room:
            return
        left = len(wanted)
        for place in sorted(range(len(wanted)), key=lambda place: wanted[place]):
            column, left = self.columns[place], left - 1
            share = room // (left + 1)
            if wanted[place] <= _SHORT:  # a figure: better whole, while the others keep a little
                share = max(share, min(_SHORT, room - _LEAST * left))
            column.width = max(1, min(wanted[place], share))
            column.no_wrap = column.no_wrap and column.width == wanted[place]
            room -= column.width
