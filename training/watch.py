"""What a training run tells whoever watches it: a progress display, a log, a tracker."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class StepReport:
    """One optimizer step.

    Attributes:
        stage: "pretraining" (masked-language) or "training".
        step: Steps done in this stage, from 1.
        steps: Steps of the stage in all.
        epoch: The current epoch, from 1.
        loss: Of this step.
        losses: Its parts, unweighted: "labels/image", "labels/text", "labels/study", "contrastive", "headings".
        learning_rate: Of the part that is no encoder.
        studies_per_s: Mean since the epoch began.
    """

    stage: str
    step: int
    steps: int
    epoch: int
    loss: float
    losses: Mapping[str, float]
    learning_rate: float
    studies_per_s: float


@dataclass(frozen=True)
class EpochReport:
    """One epoch; becomes a line of the run's metrics.jsonl.

    Attributes:
        epoch: From 1.
        loss: Mean over its steps.
        losses: Means of its parts.
        validation: Macro AUROC and average precision by way, "image/auroc", "text/ap", ..., and their mean "score";
            empty where the epoch was not validated.
        rates: Studies per second that the loader alone, the device alone and both together did: "loader", "device",
            "both"; and the "waiting_share" of the time in which the device waited for the loader.
        seconds: Since the run began, time before a resume included.
    """

    epoch: int
    loss: float
    losses: Mapping[str, float]
    validation: Mapping[str, float]
    rates: Mapping[str, float]
    seconds: float


class Watcher(Protocol):
    """Is told of the progress of a run; every method returns at once and raises nothing."""

    def on_images(self, done: int, total: int) -> None:
        """Images read."""

    def on_step(self, report: StepReport) -> None:
        """One step done."""

    def on_epoch(self, report: EpochReport) -> None:
        """One epoch done."""

    def on_note(self, text: str) -> None:
        """Something a person should know: weights loaded, resumed from, stopped early."""


class Silent:
    """A watcher that looks away."""

    def on_images(self, done: int, total: int) -> None:
        """Do nothing."""

    def on_step(self, report: StepReport) -> None:
        """Do nothing."""

    def on_epoch(self, report: EpochReport) -> None:
        """Do nothing."""

    def on_note(self, text: str) -> None:
        """Do nothing."""
