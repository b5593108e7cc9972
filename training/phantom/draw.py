"""Plan a data set, draw its studies in parallel, and write it completely or not at all.

After the planning, each study depends only on (seed, number), so the files do not depend on the number of processes.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from contract.bundle import write_directory, write_json
from contract.errors import ArtifactError, ConfigError
from training.phantom.anatomy import Anatomy, draw_anatomy, draw_placement
from training.phantom.film import Film, Plane
from training.phantom.finding import Finding
from training.phantom.findings import KINDS, Kind, can_stand_together, draw_finding, reshape
from training.phantom.frontal import paint_frontal, stamp_marker
from training.phantom.headers import Header, draw_headers
from training.phantom.lateral import paint_lateral
from training.phantom.prose import write_caption, write_sections
from training.phantom.write import ReportFile, encode_pixels, make_dataset, write_image, write_report

NORMAL_SHARE: Final = 0.36  # of the studies; 1,391 of 3,955 in the collection
UNINDEXED_SHARE: Final = 0.025  # 101 of 3,955
IMAGELESS_SHARE: Final = 0.026  # 104 of 3,955
FINDINGS_PER_STUDY: Final = 2.0  # per study that is not normal; 1 to 3
REPORTS, IMAGES, BOXES = "ecgen-radiology", "dicom", "boxes.json"
_FEW_STUDIES: Final = 16  # with fewer studies, starting processes takes longer than drawing
_LEAST_SIDE: Final = 24

Box = dict[str, Any]


@dataclass(frozen=True)
class StudyPlan:
    """One study before it is drawn. `indexed` is False if the report gets "No Indexing"."""

    number: int
    findings: tuple[Finding, ...]
    indexed: bool
    with_images: bool

    @property
    def headings(self) -> tuple[str, ...]:
        """MeSH major headings of the report."""
        if not self.indexed:
            return ("No Indexing",)
        return tuple(heading for finding in self.findings for heading in finding.headings) or ("normal",)


def draw_dataset(
    directory: Path,
    *,
    studies: int,
    seed: int = 0,
    scale: float = 0.125,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw a phantom data set in Open-i's layout.

    Writes ecgen-radiology/<n>.xml, dicom/<n>/<n>_IM-....dcm and boxes.json, which maps each image id to a list
    of {"category", "box", "heading"}. A box is [x0, y0, x1, y1] in stored pixels, with x1 and y1 excluded. Equal
    `studies`, `seed` and `scale` give equal files.

    The processes are started with "spawn", so a calling script needs `if __name__ == "__main__"`.

    Args:
        directory: Output directory. It must not exist.
        studies: Number of studies, at least 1.
        seed: 0 or more.
        scale: Side length relative to real images, above 0 up to 1.
        workers: Number of processes. None: one per processor.
        progress: Called with the number of drawn studies and their total.

    Raises:
        ConfigError: `directory` exists, or a number is out of its range.
        ArtifactError: The data set cannot be written. No files are left.
    """
    if studies < 1 or seed < 0 or not 0 < scale <= 1 or (workers is not None and workers < 1):
        raise ConfigError(
            "A phantom data set needs studies and workers of at least 1, a seed of 0 or more and 0 < scale <= 1."
        )
    plans = plan_studies(studies, seed)
    workers = workers or os.cpu_count() or 1
    boxes: dict[str, list[Box]] = {}
    with write_directory(directory) as scratch:
        # Close it at once, also after an error, because no process may write after the scratch directory is removed.
        with closing(_draw_all(plans, scratch, seed, scale, workers)) as drawn:
            for done, found in enumerate(drawn, start=1):
                boxes |= found
                if progress is not None:
                    progress(done, studies)
        write_json(scratch / BOXES, boxes)


def plan_studies(studies: int, seed: int) -> list[StudyPlan]:
    """Choose the findings of each study.

    The kinds are dealt like cards, so each kind gets its share even in a small data set.

    Returns:
        `studies` plans, numbered from 1.
    """
    generator = np.random.default_rng([seed, 0])
    ill = studies - round(NORMAL_SHARE * studies)
    hands: list[list[Kind]] = [[] for _ in range(ill)]
    deck = _make_deck(max(ill, round(FINDINGS_PER_STUDY * ill)), generator)
    for place, kind in enumerate(deck):
        open_hands = [place] if place < ill else list(generator.permutation(ill)[:50])
        for hand in (hands[number] for number in open_hands):
            if len(hand) < 3 and all(can_stand_together(kind, other) for other in hand):
                hand.append(kind)
                break
    hands += [[] for _ in range(studies - ill)]
    plans = []
    for number, hand in enumerate((hands[place] for place in generator.permutation(studies)), start=1):
        own = np.random.default_rng([seed, number, 1])
        findings = tuple(kind.choose(own) for kind in hand)
        indexed, imaged = own.random() >= UNINDEXED_SHARE, own.random() >= IMAGELESS_SHARE
        plans.append(StudyPlan(number, findings, bool(indexed), bool(imaged)))
    return plans


