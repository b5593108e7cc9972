"""What is fuzzed: each target reads hostile bytes and raises only where this project breaks a promise.

A refusal (the error its reader documents) is a good answer. Anything else is a finding: another exception, a
warning, a message that names the patient, a result of the wrong form, a crash or a hang.
"""

import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Final

import numpy as np

from contract.errors import ConfigError, CxrError, ImageError, InputError, ReportError
from contract.image.header import ImageHeader, list_warnings, read_image_header
from contract.image.read import load_pixels, load_radiograph
from contract.image.view import VIEWS
from contract.report.text import (
    MAX_REPORT_CHARS,
    TEXT_MODES,
    Report,
    clean_text,
    format_report,
    parse_report,
    read_report,
)
from training.data.openi import parse_study, read_reports

SIDE: Final = 32
SECRETS: Final = ("QUINCY", "ZOE", "4711")  # name and number of the patient in the seeds


class PromiseBroken(AssertionError):
    """A reader answered, but not as it promises."""


def read_image(data: bytes) -> None:
    """Read an image as training and serving do, and its header as `cxr data table` does."""
    try:
        radiograph = load_radiograph(data, size=SIDE)
    except ImageError as error:
        _check_message(error)
    else:
        pixels = radiograph.pixels
        _expect(pixels.dtype == np.uint8 and pixels.shape == (1, SIDE, SIDE), "pixels of another form")
        _check_header(radiograph.header)
        _expect(np.array_equal(pixels, load_pixels(data, size=SIDE)), "pixels that differ the second time")
    try:
        _check_header(read_image_header(data[: 2**16]))
    except ImageError as error:
        _check_message(error)


def read_text(data: bytes) -> None:
    """Read a report as the server does, in every mode, and as Open-i's XML."""
    try:
        report = parse_report(data)
    except ReportError as error:
        _check_message(error)
        report = None
    for mode in TEXT_MODES:
        _check_mode(data, mode, report)
    if report is not None:
        _check_round_trip(report)
    try:
        study = parse_study(data, name="CXR1.xml")
    except (ReportError, ConfigError) as error:
        _check_message(error, secrets=())  # it quotes an unknown MeSH heading, which is the collection's word
    else:
        _expect(study.study_id.removeprefix("CXR") == study.patient_id, "another patient")


def read_archive(data: bytes) -> None:
    """Read an archive of Open-i reports."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "reports.tgz"
        path.write_bytes(data)
        try:
            studies = read_reports(path)
        except (InputError, ConfigError):
            return  # the message names members, which may hold any character
        _expect(len({study.study_id for study in studies}) == len(studies) > 0, "a study twice")


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "image": read_image,
    "text": read_text,
    "archive": read_archive,
}


def run_target(name: str, data: bytes) -> None:
    """Run one target; a warning that leaves this project's code counts as an exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TARGETS[name](data)


def _expect(kept: bool, what: str) -> None:
    if not kept:
        raise PromiseBroken(what)


def _check_message(error: CxrError, *, secrets: tuple[str, ...] = SECRETS) -> None:
    message = str(error)
    _expect(message.endswith(".") and "\n" not in message and len(message) < 300, "message is no sentence")
    _expect(not any(secret in message.upper() for secret in secrets), "message names the patient")


def _check_header(header: ImageHeader) -> None:
    _expect(header.view in VIEWS, "unknown view")
    _expect(header.rows >= 0 and header.columns >= 0 and header.frames >= 1, "counts below zero")
    _expect(all(math.isfinite(value) for value in astuple(header) if isinstance(value, float)), "no number")
    _expect(all(text.endswith(".") for text in list_warnings(header)), "warning is no sentence")


def _check_mode(data: bytes, mode: str, report: Report | None) -> None:
    try:
        text = read_report(data, mode)
    except ReportError as error:
        _check_message(error)
        return
    _expect(report is not None and text == " ".join(text.split()) != "", f"text of mode {mode}")
    _expect(mode == "findings_masked" or text == clean_text(text), f"unclean text of mode {mode}")


def _check_round_trip(report: Report) -> None:
    text = format_report(report)
    if text and len(text) <= MAX_REPORT_CHARS:
        again = format_report(parse_report(text))
        _expect(again == text, "format_report is not read back")
