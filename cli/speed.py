"""Time `load_pixels` for each kind of file, compared with a minimal decoder."""

import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cli.console import Table, escape
from cli.progress import ProgressCallback
from cli.speed_images import Kind, Values, draw_radiograph, list_kinds
from contract.errors import ConfigError, ImageError
from contract.image import dicom_file
from contract.image.decode import choose_decoder
from contract.image.header import make_missing_error
from contract.image.read import load_pixels

ROWS, COLUMNS = 2828, 2320  # of a 35 x 43 cm radiograph at 0.15 mm


@dataclass(frozen=True)
class Timing:
    """Times of one kind of file in milliseconds. The control's times are None if the control fails.

    Attributes:
        kind: Name of the kind of file.
        decoder: What decodes it in `load_pixels`.
        file_mb: Size of the file in units of 10**6 bytes.
        ms: Median of `load_pixels`.
        min_ms: Minimum of `load_pixels`.
        control_ms: Median of the control.
        control_min_ms: Minimum of the control.
        ratio: `ms` / `control_ms`.
    """

    kind: str
    decoder: str
    file_mb: float
    ms: float
    min_ms: float
    control_ms: float | None = None
    control_min_ms: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class SpeedReport:
    """All timings and their settings. `skipped` holds (kind, reason) of each kind that was not measured."""

    rows: int
    columns: int
    size: int
    repeats: int
    cpus: int
    cv2_threads: int
    timings: tuple[Timing, ...]
    skipped: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what --json prints."""
        return asdict(self)


def measure_speed(
    *,
    size: int,
    repeats: int,
    rows: int = ROWS,
    columns: int = COLUMNS,
    progress: ProgressCallback | None = None,
) -> SpeedReport:
    """Draw one radiograph, write it as every kind of file and time reading each.

    Args:
        size: Side of the square output image, in pixels.
        repeats: How often each reader runs. Both take turns.
        rows: Height of the drawn radiograph.
        columns: Width of the drawn radiograph.
        progress: Called with (done, total) after each kind.

    Raises:
        ConfigError: The 'image' extra is missing.
    """
    cv2 = _import_cv2()
    values = draw_radiograph(rows, columns)
    timings: list[Timing] = []
    skipped: list[tuple[str, str]] = []
    kinds = list_kinds()
    for done, kind in enumerate(kinds, start=1):
        try:
            timings.append(measure_kind(kind, values, size=size, repeats=repeats))
        except (ConfigError, ImageError) as error:
            skipped.append((kind.name, str(error)))
        if progress:
            progress(done, len(kinds))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = {"cpus": cpus, "cv2_threads": cv2.getNumThreads()}
    return SpeedReport(
        rows, columns, size, repeats, **machine, timings=tuple(timings), skipped=tuple(skipped)
    )


def measure_kind(kind: Kind, values: Values, *, size: int, repeats: int) -> Timing:
    """Time `load_pixels` and the control on one file.

    Raises:
        ConfigError: The encoder is missing.
        ImageError: `load_pixels` does not read this kind of file on this machine.
    """
    data = kind.write(values)
    load_pixels(
        data, size=size
    )  # import the packages, and fail on an unreadable file, before the clock starts
    ways: list[Callable[[], Any]] = [lambda: load_pixels(data, size=size)]
    if _can_run(control := lambda: load_control(data, dicom=kind.dicom, size=size)):
        ways.append(control)
    durations, *control_durations = take_turns(ways, repeats=repeats)
    timing: dict[str, Any] = {"ms": statistics.median(durations), "min_ms": min(durations)}
    for times in control_durations:
        median = statistics.median(times)
        timing |= {"control_ms": median, "control_min_ms": min(times), "ratio": timing["ms"] / median}
    rounded = {name: round(number, 2) for name, number in timing.items()}
    return Timing(kind.name, name_decoder(data), round(len(data) / 1e6, 2), **rounded)


def take_turns(ways: Sequence[Callable[[], Any]], *, repeats: int) -> list[list[float]]:
    """Return the milliseconds of each run of each way. Taking turns spreads the machine's other load over all ways."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, durations in zip(ways, times, strict=True):
            started = time.perf_counter()
            way()
            durations.append(1000 * (time.perf_counter() - started))
    return times


def load_control(data: bytes, *, dicom: bool, size: int) -> NDArray[Any]:
    """Read a file without any check, window or padding: decode with pydicom or Pillow, resize with OpenCV.

    Returns:
        (height, width) stored values, not grey values. The longer side is `size`.
    """
    cv2 = _import_cv2()
    if dicom:
        from pydicom import dcmread

        values = dcmread(io.BytesIO(data)).pixel_array
    else:
        from PIL import Image

        values = np.asarray(Image.open(io.BytesIO(data)))
    scale = size / max(values.shape)
    height, width = (max(1, round(side * scale)) for side in values.shape)
    native = values.astype(values.dtype.newbyteorder("="), copy=False)  # OpenCV reads no big endian
    return np.asarray(cv2.resize(native, (width, height), interpolation=cv2.INTER_AREA))


def name_decoder(data: bytes) -> str:
    """Return the package that decodes a file in `load_pixels`."""
    if dicom_file.is_picture(data):
        return "pillow"
    return choose_decoder(dicom_file.read_radiograph(data))


def _can_run(way: Callable[[], Any]) -> bool:
    try:
        way()
    except Exception:  # pydicom raises many kinds of errors if it finds no decoder
        return False
    return True


def print_speed(console: Console, report: SpeedReport) -> None:
    """Print the timings as a table, and the skipped kinds below it."""
    title = f"load_pixels(size={report.size}) of {report.rows}x{report.columns} pixels, median of {report.repeats}"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("File")
    table.add_column("Decoder")
    for name in ("MB", "ms", "min", "control", "min", "ratio"):
        table.add_column(name, justify="right")
    for timing in report.timings:
        times = (timing.ms, timing.min_ms, timing.control_ms, timing.control_min_ms)
        cells = ("-" if value is None else f"{value:.0f}" for value in times)
        ratio = "-" if timing.ratio is None else f"{timing.ratio:.2f}"
        table.add_row(escape(timing.kind), escape(timing.decoder), f"{timing.file_mb:.1f}", *cells, ratio)
    console.print(table)
    machine = f"{report.cpus} CPUs, {report.cv2_threads} OpenCV threads"
    console.print(f"{machine}; the control only decodes with pydicom or Pillow and resizes with OpenCV")
    for name, reason in report.skipped:
        console.print(f"{escape(name)} skipped: {escape(reason)}", highlight=False, soft_wrap=True)


def _import_cv2() -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise make_missing_error() from error
    return cv2
