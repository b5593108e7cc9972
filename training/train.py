"""Training, from top to bottom: config, data, model, loop, calibration, test, bundle.

Every batch is read three ways (image with report, image alone, report alone), so that one set of weights
serves all three. Studies without an image train the report side only, and the other way round; studies that
nobody indexed take part in the contrastive loss alone.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract import bundle as files
from contract.errors import ConfigError
from contract.labels import LABEL_KEYS, LABELS
from contract.text import ReportTokenizer, train_tokenizer
from training.calibrate import apply_platt, fit_platt
from training.config import TrainConfig
from training.data import (
    Batch,
    Progress,
    StudySet,
    Tokens,
    augment,
    draw_batches,
    encode_texts,
    iterate_in_order,
    make_batch,
    read_studies,
)
from training.evaluation.labels import LabelMetrics, evaluate_labels, fit_thresholds
from training.losses import compute_positive_weights, contrastive_loss, label_loss
from training.model import CxrModel
from training.openi import read_table
from training.optimizer import make_optimizers, make_schedules
from training.save import describe_origin, write_bundle
from training.split import split_studies
from training.split_file import find_split_rows
from training.weights import adopt_text_model, load_image_weights, load_text_weights, save_text_tokenizer

WAYS = ("study", "image", "text")  # the ways a study can be read
Rows = NDArray[np.int64]
Predictions = dict[str, tuple[NDArray[np.float32], Rows]]  # way -> logits (M, K) and rows of the studies (M,)


@dataclass(frozen=True)
class TrainResult:
    """A finished training run: the bundle's directory and what metrics.json holds."""

    bundle: Path
    metrics: dict[str, Any]


@dataclass
class _Run:
    """What the loop works with."""

    config: TrainConfig
    studies: StudySet
    tokens: Tokens
    split: dict[str, Rows]
    model: CxrModel
    device: torch.device
    weights: Tensor  # (K,) positive weights
    bfloat16: bool
    progress: Progress


