"""The data set as a whole: equal seeds give equal files, failures leave nothing, findings are where boxes say."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from contract.errors import ArtifactError, ConfigError
from contract.labels import LABEL_KEYS
from training.data.mesh import map_heading
from training.phantom import draw, draw_dataset
from training.phantom.draw import NORMAL_SHARE, draw_study, plan_studies
from training.phantom.finding import Finding, hide
from training.phantom.findings import KIND_BY_NAME, KINDS, can_stand_together, find_box, get_categories

VIEWS = [(kind.name, lateral) for kind in KINDS for lateral in (False, True)]
SEEN = [
    (name, lateral)
    for name, lateral in VIEWS
    if (KIND_BY_NAME[name].frontal, KIND_BY_NAME[name].lateral)[lateral] is not hide
]
# These change the shape of the chest, so that a little moves outside of the box too.
RESHAPING = {"hyperinflation", "hypoinflation", "diaphragm", "scoliosis"}
# One would displace, cover or contradict the other.
APART = [
    ("pneumothorax", "nodule"),
    ("pneumothorax", "fibrosis"),
    ("effusion", "consolidation"),
    ("collapse", "atelectasis"),
    ("fibrosis", "congestion"),
    ("hyperinflation", "hypoinflation"),
    ("diaphragm", "hypoinflation"),
]
BILATERAL = {"effusion", "atelectasis", "adenopathy", "congestion"}


def read_tree(directory) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


# --- equal seeds, equal files ------------------------------------------------------------------------------


def test_number_of_processes_does_not_show_in_the_files(tmp_path):
    """16 are the fewest studies for which processes are started."""
    for workers in (1, 2):
        draw_dataset(tmp_path / str(workers), studies=16, seed=3, scale=0.05, workers=workers)
    one, two = read_tree(tmp_path / "1"), read_tree(tmp_path / "2")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert len([name for name in one if name.endswith(".dcm")]) > 16


@pytest.mark.parametrize("setting", [{"seed": 5}, {"scale": 0.06}])
def test_another_seed_or_scale_gives_other_files(setting, tmp_path):
    settings = {"studies": 3, "seed": 4, "scale": 0.05, "workers": 1}
    draw_dataset(tmp_path / "one", **settings)
    draw_dataset(tmp_path / "again", **settings)
    draw_dataset(tmp_path / "other", **settings | setting)
    one, other = read_tree(tmp_path / "one"), read_tree(tmp_path / "other")
    assert one == read_tree(tmp_path / "again")
    images = [data for name, data in one.items() if name.endswith(".dcm")]
    assert images
    assert not set(images) & set(other.values())


def test_a_study_follows_from_its_plan_alone(phantoms, tmp_path):
    plan = next(plan for plan in phantoms.plans if plan.number > 20 and plan.with_images)
    draw_study(plan, tmp_path, phantoms.seed, phantoms.scale)
    whole = read_tree(phantoms.directory)
    assert all(whole[name] == data for name, data in read_tree(tmp_path).items())


def test_progress_counts_every_study(tmp_path):
    steps = []
    draw_dataset(
        tmp_path / "set", studies=4, scale=0.02, workers=1, progress=lambda *step: steps.append(step)
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


# --- failures leave nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [{"studies": 0}, {"seed": -1}, {"scale": 0.0}, {"scale": 1.01}, {"scale": math.nan}, {"workers": 0}],
)
def test_bad_number_is_refused(setting, tmp_path):
    with pytest.raises(ConfigError):
        draw_dataset(tmp_path / "set", **{"studies": 2, "scale": 0.02} | setting)
    assert list(tmp_path.iterdir()) == []


def test_existing_directory_is_refused_and_kept(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists already"):
        draw_dataset(tmp_path / "set", studies=2, scale=0.02)
    assert read_tree(tmp_path) == {"set/mine.txt": b"keep"}


@pytest.mark.parametrize(("failure", "raised"), [(OSError(28, "full"), ArtifactError), (KeyError, KeyError)])
def test_failure_in_the_middle_leaves_nothing(failure, raised, tmp_path, monkeypatch):
    calls = []

    def fail_late(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise failure
        write_image(*arguments)

    write_image = draw.write_image
    monkeypatch.setattr(draw, "write_image", fail_late)
    with pytest.raises(raised):
        draw_dataset(tmp_path / "set", studies=9, scale=0.02, workers=1)
    assert len(calls) == 4
    assert list(tmp_path.iterdir()) == []


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.parametrize(
    ("findings", "raised"), [((Finding("unknown", ()),), KeyError), ((Bomb(),), ArtifactError)]
)
def test_failure_of_a_process_leaves_nothing(findings, raised, tmp_path, monkeypatch):
    plans = plan_studies(20, 0)
    plans[12] = replace(plans[12], findings=findings, with_images=True)
    monkeypatch.setattr(draw, "plan_studies", lambda *_: plans)
    with pytest.raises(raised):
        draw_dataset(tmp_path / "set", studies=20, scale=0.02, workers=2)
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_nothing(tmp_path):
    """Ctrl-C reaches the whole process group, as from a terminal."""
    script = f"""
        from pathlib import Path
        from training.phantom import draw_dataset
        if __name__ == "__main__":
            draw_dataset(Path({str(tmp_path / "set")!r}), studies=5000, scale=0.05, workers=2)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE, start_new_session=True
    )
    end = time.monotonic() + 60
    while not any(tmp_path.rglob("*.dcm")) and time.monotonic() < end:
        time.sleep(0.05)
    assert any(tmp_path.rglob("*.dcm"))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.decode().strip().endswith("KeyboardInterrupt")
    assert errors.decode().count("Traceback") == 1  # that of the parent; its children keep quiet
    assert list(tmp_path.iterdir()) == []


