"""Show a training run on the terminal: a bar with figures, and one line for each validated epoch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cli.console import escape
from training.watch import EpochReport, StepReport

_LONG_WAIT: Final = 0.2  # share of an epoch; a shorter wait for the loader is not printed


class _Bars(Progress):
    """A bar with lines of figures under it."""

    figures: tuple[str, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for line in self.figures:
            yield Text(f"  {line}", style="dim", overflow="ellipsis", no_wrap=True)


class TrainingDisplay:
    """A `training.watch.Watcher` that prints. Without a terminal it prints only lines, no bar."""

    def __init__(self, console: Console, bars: _Bars, epochs: int) -> None:
        """Take a started display; see `show_training`."""
        self._console, self._bars, self._epochs = console, bars, epochs
        self._task = bars.add_task("Preparing", total=None, rate="")
        self._stage = ""
        self._last: float | None = None
        self._best: tuple[float, int] | None = None  # score and epoch

    def on_images(self, done: int, total: int) -> None:
        """Move the bar."""
        self._enter("Reading images", total)
        self._bars.update(self._task, completed=done, total=total)

    def on_step(self, report: StepReport) -> None:
        """Move the bar and set its figures."""
        self._enter("Training", report.steps)
        self._bars.figures = self._describe_step(report)
        self._bars.update(
            self._task,
            description=f"Training  epoch {report.epoch}/{self._epochs}",
            completed=report.step,
            total=report.steps,
            rate=f"{report.studies_per_s:.0f} studies/s",
        )

    def on_epoch(self, report: EpochReport) -> None:
        """Print a line if the epoch was validated."""
        if "score" not in report.validation:
            return
        self._last = report.validation["score"]
        best = self._best is None or self._last >= self._best[0]
        if best:
            self._best = (self._last, report.epoch)
        self._console.print(self._describe_epoch(report, best), highlight=False, soft_wrap=True)

    def on_note(self, text: str) -> None:
        """Print a line."""
        self._console.print(f"[dim]{escape(text)}[/dim]", highlight=False, soft_wrap=True)

    def _enter(self, stage: str, total: int) -> None:
        """Reset the bar at the start of a stage, so that it shows the speed of this stage."""
        if stage != self._stage:
            self._stage = stage
            self._bars.reset(self._task, total=total, description=stage, rate="")

    def _describe_step(self, report: StepReport) -> tuple[str, ...]:
        parts = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        lines = [
            f"loss {report.loss:.3f}{f' ({parts})' if parts else ''}",
            f"learning rate {report.learning_rate:.1e}",
        ]
        if self._last is not None and self._best is not None:
            score, epoch = self._best
            lines[1] += f"  validation {self._last:.4f}, best {score:.4f} in epoch {epoch}"
        return tuple(lines)

    def _describe_epoch(self, report: EpochReport, best: bool) -> str:
        parts = [
            f"{name.removesuffix('/auroc')} {value:.3f}"
            for name, value in report.validation.items()
            if name.endswith("/auroc")
        ]
        score = f"{report.validation['score']:.4f}"
        details = [f"AUROC {', '.join(parts)}"] if parts else []
        details.append(f"{report.seconds:.0f} s")
        if "both" in report.rates:
            details.append(f"{report.rates['both']:.0f} studies/s")
        if report.rates.get("waiting_share", 0.0) > _LONG_WAIT:
            details.append(f"{report.rates['waiting_share']:.0%} of it waiting for images")
        return (
            f"Epoch {report.epoch:>3}/{self._epochs}  loss {report.loss:.3f}  "
            f"validation {f'[bold]{score}[/bold] best' if best else f'{score}     '}"
            f"  [dim]{escape('  '.join(details))}[/dim]"
        )


@contextmanager
def show_training(console: Console, epochs: int) -> Iterator[TrainingDisplay]:
    """Show a run while the body trains.

    Args:
        console: The console. The bar is drawn only on a terminal.
        epochs: Number of epochs of the run.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    # Validation interrupts the steps. A long period keeps the estimate of the remaining time stable.
    bars = _Bars(
        *columns, console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=300
    )
    with bars:
        yield TrainingDisplay(console, bars, epochs)
