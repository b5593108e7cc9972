"""The directory of a run: its config, one line of figures per epoch, and a checkpoint to resume from.

    config.toml       every setting
    tokenizer.json    trained in this run, or from its text weights
    metrics.jsonl     one `training.watch.EpochReport` per line
    tensorboard/      if TensorBoard is used
    checkpoint-12/    after epoch 12; removed when the bundle is written

A checkpoint is written beside the older one and then renamed, so there is a complete one at any moment.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
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
    """Return the default run directory for a bundle."""
    return bundle.with_name(f"{bundle.name}.run")


def hash_split(split_ids: Mapping[str, Sequence[str]]) -> str:
    """Return the SHA-256 of a split: part -> study ids, in the order of the table."""
    return hashlib.sha256(json.dumps(split_ids, sort_keys=True).encode()).hexdigest()


class RunDirectory:
    """A run on the disk. Only the first process of a data-parallel run writes."""

    def __init__(self, path: Path) -> None:
        """Take the path. The directory is not created yet."""
        self.path = path

    def open(self, config: TrainConfig, origin: Mapping[str, Any], *, resume: bool) -> None:
        """Create the directory, or check that the run in it can be resumed; see `find_checkpoints`.

        Args:
            config: The run's config. To resume, it must equal the config of the earlier run.
            origin: Hashes of table and split. To resume, they must be equal too.
            resume: Resume the run. A run without a checkpoint starts from the beginning.

        Raises:
            ConfigError: There is a run and `resume` is False, or it had another config or other data.
        """
        exists = self.path.exists() and any(self.path.iterdir())
        if exists and not resume:
            raise ConfigError(
                f"{self.path} holds a run already. Resume it (--resume), remove it, or give another directory (--run)."
            )
        if exists:
            self._compare(config, origin)
        else:
            write_file(self.path / CONFIG, format_config(config))
            write_file(self.path / ORIGIN, json.dumps(dict(origin)))

    def find_checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        paths = [path for path in self.path.glob(f"{_PREFIX}*") if not path.name.endswith(_PARTIAL)]
        return sorted(paths, key=lambda path: int(path.name.removeprefix(_PREFIX)))

    def begin_checkpoint(self, epoch: int) -> Path:
        """Return an empty directory for the checkpoint of an epoch."""
        path = self.path / f"{_PREFIX}{epoch}{_PARTIAL}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def finish_checkpoint(self, written: Path) -> None:
        """Make a complete checkpoint the current one, and remove the others."""
        older = self.find_checkpoints()
        apply_umask(written)
        written.rename(written.with_name(written.name.removesuffix(_PARTIAL)))
        for path in older:
            shutil.rmtree(path)

    def write_epochs(self, reports: list[EpochReport]) -> None:
        """Rewrite metrics.jsonl."""
        lines = [json.dumps(asdict(report)) + "\n" for report in reports]
        write_file(self.path / METRICS, "".join(lines))

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints."""
        for path in self.path.glob(f"{_PREFIX}*"):
            shutil.rmtree(path)

    def _compare(self, config: TrainConfig, origin: Mapping[str, Any]) -> None:
        try:
            text = (self.path / CONFIG).read_text(encoding="utf-8")
            stored = json.loads((self.path / ORIGIN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} is not a training run that can be resumed.") from error
        here = format_config(config).splitlines()
        differing = [line for line in text.splitlines() if line not in here]
        if text.splitlines() != here:
            raise ConfigError(
                f"The run in {self.path} has other settings ({'; '.join(differing) or 'one setting fewer'})."
            )
        changed = [name for name, value in origin.items() if stored.get(name) != value]
        if changed:
            raise ConfigError(f"The run in {self.path} had another {' and '.join(changed)}.")
