"""Log the figures of a run to TensorBoard, Weights & Biases or MLflow, besides its metrics.jsonl.

    with track_run(watcher, make_trackers(["tensorboard"]), run, asdict(config)) as watcher:
        ...  # what is reported to `watcher` goes to the trackers too

Only the first process of a run makes trackers. This module calls the packages directly. The trackers of
`accelerate.tracking` would set up a process group of their own.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from contract.errors import ConfigError
from training.config.toml_file import flatten_settings
from training.watch import EpochReport, StepReport, Watcher

LOG_EVERY: Final = 10  # steps; a request to a server at every step would slow down short steps
_PROJECT: Final = "cxr-serving"
_LONGEST_VALUE: Final = 500  # characters of a parameter that every MLflow server accepts
_MOST_VALUES: Final = 100  # parameters of one request to MLflow


class Tracker(Protocol):
    """Logs the figures of one run."""

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """Start the log.

        Args:
            run: The run's directory; its name becomes the run's name.
            config: Every setting, by section.
        """

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add figures of one optimizer step."""

    def finish(self) -> None:
        """Write the remaining figures and close the log. Do nothing if it was not started."""


class TensorBoardTracker:
    """Event files in `<run>/tensorboard`, for `tensorboard --logdir`."""

    def __init__(self) -> None:
        """Check that the package is installed."""
        _require_package("tensorboard")
        self._writer: Any = None

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """Open an event file and write the settings into it as text."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add one scalar per name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class WandbTracker:
    """A run of Weights & Biases. The WANDB_* variables set project, server and offline mode."""

    def __init__(self) -> None:
        """Check that the package is installed."""
        self._wandb = _require_package("wandb")
        self._run: Any = None

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """Open a run, or resume the interrupted run of this directory."""
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            dir=str(run),
            config=dict(config),
            resume="auto",
        )
        # Use a custom step metric: W&B drops values with a smaller step, and a resumed run repeats steps.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add figures, with the step as the x axis."""
        self._run.log({**values, "step": step})

    def finish(self) -> None:
        """Upload the remaining figures."""
        if self._run is not None:
            self._run.finish()


class MlflowTracker:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in MLflow's default location."""

    def __init__(self) -> None:
        """Check that the package is installed."""
        self._mlflow = _require_package("mlflow")
        self._open = False

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """Open a run with the settings as parameters."""
        self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        self._mlflow.start_run(run_name=run.name)
        self._open = True
        settings = [(name, str(value)[:_LONGEST_VALUE]) for name, value in flatten_settings(config).items()]
        for start in range(0, len(settings), _MOST_VALUES):
            self._mlflow.log_params(dict(settings[start : start + _MOST_VALUES]))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add figures in one request."""
        self._mlflow.log_metrics(dict(values), step=step)

    def finish(self) -> None:
        """End the run."""
        if self._open:
            self._mlflow.end_run()


TRACKERS: Final[dict[str, type[Tracker]]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}


def make_trackers(names: Sequence[str]) -> list[Tracker]:
    """Return one tracker for each name of `TRACKERS`, without duplicates; "none" gives no tracker.

    Raises:
        ConfigError: A name is unknown, "none" is combined with others, or a package is not installed.
    """
    unique = list(dict.fromkeys(names))
    if unknown := [name for name in unique if name not in {*TRACKERS, "none"}]:
        raise ConfigError(f"There is no tracker {unknown[0]!r}. Use {', '.join(TRACKERS)} or none.")
    if "none" in unique and len(unique) > 1:
        raise ConfigError("The tracker none cannot be combined with others.")
    return [TRACKERS[name]() for name in unique if name != "none"]


@contextmanager
def track_run(
    watcher: Watcher, trackers: Sequence[Tracker], run: Path, config: Mapping[str, Any]
) -> Iterator["TrackingWatcher"]:
    """Start trackers, yield a watcher that reports to `watcher` and to them, and always finish them.

    Args:
        watcher: Receives each report first, and a note if a tracker fails.
        trackers: Trackers from `make_trackers`.
        run: The run's directory, which must exist.
        config: Every setting, by section: `dataclasses.asdict` of a TrainConfig.

    Raises:
        ConfigError: A tracker does not start, for example without a login or server.
    """
    tracking = TrackingWatcher(watcher, trackers)
    try:
        for tracker in trackers:
            _start(tracker, run, config)
        yield tracking
    finally:
        tracking.finish()


def _start(tracker: Tracker, run: Path, config: Mapping[str, Any]) -> None:
    try:
        tracker.start(run, config)
    except Exception as error:
        raise ConfigError(f"{_describe(tracker, error)}. Fix this, or train without the tracker.") from error


class TrackingWatcher:
    """Passes reports to a watcher and to trackers. A tracker that fails is dropped."""

    def __init__(self, watcher: Watcher, trackers: Sequence[Tracker]) -> None:
        """Take a watcher and started trackers."""
        self._watcher = watcher
        self._trackers = list(trackers)
        self._step = 0

    def on_images(self, done: int, total: int) -> None:
        """Report to the watcher."""
        self._watcher.on_images(done, total)

    def on_step(self, report: StepReport) -> None:
        """Log every `LOG_EVERY`-th step and the last one."""
        self._watcher.on_step(report)
        self._step = report.step
        if report.step % LOG_EVERY and report.step != report.steps:
            return
        values = {
            "loss": report.loss,
            **{f"loss/{name}": value for name, value in report.losses.items()},
            "learning_rate": report.learning_rate,
            "studies_per_s": report.studies_per_s,
            "epoch": report.epoch,
        }
        self._log({f"training/{name}": float(value) for name, value in values.items()})

    def on_epoch(self, report: EpochReport) -> None:
        """Log the means, rates and validation scores of an epoch, at its last step."""
        self._watcher.on_epoch(report)
        values = {
            "epoch/loss": report.loss,
            **{f"epoch/loss/{name}": value for name, value in report.losses.items()},
            "epoch/seconds": report.seconds,
            **{f"rates/{name}": value for name, value in report.rates.items()},
            **{f"validation/{name}": value for name, value in report.validation.items()},
        }
        self._log({name: float(value) for name, value in values.items()})

    def on_note(self, text: str) -> None:
        """Report to the watcher. Trackers log only figures."""
        self._watcher.on_note(text)

    def finish(self) -> None:
        """Finish every tracker that did not fail."""
        self._each(lambda tracker: tracker.finish())

    def _log(self, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.log(values, self._step))

    def _each(self, action: Callable[[Tracker], None]) -> None:
        self._trackers = [tracker for tracker in self._trackers if self._succeeds(action, tracker)]

    def _succeeds(self, action: Callable[[Tracker], None], tracker: Tracker) -> bool:
        """Return whether the action succeeded. A long run must not end because a tracking server is down."""
        try:
            action(tracker)
        except Exception as error:
            self._watcher.on_note(f"{_describe(tracker, error)}. This tracker is no longer used.")
            return False
        return True


def _describe(tracker: Tracker, error: Exception) -> str:
    name = type(tracker).__name__.removesuffix("Tracker")
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"The tracker {name} failed ({reason.rstrip('.')})"


def _require_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--log-with {name} needs a package that is not installed: pip install {name}."
        ) from error