def _make_deck(cards: int, generator: np.random.Generator) -> list[Kind]:
    ends = np.cumsum([kind.share for kind in KINDS])
    marks = (np.arange(cards) + generator.random()) / max(cards, 1) * ends[-1]
    deck = [KINDS[min(int(place), len(KINDS) - 1)] for place in np.searchsorted(ends, marks, side="right")]
    return [deck[place] for place in generator.permutation(cards)]


def draw_study(plan: StudyPlan, directory: Path, seed: int, scale: float) -> dict[str, list[Box]]:
    """Draw and write one study; return the boxes of each image id."""
    words = np.random.default_rng([seed, plan.number, 2])
    headers = draw_headers(np.random.default_rng([seed, plan.number, 3])) if plan.with_images else []
    boxes: dict[str, list[Box]] = {}
    for place, header in enumerate(headers):
        name = f"{plan.number}_IM-{plan.number % 10000:04d}-{header.name}"
        picture, boxes[f"CXR{name}"] = draw_picture(plan, header, seed, scale, place)
        stored, window = encode_pixels(picture, header, np.random.default_rng([seed, plan.number, 4, place]))
        dataset = make_dataset(stored, header, window, plan.number, seed)
        write_image(directory / IMAGES / str(plan.number) / f"{name}.dcm", dataset)
    report = ReportFile(
        number=plan.number,
        sections=write_sections(plan.findings, words),
        major=plan.headings,
        automatic=sorted(
            {heading.split("/")[0].lower() for heading in plan.headings if plan.indexed and plan.findings}
        ),
        image_ids=list(boxes),
        caption=write_caption(words),
    )
    write_report(directory / REPORTS / f"{plan.number}.xml", report)
    return boxes


def draw_picture(
    plan: StudyPlan, header: Header, seed: int, scale: float, place: int
) -> tuple[Plane, list[Box]]:
    """Draw one image of a study.

    Args:
        plan: Plan of the study.
        header: Header with size and view.
        seed: Seed of the data set.
        scale: Side length relative to the real image.
        place: Index of the image in the study.

    Returns:
        The picture, (rows, columns) float32 in 0..1, and its boxes.
    """
    anatomy = reshape(draw_anatomy(np.random.default_rng([seed, plan.number, 5])), plan.findings)
    stand = draw_placement(np.random.default_rng([seed, plan.number, 6, place]), lateral=header.lateral)
    rows, columns = (max(_LEAST_SIDE, round(side * scale)) for side in (header.rows, header.columns))
    film = Film(rows, columns, header.lateral, stand)
    paint = paint_lateral if header.lateral else paint_frontal
    paint(film, anatomy, np.random.default_rng([seed, plan.number, 7]))
    boxes = _draw_findings(film, anatomy, plan, seed)
    picture = film.develop(np.random.default_rng([seed, plan.number, 8, place]))
    if not header.lateral:
        stamp_marker(film, picture, "L")
    return picture, boxes


def _draw_findings(film: Film, anatomy: Anatomy, plan: StudyPlan, seed: int) -> list[Box]:
    boxes = []
    order = {kind.name: place for place, kind in enumerate(KINDS)}
    for finding in sorted(plan.findings, key=lambda finding: order[finding.kind]):
        boxes += draw_finding(film, anatomy, finding, (seed, plan.number, 9, order[finding.kind]))
    return boxes


def _draw_all(
    plans: Sequence[StudyPlan], directory: Path, seed: int, scale: float, workers: int
) -> Generator[dict[str, list[Box]], None, None]:
    """Yield the boxes of each study, in order, as studies finish."""
    if workers == 1 or len(plans) < _FEW_STUDIES:
        for plan in plans:
            yield draw_study(plan, directory, seed, scale)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(plans)), mp_context=get_context("spawn"), initializer=_start_worker
    )
    try:
        jobs: deque[Future[dict[str, list[Box]]]] = deque()
        with _hold_interrupts():
            jobs += (pool.submit(draw_study, plan, directory, seed, scale) for plan in plans)
        while jobs:
            yield jobs.popleft().result()
    except BrokenProcessPool as error:
        raise ArtifactError("A drawing process ended unexpectedly; is there enough memory?") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _hold_interrupts() -> Iterator[None]:
    """Block Ctrl-C. Processes that start meanwhile inherit the block until they ignore Ctrl-C themselves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Ignore Ctrl-C, use one thread, and end together with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
