"""The console and the table of the commands: values are printed literally, and tables fit every width.

Rich turns `:heart:` into an emoji and `[x]` into markup, and an escape sequence in a file name would control the
terminal. Ids, paths, findings and reports come from outside, so every caller wraps them in `escape`.
"""

import re
from typing import Any, Final

from rich import markup, table
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement

NARROW: Final = 60  # columns of the terminal
_SHORT: Final = 8  # characters of a figure
_LEAST: Final = 4
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed


class CommandConsole(Console):
    """A console without emoji and automatic colours. Its markup is for the texts of this package."""

    def __init__(self, **settings: Any) -> None:
        """Take what `rich.console.Console` takes."""
        super().__init__(**{"emoji": False, "highlight": False, **settings})

    def on_broken_pipe(self) -> None:
        """Raise the error for `cli.command`: nobody reads the output any more, as after `| head -1`."""
        raise  # noqa: PLE0704 - rich calls this where it handles the BrokenPipeError


def escape(value: object) -> str:
    """Return markup that shows a value literally, with control characters as codes."""
    text = _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", str(value))
    return markup.escape(text)


def show_plain(text: str) -> str:
    """Return text for one line without markup, with control characters as codes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class Table(table.Table):
    """A table whose columns share the width: a long word is broken, and no column becomes empty."""

    def add_column(self, header: RenderableType = "", *arguments: Any, **settings: Any) -> None:
        """Add a column; see `rich.table.Table`. Text that does not fit continues in the next line."""
        super().add_column(header, *arguments, **{"overflow": "fold", **settings})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table. On a narrow terminal, omit the lines between columns."""
        if options.max_width < NARROW:
            self.box = self.box and SIMPLE_HEAD
            self.pad_edge, self.padding = False, (0, 1, 0, 0)
        self._share_width(console, options)
        yield from super().__rich_console__(console, options)

    def _share_width(self, console: Console, options: ConsoleOptions) -> None:
        """Narrow the widest columns first if they do not fit. Rich alone would leave short ones empty."""
        widths = [
            max(Measurement.get(console, options, cell).maximum for cell in (column.header, *column.cells))
            for column in self.columns
        ]
        padding = sum(self._get_padding_width(index) for index in range(len(widths)))
        room = options.max_width - self._extra_width - padding
        if sum(widths) <= room:
            return
        remaining = len(widths)
        for index in sorted(range(len(widths)), key=lambda index: widths[index]):
            column, remaining = self.columns[index], remaining - 1
            share = room // (remaining + 1)
            if widths[index] <= _SHORT:  # keep a figure whole, as long as the others keep a minimum
                share = max(share, min(_SHORT, room - _LEAST * remaining))
            column.width = max(1, min(widths[index], share))
            column.no_wrap = column.no_wrap and column.width == widths[index]
            room -= column.width
