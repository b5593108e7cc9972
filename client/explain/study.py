"""Explanations of each image of a study that the model reads together."""

from collections.abc import Sequence

from client.explain.baselines import BLACK
from client.explain.case import read_files, read_inputs
from client.explain.findings import Progress, Wanted, explain_inputs
from client.explain.network import find_device, open_model
from client.explain.views import Views, encode_views
from client.explanation import Explanation
from client.inputs import ImageSource, ReportSource
from contract.bundle import Bundle
from contract.errors import ConfigError
from contract.tensors import MAX_VIEWS


def explain_views(
    bundle: Bundle,
    images: Sequence[ImageSource],
    *,
    report: ReportSource | None = None,
    labels: Sequence[str] | None = None,
    steps: int | None = None,
    methods: Sequence[str] | None = None,
    baselines: Sequence[str] = (BLACK,),
    progress: Progress | None = None,
) -> tuple[Explanation, ...]:
    """Explain the findings of a study of several images.

    The model reads all images together, as the served model does. Each image is explained while the others stay as they
    are, so the sums of different images do not add up to the logit.

    Args:
        bundle: The model.
        images: 2 to `MAX_VIEWS` images, the frontal one first.
        report: As in `client.explain.explain`.
        labels: As in `client.explain.explain_findings`; the findings are those of the whole study.
        steps: As in `client.explain.explain`.
        methods: As in `client.explain.explain`.
        baselines: As in `client.explain.explain`.
        progress: Called with the number of finished maps and their total, for each image anew.

    Returns:
        An explanation for each image and finding, image by image; `view` tells the image.

    Raises:
        ConfigError, ImageError, ReportError, ArtifactError: As in `client.explain.explain`, and for another number of
            images.
    """
    if not 2 <= len(images) <= MAX_VIEWS:
        raise ConfigError(f"Give 2 to {MAX_VIEWS} images of a study, not {len(images)}.")
    wanted = Wanted(labels, steps, methods, baselines, only_top=False).check()
    files = [read_files(image, report) for image in images]
    model = open_model(bundle)
    device = find_device(model)
    cases = [
        read_inputs(bundle, image=one.image, report=one.report, is_first=place == 0).to(device)
        for place, one in enumerate(files)
    ]
    tokens = encode_views(model, [case.pixels for case in cases if case.pixels is not None])
    found: list[Explanation] = []
    for place, (one, case) in enumerate(zip(files, cases, strict=True)):
        inputs = case._replace(views=Views(place, tokens))
        found += explain_inputs(bundle, model, one, inputs, wanted, progress)
    return tuple(found)
