"""Write the DICOM objects of an explanation into a directory."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.explain.dicom.capture import draw_map, draw_without_map, make_capture
from client.explain.dicom.device import Series
from client.explain.dicom.outlines import make_outlines
from client.explain.dicom.report import make_report
from client.explain.dicom.source import Source, quiet_dicom, read_source
from client.explanation import Explanation
from contract.errors import ConfigError, ImageError
from contract.files import write_file


def write_dicom(explanations: Sequence[Explanation], image: bytes, directory: Path) -> list[Path]:
    """Write the explanations of one case as DICOM objects of the study of its radiograph.

    A map with a caveat did not pass the checks of its bundle and is left out. Without a map that may be shown, the
    Secondary Capture is the radiograph with the reason, and there are no outlines.

    Args:
        explanations: Explanations of one case with an image, at least one.
        image: The DICOM file of the image.
        directory: It is created if needed.

    Returns:
        The written files: secondary-capture*.dcm, structured-report.dcm, presentation-state-*.dcm.

    Raises:
        ConfigError: There is no explanation with an image, they are of several cases or models, the image is another
            file than the one that they explain, or the `explain` extra is not installed.
        ImageError: The image is no DICOM file, or it lacks what the objects refer to.
        ArtifactError: A file cannot be written.
    """
    _check_case(explanations)
    source = read_source(image)
    if explanations[0].image_sha256 != hashlib.sha256(image).hexdigest():
        raise ConfigError("DICOM outputs belong to the explained image, but this file is another one.")
    with quiet_dicom():
        try:
            files = {name: _encode(made) for name, made in _make_all(source, explanations).items()}
        except (ValueError, TypeError, AttributeError, LookupError):  # their messages may quote the file
            raise ImageError(
                "The DICOM file has elements that DICOM objects cannot be made from, such as an invalid UID."
            ) from None
    for name, content in files.items():
        write_file(directory / name, content)
    return [directory / name for name in files]


def _check_case(explanations: Sequence[Explanation]) -> None:
    """Refuse explanations that are not of one image, one case and one model."""
    if not explanations or explanations[0].original is None:
        raise ConfigError("DICOM outputs need an explanation of an image.")
    if len({(one.view, one.image_sha256) for one in explanations}) > 1:
        raise ConfigError("DICOM outputs are made of one image: give the explanations of one image.")
    if len({one.fingerprint for one in explanations}) > 1:
        raise ConfigError("DICOM outputs name one model: give the explanations of one model.")
    if len({(one.kind, one.findings) for one in explanations}) > 1:
        raise ConfigError("DICOM outputs are made of one case: give the explanations of one case.")


def _make_all(source: Source, explanations: Sequence[Explanation]) -> dict[str, Any]:
    """Return the name of each file and its object."""
    pictures, outlines = Series.start("OT"), Series.start("PR")
    fingerprint = explanations[0].fingerprint
    made: dict[str, Any] = {}
    shown = [(one, found) for one in explanations for found in one.maps if not found.caveat]
    for number, (one, found) in enumerate(shown, start=1):
        name = f"{one.key}-{found.method}.dcm"
        picture = draw_map(one, found)
        made[f"secondary-capture-{name}"] = make_capture(source, picture, fingerprint, pictures, number)
        state = make_outlines(source, one, found, outlines, number)
        if state is not None:
            made[f"presentation-state-{name}"] = state
    if not shown:
        picture = draw_without_map(explanations)
        made["secondary-capture.dcm"] = make_capture(source, picture, fingerprint, pictures, 1)
    made["structured-report.dcm"] = make_report(source, explanations, Series.start("SR"))
    return made


def _encode(made: Any) -> bytes:
    buffer = io.BytesIO()
    made.save_as(buffer)
    return buffer.getvalue()
