"""Write the report of `cxr bench gpu` as Markdown."""

from collections.abc import Mapping
from typing import Any, Final

_TITLES: Final = {
    "peak": "Peak of the device",
    "model": "The model, with random weights",
    "torch": "Compiled PyTorch",
    "onnx": "ONNX Runtime",
    "gates": "The gates, on the device",
    "faiss": "Search",
    "shared memory": "A served study, one client",
    "tensorrt": "TensorRT, through ONNX Runtime",
}


def to_markdown(report: Mapping[str, Any]) -> str:
    """Return the report: a table for each part, and the reasons for missing figures."""
    machine, settings = report["machine"], report["settings"]
    where = ", ".join([*machine["gpus"], machine["cpu"]]) or "unknown"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"`cxr bench gpu` on {where}; model size {settings['size']}, {settings['length']} tokens, device "
        f"{settings['device']}; {versions}; commit {machine['commit']}",
    ]
    for name, entries in report["parts"].items():
        lines += ["", f"## {_TITLES[name]}", ""]
        lines += _make_table(entries["figures"])
        lines += [f"- Not measured: {title}. {reason}" for title, reason in entries["reasons"].items()]
    return "\n".join(lines) + "\n"


def _make_table(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for values in figures.values() for key in values if key != "batch"))
    if not columns:
        return []
    rows = [
        f"| {name} | {' | '.join(_show(values.get(column)) for column in columns)} |"
        for name, values in figures.items()
    ]
    return [f"| | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|", *rows, ""]


def _show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(sorted(set(map(str, value.values()))))
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return str(value)
