"""`cxr evaluate explain`: measure the maps of a bundle and keep the results in it."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from rich import box
from rich.console import Console

from cli.console import Table, escape
from cli.progress import show_progress
from contract.bundle import MODEL_CARD, Bundle, amend_bundle, compute_sha256, write_json
from contract.errors import ConfigError, ImageError
from contract.files import write_file
from contract.map_checks import FILE, FOLDER, FORMAT
from training.data.rows import Row, get_report, has_text, read_rows

if TYPE_CHECKING:
    from client.explain import Inputs
    from training.evaluation.maps.boxes import Boxes
    from training.evaluation.maps.measure import Sizes, Task
    from training.evaluation.maps.subject import MakeMap, Map, MethodFacts, Subject

WAYS: Final = ("image", "study")


def measure_bundle(
    console: Console,
    bundle: Bundle,
    table: Path,
    *,
    boxes_file: Path | None,
    ways: Sequence[str],
    methods: Sequence[str],
    part: str,
    findings: int,
    sizes: "Sizes",
) -> dict[str, Any]:
    """Measure the maps of a bundle on the boxes of a table's studies.

    Args:
        console: Shows the progress.
        bundle: A verified bundle.
        table: Studies table.
        boxes_file: A file of boxes, as in `read_boxes`; None: the boxes of the table.
        ways: "image", "study" or both.
        methods: Keys of the methods.
        part: Part of the bundle's split, or "all".
        findings: Most findings that are measured; 0: all.
        sizes: How much is measured.

    Raises:
        ConfigError: No study of that part has a box, or a method cannot be used with this model.
    """
    from client.explain.network import open_model
    from training.evaluation.maps.boxes import read_boxes, read_table_boxes
    from training.evaluation.maps.measure import measure_maps

    rows = choose_part(bundle, read_rows(table), part)
    boxes = read_table_boxes(rows) if boxes_file is None else read_boxes(boxes_file)
    model = open_model(bundle)
    facts, obstacles = list_methods(model, methods)
    measured: dict[str, Any] = {}
    for way in ways:
        with show_progress(console, f"Measuring maps ({way})") as progress:
            task = _make_task(bundle, model, rows, boxes, way, facts, findings)
            if task is None:
                continue
            measured[way] = measure_maps(task, sizes, progress)
    if not measured:
        raise ConfigError(
            f"No study of {table} ({part}) has a readable first image with a box of a known category. Give a file of "
            "boxes with --boxes."
        )
    named = "boxes of the table" if boxes_file is None else f"boxes of {boxes_file.name}"
    return {
        "format": FORMAT,
        "fingerprint": bundle.fingerprint,
        "trained_on": bundle.trained_on,
        "data": f"Table {table.name} (SHA-256 {compute_sha256(table)[:12]}), {part} part, {named}.",
        "titles": {fact.key: fact.title for fact in facts},
        "without": obstacles,
        "options": vars(sizes),
        "ways": measured,
    }


def choose_part(bundle: Bundle, rows: Sequence[Row], part: str) -> list[Row]:
    """Return the rows of one part of the bundle's split, or all.

    Raises:
        ConfigError: The table holds no study of that part.
    """
    if part == "all":
        return list(rows)
    wanted = set(bundle.split[part])
    chosen = [row for row in rows if row["study_id"] in wanted]
    if not chosen:
        raise ConfigError(
            f"The table holds no {part} study of the bundle's split. For a table from elsewhere give --part all and "
            "--out."
        )
    return chosen


def list_methods(model: Any, methods: Sequence[str]) -> tuple[list["MethodFacts"], dict[str, str]]:
    """Return the methods that the model allows, and why others are left out."""
    from client.explain.methods import METHODS, find_obstacle, require_method
    from training.evaluation.maps.subject import MethodFacts

    facts, obstacles = [], {}
    for key in methods or METHODS:
        method = require_method(key)
        if obstacle := find_obstacle(model, key):
            obstacles[key] = obstacle
            continue
        is_complete = key in {"integrated_gradients", "shapley"}
        facts.append(MethodFacts(key, method.title, method.signed, is_complete, method.is_slow))
    return facts, obstacles


def make_measured_map(
    model: Any, inputs: "Inputs", label: int, key: str, *, steps: int | None = None
) -> "Map":
    """Make a map as `cxr explain` does, with what it draws."""
    from client.explain.maps import smooth_map
    from client.explain.methods import make_map
    from training.evaluation.maps.subject import Map

    found = make_map(model, inputs, label, key, steps=steps)
    size = int(inputs.pixels.shape[-1])  # type: ignore[union-attr]
    return Map(found.values, smooth_map(found.values, size), found.seconds, found.delta)


def _make_task(
    bundle: Bundle,
    model: Any,
    rows: Sequence[Row],
    boxes: "Boxes",
    way: str,
    facts: Sequence["MethodFacts"],
    findings: int,
) -> "Task | None":
    from client.explain.case import lengthen
    from client.explain.gradients import FIRST_STEPS
    from client.explain.network import Probe
    from training.evaluation.maps.measure import Task
    from training.evaluation.maps.twin import make_twin

    by_study = {row["study_id"]: row for row in rows}
    subjects = _spread_over(make_subjects(bundle, rows, boxes, way, model), findings)
    if not subjects:
        return None

    def read_twin(subject: "Subject") -> Any:
        twin = make_twin(subject.image.read_bytes())
        if twin is None:
            return None
        return read_case(bundle, by_study[subject.study_id], twin, way, model)

    def pad(inputs: "Inputs") -> Any:
        if inputs.input_ids is None:
            return None
        length = inputs.input_ids.shape[1]
        longest = min(2 * length, int(bundle.config["model"]["text_positions"]))
        return lengthen(inputs, longest) if longest > length else None

    make: MakeMap = make_measured_map
    quick: MakeMap = partial(make_measured_map, steps=FIRST_STEPS)
    hits = find_hits(bundle, rows, subjects, way, model)
    return Task(model, subjects, facts, make, quick, Probe, read_twin, pad, hits)


def make_subjects(
    bundle: Bundle, rows: Sequence[Row], boxes: "Boxes", way: str, model: Any
) -> list["Subject"]:
    """Return one subject for each finding with a box on the first image of a study."""
    from contract.labels import LABEL_INDEX
    from training.evaluation.maps.subject import Subject

    subjects = []
    for row in rows:
        if not row["image_paths"] or not (found := boxes.get(row["image_ids"][0])):
            continue
        path = Path(row["image_paths"][0])
        inputs = _try_case(bundle, row, path, way, model)
        if inputs is None or inputs.frame is None:
            continue
        for key in sorted({one.category for one in found}):
            places = tuple(one.place(inputs.frame) for one in found if one.category == key)
            subjects.append(
                Subject(
                    row["study_id"], row["patient_id"], LABEL_INDEX[key], inputs, inputs.frame, places, path
                )
            )
    return subjects


def _try_case(bundle: Bundle, row: Row, path: Path, way: str, model: Any) -> "Inputs | None":
    if way == "study" and not has_text(row, bundle.config["text_mode"]):
        return None
    try:
        return read_case(bundle, row, path.read_bytes(), way, model)
    except (ImageError, OSError):
        return None


def read_case(bundle: Bundle, row: Row, data: bytes, way: str, model: Any) -> "Inputs":
    """Read a study's image, and its report for the way "study", as tensors on the device of the model."""
    from client.explain.case import read_inputs
    from client.explain.network import find_device

    report = get_report(row) if way == "study" else None
    return read_inputs(bundle, image=data, report=report).to(find_device(model))


