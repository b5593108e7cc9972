"""Explanations of one or several findings of one case."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.explain.baselines import BASELINES, BLACK, require_baselines
from client.explain.case import Files, Inputs, read_files, read_inputs
from client.explain.choice import choose_indices
from client.explain.geometry import load_pictures
from client.explain.gradients import TEXT_BASELINE, Attributions, attribute_findings
from client.explain.methods import METHODS, find_obstacle, make_map, require_method
from client.explain.network import find_device, open_model
from client.explain.words import make_case_words
from client.explanation import Explanation, ImageMap
from client.inputs import ImageSource, ReportSource, require_case
from client.prediction import Finding, Kind
from contract.bundle import Bundle
from contract.decisions import ServedLabel
from contract.errors import ConfigError
from contract.labels import LABEL_INDEX, LABEL_KEYS
from contract.map_checks import UNCHECKED, MapCheck, read_map_check
from contract.training_data import HELD_OUT

try:
    import torch

    from training.model.fusion import FusionOutput
    from training.model.model import CxrModel
except (ModuleNotFoundError, ConfigError) as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]
DISPLAY_SIZE: Final = 448  # side of the radiograph for display, in pixels
UNMEASURED_METHODS: Final = ("integrated_gradients", "attention")  # shown for a bundle that was not measured
OTHER_BASELINES: Final = (
    "Do not read the map of Integrated Gradients as a reason: it was checked with a black baseline, not with "
    "these."
)


class _Pictures(NamedTuple):
    """The radiograph for display and the digest of its file, the same for all findings."""

    square: NDArray[np.uint8] | None = None  # (R, R)
    original: NDArray[np.uint8] | None = None  # (rows, columns)
    sha256: str = ""


class Wanted(NamedTuple):
    """What is explained, and how; see `explain_findings`."""

    labels: Sequence[str] | None
    steps: int | None
    methods: Sequence[str] | None
    baselines: Sequence[str]
    only_top: bool  # without labels: only the finding of `choose_label`

    def check(self) -> "Wanted":
        """Return it with each baseline once.

        Raises:
            ConfigError: A label, a method or a baseline does not exist, there is no baseline, or `steps` is below 1.
        """
        for label in self.labels or ():
            if label not in LABEL_INDEX:
                raise ConfigError(f"The label must be one of {', '.join(LABEL_KEYS)}, not {label!r}.")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1, not {self.steps}.")
        for key in self.methods or ():
            require_method(key)
        return self._replace(baselines=require_baselines(self.baselines))


class _Answer(NamedTuple):
    """What the model says about the case, and what was measured about its maps."""

    output: FusionOutput
    probabilities: Array  # (K,)
    lateral: float | None
    labels: Sequence[ServedLabel]
    check: MapCheck | None


def explain(
    bundle: Bundle,
    *,
    image: ImageSource | None = None,
    report: ReportSource | None = None,
    label: str | None = None,
    steps: int | None = None,
    methods: Sequence[str] | None = None,
    baselines: Sequence[str] = (BLACK,),
) -> Explanation:
    """Explain one finding of one case. Equal inputs give equal explanations.

    The usual image baseline is black. Every radiograph has black borders in the square that the model reads, so the
    model knows black as "nothing here". A blurred copy would retain large opacities and the size of the heart. The
    disadvantage: a black pixel of the radiograph gets no attribution. `baselines` chooses others.

    The text baseline replaces each token by [PAD], the embedding that stands for no word. It retains the positions,
    [CLS] and [SEP]. [MASK] would be wrong, because it stands for a telling word in the text mode "findings_masked".

    Args:
        bundle: The model.
        image: One image, as in `CxrClient.predict`.
        report: As in `CxrClient.predict`.
        label: Key of the finding. None: see `choose_label`.
        steps: Number of points of the integral (Gauss-Legendre). None: as many as an accurate integral needs, 32 to
            512.
        methods: Keys of the methods whose maps are made. None: the default map of the bundle, which
            `cxr evaluate explain` found; none if no map passed; Integrated Gradients and attention if nothing was
            measured.
        baselines: Keys of the image baselines of Integrated Gradients, whose mean is given: "black", "grey", "blurred",
            "uniform".

    Raises:
        ConfigError: There is neither an image nor a report, there are several images, the label, a method or a baseline
            does not exist, or `steps` is below 1.
        ImageError: The image cannot be read.
        ReportError: The report cannot be read.
        ArtifactError: The bundle's weights or tokenizer are damaged.
    """
    labels = None if label is None else (label,)
    wanted = Wanted(labels, steps, methods, baselines, only_top=True)
    return _explain(bundle, image, report, wanted, None)[0]


def explain_findings(
    bundle: Bundle,
    *,
    image: ImageSource | None = None,
    report: ReportSource | None = None,
    labels: Sequence[str] | None = None,
    steps: int | None = None,
    methods: Sequence[str] | None = None,
    baselines: Sequence[str] = (BLACK,),
    progress: Progress | None = None,
) -> tuple[Explanation, ...]:
    """Explain several findings of one case; the image and the report are read once.

    Args:
        bundle: The model.
        image: As in `explain`.
        report: As in `explain`.
        labels: Keys of the findings. None: each finding whose probability reaches its threshold; without one, the
            finding of `choose_label`.
        steps: As in `explain`.
        methods: As in `explain`.
        baselines: As in `explain`.
        progress: Called with the number of finished maps and their total.

    Raises:
        ConfigError, ImageError, ReportError, ArtifactError: As in `explain`.
    """
    wanted = Wanted(labels, steps, methods, baselines, only_top=False)
    return _explain(bundle, image, report, wanted, progress)


def _explain(
    bundle: Bundle,
    image: ImageSource | None,
    report: ReportSource | None,
    wanted: Wanted,
    progress: Progress | None,
) -> tuple[Explanation, ...]:
    require_case(image, report)
    if isinstance(image, (list, tuple)):
        raise ConfigError(
            f"An explanation needs one image, but {len(image)} were given: `explain_views` takes the images of a study."
        )
    wanted = wanted.check()
    files = read_files(image, report)
    inputs = read_inputs(bundle, image=files.image, report=files.report)
    model = open_model(bundle)
    inputs = inputs.to(find_device(model))
    return explain_inputs(bundle, model, files, inputs, wanted, progress)


def explain_inputs(
    bundle: Bundle,
    model: CxrModel,
    files: Files,
    inputs: Inputs,
    wanted: Wanted,
    progress: Progress | None,
) -> tuple[Explanation, ...]:
    """Explain the findings of a case that was read.

    Args:
        bundle: The model.
        model: The model, in evaluation mode.
        files: The files of the case.
        inputs: The case, on the device of the model.
        wanted: What is explained, and how; it was checked.
        progress: As in `explain_findings`.
    """
    answer = _ask(bundle, model, inputs)
    indices = choose_indices(answer.labels, answer.probabilities, wanted.labels, only_top=wanted.only_top)
    chosen = _choose_methods(model, inputs, answer.check, wanted.methods)
    pictures = _load_pictures(files, inputs)
    bar = _Bar(progress, len(indices) * (1 + len(chosen)))
    started = time.perf_counter()
    parts = attribute_findings(
        model, inputs, indices, steps=wanted.steps, baselines=wanted.baselines, finish=bar.finish
    )
    seconds = (time.perf_counter() - started) / len(indices)
    found = []
    for index, own in zip(indices, parts, strict=True):
        maps = []
        for key in chosen:
            if key == "integrated_gradients" and own.pixels is not None:
                maps.append(_take_gradients(own, own.pixels, seconds, answer.check))
            else:
                maps.append(_make_map(model, inputs, index, key, answer.check))
            bar.finish(1)
        found.append(_assemble(bundle, files, pictures, inputs, answer, index, own, tuple(maps)))
    return tuple(found)


class _Bar:
    """Counts the finished maps."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def finish(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _ask(bundle: Bundle, model: CxrModel, inputs: Inputs) -> _Answer:
    image = text = lateral = None
    with torch.inference_mode():
        if inputs.pixels is not None:
            image = model.image_encoder(inputs.pixels)
            lateral = float(model.fusion.lateral(image)[0, 0])
            image = image if inputs.views is None else inputs.views.join(model, image)
        if inputs.input_ids is not None:
            text = model.text_encoder(inputs.input_ids, inputs.attention_mask)
        output = model.fusion(image, text, inputs.attention_mask, input_ids=inputs.input_ids)
        probabilities = model.fusion.calibrate(output.logits, inputs.kind)[0].cpu().numpy()
    labels = bundle.decisions.of(inputs.kind)
    return _Answer(output, probabilities, lateral, labels, read_map_check(bundle, inputs.kind))


