"""`cxr bench gpu`: run the parts in sequence within a time limit, each in its own process, and write a report."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.gpu.log import PARTS_FOLDER, Log, Settings, read_entries
from bench.gpu.part import OUT_OF_TIME, PARTS
from bench.gpu.report import to_markdown
from contract.errors import ConfigError
from contract.files import write_file
from contract.installation import HOME

JSON_FILE: Final = "gpu.json"
MARKDOWN_FILE: Final = "gpu.md"
_SETTINGS_FILE: Final = "settings.json"
_LOG: Final = "gpu.log"
_END_S: Final = 10.0  # reserve for the end of a part and for the report


def run_gpu(
    console: Console, out: Path, settings: Settings, *, minutes: float, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure the missing figures and write the report.

    Args:
        console: Console for the progress.
        out: Directory of the report. Existing figures are kept.
        settings: The settings.
        minutes: Longest duration of the run.
        only: Names of parts; empty for all.

    Returns:
        The content of gpu.json.

    Raises:
        ConfigError: A part is unknown, or `out` holds figures of other settings or of another machine.
        ArtifactError: The disk refuses the write.
    """
    if unknown := sorted(set(only) - set(PARTS)):
        raise ConfigError(f"There is no part {unknown[0]}. Choose from {', '.join(PARTS)}.")
    began = time.time()
    machine = _describe_machine()
    _settle(out, settings, machine)
    names = [name for name in PARTS if not only or name in only]
    report = _make_report(out, settings, machine)
    for name in names:
        left_s = 60 * minutes - (time.time() - began) - _END_S
        with console.status(f"Measuring: {name}"):
            ended = _run_process(name, out, settings, left_s * PARTS[name][1], left_s)
        report = _make_report(out, settings, machine)
        _write(out, report)
        entry = report["parts"].get(name, {"figures": {}, "reasons": {}})
        line = f"{name}: {len(entry['figures'])} figures{ended}"
        console.print(line, highlight=False, markup=False)
        for title, reason in entry["reasons"].items():
            console.print(f"  {title}: {reason}", highlight=False, markup=False, soft_wrap=True)
    return report


def _run_process(name: str, out: Path, settings: Settings, share_s: float, left_s: float) -> str:
    """Run one part and return a remark about its end, or ""."""
    if left_s <= 0:
        Log(out, name).skip(name, "The time was used up before it started. Repeat the command to continue.")
        return ""
    deadline = time.time() + share_s
    command = [sys.executable, "-m", "bench.gpu.part", name, str(out), str(deadline)]
    with (out / _LOG).open("ab") as log:
        try:
            done = subprocess.run(
                [*command, json.dumps(settings.to_dict())],
                env=_make_environment(out),
                stdout=log,
                stderr=log,
                timeout=left_s,  # the current figure may be finished after the share ends
                check=False,
            )
        except subprocess.TimeoutExpired:
            Log(out, name).skip(
                "the rest", "It was stopped when the time was used up. Repeat the command to continue."
            )
            return ""
    if done.returncode in (0, OUT_OF_TIME):
        return ""
    end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    Log(out, name).skip("the rest", f"Its process ended with {end}; {out / _LOG} may say why.")
    return ""


def _make_environment(out: Path) -> dict[str, str]:
    """Return an environment without network access and with a compile cache for the next run."""
    paths = [str(HOME), *(path for path in [os.environ.get("PYTHONPATH", "")] if path)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(out.absolute() / "inductor"),
    }


def _settle(out: Path, settings: Settings, machine: Mapping[str, Any]) -> None:
    """Record the settings and the machine of the figures in `out`. Refuse to mix figures."""
    here = {**settings.to_dict(), "gpus": machine["gpus"], "cpu": machine["cpu"]}
    stored = read_entries(out / _SETTINGS_FILE)
    for key, value in stored.items():
        if here.get(key) != value:
            raise ConfigError(
                f"{out} holds figures of {key} {value}, not {here.get(key)}. Choose another directory."
            )
    if not stored:
        write_file(out / _SETTINGS_FILE, json.dumps(here, indent=1) + "\n")


def _describe_machine() -> dict[str, Any]:
    from bench.report.machine import describe_machine

    return {**describe_machine(), "gpus": _list_gpus()}


def _list_gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _make_report(out: Path, settings: Settings, machine: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: read_entries(out / PARTS_FOLDER / f"{name}.json") for name in PARTS}
    return {
        "settings": settings.to_dict(),
        "machine": dict(machine),
        "parts": {name: entries for name, entries in parts.items() if entries},
    }


def _write(out: Path, report: Mapping[str, Any]) -> None:
    write_file(out / JSON_FILE, json.dumps(report, indent=1) + "\n")
    write_file(out / MARKDOWN_FILE, to_markdown(report))
