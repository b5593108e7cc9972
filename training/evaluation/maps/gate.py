"""Which map may stand as a reason on a bundle: one that is sane, and that finds findings better than the centre."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluation.maps.sanity import MOST_ALIKE, MOST_CHANGE, MOST_MISSING, MOST_SIMILAR
from training.evaluation.maps.subject import CENTRE


def pass_gate(methods: Sequence[str], results: Mapping[str, Any], findings: int) -> dict[str, Any]:
    """Return which methods passed, with the reason of each that did not, and the default map.

    Args:
        methods: Keys in the order in which they are preferred.
        results: Blocks "sanity" and "leads" of `measure`.
        findings: Number of findings with a box.

    Returns:
        "methods": key -> "passed" and "reason"; "default": the first method that passed, or None; "findings".
    """
    rows = {}
    for key in methods:
        reason = find_fault(results["sanity"].get(key, {})) or _find_lag(
            results["leads"].get(key, {}).get(CENTRE)
        )
        rows[key] = {"passed": not reason, "reason": reason}
    default = next((key for key in methods if rows[key]["passed"]), None)
    return {"methods": rows, "default": default, "findings": findings}


def find_fault(sanity: Mapping[str, Any]) -> str:
    """Return the first sanity check that a method fails, as a clause; "" if it fails none.

    A check that could not be measured (None) is not failed, except that of the random weights: without it nothing is
    known about a method.
    """
    similar = sanity.get("randomised")
    if similar is None:
        return "it was not measured with random weights"
    checks = (
        (
            similar,
            MOST_SIMILAR,
            "it stays the same when the weights of the model are random (SSIM {value:.2f})",
        ),
        (sanity.get("alike"), MOST_ALIKE, "it is the same for different findings (correlation {value:.2f})"),
        (sanity.get("padding"), MOST_CHANGE, "it changes by {value:.0%} with the length of the padding"),
        (sanity.get("inverted"), MOST_CHANGE, "it changes by {value:.0%} when the image is stored inverted"),
        (sanity.get("missing"), MOST_MISSING, "its sum misses {value:.1%} of the difference of the logits"),
    )
    for value, limit, text in checks:
        if value is not None and value > limit:
            return text.format(value=value)
    return ""


def _find_lag(leads: Mapping[str, Any] | None) -> str:
    """Return how far a method is from beating the centre in the pointing game; "" if it beats it."""
    lead = None if leads is None else leads.get("pointing")
    if lead is None:
        return "whether it finds findings was not measured"
    if lead["low"] > 0:
        return ""
    return (
        "it does not find findings better than the centre of the picture does (pointing game "
        f"{lead['value']:+.2f}, 95 % interval {lead['low']:+.2f} to {lead['high']:+.2f})"
    )
