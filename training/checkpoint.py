"""The directory of a run: its config, one line of figures per epoch, and a checkpoint to go on from.

    config.toml       every setting
    tokenizer.json    trained on, or belonging to the text weights of, this run
    metrics.jsonl     one `training.watch.EpochReport` per line
    tensorboard/      where TensorBoard was asked for
    checkpoint-12/    after epoch 12; gone once the bundle is written

A checkpoint is written beside the older one and renamed, so that a run killed at any moment finds a whole one.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from contract.bundle import apply_umask
from contract.errors import ConfigError
from contract.files import write_file
from training.config.settings import TrainConfig
from training.config.toml_file import format_config
from training.watch import EpochReport

CONFIG: Final = "config.toml"
METRICS: Final = "metrics.jsonl"
ORIGIN: Final = "origin.json"
_PREFIX: Final = "checkpoint-"
_PARTIAL: Final = ".partial"


def name_run(bundle: Path) -> Path:
    """Return the directory of the run that makes a bundle, where no other is named."""
    return bundle.with_name(f"{bundle.name}.run")


class RunDirectory:
    """A run on the disk. Only the first process of a data-parallel run writes."""

    def __init__(self, path: Path) -> None:
        """Name the directory; nothing is touched yet."""
        self.path = path

    def open(self, config: TrainConfig, origin: Mapping[str, Any], *, resume: bool) -> None:
        """Make the directory, or see that the run in it can be gone on with; `find_checkpoints` says from where.

        Args:
            config: The run's config; on resuming it must be that of the run.
            origin: What else must be equal on resuming: hashes of table and split.
            resume: Go on where the run stopped; a run that never reached a checkpoint starts anew.

        Raises:
            ConfigError: There is a run and `resume` is not set, or it had another config or other data.
        """
        exists = self.path.exists() and any(self.path.iterdir())
        if exists and not resume:
            raise ConfigError(
                f"{self.path} holds a run already: go on with it by --resume, or remove it, or name another by --run."
            )
        if exists:
            self._compare(config, origin)
        else:
            write_file(self.path / CONFIG, format_config(config))
            write_file(self.path / ORIGIN, json.dumps(dict(origin)))

    def find_checkpoints(self) -> list[Path]:
        """Return whole checkpoints, oldest first."""
        paths = [path for path in self.path.glob(f"{_PREFIX}*") if not path.name.endswith(_PARTIAL)]
        return sorted(paths, key=lambda path: int(path.name.removeprefix(_PREFIX)))

    def begin_checkpoint(self, epoch: int) -> Path:
        """Return an empty directory to write the checkpoint of an epoch into."""
        path = self.path / f"{_PREFIX}{epoch}{_PARTIAL}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def finish_checkpoint(self, written: Path) -> None:
        """Make a checkpoint that is written in full the newest one, and remove the others."""
        older = self.find_checkpoints()
        apply_umask(written)
        written.rename(written.with_name(written.name.removesuffix(_PARTIAL)))
        for path in older:
            shutil.rmtree(path)

    def write_epochs(self, reports: list[EpochReport]) -> None:
        """Write metrics.jsonl anew."""
        lines = [json.dumps(asdict(report)) + "\n" for report in reports]
        write_file(self.path / METRICS, "".join(lines))

    def remove_checkpoints(self) -> None:
        """Remove what was only there to go on from."""
        for path in self.path.glob(f"{_PREFIX}*"):
            shutil.rmtree(path)

    def _compare(self, config: TrainConfig, origin: Mapping[str, Any]) -> None:
        try:
            text = (self.path / CONFIG).read_text(encoding="utf-8")
            known = json.loads((self.path / ORIGIN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} is no training run that can be gone on with.") from error
        here = format_config(config).splitlines()
        differing = [line for line in text.splitlines() if line not in here]
        if text.splitlines() != here:
            raise ConfigError(
                f"The run in {self.path} has other settings ({'; '.join(differing) or 'a setting more here'})."
            )
        changed = [name for name, value in origin.items() if known.get(name) != value]
        if changed:
            raise ConfigError(f"The run in {self.path} had another {' and '.join(changed)}.")