# --- plans -------------------------------------------------------------------------------------------------


def test_plans_hold_every_kind_in_its_share():
    plans = plan_studies(1500, 3)
    assert [plan.number for plan in plans] == list(range(1, 1501))
    assert sum(not plan.findings for plan in plans) == round(NORMAL_SHARE * 1500)
    drawn = Counter(finding.kind for plan in plans for finding in plan.findings)
    whole = sum(kind.share for kind in KINDS)
    for kind in KINDS:
        assert drawn[kind.name] / drawn.total() == pytest.approx(kind.share / whole, rel=0.1)
    assert sum(not plan.indexed for plan in plans) == pytest.approx(101 / 3955 * 1500, abs=25)
    assert sum(not plan.with_images for plan in plans) == pytest.approx(104 / 3955 * 1500, abs=25)


def test_kinds_that_exclude_each_other_never_meet():
    pairs = Counter()
    for plan in plan_studies(1500, 3):
        assert len(plan.findings) <= 3
        kinds = sorted(finding.kind for finding in plan.findings)
        pairs.update((one, two) for place, two in enumerate(kinds) for one in kinds[:place])
    assert not [pair for pair in pairs if pair[0] == pair[1]]
    for pair in APART:
        assert not pairs[tuple(sorted(pair))], pair
        assert not can_stand_together(*(KIND_BY_NAME[name] for name in pair))
        assert not can_stand_together(*(KIND_BY_NAME[name] for name in pair[::-1]))
    assert len(pairs) > 150  # of 231
    assert pairs.total() > 900


def test_another_seed_gives_another_plan():
    one, other = plan_studies(1500, 1), plan_studies(1500, 2)
    assert one == plan_studies(1500, 1)
    pairs = list(zip(one, other, strict=True))
    assert sum([f.kind for f in a.findings] != [f.kind for f in b.findings] for a, b in pairs) > 750
    normal = [(a, b) for a, b in pairs if not a.findings and not b.findings]
    assert any((a.indexed, a.with_images) != (b.indexed, b.with_images) for a, b in normal)


@pytest.mark.parametrize("studies", [1, 2, 3])
def test_plan_of_few_studies(studies):
    assert len(plan_studies(studies, 0)) == studies


def test_headings_stand_for_their_category(artist):
    for kind in KINDS:
        for number in range(40):
            finding = artist.choose(kind.name, number)
            assert finding.kind == kind.name
            assert all(map_heading(heading) for heading in finding.headings)
    assert len({key for plan in plan_studies(200, 0) for key in get_categories(plan.findings)}) >= 15


# --- findings and their boxes ------------------------------------------------------------------------------


def test_ten_categories_have_boxes(phantoms):
    shown = Counter(box["category"] for boxes in phantoms.boxes.values() for box in boxes)
    assert len(shown) >= 10
    assert set(shown) <= set(LABEL_KEYS) - {"normal"}


