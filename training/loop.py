"""The training loop: epochs of steps, validation, the best weights, checkpoints.

The random generators are seeded in every epoch with the seed and the epoch's number, so a resumed run ends with the
same weights as an uninterrupted one. Every process of a data-parallel run draws the same batches and computes its own
share of each. Losses are divided by counts over the whole batch, so the mean of the processes' gradients equals the
gradient of a single process with that batch.
"""

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
from training.batch import Batch, Draw, draw_batch, draw_order, make_batch
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


@dataclass
class Loop:
    """The objects of the loop, and its state."""

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
    def kept(self) -> CxrModel:
        """The model that is validated and saved: the moving average if there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch. A last batch with fewer studies than processes is left out."""
        count, size = len(self.examined.split["train"]), self.config.loop.batch_size
        remainder = count % size
        return count // size + int(remainder >= self.accelerator.num_processes)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.loop.epochs


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


def fit(loop: Loop, checkpoint: Path | None) -> None:
    """Train until the last epoch, or until validation stops improving. Then load the best weights into the model.

    Args:
        loop: A new loop. Afterwards it holds the history and the best score of the whole run.
        checkpoint: Checkpoint to resume from, from `RunDirectory.find_checkpoints`.

    Raises:
        ArtifactError: The checkpoint is damaged.
    """
    _prepare(loop)
    if checkpoint is not None:
        _load(loop, checkpoint)
    for epoch in range(len(loop.history) + 1, loop.config.loop.epochs + 1):
        if _is_finished(loop):
            loop.watcher.on_note(f"Stopped early: the score has not improved since epoch {loop.best_epoch}.")
            break
        report = _train_epoch(loop, epoch)
        loop.history.append(report)
        if report.validation and report.validation["score"] >= loop.best_score:
            loop.best_score, loop.best_epoch = report.validation["score"], epoch
            loop.best_state = _copy_weights(loop.kept)
        _save(loop, epoch)
        loop.watcher.on_epoch(report)
    if loop.best_state is None:
        loop.best_epoch = len(loop.history)
        loop.watcher.on_note(
            f"No label has {MIN_POSITIVES} validation studies with and without it, so the epochs have no "
            "score. The last epoch is kept."
        )
    loop.model.load_state_dict(loop.best_state or loop.kept.state_dict())


def _prepare(loop: Loop) -> None:
    """Put model, losses and optimizers on the device, and wrap them for data-parallel training."""
    config, studies = loop.config, loop.examined.studies
    rows = loop.examined.select_rows("train")
    targets, known = torch.from_numpy(studies.targets[rows]), torch.from_numpy(studies.known[rows])
    weights = compute_positive_weights(targets, known, config.loss.positive_weight_limit)
    if loop.accelerator.num_processes > 1 and loop.accelerator.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(loop.model)
    loop.model.to(loop.accelerator.device)
    if config.loop.compile:
        for part in (loop.model.image_encoder, loop.model.text_encoder, loop.model.fusion):
            part.compile(dynamic=True)
    optimizers = make_optimizers(loop.model, config)
    loop.schedules = make_schedules(optimizers, loop.steps, config.optimizer.warmup_share)
    loop.objective, *loop.optimizers = loop.accelerator.prepare(
        Objective(loop.model, weights, config.loss), *optimizers
    )
    if config.optimizer.ema_decay:
        loop.average = make_average(loop.model, config.optimizer.ema_decay)


def _train_epoch(loop: Loop, epoch: int) -> EpochReport:
    _seed(loop, epoch)
    set_training_mode(loop.model, loop.config.weights.freeze)
    noise = torch.Generator(loop.accelerator.device).manual_seed(torch.initial_seed())
    meter = Meter(torch.cuda.synchronize if loop.accelerator.device.type == "cuda" else None)

    def load(draw: Draw) -> tuple[Draw, list[Batch]]:
        return draw, _load_batches(loop, draw)

    steps: list[dict[str, Tensor]] = []
    for draw, batches in meter.watch(prefetch(_draw_epoch(loop, epoch), meter.time(load))):
        steps.append(_step(loop, draw, batches, noise))
        loop.step += 1
        meter.count(len(draw.rows))
        _report_step(loop, epoch, steps[-1], meter)
    meter.finish()
    losses = _average_losses(loop, steps)
    validates = epoch % loop.config.loop.validate_every == 0 or epoch == loop.config.loop.epochs
    return EpochReport(
        epoch=epoch,
        loss=losses.pop("loss"),
        losses=losses,
        validation=_validate(loop) if validates else {},
        rates={name: round(value, 3) for name, value in meter.rates().items()},
        seconds=round(time.monotonic() - loop.started, 2),
    )