def find_hits(
    bundle: Bundle, rows: Sequence[Row], subjects: Sequence["Subject"], way: str, model: Any
) -> list[Any]:
    """Return the most similar other case among the measured studies for each subject; None if there is none."""
    from client.explain.hit import embed_cases
    from training.evaluation.maps.agreement import find_top_hits

    by_study = {row["study_id"]: row for row in rows}
    cases = {subject.study_id: subject for subject in subjects}
    cases_read = [cast("Inputs", one.inputs) for one in cases.values()]
    vectors = embed_cases(model, cases_read)
    patients = [str(by_study[study]["patient_id"]) for study in cases]
    best = find_top_hits(vectors, vectors, patients, patients)
    hits = {study: None if row is None else cases_read[row] for study, row in zip(cases, best, strict=True)}
    return [hits[subject.study_id] for subject in subjects]


def _spread_over(subjects: list["Subject"], most: int) -> list["Subject"]:
    if not most or len(subjects) <= most:
        return subjects
    step = len(subjects) / most
    return [subjects[int(place * step)] for place in range(most)]


def keep_results(results: Mapping[str, Any], bundle: Bundle, out: Path | None) -> Path:
    """Write explanations.json, explanations.md and plots into `out`, or into the bundle and its model card.

    Returns:
        The directory that holds them.
    """
    from training.card.card import insert_maps
    from training.evaluation.maps.report import write_map_summary

    if out is not None:
        _write_files(results, out)
        return out
    with amend_bundle(bundle, changed=(MODEL_CARD,)) as scratch:
        card = (scratch / MODEL_CARD).read_text(encoding="utf-8")
        (scratch / MODEL_CARD).write_text(insert_maps(card, write_map_summary(results)), encoding="utf-8")
        shutil.rmtree(scratch / FOLDER, ignore_errors=True)
        (scratch / FOLDER).mkdir()
        _write_files(results, scratch / FOLDER)
    return bundle.path / FOLDER


def _write_files(results: Mapping[str, Any], directory: Path) -> None:
    from training.evaluation.maps.plots import draw_map_plots
    from training.evaluation.maps.report import write_map_report

    write_json(directory / FILE, results)
    write_file(directory / "explanations.md", write_map_report(results))
    draw_map_plots(results, directory)


def print_maps(console: Console, results: Mapping[str, Any]) -> None:
    """Print the verdict and the table of localisation for each way."""
    from training.evaluation.maps.report import WAYS as TITLES
    from training.evaluation.maps.report import describe_gate
    from training.evaluation.maps.subject import CONTROLS

    for key, reason in results["without"].items():
        console.print(f"{key} was left out: {escape(reason)}.", soft_wrap=True)
    names = {**results["titles"], **CONTROLS}
    for way, found in results["ways"].items():
        table = Table(
            title=f"Read from {TITLES[way]}: {found['findings']} findings",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
        )
        columns: tuple[tuple[str, Callable[[Any], str]], ...] = (
            ("pointing", _show),
            ("energy", _show),
            ("iou", _show),
        )
        table.add_column("map")
        for name, _ in columns:
            table.add_column(name, justify="right")
        for key, row in found["localisation"].items():
            table.add_row(names[key], *(show(row[name]) for name, show in columns))
        console.print(table)
        console.print(escape(describe_gate(found, results["titles"])), soft_wrap=True, highlight=False)
        for key, row in found["gate"]["methods"].items():
            if not row["passed"]:
                console.print(f"  {names[key]}: {escape(row['reason'])}", soft_wrap=True, highlight=False)


def _show(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.2f} ({interval['low']:.2f}-{interval['high']:.2f})"