def test_boxes_are_those_of_the_plan(phantoms):
    plans = {plan.number: plan for plan in phantoms.plans}
    boxes = phantoms.boxes
    assert boxes.keys() == phantoms.list_images().keys()
    for image_id, found in boxes.items():
        plan = plans[int(image_id[3:].split("_")[0])]
        headings = {heading for finding in plan.findings for heading in finding.headings}
        for box in found:
            assert box.keys() == {"category", "box", "heading"}
            assert box["heading"] in headings
            assert box["category"] in map_heading(box["heading"])


def mark_boxes(picture, boxes, margin=1) -> np.ndarray:
    inside = np.zeros(picture.shape, bool)
    for box in boxes:
        x0, y0, x1, y1 = box["box"]
        assert 0 <= x0 < x1 <= picture.shape[1]
        assert 0 <= y0 < y1 <= picture.shape[0]
        inside[max(0, y0 - margin) : y1 + margin, max(0, x0 - margin) : x1 + margin] = True
    return inside


@pytest.mark.parametrize(("kind", "lateral"), SEEN)
def test_finding_is_drawn_inside_its_box(kind, lateral, artist):
    for number in range(1, 9):
        finding = artist.choose(kind, number)
        without, none = artist.draw(number, lateral=lateral)
        picture, boxes = artist.draw(number, finding, lateral=lateral)
        assert none == []
        assert {box["category"] for box in boxes} <= get_categories((finding,))
        inside = mark_boxes(picture, boxes)
        change = np.abs(picture - without)
        # At 112 pixels for the long side; a dozen of them change by more than the noise.
        assert np.sort(_shrink(change, 112).ravel())[-12:].mean() > 0.035
        assert (change**2)[inside].sum() > (0.7 if kind in RESHAPING else 0.97) * (change**2).sum()


def _shrink(picture, side):
    scale = side / max(picture.shape)
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(("kind", "lateral"), sorted(set(VIEWS) - set(SEEN)))
def test_finding_that_cannot_be_seen_has_no_box_and_changes_nothing(kind, lateral, artist):
    without, _ = artist.draw(2, lateral=lateral)
    picture, boxes = artist.draw(2, artist.choose(kind, 2), lateral=lateral)
    assert boxes == []
    assert np.array_equal(picture, without)


@pytest.mark.parametrize("kind", sorted(BILATERAL))
def test_each_side_has_a_box_of_its_own(kind, artist):
    finding = next(f for f in (artist.choose(kind, n) for n in range(99)) if f.side == "bilateral")
    picture, boxes = artist.draw(3, finding)
    assert len(boxes) == 2
    right, left = sorted(box["box"] for box in boxes)
    assert right[2] <= left[0] + 3  # columns; the patient's right is on the viewer's left
    assert right[0] < picture.shape[1] / 2 < left[2]


@pytest.mark.parametrize("kind", [name for name, lateral in SEEN if not lateral])
def test_side_in_the_heading_is_the_side_in_the_picture(kind, artist):
    chosen = {finding.side: finding for finding in (artist.choose(kind, number) for number in range(60))}
    for side in {"right", "left"} & chosen.keys():
        picture, boxes = artist.draw(5, chosen[side])
        change = np.abs(picture - artist.draw(5)[0])
        x = (change * np.arange(picture.shape[1])).sum() / change.sum()
        assert (x < picture.shape[1] / 2) == (side == "right") or kind == "device"  # its leads cross over
        assert boxes


def test_findings_do_not_hide_each_other(artist):
    for plan in plan_studies(60, 5):
        for finding in plan.findings if len(plan.findings) > 1 else ():
            if KIND_BY_NAME[finding.kind].frontal is not hide:
                rest = tuple(other for other in plan.findings if other != finding)
                change = np.abs(
                    artist.draw(plan.number, *plan.findings)[0] - artist.draw(plan.number, *rest)[0]
                )
                assert np.sort(change.ravel())[-20:].mean() > 0.05, (plan.findings, finding)


def test_picture_looks_alike_at_every_size(artist):
    finding = artist.choose("mass", 3)
    small, large = artist.draw(3, finding, scale=0.06), artist.draw(3, finding, scale=0.18)
    assert np.corrcoef(small[0].ravel(), _fit(large[0], small[0].shape).ravel())[0, 1] > 0.98
    np.testing.assert_allclose(np.array(large[1][0]["box"]) / 3, small[1][0]["box"], atol=1.5)


def _fit(picture, shape):
    return cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)


def test_box_of_a_mask():
    mask = np.zeros((8, 9), np.float32)
    assert find_box(mask) is None
    mask[2:5, 3:7] = 1
    mask[7, 0] = 0.1
    assert find_box(mask) == (3, 2, 7, 5)