def train(
    config: TrainConfig,
    table: Path,
    out: Path,
    *,
    split_file: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a model on a studies table and write its bundle.

    Equal config, table and machine give equal weights.

    Args:
        config: From `training.config.make_config`.
        table: Parquet file made by `training.openi.write_table`.
        out: Bundle directory; must not exist. It appears complete or, on any error, not at all.
        split_file: Split to use instead of drawing one; see `training.split_file`.
        cache: Image cache of the table, to read instead of the image files; see `training.cache`.
        progress: Called with steps done and steps in all (images read plus batches trained).

    Raises:
        ConfigError: A setting, the table, the split, the cache or pretrained weights cannot be used, or `out`
            exists.
        ArtifactError: The bundle could not be written.
    """
    config.check()
    started = time.monotonic()
    torch.manual_seed(config.seed)
    with files.write_directory(Path(out)) as scratch:
        config = adopt_text_model(config)
        report = (lambda done, count: progress(done, count + 1)) if progress else None
        studies = read_studies(table, config.text_mode, config.model.image_size, report, cache=cache)
        split = _split(config, studies, table, split_file)
        tokens, config = _prepare_texts(config, studies, split, scratch)
        read = 0 if cache else len(studies.pixels) + studies.unreadable
        run = _prepare_run(config, studies, split, tokens, read, progress)
        history = _fit(run)
        thresholds = _calibrate(run)
        metrics = _measure(run, thresholds) | {"history": history}
        details = describe_origin(config, Path(table), run.device, time.monotonic() - started)
        ids = {part: [studies.study_ids[row] for row in rows] for part, rows in split.items()}
        write_bundle(
            scratch,
            config,
            run.model,
            split_ids=ids,
            thresholds=thresholds,
            metrics=metrics,
            details=details,
        )
    return TrainResult(Path(out), metrics)


def _split(config: TrainConfig, studies: StudySet, table: Path, split_file: Path | None) -> dict[str, Rows]:
    """Read the split from a file, or draw one."""
    if split_file is not None:
        columns = read_table(table, ["study_id", "patient_id"]).to_pydict()
        patients = dict(zip(columns["study_id"], columns["patient_id"], strict=True))
        parts = find_split_rows(split_file, studies.study_ids, patients)
    else:
        labels = [[LABEL_KEYS[place] for place in np.flatnonzero(row)] for row in studies.targets]
        parts = split_studies(studies.patient_ids, labels, config.seed, texts=studies.wordings)
    return {name: np.array(rows, dtype=np.int64) for name, rows in parts.items()}


def _prepare_texts(
    config: TrainConfig, studies: StudySet, split: dict[str, Rows], scratch: Path
) -> tuple[Tokens, TrainConfig]:
    """Write the tokenizer and encode all texts; the config comes back with the size of the vocabulary."""
    path = scratch / files.TOKENIZER
    if config.text_weights:
        save_text_tokenizer(config.text_weights, path)
    else:
        texts = (studies.texts[row] for row in split["train"])
        train_tokenizer((text for text in texts if text), path, config.model.vocabulary_size)
    tokenizer = ReportTokenizer.load(path)
    tokens = encode_texts(tokenizer, (*studies.texts, *studies.impressions), config.max_length)
    if not config.text_weights:
        config = replace(config, model=replace(config.model, vocabulary_size=tokenizer.vocabulary_size))
    return tokens, config


def _prepare_run(
    config: TrainConfig,
    studies: StudySet,
    split: dict[str, Rows],
    tokens: Tokens,
    read: int,
    progress: Progress | None,
) -> _Run:
    """Make the model and what the loop works with; `read` images count as steps done."""
    rows = split["train"][studies.labelled[split["train"]]]
    if not len(rows):
        raise ConfigError("No training study is labelled, so that there is nothing to learn.")
    model = CxrModel(config.model)
    if config.image_weights:
        load_image_weights(model, config.image_weights)
    if config.text_weights:
        load_text_weights(model, config.text_weights)
    targets = torch.from_numpy(studies.targets[rows])
    share = (targets.sum(0) + 0.5) / (len(targets) + 1.0)
    with torch.no_grad():
        model.fusion.pooling.bias.copy_(torch.logit(share))  # start from each label's frequency
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = compute_positive_weights(targets, config.positive_weight_limit).to(device)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(read + done, read + total)

    return _Run(
        config,
        studies,
        tokens,
        split,
        model.to(device),
        device,
        weights,
        use_bfloat16(config, device),
        report,
    )


def _fit(run: _Run) -> list[dict[str, float]]:
    """Train, keep the weights of the best validation epoch, return the history."""
    config, rows = run.config, run.split["train"]
    generator, noise = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    optimizers = make_optimizers(run.model, config)
    steps = math.ceil(len(rows) / config.batch_size) * config.epochs
    schedules = make_schedules(optimizers, steps, config.warmup_share)
    history: list[dict[str, float]] = []
    best, best_state, done = -1.0, None, 0
    for epoch in range(1, config.epochs + 1):
        losses = []
        for places in draw_batches(rows, run.tokens, config.batch_size, generator):
            batch = make_batch(
                run.studies,
                run.tokens,
                places,
                generator,
                lateral_share=config.lateral_share,
                impression_share=config.impression_share,
            ).to(run.device)
            if generator.random() < config.text_dropout:
                batch = batch.drop_text()
            losses.append(_step(run, batch, optimizers, noise))
            for schedule in schedules:
                schedule.step()
            done += 1
            run.progress(min(done, steps - 1), steps)
        if epoch % config.validate_every == 0 or epoch == config.epochs:
            score = _score(run)
            history.append({"epoch": epoch, "loss": float(np.mean(losses)), "validation_auroc": score})
            if score >= best:
                best, best_state = (
                    score,
                    {key: value.clone() for key, value in run.model.state_dict().items()},
                )
    if best_state is not None:
        run.model.load_state_dict(best_state)
    run.progress(steps, steps)
    return history


def _step(
    run: _Run, batch: Batch, optimizers: Sequence[torch.optim.Optimizer], noise: torch.Generator
) -> float:
    run.model.train()
    pixels = augment(batch.pixels, noise) if len(batch.pixels) else batch.pixels
    batch = replace(batch, pixels=pixels)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.bfloat16):
        loss = compute_loss(run.model, batch, run.weights, run.config)
    run.model.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


def use_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Return whether to train in bfloat16: as configured, or where the processor computes in it."""
    if config.bfloat16 is not None:
        return config.bfloat16
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    read = getattr(torch.cpu, "get_capabilities", dict)
    found = read()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def compute_loss(model: CxrModel, batch: Batch, weights: Tensor, config: TrainConfig) -> Tensor:
    """Return the loss of a batch, over every way in which its studies can be read.

    The two encoders run once; only the fusion, which is small, runs for each way.
    """
    total = weights.new_zeros(())
    embeddings: dict[str, Tensor] = {}
    both = batch.image_rows & batch.text_rows
    for way, (out, rows) in read_batch(model, batch).items():
        total = total + label_loss(
            out.logits.float(), batch.targets[rows], batch.labelled[rows], weights, config
        )
        embeddings[way] = out.embedding.float()[both[rows]]  # (B_both, D)
    if int(both.sum()) > 1:
        groups = batch.groups[both]
        pairs = (("image", "text"), ("image", "study"), ("text", "study"))
        losses = [
            contrastive_loss(embeddings[a], embeddings[b], groups, config.temperature) for a, b in pairs
        ]
        total = total + config.contrastive_weight * torch.stack(losses).mean()
    return total


def read_batch(model: CxrModel, batch: Batch) -> dict[str, tuple[Any, Tensor]]:
    """Run the model every way the batch allows: way -> (FusionOutput, rows of the batch (B,) bool)."""
    outputs: dict[str, tuple[Any, Tensor]] = {}
    both = batch.image_rows & batch.text_rows
    if batch.image_rows.any():
        image_tokens = model.image_encoder(batch.pixels)  # (B_image, N, C)
        outputs["image"] = (model.fusion(image_tokens, None, None), batch.image_rows)
    if batch.text_rows.any():
        text_tokens = model.text_encoder(batch.input_ids, batch.attention_mask)  # (B_text, L, C)
        outputs["text"] = (model.fusion(None, text_tokens, batch.attention_mask), batch.text_rows)
    if both.any():
        images, texts = both[batch.image_rows], both[batch.text_rows]
        mask = batch.attention_mask[texts]
        outputs["study"] = (model.fusion(image_tokens[images], text_tokens[texts], mask), both)
    return outputs


@torch.inference_mode()
def _predict(run: _Run, part: str) -> Predictions:
    """Return, per way, the logits of the labelled studies of a part and the rows they belong to."""
    run.model.eval()
    rows = run.split[part][run.studies.labelled[run.split[part]]]
    found: dict[str, list[tuple[NDArray[np.float32], Rows]]] = {}
    for chunk in iterate_in_order(rows, run.config.batch_size):
        batch = make_batch(run.studies, run.tokens, chunk).to(run.device)
        for way, (out, chosen) in read_batch(run.model, batch).items():
            part_of = (out.logits.float().cpu().numpy(), chunk[chosen.cpu().numpy()])
            found.setdefault(way, []).append(part_of)
    return {
        way: (
            np.concatenate([logits for logits, _ in found[way]]),
            np.concatenate([rows for _, rows in found[way]]),
        )
        for way in WAYS
        if way in found
    }


def _score(run: _Run) -> float:
    """Return the mean of the macro AUROCs of all ways on the validation split."""
    from sklearn.metrics import roc_auc_score

    scores = []
    for logits, rows in _predict(run, "validation").values():
        targets = run.studies.targets[rows]
        usable = [k for k in range(len(LABELS)) if 0 < targets[:, k].sum() < len(targets)]
        if usable:
            scores.append(roc_auc_score(targets[:, usable], logits[:, usable], average="macro"))
    return float(np.mean(scores)) if scores else 0.0


def _calibrate(run: _Run) -> NDArray[np.float64]:
    """Fit the calibration of each way and one threshold per label, on the validation split.

    A label has one threshold whatever the input is, so it is fitted on the probabilities of all ways.
    """
    probabilities, targets = [], []
    for way, (logits, rows) in _predict(run, "validation").items():
        scale, bias = fit_platt(logits, run.studies.targets[rows])
        getattr(run.model.fusion, f"scale_{way}").copy_(torch.from_numpy(scale))
        getattr(run.model.fusion, f"bias_{way}").copy_(torch.from_numpy(bias))
        probabilities.append(apply_platt(logits, scale, bias))
        targets.append(run.studies.targets[rows])
    return np.asarray(
        fit_thresholds(np.concatenate(probabilities), np.concatenate(targets)), dtype=np.float64
    )


def _measure(run: _Run, thresholds: NDArray[np.float64]) -> dict[str, Any]:
    """Return what metrics.json holds: results per way on validation and test, and what they rest on."""
    studies = run.studies
    counts = {
        part: {
            "studies": len(rows),
            "image": int(studies.has("image")[rows].sum()),
            "text": int(studies.has("text")[rows].sum()),
            "labelled": int(studies.labelled[rows].sum()),
        }
        for part, rows in run.split.items()
    }
    known = run.split["train"][studies.labelled[run.split["train"]]]
    positives = studies.targets[known].sum(0).tolist()
    return {
        "test": {way: metrics.to_dict() for way, metrics in _evaluate(run, "test", thresholds).items()},
        "validation": {
            way: metrics.to_dict() for way, metrics in _evaluate(run, "validation", thresholds).items()
        },
        "studies": counts,
        "unreadable_images": studies.unreadable,
        "training_positives": dict(zip(LABEL_KEYS, positives, strict=True)),
    }


def _evaluate(run: _Run, part: str, thresholds: NDArray[np.float64]) -> dict[str, LabelMetrics]:
    metrics = {}
    for way, (logits, rows) in _predict(run, part).items():
        scale, bias = (getattr(run.model.fusion, f"{name}_{way}").cpu().numpy() for name in ("scale", "bias"))
        metrics[way] = evaluate_labels(
            apply_platt(logits, scale, bias),
            run.studies.targets[rows],
            thresholds,
            groups=[run.studies.patient_ids[row] for row in rows],
            seed=run.config.seed,
        )
    return metrics
