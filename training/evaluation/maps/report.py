"""Write the results of `training.evaluation.maps` as Markdown."""

from collections.abc import Mapping
from typing import Any, Final

from contract.labels import LABEL_NAMES
from training.evaluation.maps.agreement import METRICS as AGREEMENTS
from training.evaluation.maps.faithful import METRICS as CURVES
from training.evaluation.maps.localise import METRICS as PLACES
from training.evaluation.maps.plots import PLOTS
from training.evaluation.maps.subject import CENTRE, CONTROLS, RANDOM
from training.evaluation.markdown import format_difference, format_table

WAYS: Final = {"image": "the image alone", "study": "image and report"}
_CHECKS: Final = {
    "randomised": "random weights: SSIM",
    "alike": "other finding: correlation",
    "padding": "padding: change",
    "inverted": "stored inverted: change",
    "missing": "sum: missing share",
}


def write_map_report(results: Mapping[str, Any]) -> str:
    """Return the whole report of `cxr evaluate explain`."""
    parts = [f"# Maps of model {results['fingerprint'][:12]}\n", f"{results['data']}\n"]
    for way, found in results["ways"].items():
        parts += [f"## Read from {WAYS[way]}\n", _write_way(found, results["titles"], way)]
    return "\n".join(parts)


def write_map_summary(results: Mapping[str, Any]) -> str:
    """Return the verdict and the table of localisation for the model card."""
    parts = [f"{results['data']}\n"]
    for way, found in results["ways"].items():
        parts += [
            f"**Read from {WAYS[way]}.** {describe_gate(found, results['titles'])}\n",
            _write_places(found, results["titles"]),
        ]
    return "\n".join(parts)


def describe_gate(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return in one or two sentences which map may be shown."""
    gate = found["gate"]
    if gate["default"] is None:
        return "No map passed its checks, so none is shown as a reason."
    failed = [titles[key] for key, row in gate["methods"].items() if not row["passed"]]
    others = f" Not passed: {', '.join(failed)}." if failed else ""
    return f"The map that may be shown is {titles[gate['default']]}.{others}"


def _write_way(found: Mapping[str, Any], titles: Mapping[str, str], way: str) -> str:
    parts = [
        f"{found['findings']} findings with a box, in {found['studies']} studies. 95 % intervals from drawing patients "
        f"anew. {describe_gate(found, titles)}\n",
        "### Does it find the finding?\n",
        _write_places(found, titles),
        _write_leads(found, titles),
        "### Pointing game per finding\n",
        _write_labels(found, titles),
        "### Does the model use what it marks?\n",
        "In logits. Deletion is better the lower, insertion the higher it is. The difference is that of the same "
        "findings, against a random map.\n",
        _write_curves(found, titles),
        "For each finding, ahead of a random map on the same pictures; p is that of the paired bootstrap.\n",
        _write_label_curves(found, titles),
        "### Is it sane?\n",
        _write_sanity(found, titles),
        "### Do attention and attribution look alike?\n",
        "As the published system reports it. A high value says that two maps look alike, not that one of them is "
        "right.\n",
        _write_agreement(found),
        "\n".join(f"![{title}]({name}-{way}.png)\n" for name, title in PLOTS.items()),
    ]
    return "\n".join(parts)


def _write_places(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    names = {**titles, **CONTROLS}
    lines = [
        [
            names[key],
            *(_show(row[name]) for name in PLACES),
            "-" if key in CONTROLS else f"{found['seconds'][key]:.2f} s",
        ]
        for key, row in found["localisation"].items()
    ]
    return format_table(["map", *PLACES.values(), "time per map"], lines)


def _write_leads(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    lines = [
        [
            titles[key],
            format_difference(leads[CENTRE]["pointing"]),
            format_difference(leads[RANDOM]["pointing"]),
        ]
        for key, leads in found["leads"].items()
    ]
    return format_table(["pointing game", "ahead of the centre", "ahead of a random map"], lines)


def _write_labels(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    names = {**titles, **CONTROLS}
    if not found["labels"]:
        return "No label has 5 findings with a box.\n"
    lines = [
        [
            LABEL_NAMES[key],
            str(row["findings"]),
            *(f"{row['pointing'][name]['value']:.2f}" for name in names),
        ]
        for key, row in found["labels"].items()
    ]
    return format_table(["finding", "n", *names.values()], lines)


def _write_curves(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    names = {**titles, **CONTROLS}
    lines = []
    for key, row in found["faithfulness"].items():
        leads = found["faithfulness_leads"].get(key, {}).get(RANDOM, {})
        lines.append(
            [
                names[key],
                *(_show(row[name]) for name in CURVES),
                *(format_difference(leads.get(name)) for name in CURVES),
                _show(found["infidelity"].get(key)),
                _show(found["sensitivity"].get(key)),
            ]
        )
    head = [
        "map",
        *CURVES.values(),
        *(f"{name} minus random" for name in CURVES.values()),
        "infidelity (1: none predicted)",
        "sensitivity",
    ]
    return format_table(head, lines)


def _write_label_curves(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    lines = [
        [LABEL_NAMES[label], titles[key], *(format_difference(leads[name]) for name in CURVES)]
        for label, row in found["labels"].items()
        for key, leads in row["faithfulness_leads"].items()
    ]
    if not lines:
        return "No label has 5 findings that were measured.\n"
    return format_table(["finding", "map", *(f"{name} minus random" for name in CURVES.values())], lines)


def _write_sanity(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    lines = [
        [
            titles[key],
            *("-" if row[name] is None else f"{row[name]:.3f}" for name in _CHECKS),
            "passed" if found["gate"]["methods"][key]["passed"] else found["gate"]["methods"][key]["reason"],
        ]
        for key, row in found["sanity"].items()
    ]
    return format_table(["map", *_CHECKS.values(), "gate"], lines)


def _write_agreement(found: Mapping[str, Any]) -> str:
    names = {
        "same_case": "attention and Integrated Gradients of one case",
        "top_hit": "attention of query and top hit",
    }
    lines = [
        [title, *(_show(found["agreement"][key][name]) for name in AGREEMENTS)]
        for key, title in names.items()
        if key in found["agreement"]
    ]
    return format_table(["compared", *AGREEMENTS.values()], lines) if lines else "Not measured.\n"


def _show(interval: Mapping[str, float] | None) -> str:
    """Return a value with its interval; "-" if it was not measured."""
    if interval is None:
        return "-"
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
