"""Training from start to end: config, data, model, loop, calibration, test, bundle.

Under `torchrun`, several processes train one model, and the first one writes.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from numpy.typing import NDArray

from contract import bundle as files
from contract.bundle import Bundle
from contract.errors import ConfigError
from contract.labels import LABEL_KEYS
from contract.report.label_words import mask_label_words
from contract.report.text import ReportTokenizer, train_tokenizer
from training.checkpoint import RunDirectory, hash_split, name_run
from training.config.settings import TrainConfig
from training.data.openi import read_table
from training.data.split import follow_split, split_studies
from training.data.split_file import find_split_rows
from training.data.studies import StudySet, forget_undeniable, hold_out, read_studies
from training.fit_views import fit_views, measure_views
from training.known_studies import find_earlier_model
from training.loop import Trainer, make_accelerator
from training.model.adopt_image import adopt_image_model
from training.model.lexical import fit_lexical
from training.model.model import CxrModel
from training.model.weights import (
    adopt_text_model,
    enable_checkpointing,
    freeze_encoders,
    load_image_weights,
    load_text_weights,
    save_text_tokenizer,
)
from training.save import describe_origin, write_bundle
from training.start import check_held_out, check_split, describe_start, fit_config, load_start
from training.trackers import Tracker, track_run
from training.validate import Examined, calibrate, measure, predict_part
from training.watch import Silent, Watcher


@dataclass(frozen=True)
class TrainResult:
    """A finished training run: the bundle's directory and the content of metrics.json."""

    bundle: Path
    metrics: dict[str, Any]


def train(
    config: TrainConfig,
    table: Path,
    out: Path,
    *,
    split_file: Path | None = None,
    cache: Path | None = None,
    run: Path | None = None,
    resume: bool = False,
    start: Bundle | None = None,
    watcher: Watcher | None = None,
    trackers: Sequence[Tracker] = (),
) -> TrainResult:
    """Train a model on a studies table and write its bundle.

    Equal config, table and machine give equal weights, also for an interrupted and resumed run.

    Args:
        config: Config from `training.config.toml_file.load_config`.
        table: Parquet file made by `training.data.openi.write_table`.
        out: Bundle directory. It must not exist. On an error nothing is written.
        split_file: Split to use; see `training.data.split_file`. Default: the table's own split, or else a random
            one.
        cache: Image cache of the table, to read instead of the image files; see `training.data.cache`.
        run: Directory of the run (`training.checkpoint`); default: `<out>.run`.
        resume: Resume an interrupted run.
        start: Bundle whose weights and vocabulary the run starts from; see `training.start`.
        watcher: Receives progress reports.
        trackers: Trackers from `training.trackers.make_trackers`.

    Raises:
        ConfigError: A setting, the table, the split, the cache, pretrained weights or the bundle to start from cannot
            be used, or `out` or the run exists.
        ArtifactError: The checkpoint is damaged, or the bundle could not be written.
    """
    config.check()
    out, watcher = Path(out), watcher or Silent()
    if out.exists():
        raise ConfigError(f"{out} exists already.")
    started = time.monotonic()
    config = adopt_image_model(adopt_text_model(config)) if start is None else fit_config(config, start)
    with _use_accelerator(config) as accelerator:
        studies = read_studies(
            table, config.data.text_mode, config.model.image_size, watcher.on_images, cache=cache
        )
        split = _split(config, studies, table, split_file)
        split_ids = {part: [studies.study_ids[row] for row in rows] for part, rows in split.items()}
        if start is not None:
            check_split(start, table, split_ids)
            check_held_out(start, config.data.held_out)
        studies = hold_out(studies, config.data.held_out)  # after the split, which is the same as without it
        studies, undeniable = forget_undeniable(studies, split["train"])
        directory = RunDirectory(run or name_run(out))
        origin = {"table": files.compute_sha256(table), "split": hash_split(split_ids)}
        origin |= {} if start is None else {"start": start.fingerprint}
        checkpoint = _open_run(accelerator, directory, config, origin, resume)
        tokenizer = _prepare_tokenizer(
            accelerator, config, studies, split, directory.path / files.TOKENIZER, start
        )
        if start is None and not config.weights.text:
            config = replace(config, model=replace(config.model, vocabulary_size=tokenizer.vocabulary_size))
        examined = Examined(config, studies, tokenizer, split)
        with track_run(watcher, trackers, directory.path, asdict(config)) as watching:
            if config.data.held_out:
                watching.on_note(f"Held out of training: {', '.join(config.data.held_out)}.")
            if undeniable:
                watching.on_note(
                    f"Not learned, because the table states no negative studies for them: {', '.join(undeniable)}."
                )
            if start is not None and (earlier := find_earlier_model(start, table)):
                watching.on_note(
                    f"{start.path} was started from model {earlier[:12]}, which was trained on studies of this "
                    "collection. If that model had another split, the test figures of this run are too good."
                )
            model = _make_model(config, watching, start, fresh=checkpoint is None)
            trainer = Trainer(examined, model, accelerator, directory, watching)
            trainer.fit(checkpoint)
        metrics: dict[str, Any] = {}
        if accelerator.is_main_process:
            watcher.on_note(fit_views(examined, model))
            metrics = _finish(trainer, split_ids, out, Path(table), start, time.monotonic() - started)
            directory.remove_checkpoints()
        accelerator.wait_for_everyone()
    return TrainResult(out, metrics)


