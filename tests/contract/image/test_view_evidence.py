"""The evidence for views, held against all real headers of Open-i: pytest -s prints the cross-tables.

The true projections are not here. So independent kinds of evidence are held against each other (what a file names, its
code, its shape, the exposures and the other images of its study), and against what is known of the published list.
"""

import csv
import gzip
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import pytest

from contract.image import view as views
from contract.image.view import (
    EVIDENCE,
    EXPOSURES,
    SHAPES,
    ViewVerdict,
    compare_exposures,
    rank_view,
    weigh_study,
)
from contract.image.view_clues import ViewClues
from training.phantom.header_clues import read_row_clues

STUDIES_WITH_FRONTAL = 3689  # of the published list, as are these
PA_IMAGES, PA_LATERALS, SILENT_IMAGES, SILENT_LATERALS, LATERAL_FIRST = 3590, 1368, 2585, 1401, 241

Studies = dict[str, list[tuple[str, ViewClues]]]


@pytest.fixture(scope="module")
def studies(openi_directory) -> Studies:
    """Image ids and clues of each study, in the order of the ids."""
    with gzip.open(openi_directory / "nlmcxr_dicom_metadata.csv.gz", "rt", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["imageid"])
    found: Studies = defaultdict(list)
    for row in rows:
        found[row["imageid"].split("_")[0]].append((row["imageid"], read_row_clues(row)))
    return found


@pytest.fixture(scope="module")
def verdicts(studies) -> dict[str, list[ViewVerdict]]:
    return {name: weigh_study([clues for _, clues in study]) for name, study in studies.items()}


def list_names(clues: ViewClues) -> set[str]:
    """Return the evidence that one header holds, without its shape."""
    return set(views.list_weights(clues)) - {views.SHAPE}


def find_named(clues: ViewClues) -> str:
    """Return L or F by what a header names or codes, "" where it does neither."""
    weight = sum(EVIDENCE[name].weight for name in list_names(clues))
    return "L" if weight > 0 else "F" if weight < 0 else ""


def list_pairs(studies: Studies) -> Iterator[tuple[ViewClues, ViewClues]]:
    for study in studies.values():
        yield from itertools.permutations([clues for _, clues in study], 2)


def show(title: str, table: Counter) -> None:
    print(f"\n{title}")
    for key, count in sorted(table.items(), key=lambda entry: -entry[1]):
        print(f"{count:7,}  {key}")


def test_what_headers_name_agrees(studies):
    """Patient Orientation, View Position and the program's name never contradict each other."""
    headers = [clues for study in studies.values() for _, clues in study]
    oriented = Counter((clues.position, clues.orientation) for clues in headers if clues.orientation)
    show("View Position and Patient Orientation", oriented)
    positions = Counter(clues.position for clues in headers)
    assert positions == {"PA": 3593, "AP": 423, "LATERAL": 867, "": 2586}
    lateral = sum(oriented["LATERAL", side] for side in ("A\\F", "P\\F"))
    evidence = EVIDENCE[views.NAMED_LATERAL]
    assert lateral == evidence.laterals == 689
    assert evidence.frontals == sum(oriented["LATERAL", side] for side in ("L\\F", "R\\F")) == 0
    assert {key[0] for key in oriented if key[1][0] in "AP"} == {"LATERAL"}
    programs = Counter(("LAT" in clues.program, clues.position) for clues in headers if clues.program)
    show("Postprocessing Function with LAT and View Position", programs)
    assert programs[True, "LATERAL"] == EVIDENCE[views.PROGRAM_LATERAL].laterals
    assert programs[False, "PA"] + programs[False, "AP"] == EVIDENCE[views.PROGRAM_FRONTAL].frontals
    assert programs[True, "PA"] == programs[True, "AP"] == programs[False, "LATERAL"] == 0


def test_codes_belong_to_a_maker(studies):
    """Each known code comes from one maker's devices alone; 0200 and 720F, of no known maker, decide nothing."""
    headers = [clues for study in studies.values() for _, clues in study]
    known = {"60003", "60025", "60235", "1", "2", "3", "4"}
    makers = Counter((clues.code, clues.maker) for clues in headers if clues.code)
    show("code and maker", makers)
    assert {maker for code, maker in makers if code in known and code.startswith("6")} == {"AGFA"}
    assert {maker for code, maker in makers if code in known and len(code) == 1} == {"SIEMENS"}
    assert makers["0200", ""] + makers["720F", ""] == 59
    assert all(not list_names(clues) for clues in headers if clues.code in {"0200", "720F"})


def test_siemens_codes_against_exposures(studies):
    """Where one study holds both kinds of code, the one for laterals was exposed more."""
    pairs: Counter = Counter()
    for side, front in list_pairs(studies):
        both = views.SIEMENS_LATERAL in list_names(side) and views.SIEMENS_FRONTAL in list_names(front)
        if both and side.exposure and front.exposure:
            pairs[side.code, front.code, "more" if side.exposure > front.exposure else "not more"] += 1
    show("Siemens codes of two images and which was exposed more", pairs)
    right = sum(count for key, count in pairs.items() if key[2] == "more")
    evidence = EVIDENCE[views.SIEMENS_LATERAL]
    assert (right, pairs.total() - right) == (evidence.laterals, evidence.frontals) == (550, 1)
    assert {key[:2] for key in pairs} == {("3", "1"), ("4", "2")}