def _seed(loop: Loop, epoch: int) -> None:
    """Seed dropout and drop path for an epoch, differently in every process."""
    seeds = [loop.config.seed, epoch, loop.accelerator.process_index]
    torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))


def _draw_epoch(loop: Loop, epoch: int) -> Iterator[Draw]:
    """Draw the batches of an epoch, the same ones in every process."""
    config, studies = loop.config, loop.examined.studies
    generator = np.random.default_rng([config.seed, epoch])
    order = draw_order(loop.examined.split["train"], studies, config.loop.batch_size, generator)
    for rows in order:
        draw = draw_batch(
            studies,
            rows,
            config.data,
            generator,
            compare_words=config.loss.spare_alike,
            with_headings=config.loss.headings_weight > 0,
        )
        if len(rows) >= loop.accelerator.num_processes:
            yield draw


def _load_batches(loop: Loop, draw: Draw) -> list[Batch]:
    """Return this process's share of a draw as tensors, in one part for each accumulation step."""
    world, rank = loop.accelerator.num_processes, loop.accelerator.process_index
    share = draw.take(slice(rank, None, world))
    # Every process needs the same number of parts. One with more parts would wait for the others for ever.
    parts = share.split(min(loop.config.loop.accumulate, len(draw.rows) // world))
    examined = loop.examined
    return [make_batch(examined.studies, examined.tokenizer, part, loop.config.data) for part in parts]


def _count_known(loop: Loop, draw: Draw) -> dict[str, float]:
    """Return, by way, the number of known labels in a draw, divided by the number of processes."""
    known = loop.examined.studies.known[draw.rows].sum(1)
    image = draw.views[:, 0] >= 0
    text = np.array([bool(words) for words in draw.texts], bool)
    ways = {"image": image, "text": text & ~draw.silent, "study": image & text}
    return {
        way: max(1.0, float(known[rows].sum())) / loop.accelerator.num_processes for way, rows in ways.items()
    }


def _step(loop: Loop, draw: Draw, batches: list[Batch], noise: torch.Generator) -> dict[str, Tensor]:
    """Make one optimizer step; return the losses of this process."""
    accelerator, counts = loop.accelerator, _count_known(loop, draw)
    total: dict[str, Tensor] = {}
    for number, part in enumerate(batches, start=1):
        batch = part.to(accelerator.device)
        pixels = batch.pixels
        if len(pixels):
            pixels = augment(pixels, loop.config.augment, batch.changes, noise)
        waits = accelerator.no_sync(loop.objective) if number < len(batches) else nullcontext()
        with waits:
            losses = loop.objective(batch, pixels, counts, 1 / len(batches))
            accelerator.backward(losses["loss"])
        for name, value in losses.items():
            total[name] = total.get(name, 0.0) + value.detach()
    accelerator.clip_grad_norm_(loop.objective.parameters(), loop.config.optimizer.clip_norm)
    for optimizer in loop.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    for schedule in loop.schedules:
        schedule.step()
    if loop.average is not None:
        loop.average.update_parameters(loop.model)
    return total


def _report_step(loop: Loop, epoch: int, losses: dict[str, Tensor], meter: Meter) -> None:
    on_gpu = loop.accelerator.device.type == "cuda"
    if not loop.accelerator.is_main_process or (on_gpu and loop.step % _REPORT_EVERY):
        return
    values = {name: float(value) for name, value in losses.items()}
    loop.watcher.on_step(
        StepReport(
            stage="training",
            step=loop.step,
            steps=loop.steps,
            epoch=epoch,
            loss=values.pop("loss"),
            losses=values,
            learning_rate=max(group["lr"] for group in loop.optimizers[0].param_groups),
            studies_per_s=meter.rates()["both"],
        )
    )


def _average_losses(loop: Loop, steps: list[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean of every loss over the steps that have it and over all processes."""
    values = [{name: float(value) for name, value in losses.items()} for losses in steps]
    if loop.accelerator.num_processes > 1:
        values = gather_object(values)
    names = sorted({name for losses in values for name in losses})
    return {name: float(np.mean([losses[name] for losses in values if name in losses])) for name in names}


def _validate(loop: Loop) -> dict[str, float]:
    """Return the scores on the validation split. Every process predicts its share."""
    rows = loop.examined.select_rows("validation")
    world, rank = loop.accelerator.num_processes, loop.accelerator.process_index
    predictions: Predictions = predict_rows(loop.examined, loop.kept, rows[rank::world])
    if world > 1:
        shares: list[Predictions] = gather_object([predictions])
        ways = dict.fromkeys(way for share in shares for way in share)
        predictions = {
            way: tuple(
                np.concatenate(parts) for parts in zip(*(s[way] for s in shares if way in s), strict=True)
            )
            for way in ways
        }
    return score(loop.examined.studies, predictions)


def _copy_weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _is_finished(loop: Loop) -> bool:
    """Return whether the score has not improved for `patience` validations."""
    patience = loop.config.loop.patience
    since = [report for report in loop.history if report.validation and report.epoch > loop.best_epoch]
    return bool(patience) and len(since) >= patience


def _save(loop: Loop, epoch: int) -> None:
    """Write the checkpoint of an epoch. Only the first process writes.

    A killed run can resume from any epoch, so each checkpoint has the optimizers' state, except the last one, after
    which there is no training. If this epoch is the best one, its weights are written only once.
    """
    if loop.accelerator.is_main_process:
        ended = epoch == loop.config.loop.epochs or _is_finished(loop)
        best = None if loop.best_epoch == epoch else loop.best_state
        state = {
            "model": loop.model.state_dict(),
            "average": None if loop.average is None else loop.average.state_dict(),
            "training": None if ended else _read_training_state(loop),
            "best": {"score": loop.best_score, "epoch": loop.best_epoch, "state": best},
            "history": [asdict(report) for report in loop.history],
            "step": loop.step,
        }
        directory = loop.run.begin_checkpoint(epoch)
        torch.save(state, directory / _STATE)
        loop.run.finish_checkpoint(directory)
        loop.run.write_epochs(loop.history)
    loop.accelerator.wait_for_everyone()


def _read_training_state(loop: Loop) -> dict[str, Any]:
    """Return the state that only further training needs."""
    return {
        "optimizers": [optimizer.state_dict() for optimizer in loop.optimizers],
        "schedules": [schedule.state_dict() for schedule in loop.schedules],
        "scaler": None if loop.accelerator.scaler is None else loop.accelerator.scaler.state_dict(),
    }


def _load_training_state(loop: Loop, state: dict[str, Any]) -> None:
    for optimizer, values in zip(loop.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    for schedule, values in zip(loop.schedules, state["schedules"], strict=True):
        schedule.load_state_dict(values)
    if loop.accelerator.scaler is not None:
        loop.accelerator.scaler.load_state_dict(state["scaler"])


def _load(loop: Loop, checkpoint: Path) -> None:
    """Resume from a checkpoint."""
    try:
        state = torch.load(checkpoint / _STATE, map_location=loop.accelerator.device, weights_only=True)
        loop.model.load_state_dict(state["model"])
        if loop.average is not None:
            loop.average.load_state_dict(state["average"])
        if state["training"] is not None:
            _load_training_state(loop, state["training"])
        best = state["best"]
        loop.history = [EpochReport(**values) for values in state["history"]]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"The checkpoint {checkpoint} cannot be read.") from error
    loop.best_score, loop.best_epoch, loop.best_state = best["score"], best["epoch"], best["state"]
    if loop.best_epoch == len(loop.history):
        loop.best_state = _copy_weights(loop.kept)
    loop.step = state["step"]
    loop.started -= loop.history[-1].seconds
    loop.run.write_epochs(loop.history)
    loop.watcher.on_note(f"Resuming after epoch {len(loop.history)} of {loop.config.loop.epochs}.")
