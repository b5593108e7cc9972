"""Progress on the terminal: one line per finished step, a bar while it runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from cli.console import escape
from training.watch import Silent, StepReport

ProgressCallback = Callable[[int, int], None]


@dataclass
class Step:
    """A running step: `progress(done, total)` moves its bar, `say(text)` sets the detail of its final line."""

    title: str
    progress: ProgressCallback
    detail: str = ""
    seconds: float = 0.0

    def say(self, detail: str) -> None:
        """Set the text after the title in the final line."""
        self.detail = detail


@dataclass
class Steps:
    """Prints numbered steps with their times; `done` keeps them for a summary."""

    console: Console
    total: int
    done: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run the body under a bar, then print one line with its time."""
        number = f"[{len(self.done) + 1:>2}/{self.total}]"
        started = time.perf_counter()
        with show_progress(self.console, f"{number} {title}") as progress:
            step = Step(title, progress)
            yield step
        step.seconds = time.perf_counter() - started
        self.done.append(step)
        detail = f"  [dim]{escape(step.detail)}[/dim]" if step.detail else ""
        line = f"{escape(number)} {escape(title)}  [bold]{step.seconds:.1f} s[/bold]{detail}"
        self.console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def show_progress(console: Console, title: str) -> Iterator[ProgressCallback]:
    """Yield `progress(done, total)`, which moves a bar on a terminal. The bar is a spinner until the total is known."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@dataclass
class TrainingBar(Silent):
    """A `training.watch.Watcher` that shows a run as one bar: images read, then steps."""

    progress: ProgressCallback

    def on_images(self, done: int, total: int) -> None:
        """Move the bar. It is never full, because training follows."""
        self.progress(done, total + 1)

    def on_step(self, report: StepReport) -> None:
        """Move the bar."""
        self.progress(report.step, report.steps)