def test_shapes_of_named_images(studies):
    shapes = Counter(
        (find_named(clues), clues.shape)
        for study in studies.values()
        for _, clues in study
        if find_named(clues)
    )
    show("named or coded as, and shape", shapes)
    for shape, evidence in SHAPES.items():
        assert (evidence.laterals, evidence.frontals) == (shapes["L", shape], shapes["F", shape])
        totals = [sum(count for key, count in shapes.items() if key[0] == kind) for kind in "LF"]
        assert [evidence.of_laterals, evidence.of_frontals] == totals


def test_exposures_of_named_images(studies):
    pairs: Counter = Counter()
    for one, other in list_pairs(studies):
        kinds = find_named(one), find_named(other)
        if one.exposure and other.exposure and all(kinds):
            pairs[
                ("apart" if kinds == ("L", "F") else "alike" if kinds[0] == kinds[1] else ""),
                compare_exposures(one, other),
            ] += 1
    show("lateral and frontal (apart) or two of a kind (alike), and exposure of the first", pairs)
    for compared, evidence in EXPOSURES.items():
        assert (evidence.laterals, evidence.frontals) == (pairs["apart", compared], pairs["alike", compared])
        totals = [sum(count for key, count in pairs.items() if key[0] == kind) for kind in ("apart", "alike")]
        assert [evidence.of_laterals, evidence.of_frontals] == totals


def test_kinds_that_stand_together(studies):
    together: Counter = Counter()
    for study in studies.values():
        kinds = "".join(sorted(find_named(clues) for _, clues in study))
        if len(kinds) == len(study) in {2, 3}:
            together[kinds] += 1
    show("studies of two or three images, all named or coded", together)
    frontal, lateral = (sum(together[kind * count] for count in (2, 3)) for kind in "FL")
    assert frontal / together.total() == views.ALL_FRONTAL
    assert lateral / together.total() == views.ALL_LATERAL


def put_first(study: Sequence[tuple[str, ViewClues]], found: Sequence[ViewVerdict]) -> ViewVerdict:
    """Return the verdict on the image that comes first."""
    places = range(len(study))
    return found[min(places, key=lambda place: (rank_view(found[place]), study[place][0]))]


def put_first_by_position(
    study: Sequence[tuple[str, ViewClues]], found: Sequence[ViewVerdict]
) -> ViewVerdict:
    """Return the verdict on the image that came first when View Position alone decided."""
    order = {"PA": 0, "AP": 1, "": 2, "LATERAL": 3}
    return found[min(range(len(study)), key=lambda place: (order[study[place][1].position], study[place][0]))]


def test_hardly_a_study_starts_with_a_lateral(studies, verdicts):
    """By the chances that the evidence leaves, under 1 % of the studies that have a frontal image.

    The same chances, given to the order by View Position, find about as many laterals first as the published list does,
    and as many laterals among the images called PA and among those without a View Position.
    """
    chances: dict[str, float] = defaultdict(float)
    for name, study in studies.items():
        found = verdicts[name]
        # Studies of one image have no order, and one that surely holds laterals alone has no frontal to put first.
        if len(study) > 1 and min(verdict.lateral for verdict in found) <= 0.9:
            chances["first"] += put_first(study, found).lateral
            chances["first by position"] += put_first_by_position(study, found).lateral
    for name, study in studies.items():
        for (_, clues), verdict in zip(study, verdicts[name], strict=True):
            chances[f"position {clues.position}"] += verdict.lateral
    print({key: round(value, 1) for key, value in chances.items()})
    assert chances["first"] < 0.01 * STUDIES_WITH_FRONTAL
    assert chances["first by position"] == pytest.approx(LATERAL_FIRST, rel=0.1)
    assert chances["position PA"] == pytest.approx(PA_LATERALS, rel=0.02)
    assert chances["position "] == pytest.approx(SILENT_LATERALS, rel=0.03)


def test_what_stays_unsure(studies, verdicts):
    """193 images; the silent ones that a single study holds alone, and those whose evidence contradicts itself."""
    found = Counter(verdict.view for study in verdicts.values() for verdict in study)
    show("views", found)
    assert found == {"LATERAL": 3508, "PA": 2223, "FRONTAL": 1129, "AP": 416, "UNKNOWN": 193}
    sources = Counter((verdict.view, verdict.source) for study in verdicts.values() for verdict in study)
    show("views and the evidence for them", sources)
    landscape = [
        verdict.view
        for name, study in studies.items()
        for (_, clues), verdict in zip(study, verdicts[name], strict=True)
        if (clues.code, clues.shape) == ("60003", "landscape")
    ]
    assert len(landscape) == 16
    assert "LATERAL" not in landscape
