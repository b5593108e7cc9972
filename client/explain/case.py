"""One case as tensors for the model, with its words and its place in the square."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.explain.views import Views
from client.inputs import ImageSource, ReportSource, read_image, read_report
from client.prediction import Kind
from contract.bundle import Bundle
from contract.errors import ConfigError
from contract.image.frame import Frame
from contract.notes import ImageNotes, ReportNotes
from contract.report.text import ReportTokenizer
from contract.steps import ReportReader, read_radiograph

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError as error:
    raise ConfigError("Explanations need the 'explain' extra: pip install 'cxr-serving[explain]'.") from error


class Files(NamedTuple):
    """The files of one case."""

    image: bytes | None
    report: bytes | None


class Inputs(NamedTuple):
    """One case as a batch of one for the model. The fields of an absent image or report are None."""

    pixels: Tensor | None = None  # (1, 1, S, S) float32, 0 to 255
    input_ids: Tensor | None = None  # (1, L) int64
    attention_mask: Tensor | None = None  # (1, L) int64
    baseline_ids: Tensor | None = None  # (1, L) int64
    spans: NDArray[np.int32] | None = None  # (L, 2)
    text: str | None = None
    image_notes: ImageNotes | None = None
    report_notes: ReportNotes | None = None
    frame: Frame | None = None
    views: Views | None = None  # of a study of several images; None: the image is alone
    orientation: str = ""  # DICOM Patient Orientation, as in `contract.image.view_clues`

    @property
    def kind(self) -> Kind:
        """The kind of the case."""
        if self.pixels is None:
            return "text"
        return "image" if self.input_ids is None else "study"

    def to(self, device: "torch.device | str") -> "Inputs":
        """Return the case with its tensors on a device."""
        names = ("pixels", "input_ids", "attention_mask", "baseline_ids")
        moved: dict[str, Any] = {
            name: tensor.to(device) for name in names if (tensor := getattr(self, name)) is not None
        }
        if self.views is not None:
            moved["views"] = self.views._replace(tokens=self.views.tokens.to(device))
        return self._replace(**moved)


def read_files(image: ImageSource | None, report: ReportSource | None) -> Files:
    """Read the image and the report of a case, as in `CxrClient.predict`.

    Raises:
        ImageError: The image cannot be read.
        ReportError: The report cannot be read.
    """
    return Files(
        None if image is None else read_image(image), None if report is None else read_report(report)
    )


def read_inputs(
    bundle: Bundle, *, image: bytes | None, report: bytes | str | None, is_first: bool = True
) -> Inputs:
    """Preprocess one case exactly as the served model does.

    Args:
        bundle: The model.
        image: One image.
        report: The report.
        is_first: Whether the image is the first one of its study, which has other warnings.

    Raises:
        ImageError: The image cannot be read.
        ReportError: The report cannot be read.
        ArtifactError: The tokenizer of the bundle is damaged.
    """
    inputs = Inputs()
    if image is not None:
        radiograph, notes = read_radiograph(image, size=bundle.config["sizes"]["S"], is_first=is_first)
        inputs = Inputs(
            torch.from_numpy(radiograph.pixels[None]).float(),
            image_notes=notes,
            frame=radiograph.frame,
            orientation=radiograph.header.clues.orientation,
        )
    return inputs if report is None else _add_report(inputs, bundle, report)


def _add_report(inputs: Inputs, bundle: Bundle, report: bytes | str) -> Inputs:
    tokenizer = ReportTokenizer.load(bundle.tokenizer_path)
    reader = ReportReader(tokenizer, bundle.config["text_mode"], bundle.config["max_length"])
    batch = reader.read([report])
    tokens = batch.tokens
    is_special = np.isin(tokens.input_ids, [tokenizer.cls_id, tokenizer.sep_id])
    baseline_ids = np.where(is_special, tokens.input_ids, tokenizer.pad_id)
    arrays = (tokens.input_ids, tokens.attention_mask, baseline_ids)
    input_ids, mask, baseline = (torch.from_numpy(array) for array in arrays)
    return inputs._replace(
        input_ids=input_ids,
        attention_mask=mask,
        baseline_ids=baseline,
        spans=tokens.spans[0],
        text=batch.texts[0],
        report_notes=batch.notes[0],
    )


def lengthen(inputs: Inputs, length: int) -> Inputs:
    """Return a case whose report has more padding. The answer of the model must stay the same.

    Args:
        inputs: A case with a report.
        length: Number of tokens, at least that of the case.
    """
    ids, mask, baseline = inputs.input_ids, inputs.attention_mask, inputs.baseline_ids
    if ids is None or mask is None or baseline is None or inputs.spans is None:
        return inputs
    more = length - ids.shape[1]
    pad = int(baseline[0, 1])  # a word of the baseline: [PAD]
    fill = torch.nn.functional.pad
    return inputs._replace(
        input_ids=fill(ids, (0, more), value=pad),
        attention_mask=fill(mask, (0, more)),
        baseline_ids=fill(baseline, (0, more), value=pad),
        spans=np.pad(inputs.spans, ((0, more), (0, 0))),
    )
