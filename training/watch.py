"""The reports of a training run to a progress display, a log or a tracker."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class StepReport:
    """One optimizer step.

    Attributes:
        step: Number of steps done, from 1.
        steps: Total number of steps.
        epoch: The current epoch, from 1.
        loss: Loss of this step.
        losses: Its parts, unweighted: "labels/image", "labels/text", "labels/study", "contrastive".
        learning_rate: Learning rate outside the encoders.
        studies_per_s: Mean since the epoch began.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    losses: Mapping[str, float]
    learning_rate: float
    studies_per_s: float


@dataclass(frozen=True)
class EpochReport:
    """One epoch, written as a line of the run's metrics.jsonl.

    Attributes:
        epoch: Number of the epoch, from 1.
        loss: Mean loss over its steps.
        losses: Means of the parts of the loss.
        validation: Macro AUROC and average precision by way, "image/auroc", "text/ap", ..., and their mean "score";
            empty if the epoch was not validated.
        rates: Studies per second of the loader alone, of the device alone and of both together: "loader", "device",
            "both"; and "waiting_share", the share of the time in which the device waited for the loader.
        seconds: Seconds since the start of the run, with the time before a resume.
    """

    epoch: int
    loss: float
    losses: Mapping[str, float]
    validation: Mapping[str, float]
    rates: Mapping[str, float]
    seconds: float


class Watcher(Protocol):
    """Receives the progress of a run. Every method must return at once and must not raise."""

    def on_images(self, done: int, total: int) -> None:
        """Handle progress of reading images."""

    def on_step(self, report: StepReport) -> None:
        """Handle the end of a step."""

    def on_epoch(self, report: EpochReport) -> None:
        """Handle the end of an epoch."""

    def on_note(self, text: str) -> None:
        """Handle a note for the user: weights loaded, run resumed, stopped early."""


class Silent:
    """A watcher that does nothing."""

    def on_images(self, done: int, total: int) -> None:
        """Do nothing."""

    def on_step(self, report: StepReport) -> None:
        """Do nothing."""

    def on_epoch(self, report: EpochReport) -> None:
        """Do nothing."""

    def on_note(self, text: str) -> None:
        """Do nothing."""
