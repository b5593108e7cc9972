"""The training loop: epochs of steps, validation, the best weights, checkpoints.

The random generators are seeded in every epoch with the seed and the epoch's number, so a resumed run ends with the
same weights as an uninterrupted one. Every process of a data-parallel run draws the same batches and computes its own
share of each. Losses are divided by counts over the whole batch, so the mean of the processes' gradients equals the
gradient of a single process with that batch.
"""

import os
import pickle
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor, nn, optim

from contract.errors import ArtifactError, ConfigError
from training.augment import augment
from training.batch import Batch, Draw, draw_batch, draw_order, draw_rows, make_batch
from training.checkpoint import RunDirectory
from training.config.settings import LoopConfig, TrainConfig
from training.evaluation.labels import MIN_POSITIVES
from training.losses import compute_positive_weights
from training.model.model import CxrModel
from training.model.weights import set_training_mode
from training.muon import multiplies_bfloat16
from training.objective import Objective
from training.optimizer import make_average, make_optimizers, make_schedules
from training.prefetch import Meter, prefetch
from training.validate import Examined, Predictions, predict_rows, score
from training.watch import EpochReport, StepReport, Watcher

_STATE: Final = "state.pt"
_REPORT_EVERY: Final = 10  # steps between two reads of the loss; each read waits for the GPU
_READ_ERRORS: Final = (
    *(OSError, EOFError, RuntimeError, pickle.UnpicklingError),
    *(KeyError, IndexError, TypeError, ValueError),
)