@contextmanager
def _use_accelerator(config: TrainConfig) -> Iterator[Accelerator]:
    """Yield the accelerator. Afterwards reset its global state, so that the process can start another run."""
    strict = torch.are_deterministic_algorithms_enabled()
    if (
        config.loop.deterministic
    ):  # cuBLAS reads it when it starts; without it every matrix product is an error
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    accelerator = make_accelerator(config.loop)
    torch.use_deterministic_algorithms(strict or config.loop.deterministic)
    torch.manual_seed(config.seed)
    try:
        yield accelerator
    finally:
        torch.use_deterministic_algorithms(strict)
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)  # otherwise kept until the process ends


def _split(
    config: TrainConfig, studies: StudySet, table: Path, split_file: Path | None
) -> dict[str, NDArray[np.int64]]:
    """Read the split from a file or from the table, or draw one."""
    columns = read_table(table, ["study_id", "patient_id", "split"]).to_pydict()
    if split_file is not None:
        patients = dict(zip(columns["study_id"], columns["patient_id"], strict=True))
        parts = find_split_rows(split_file, studies.study_ids, patients)
    else:
        labels = [[LABEL_KEYS[index] for index in np.flatnonzero(row)] for row in studies.targets]
        named = dict(zip(columns["study_id"], columns["split"], strict=True))
        arguments = (studies.patient_ids, labels, config.seed)
        parts = (
            follow_split(
                [named[study_id] for study_id in studies.study_ids], *arguments, texts=studies.wordings
            )
            if any(named.values())
            else split_studies(*arguments, texts=studies.wordings)
        )
    return {name: np.array(rows, dtype=np.int64) for name, rows in parts.items()}


def _open_run(
    accelerator: Accelerator,
    directory: RunDirectory,
    config: TrainConfig,
    origin: dict[str, str],
    resume: bool,
) -> Path | None:
    """Open the run in the first process, then find its checkpoint in every one."""
    if accelerator.is_main_process:
        directory.open(config, origin, resume=resume)
    accelerator.wait_for_everyone()
    checkpoints = directory.find_checkpoints()
    return checkpoints[-1] if checkpoints else None


def _prepare_tokenizer(
    accelerator: Accelerator,
    config: TrainConfig,
    studies: StudySet,
    split: dict[str, NDArray[np.int64]],
    path: Path,
    start: Bundle | None,
) -> ReportTokenizer:
    """Return the tokenizer of the bundle or the text weights, or one trained on the training split's texts."""
    if accelerator.is_main_process and not path.exists():
        partial = path.with_suffix(
            ".partial"
        )  # a run that is killed here must not resume with half a vocabulary
        if start is not None:
            shutil.copyfile(start.tokenizer_path, partial)
        elif config.weights.text:
            save_text_tokenizer(config.weights.text, partial)
        else:
            texts = (studies.texts[row] for row in split["train"])
            train_tokenizer((text for text in texts if text), partial, config.model.vocabulary_size)
        partial.replace(path)
    accelerator.wait_for_everyone()
    return ReportTokenizer.load(path)


def _make_model(config: TrainConfig, watcher: Watcher, start: Bundle | None, *, fresh: bool) -> CxrModel:
    """Return the model with its first weights: random or loaded."""
    model = CxrModel(config.model)
    if fresh and start is not None:
        watcher.on_note(load_start(model, start))
    if fresh and config.weights.image:
        watcher.on_note(load_image_weights(model, config.weights.image).describe())
    if fresh and config.weights.text:
        watcher.on_note(load_text_weights(model, config.weights.text).describe())
    if config.weights.checkpointing:
        enable_checkpointing(model, config.weights.freeze)
    freeze_encoders(model, config.weights)
    return model


def _fit_lexical(examined: Examined, model: CxrModel) -> None:
    """Fit the lexical part, if the model has one, on the training texts and copies of them with hidden words."""
    rows = [row for row in examined.select_rows("train") if examined.studies.texts[row]]
    if model.fusion.lexical is None or not rows:
        return
    config, tokenizer = examined.config, examined.tokenizer
    plain = [examined.studies.texts[row] for row in rows]
    texts = dict.fromkeys(zip([*plain, *map(mask_label_words, plain)], [*rows, *rows], strict=True))
    rows_of_texts = [row for _, row in texts]
    encoded = tokenizer.encode([text for text, _ in texts], config.data.max_length)
    fit_lexical(
        model.fusion.lexical,
        torch.from_numpy(encoded.input_ids),
        torch.from_numpy(encoded.attention_mask),
        torch.from_numpy(examined.studies.targets[rows_of_texts]),
        known=torch.from_numpy(examined.studies.known[rows_of_texts]),
        mask_id=tokenizer.mask_id,
        C=config.lexical.C,
        weight=config.lexical.weight,
    )


def _finish(
    trainer: Trainer,
    split_ids: dict[str, list[str]],
    out: Path,
    table: Path,
    start: Bundle | None,
    seconds: float,
) -> dict[str, Any]:
    """Fit the lexical part, calibrate, measure and write the bundle."""
    examined, model = trainer.examined, trainer.model
    _fit_lexical(examined, model)
    predictions = {part: predict_part(examined, model, part) for part in ("test", "validation")}
    decisions = calibrate(examined, model, predictions["validation"])
    metrics = measure(examined, model, decisions, predictions) | {
        "history": [asdict(report) for report in trainer.history],
        "best_epoch": trainer.best_epoch,
        "view_head": measure_views(examined, model, "test"),
    }
    details = describe_origin(examined.config, table, trainer.accelerator.device, seconds)
    details |= {} if start is None else {"started_from": describe_start(start)}
    with files.write_directory(out) as scratch:
        shutil.copy(trainer.run.path / files.TOKENIZER, scratch / files.TOKENIZER)
        write_bundle(
            scratch,
            examined.config,
            model,
            split_ids=split_ids,
            decisions=decisions,
            metrics=metrics,
            details=details,
        )
    return metrics
