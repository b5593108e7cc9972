"""Decide whether an image is frontal or lateral, from the headers of its study.

Each kind of evidence has a row in `EVIDENCE`: how often laterals and frontals have it, and where that was counted. Its
weight is the logarithm of the odds, and the weights are summed. A decision needs odds of 9 to 1 and other evidence than
the shape of the image. Otherwise the view is UNKNOWN.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from contract.image.view_clues import ViewClues

View = Literal["PA", "AP", "FRONTAL", "LATERAL", "UNKNOWN"]  # FRONTAL: one of PA and AP
VIEWS: Final[tuple[View, ...]] = ("PA", "AP", "FRONTAL", "LATERAL", "UNKNOWN")

_PUBLISHED: Final = "Open-i, against the published list of projections"
_HEADERS: Final = "Open-i, headers against each other (tests/contract/image/test_view_evidence.py)"


@dataclass(frozen=True)
class Evidence:
    """How often laterals and frontals have one kind of evidence.

    Attributes:
        laterals: Number of laterals with it.
        frontals: Number of frontals with it.
        basis: The images that were counted.
        of_laterals: Number of all counted laterals; 1 if the counts are used as odds.
        of_frontals: Number of all counted frontals; 1 if the counts are used as odds.
    """

    laterals: int
    frontals: int
    basis: str
    of_laterals: int = 1
    of_frontals: int = 1

    @property
    def weight(self) -> float:
        """Natural logarithm of the odds for a lateral; half an image is added, so that it is finite."""
        return math.log((self.laterals + 0.5) / self.of_laterals * self.of_frontals / (self.frontals + 0.5))


ORIENTED_LATERAL: Final = "Patient Orientation A or P"
ORIENTED_FRONTAL: Final = "Patient Orientation L or R"
NAMED_LATERAL: Final = "View Position lateral"
NAMED_FRONTAL: Final = "View Position PA or AP"
PROGRAM_LATERAL: Final = "Postprocessing Function with LAT"
PROGRAM_FRONTAL: Final = "Postprocessing Function for the chest without LAT"
AGFA_LATERAL: Final = "Agfa code 60003"
AGFA_FRONTAL: Final = "Agfa code 60025 or 60235"
SIEMENS_LATERAL: Final = "Siemens code 3 or 4"
SIEMENS_FRONTAL: Final = "Siemens code 1 or 2"
LISTED: Final = "list of projections"
SHAPE: Final = "shape of the image"
EXPOSURE: Final = "exposure beside the other images"
OTHERS: Final = "other images of the study"
MODEL: Final = "model"  # the view head of a model; `cxr data order` writes it into a table
# Evidence that is not a statement about this image: its shape, the other images of its study, a model's prediction.
_GUESSES: Final = frozenset([SHAPE, EXPOSURE, OTHERS, MODEL])
TRUSTED: Final = 0.99  # confidence from which a header's view is used to train and to test a model

EVIDENCE: Final = {
    # Views that the file names. 20 of 2,225: of 1,368 laterals called PA, 1,348 have the code 60003.
    ORIENTED_LATERAL: Evidence(688, 1, _PUBLISHED),
    ORIENTED_FRONTAL: Evidence(20, 2205, _PUBLISHED + ", as View Position, beside which it stands"),
    NAMED_LATERAL: Evidence(689, 0, _HEADERS + ": all that have a Patient Orientation as well"),
    NAMED_FRONTAL: Evidence(20, 2205, _PUBLISHED + ", without the code 60003"),
    PROGRAM_LATERAL: Evidence(434, 0, _HEADERS + ": all that have a View Position as well"),
    PROGRAM_FRONTAL: Evidence(0, 450, _HEADERS + ": all that have a View Position as well"),
    # Codes that only one maker uses. With both of Agfa's codes, View Position is PA and Patient Orientation L\F.
    AGFA_LATERAL: Evidence(1348, 17, _PUBLISHED),
    AGFA_FRONTAL: Evidence(
        20, 1498, _PUBLISHED + ": at most 20 laterals called PA have another code than 60003"
    ),
    SIEMENS_LATERAL: Evidence(
        550, 1, _HEADERS + ": exposed more than an image with code 1 or 2 of its study"
    ),
    SIEMENS_FRONTAL: Evidence(
        1, 550, _HEADERS + ": exposed less than an image with code 3 or 4 of its study"
    ),
}
# Counted on images whose view is named or coded, without landscape images with the code 60003.
SHAPES: Final = {
    "portrait": Evidence(2183, 636, _HEADERS, 2873, 3263),
    "square": Evidence(658, 867, _HEADERS, 2873, 3263),
    "landscape": Evidence(32, 1760, _HEADERS, 2873, 3263),
}
# Relative exposure of two images of a study: a lateral and a frontal, compared with two images of one kind.
EXPOSURES: Final = {
    "more": Evidence(1175, 26, _HEADERS, 1200, 124),
    "alike": Evidence(24, 72, _HEADERS, 1200, 124),
    "less": Evidence(1, 26, _HEADERS, 1200, 124),
}
EXPOSED_MORE: Final = 1.5  # ratio; a chest is thicker from the side than from the front
# Share of studies with only one kind of view, among studies of two or three images that are all named or coded.
ALL_FRONTAL: Final = 24 / 2707
ALL_LATERAL: Final = 6 / 2707

_SURE: Final = 0.9
_MOST_IMAGES: Final = 8  # images of a study that are weighed together; all assignments of views are tried
_LEAST_CHANCE: Final = 0.001  # of either kind of view, by one header
_LISTED_WEIGHT: Final = 30.0  # outweighs all other evidence
_AGFA_CODES: Final = {"60003": AGFA_LATERAL, "60025": AGFA_FRONTAL, "60235": AGFA_FRONTAL}
_SIEMENS_CODES: Final = {
    **dict.fromkeys(("1", "2"), SIEMENS_FRONTAL),
    **dict.fromkeys(("3", "4"), SIEMENS_LATERAL),
}
VIEW_RANKS: Final[dict[View, int]] = {"PA": 0, "FRONTAL": 1, "AP": 2, "UNKNOWN": 3, "LATERAL": 4}


@dataclass(frozen=True)
class ViewVerdict:
    """The view of an image.

    Attributes:
        view: The view; UNKNOWN if the evidence is too weak or contradictory.
        lateral: Probability that it is a lateral, 0 to 1.
        source: The evidence for the view, separated by "; "; for UNKNOWN, all evidence.
    """

    view: View = "UNKNOWN"
    lateral: float = 0.5
    source: str = ""

    @property
    def confidence(self) -> float:
        """Probability of the likelier kind, 0.5 to 1."""
        return max(self.lateral, 1 - self.lateral)


def is_trusted(view: View, confidence: float, source: str) -> bool:
    """Return whether a header or a published list states the view of an image with `TRUSTED` confidence.

    Args:
        view: View of the image.
        confidence: Confidence of the view, 0.5 to 1.
        source: See `ViewVerdict`. Evidence from only the shape, the study or a model is not trusted.
    """
    names = set(source.split("; ")) - {""}
    return view != "UNKNOWN" and confidence >= TRUSTED and bool(names - _GUESSES)


def weigh_view(clues: ViewClues) -> ViewVerdict:
    """Return the view of an image by its own header."""
    weights = list_weights(clues)
    lateral = 1 / (1 + math.exp(-sum(weights.values())))
    lateral = min(max(lateral, _LEAST_CHANCE), 1 - _LEAST_CHANCE)
    decides = any(name != SHAPE for name in weights)
    return _judge(clues, lateral, weights, decides=decides)


def weigh_study(studied: Sequence[ViewClues]) -> list[ViewVerdict]:
    """Return the view of each image of a study, by all headers of the study.

    Every assignment of frontal and lateral to the images is weighed: by each header, by how many studies have only one
    kind, and by the exposures, because a lateral view needs more exposure. A view that is certain by the image's own
    header stays, unless the other images make the opposite likelier.
    """
    alone = [weigh_view(clues) for clues in studied]
    if not 2 <= len(studied) <= _MOST_IMAGES:
        return alone
    return [
        _revise(clues, verdict, lateral, exposed=_is_exposed(clues, studied))
        for clues, verdict, lateral in zip(studied, alone, _weigh_together(studied), strict=True)
    ]


def rank_view(verdict: ViewVerdict) -> tuple[int, int]:
    """Return the sort key for the images of a study: sure frontals first (PA before AP), then by probability."""
    chance = round(verdict.lateral, 6)
    return (chance > 1 - _SURE) + (chance > 0.5), VIEW_RANKS[verdict.view]


def list_weights(clues: ViewClues) -> dict[str, float]:
    """Return the weight of each kind of evidence in one header."""
    if clues.projection:
        return {LISTED: _LISTED_WEIGHT if clues.projection == "LATERAL" else -_LISTED_WEIGHT}
    names = []
    code = _find_code(clues)
    directions = clues.orientation.split("\\")[0]
    if directions in {"A", "P"}:
        names.append(ORIENTED_LATERAL)
    if clues.position == "LATERAL":
        names.append(NAMED_LATERAL)
    if "CHEST" in clues.program:
        names.append(PROGRAM_LATERAL if "LAT" in clues.program else PROGRAM_FRONTAL)
    if code:
        names.append(code)
    # View Position may be a menu preset of the device, which writes PA even for laterals.
    preset = clues.maker == "AGFA" and clues.code in _AGFA_CODES
    if clues.position in {"PA", "AP"} and not preset:
        names.append(NAMED_FRONTAL)
    elif directions in {"L", "R"} and not clues.position:
        names.append(ORIENTED_FRONTAL)
    weights = {name: EVIDENCE[name].weight for name in names}
    return weights | ({SHAPE: SHAPES[clues.shape].weight} if clues.shape else {})


def _find_code(clues: ViewClues) -> str:
    """Return the evidence of a processing code; "" if the code is unknown for this maker.

    Agfa's code 60003 on a landscape image is no evidence. Of the 16 such images in Open-i, far more than by chance have
    a portrait image with a code for frontals in their study, as if the two codes had been swapped. And the published
    list calls 17 images with that code frontal.
    """
    if clues.maker == "SIEMENS":
        return _SIEMENS_CODES.get(clues.code, "")
    name = _AGFA_CODES.get(clues.code, "") if clues.maker == "AGFA" else ""
    return "" if name == AGFA_LATERAL and clues.shape == "landscape" else name


def _weigh_together(studied: Sequence[ViewClues]) -> list[float]:
    """Return the probability of a lateral for each image of a study."""
    alone = [sum(list_weights(clues).values()) for clues in studied]
    count = len(studied)
    mixed = math.log((1 - ALL_FRONTAL - ALL_LATERAL) / (2**count - 2))
    ways = list(itertools.product((False, True), repeat=count))
    logs = []
    for way in ways:
        prior = math.log(ALL_LATERAL) if all(way) else mixed if any(way) else math.log(ALL_FRONTAL)
        named = sum(weight for weight, lateral in zip(alone, way, strict=True) if lateral)
        logs.append(prior + named + _weigh_exposures(studied, way))
    top = max(logs)
    chances = [math.exp(value - top) for value in logs]
    return [
        sum(chance for chance, way in zip(chances, ways, strict=True) if way[index]) / sum(chances)
        for index in range(count)
    ]


def _weigh_exposures(studied: Sequence[ViewClues], way: Sequence[bool]) -> float:
    """Return the weight of the exposures under one assignment; `way` is True for a lateral."""
    total = 0.0
    for (side, is_lateral), (front, is_other) in itertools.permutations(zip(studied, way, strict=True), 2):
        if is_lateral and not is_other and side.exposure and front.exposure:
            total += EXPOSURES[compare_exposures(side, front)].weight
    return total


def compare_exposures(side: ViewClues, front: ViewClues) -> str:
    """Return whether one image was exposed more than, less than or like another: a key of `EXPOSURES`."""
    ratio = side.exposure / front.exposure
    return "more" if ratio >= EXPOSED_MORE else "less" if ratio <= 1 / EXPOSED_MORE else "alike"


def _is_exposed(clues: ViewClues, studied: Sequence[ViewClues]) -> bool:
    """Whether the exposure of an image can be compared with another image of its study."""
    return bool(clues.exposure) and any(other.exposure for other in studied if other is not clues)


def _revise(clues: ViewClues, alone: ViewVerdict, lateral: float, *, exposed: bool) -> ViewVerdict:
    """Return the verdict on an image, updated by the other images of its study."""
    if alone.view != "UNKNOWN" and (lateral > 0.5) == (alone.lateral > 0.5):
        return replace(alone, lateral=lateral)
    sign = 1.0 if lateral > alone.lateral else -1.0
    weights = list_weights(clues) | ({EXPOSURE: sign} if exposed else {}) | {OTHERS: sign}
    return _judge(clues, lateral, weights, decides=alone.view == "UNKNOWN")


def _judge(clues: ViewClues, lateral: float, weights: dict[str, float], *, decides: bool) -> ViewVerdict:
    view: View = "UNKNOWN"
    if decides and lateral >= _SURE:
        view = "LATERAL"
    elif decides and lateral <= 1 - _SURE:
        view = clues.position if clues.position in {"PA", "AP"} else "FRONTAL"
    names = [
        name for name, weight in weights.items() if view == "UNKNOWN" or (weight > 0) == (view == "LATERAL")
    ]
    return ViewVerdict(view, lateral, "; ".join(names))
