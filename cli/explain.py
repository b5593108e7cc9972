"""`cxr explain`: explain the findings of a case, or why it is similar to a search hit."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from cli.console import escape
from cli.progress import show_progress
from cli.show import NOTICE, print_explanation, print_json
from contract.bundle import Bundle
from contract.errors import ConfigError
from training.data.rows import Row, get_image, get_report, has_text, read_rows

CaseFiles = tuple[bytes | None, bytes | None]  # image and report


def explain_case(
    console: Console,
    bundle: Bundle,
    case: CaseFiles,
    *,
    findings: Sequence[str] | None,
    further: Sequence[Path],
    methods: Sequence[str] | None,
    baselines: Sequence[str],
    out: Path,
    maps: Path | None,
    dicom: Path | None,
    steps: int | None,
    as_json: bool,
) -> None:
    """Explain findings, write the pictures and DICOM objects, and print or return what was found.

    Raises:
        ConfigError: DICOM objects are wanted without an image.
        ImageError: DICOM objects are wanted, and the image is no DICOM file that they can refer to.
    """
    started = time.perf_counter()
    from client.explain import explain_findings, explain_views, write_dicom
    from client.explain.map_files import write_maps
    from client.explain.overlay import write_overlay

    if dicom is not None:
        _check_source(case[0])
    with show_progress(console, "Explaining") as progress:
        if further and case[0] is not None:
            ask = partial(explain_views, bundle, [case[0], *further])
        else:
            ask = partial(explain_findings, bundle, image=case[0])
        found = ask(
            report=case[1],
            labels=findings or None,
            methods=methods or None,
            baselines=baselines,
            steps=steps,
            progress=progress,
        )
    explained = time.perf_counter()
    overlay = str(out) if write_overlay(found, out) else None
    written = [str(path) for path in write_maps(found, maps)] if maps is not None else []
    if dicom is not None and case[0] is not None:
        of_first = [one for one in found if one.view == 1]
        written += [str(path) for path in write_dicom(of_first, case[0], dicom)]
    finished = time.perf_counter()
    seconds = {"explain": explained - started, "write": finished - explained, "total": finished - started}
    if as_json:
        answer = {
            **found[0].to_dict(),
            "further": [one.to_dict() for one in found[1:]],
            "overlay": overlay,
            "written": written,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "notice": NOTICE,
        }
        print_json(answer)
        return
    for number, one in enumerate(found):
        print_explanation(console, one, overlay if number == len(found) - 1 else None)
    for path in written:
        console.print(f"  written: {escape(path)}", highlight=False, soft_wrap=True)
    console.print(
        f"  {seconds['total']:.1f} s: {seconds['explain']:.1f} s for the model and the maps, "
        f"{seconds['write']:.1f} s for the files",
        highlight=False,
        soft_wrap=True,
    )
    console.print(NOTICE)


def _check_source(image: bytes | None) -> None:
    """Refuse an image that no DICOM object can refer to, before the explanation is computed."""
    from client.explain.dicom.source import read_source

    if image is None:
        raise ConfigError("--dicom needs a DICOM image, because its objects belong to the image's study.")
    read_source(image)


def explain_similarity(
    console: Console,
    bundle: Bundle,
    case: CaseFiles,
    hit: str,
    table: Path,
    *,
    out: Path,
    steps: int | None,
    as_json: bool,
) -> None:
    """Explain why a case is similar to a study of a table, and write both sides as one picture.

    Raises:
        ConfigError: The table has no such study, or the study has nothing that the model can read.
    """
    from client.explain import explain_hit
    from client.explain.hit import Case
    from client.explain.hit_overlay import write_hit_overlay

    row = find_row(table, hit)
    other = Case(*read_files(row, bundle.config["text_mode"]))
    found = explain_hit(bundle, Case(*case), other, steps=steps)
    overlay = str(out) if write_hit_overlay(found, out, hit) else None
    if as_json:
        print_json({**found.to_dict(), "hit_id": hit, "overlay": overlay, "notice": NOTICE})
        return
    console.print(
        f"[bold]Why {escape(hit)} is similar[/bold]: cosine {found.similarity:.3f}, Integrated Gradients on both sides",
        highlight=False,
    )
    for name, side in (("query", found.query), ("hit", found.hit)):
        strongest = sorted(side.words, key=lambda word: -abs(word.attribution))[:6]
        words = ", ".join(f"{word.text} {word.attribution:+.3f}" for word in strongest)
        console.print(
            f"  {name}: {side.describe()}" + (f"; words {escape(words)}" if words else ""),
            highlight=False,
            soft_wrap=True,
        )
    if overlay:
        console.print(f"  overlay: {escape(overlay)}", highlight=False, soft_wrap=True)
    console.print(NOTICE)


def find_row(table: Path, study_id: str) -> Row:
    """Return the row of a study. Raise ConfigError if the table has none."""
    rows = read_rows(table, study_ids=[study_id])
    if not rows:
        raise ConfigError(f"{table} has no study {study_id}.")
    return rows[0]


def read_files(row: Row, text_mode: str) -> CaseFiles:
    """Return the first image and the report of a study, where they are on this machine.

    Raises:
        ConfigError: Its image file is missing and it has no report that the model can read.
    """
    path = get_image(row)
    image = path.read_bytes() if path is not None and path.is_file() else None
    report = get_report(row).encode() if has_text(row, text_mode) else None
    if image is None and report is None:
        raise ConfigError(
            f"The study {row['study_id']} has neither an image file on this machine nor a report that the model reads."
        )
    return image, report
