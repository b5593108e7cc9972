"""Where the commands print: values stand there as they are, and tables keep their columns at every width.

Rich turns `:heart:` into an emoji and `[x]` into markup, and an escape sequence in a file name would steer the
terminal. Ids, paths, findings and reports come from others: whoever prints one wraps it in `escape`.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from rich import markup
from rich.box import Box
from rich.console import Console
from rich.table import Table

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


def make_table(title: str | None, columns: Sequence[str], *, texts: int = 1, box: Box | None = None) -> Table:
    """Start a table whose columns give way to each other: a long word is broken, no column is left out.

    Args:
        title: Above it.
        columns: Their headings.
        texts: How many of them hold text, from the left; the others hold figures, right-aligned.
        box: Lines around and between; None for rich's own.
    """
    table = Table(title=title, title_justify="left", header_style="bold", **({"box": box} if box else {}))
    for place, heading in enumerate(columns):
        text = place < texts
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    return table


def is_narrow(console: Console) -> bool:
    """Return whether lines between columns would cost more than they give."""
    return console.width < 60