@dataclass
class Trainer:
    """Trains a model: `fit` is the loop. The fields are its objects and its state."""

    examined: Examined
    model: CxrModel
    accelerator: Accelerator
    run: RunDirectory
    watcher: Watcher
    objective: nn.Module = field(init=False)
    optimizers: list[Any] = field(init=False)
    schedules: list[optim.lr_scheduler.LambdaLR] = field(init=False)
    average: optim.swa_utils.AveragedModel | None = field(init=False, default=None)
    history: list[EpochReport] = field(default_factory=list)
    best_score: float = -1.0
    best_epoch: int = 0
    best_state: dict[str, Tensor] | None = None
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def config(self) -> TrainConfig:
        """The run's config."""
        return self.examined.config

    @property
    def final_model(self) -> CxrModel:
        """The model that is validated and saved: the moving average if there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run. A last batch with fewer studies than processes is left out."""
        config = self.config.loop
        batches, remainder = divmod(len(self.examined.split["train"]), config.batch_size)
        return (batches + int(remainder >= self.accelerator.num_processes)) * config.epochs

    def fit(self, checkpoint: Path | None) -> None:
        """Train until the last epoch, or until validation stops improving. Then load the best weights into the model.

        Afterwards the trainer holds the history and the best score of the whole run.

        Args:
            checkpoint: Checkpoint to resume from, from `RunDirectory.find_checkpoints`.

        Raises:
            ArtifactError: The checkpoint is damaged.
        """
        self._prepare()
        if checkpoint is not None:
            self._load(checkpoint)
        for epoch in range(len(self.history) + 1, self.config.loop.epochs + 1):
            if self._is_finished():
                self.watcher.on_note(
                    f"Stopped early: the score has not improved since epoch {self.best_epoch}."
                )
                break
            report = self._train_epoch(epoch)
            self.history.append(report)
            if report.validation and report.validation["score"] >= self.best_score:
                self.best_score, self.best_epoch = report.validation["score"], epoch
                self.best_state = _copy_weights(self.final_model)
            self._save(epoch)
            self.watcher.on_epoch(report)
        if self.best_state is None:
            self.best_epoch = len(self.history)
            self.watcher.on_note(
                f"No label has {MIN_POSITIVES} validation studies with and without it, so the epochs have no "
                "score. The last epoch is kept."
            )
        self.model.load_state_dict(self.best_state or self.final_model.state_dict())

    def _prepare(self) -> None:
        """Put model, losses and optimizers on the device, and wrap them for data-parallel training."""
        config, studies, model = self.config, self.examined.studies, self.model
        rows = self.examined.select_rows("train")
        targets, known = torch.from_numpy(studies.targets[rows]), torch.from_numpy(studies.known[rows])
        weights = compute_positive_weights(targets, known, config.loss.positive_weight_limit)
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(self.accelerator.device)
        if config.loop.compile:
            for part in (model.image_encoder, model.text_encoder, model.fusion):
                part.compile(dynamic=True)
        optimizers = make_optimizers(model, config)
        self.schedules = make_schedules(optimizers, self.steps, config.optimizer.warmup_share)
        self.objective, *self.optimizers = self.accelerator.prepare(
            Objective(model, weights, config.loss), *optimizers
        )
        if config.optimizer.ema_decay:
            self.average = make_average(model, config.optimizer.ema_decay)

    def _train_epoch(self, epoch: int) -> EpochReport:
        """Make the optimizer steps of one epoch, and validate if it is due."""
        config, accelerator = self.config, self.accelerator
        device = accelerator.device
        # Dropout and drop path differ in every process.
        seeds = np.random.SeedSequence([config.seed, epoch, accelerator.process_index])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        noise = torch.Generator(device).manual_seed(torch.initial_seed())
        set_training_mode(self.model, config.weights.freeze)
        meter = Meter(torch.cuda.synchronize if device.type == "cuda" else None)
        steps: list[dict[str, Tensor]] = []
        for draw, batches in meter.watch(prefetch(self._draw_epoch(epoch), meter.time(self._load_batches))):
            counts = self._count_known(draw)
            losses: dict[str, Tensor] = {}  # of this process, summed over its batches
            for number, part in enumerate(batches, start=1):
                batch = part.to(device)
                pixels = batch.pixels
                if len(pixels):
                    pixels = augment(pixels, config.augment, batch.changes, noise)
                waits = accelerator.no_sync(self.objective) if number < len(batches) else nullcontext()
                with waits:
                    parts = self.objective(batch, pixels, counts, 1 / len(batches))
                    accelerator.backward(parts["loss"])
                for name, value in parts.items():
                    losses[name] = losses.get(name, 0.0) + value.detach()
            self._update_weights()
            steps.append(losses)
            meter.count(len(draw.rows))
            self._report_step(epoch, losses, meter)
        meter.finish()
        means = self._average_losses(steps)
        validates = epoch % config.loop.validate_every == 0 or epoch == config.loop.epochs
        return EpochReport(
            epoch=epoch,
            loss=means.pop("loss"),
            losses=means,
            validation=self._validate() if validates else {},
            rates={name: round(value, 3) for name, value in meter.rates().items()},
            seconds=round(time.monotonic() - self.started, 2),
        )

    def _draw_epoch(self, epoch: int) -> Iterator[Draw]:
        """Draw the batches of an epoch, the same ones in every process."""
        config, studies = self.config, self.examined.studies
        generator = np.random.default_rng([config.seed, epoch])
        drawn = draw_rows(self.examined.split["train"], studies, config.data.rare_share, generator)
        order = draw_order(drawn, studies, config.loop.batch_size, generator)
        for rows in order:
            draw = draw_batch(studies, rows, config.data, generator, compare_words=config.loss.spare_alike)
            if len(rows) >= self.accelerator.num_processes:
                yield draw

    def _load_batches(self, draw: Draw) -> tuple[Draw, list[Batch]]:
        """Return a draw, and this process's share of it as tensors, in one part for each accumulation step."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = draw.take(slice(rank, None, world))
        # Every process needs the same number of parts. One with more parts would wait for the others for ever.
        parts = share.split(min(self.config.loop.accumulate, len(draw.rows) // world))
        studies, tokenizer = self.examined.studies, self.examined.tokenizer
        return draw, [make_batch(studies, tokenizer, part, self.config.data) for part in parts]

    def _count_known(self, draw: Draw) -> dict[str, float]:
        """Return, by way, the number of known labels in a draw, divided by the number of processes."""
        known = self.examined.studies.known[draw.rows].sum(1)
        image = draw.views[:, 0] >= 0
        text = np.array([bool(words) for words in draw.texts], bool)
        ways = {"image": image, "text": text & ~draw.silent, "study": image & text}
        world = self.accelerator.num_processes
        return {way: max(1.0, float(known[rows].sum())) / world for way, rows in ways.items()}

    def _update_weights(self) -> None:
        """Make an optimizer step with the gradients of all batches.

        In fp16 all optimizers share one loss scale, which changes once a step. Accelerate changes it after each
        optimizer, and then divides the gradients of the next one by it again. If one gradient overflows, clipping makes
        the others 0 or NaN, so no optimizer takes the step.
        """
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.optimizer.clip_norm)
        scaler = self.accelerator.scaler
        for optimizer in self.optimizers:
            if scaler is None:
                optimizer.step()
            elif torch.isfinite(norm):
                scaler.step(optimizer.optimizer)
            optimizer.zero_grad()
        if scaler is not None:
            scaler.update()
        for schedule in self.schedules:
            schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1

    def _report_step(self, epoch: int, losses: dict[str, Tensor], meter: Meter) -> None:
        on_gpu = self.accelerator.device.type == "cuda"
        if not self.accelerator.is_main_process or (on_gpu and self.step % _REPORT_EVERY):
            return
        values = {name: float(value) for name, value in losses.items()}
        self.watcher.on_step(
            StepReport(
                step=self.step,
                steps=self.steps,
                epoch=epoch,
                loss=values.pop("loss"),
                losses=values,
                learning_rate=max(group["lr"] for group in self.optimizers[0].param_groups),
                studies_per_s=meter.rates()["both"],
            )
        )

    def _average_losses(self, steps: list[dict[str, Tensor]]) -> dict[str, float]:
        """Return the mean of every loss over the steps that have it and over all processes."""
        values = [{name: float(value) for name, value in losses.items()} for losses in steps]
        if self.accelerator.num_processes > 1:
            values = gather_object(values)
        names = sorted({name for losses in values for name in losses})
        return {name: float(np.mean([losses[name] for losses in values if name in losses])) for name in names}

    def _validate(self) -> dict[str, float]:
        """Return the scores on the validation split. Every process predicts its share."""
        rows = self.examined.select_rows("validation")
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        predictions: Predictions = predict_rows(self.examined, self.final_model, rows[rank::world])
        if world > 1:
            shares: list[Predictions] = gather_object([predictions])
            ways = dict.fromkeys(way for share in shares for way in share)
            predictions = {
                way: tuple(
                    np.concatenate(parts) for parts in zip(*(s[way] for s in shares if way in s), strict=True)
                )
                for way in ways
            }
        return score(self.examined.studies, predictions)

    def _is_finished(self) -> bool:
        """Return whether the score has not improved for `patience` validations."""
        patience = self.config.loop.patience
        since = [report for report in self.history if report.validation and report.epoch > self.best_epoch]
        return bool(patience) and len(since) >= patience

    def _save(self, epoch: int) -> None:
        """Write the checkpoint of an epoch. Only the first process writes.

        A killed run can resume from any epoch, so each checkpoint has the optimizers' state, except the last one, after
        which there is no training. If this epoch is the best one, its weights are written only once.
        """
        if self.accelerator.is_main_process:
            ended = epoch == self.config.loop.epochs or self._is_finished()
            best = None if self.best_epoch == epoch else self.best_state
            state = {
                "model": self.model.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "training": None if ended else self._read_training_state(),
                "best": {"score": self.best_score, "epoch": self.best_epoch, "state": best},
                "history": [asdict(report) for report in self.history],
                "step": self.step,
            }
            directory = self.run.begin_checkpoint(epoch)
            with (directory / _STATE).open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())  # before the older checkpoint is removed
            self.run.finish_checkpoint(directory)
            self.run.write_epochs(self.history)
        self.accelerator.wait_for_everyone()

    def _read_training_state(self) -> dict[str, Any]:
        """Return the state that only further training needs."""
        scaler = self.accelerator.scaler
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _load_training_state(self, state: dict[str, Any]) -> None:
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        for schedule, values in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(values)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _load(self, checkpoint: Path) -> None:
        """Resume from a checkpoint."""
        try:
            state = torch.load(checkpoint / _STATE, map_location=self.accelerator.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            if state["training"] is not None:
                self._load_training_state(state["training"])
            best = state["best"]
            self.history = [EpochReport(**values) for values in state["history"]]
        except _READ_ERRORS as error:
            raise ArtifactError(
                f"The checkpoint {checkpoint} cannot be read. Remove it and repeat the command, to train from the "
                "start."
            ) from error
        self.best_score, self.best_epoch, self.best_state = best["score"], best["epoch"], best["state"]
        if self.best_epoch == len(self.history):
            self.best_state = _copy_weights(self.final_model)
        self.step = state["step"]
        self.started -= self.history[-1].seconds
        self.run.write_epochs(self.history)
        self.watcher.on_note(f"Resuming after epoch {len(self.history)} of {self.config.loop.epochs}.")


def _copy_weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def make_accelerator(config: LoopConfig) -> Accelerator:
    """Return the accelerator: device, processes (of torchrun) and precision.

    Raises:
        ConfigError: This device does not support the precision.
    """
    precision = choose_precision(config.precision)
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("loop.precision fp16 needs a GPU. Use bf16 or fp32.")
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    return Accelerator(
        cpu=not torch.cuda.is_available(),  # otherwise processes without a GPU do not find each other
        mixed_precision=precision.replace("fp32", "no"),
        kwargs_handlers=handlers,
    )


def choose_precision(precision: str) -> str:
    """Return "fp32", "bf16" or "fp16" as configured. "auto" is bf16 if the processor supports it, otherwise fp32."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if multiplies_bfloat16() else "fp32"