def _choose_methods(
    model: CxrModel, inputs: Inputs, check: MapCheck | None, methods: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the keys of the maps to make. A method that the caller names must be possible."""
    if inputs.pixels is None:
        return ()
    if methods is not None:
        for key in methods:
            if obstacle := find_obstacle(model, key):
                raise ConfigError(f"There is no map of {METHODS[key].title}, because {obstacle}.")
        return tuple(dict.fromkeys(methods))
    if check is None:
        return UNMEASURED_METHODS
    return () if check.default is None else (check.default,)


def _make_map(model: CxrModel, inputs: Inputs, index: int, key: str, check: MapCheck | None) -> ImageMap:
    caveat = "" if check is None else check.describe(key, METHODS[key].title)
    return replace(make_map(model, inputs, index, key), caveat=caveat)


def _take_gradients(parts: Attributions, pixels: Array, seconds: float, check: MapCheck | None) -> ImageMap:
    """Return the map of Integrated Gradients, which every explanation has already."""
    method = METHODS["integrated_gradients"]
    delta = parts.convergence_delta / max(abs(parts.logit - parts.baseline_logit), 1e-6)
    caveat = ""
    if check is not None:
        caveat = check.describe(method.key, method.title)
        if not caveat and [one.key for one in parts.baselines] != [BLACK]:
            caveat = OTHER_BASELINES
    return ImageMap(method.key, method.title, pixels, method.signed, method.unit, seconds, delta, caveat)


def _load_pictures(files: Files, inputs: Inputs) -> _Pictures:
    if files.image is None or inputs.frame is None:
        return _Pictures()
    original, square = load_pictures(files.image, inputs.frame, DISPLAY_SIZE)
    return _Pictures(square, original, hashlib.sha256(files.image).hexdigest())


def _assemble(
    bundle: Bundle,
    files: Files,
    pictures: _Pictures,
    inputs: Inputs,
    answer: _Answer,
    index: int,
    parts: Attributions,
    maps: tuple[ImageMap, ...],
) -> Explanation:
    attention, share = _read_attention(answer.output, inputs, index), answer.output.image_share
    views = inputs.views
    served = answer.labels[index]
    patches = attention["image"]
    return Explanation(
        kind=inputs.kind,
        key=served.key,
        name=served.name,
        probability=float(answer.probabilities[index]),
        threshold=served.threshold,
        logit=parts.logit,
        baseline_logit=parts.baseline_logit,
        steps=parts.steps,
        convergence_delta=parts.convergence_delta,
        baseline=_describe_baseline(inputs.kind, parts),
        baselines=parts.baselines,
        fingerprint=bundle.fingerprint,
        radiograph=pictures.square,
        pixel_attribution=parts.pixels,
        patch_attention=None if patches is None else patches.reshape((round(patches.size**0.5),) * 2),
        words=make_case_words(bundle, inputs, files.report, parts.tokens, attention["text"]),
        report_text=inputs.text,
        image_notes=inputs.image_notes,
        report_notes=inputs.report_notes,
        trained_on=bundle.trained_on,
        trained_ways=bundle.trained_ways,
        lateral=answer.lateral,
        image_share=None if share is None else float(share[0, index]),
        maps=maps,
        remarks=(
            *((f"{HELD_OUT.capitalize()}.",) if served.key in bundle.held_out else ()),
            *_make_remarks(parts, maps, answer.check, has_image=files.image is not None),
        ),
        original=pictures.original,
        frame=inputs.frame,
        orientation=inputs.orientation,
        view=1 if views is None else views.place + 1,
        views=1 if views is None else views.total,
        findings=_list_findings(bundle, answer),
        image_sha256=pictures.sha256,
    )


def _list_findings(bundle: Bundle, answer: _Answer) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            label.key,
            label.name,
            float(probability),
            label.threshold,
            label.uncertain_low,
            label.uncertain_high,
            held_out=label.key in bundle.held_out,
        )
        for label, probability in zip(answer.labels, answer.probabilities, strict=True)
    )


def _make_remarks(
    parts: Attributions, maps: Sequence[ImageMap], check: MapCheck | None, *, has_image: bool
) -> tuple[str, ...]:
    remarks = []
    if has_image:
        if check is None:
            remarks.append(UNCHECKED)
        elif not maps:
            remarks.append(check.refusal)
        remarks += [found.caveat for found in maps if found.caveat]
    if not parts.is_accurate:
        remarks.append(
            f"The integral of Integrated Gradients is not accurate: after {parts.steps} steps "
            f"{parts.convergence_delta:.3g} logits of a difference of "
            f"{abs(parts.logit - parts.baseline_logit):.3g} are unexplained."
        )
    return tuple(remarks)


def _read_attention(output: FusionOutput, inputs: Inputs, index: int) -> dict[str, Array | None]:
    image = output.image_attention
    if image is not None and inputs.views is not None:
        image = inputs.views.cut(image)
    attentions = {"image": image, "text": output.text_attention}
    return {
        kind: None if attention is None else attention[0, index].cpu().numpy()
        for kind, attention in attentions.items()
    }


def _describe_baseline(kind: Kind, parts: Attributions) -> str:
    images = [BASELINES[one.key] for one in parts.baselines]
    image = images[0] if len(images) == 1 else f"the mean over {len(images)} baselines ({'; '.join(images)})"
    described = {"image": image, "text": TEXT_BASELINE}
    return described.get(kind, f"{image} and {TEXT_BASELINE}")
