"""`cxr bench soak`: test a `cxr serve` with one fault after the other, while clients check its answers.

The table shows the results of these clients: the time after each event until all of them had good answers again, the
errors that they got, and whether an answer was wrong. At the end, no process and no shared memory may be left.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from bench.faults.faults import FAULTS, FULL, SHARED_MEMORY, Fault, fill_shared_memory
from bench.faults.served_process import SERVERS, ServedProcess
from contract.address import CHANNEL_OPTIONS
from contract.errors import ConfigError, ServerError
from contract.report.tokens import TokenLimits

if TYPE_CHECKING:
    from bench.faults.good_clients import GoodClients
    from bench.faults.hostile import HostileReport, HostileTraffic
    from contract.signatures import TrustedKeys

SWAP: Final = "swap the version"
BAD: Final = "bad clients for 8 s"
_PRIVATE: Final = "CXR_SOAK_PRIVATE_SHM"  # set in a run with its own /dev/shm
_PRIVATE_BYTES: Final = 512 * 2**20
_CASES: Final = 6
_BAD_CALLS: Final = 1500
_CUT_CALLS: Final = 1500
_LARGE_SIDES: Final = range(2048, 4096, 256)  # pixels; each file needs more memory than the ones before
_BAD_S: Final = 8.0
_NOTICE_S: Final = 9.0  # longest time until clients notice an event
_RECOVER_S: Final = 120.0
_LEFT_S: Final = 15.0


@dataclass
class Event:
    """One kind of event: its number, the times until all clients had good answers again, and the clients' errors.

    `restarts` counts the events after which Triton was a new process.
    """

    name: str
    recoveries_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    unrecovered: int = 0
    restarts: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the values for the table."""
        times = self.recoveries_s
        return {
            "event": self.name,
            "times": len(times) + self.unrecovered,
            "recovery_median_s": round(statistics.median(times), 2) if times else None,
            "recovery_max_s": round(max(times), 2) if times else None,
            "unrecovered": self.unrecovered,
            "restarts": self.restarts,
            "errors": dict(self.errors),
        }


def run_soak(
    console: Console,
    repository: Path,
    *,
    minutes: float,
    bundle: Path | None = None,
    out: Path | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
    trust: "TrustedKeys | None" = None,
) -> dict[str, Any]:
    """Run the soak and return its report.

    Args:
        console: Console for the progress.
        repository: A published repository. A copy of it is served.
        minutes: Duration. Every event happens at least once.
        bundle: Bundle of the repository. With it, a second version is published and versions are swapped.
        out: Directory for soak.json and soak.md.
        only: Names of events; empty for all.
        seed: Seed for the drawn cases.
        trust: The keys of which one must have signed the bundle.

    Raises:
        ConfigError: The repository cannot be served, or its model answers two drawn cases alike.
        ServerError: A client got a wrong answer or error, or did not recover; or a process or memory was left over.
    """
    from bench.faults.good_clients import GoodClients, ask_expected, draw_cases, prepare_traffic
    from bench.report.machine import describe_machine
    from client import CxrClient

    cases = draw_cases(_CASES, seed)
    with tempfile.TemporaryDirectory(prefix="cxr-soak-") as scratch:
        copy = Path(shutil.copytree(repository, Path(scratch) / "repository"))
        swaps = _add_version(copy, repository, bundle, trust)
        with ServedProcess(copy, Path(scratch) / "serve") as served:
            served.wait_ready()
            with CxrClient(served.triton_url, timeout_s=30.0, shrink=False, tls=False, token="") as client:
                expected = ask_expected(client, cases)
            traffic = prepare_traffic(served.triton_url, cases, *_read_served(copy))
            good = GoodClients(served.triton_url, cases, expected)
            hostile: list[HostileReport] = []
            try:
                events = _list_events(good, copy, traffic, hostile, swaps=swaps)
                events_seen = _torment(console, served, good, _choose(events, only), minutes)
            finally:
                good.close()
            leftovers = _count_leftovers(served)
            output = served.read_output()
        records = good.records + good.gone
        report = {
            "minutes": minutes,
            "machine": describe_machine(),
            "events": [event.to_dict() for event in events_seen],
            "good_answers": sum(len(record.good_at) for record in records),
            "wrong_answers": sum(record.wrong for record in records),
            "untyped_errors": dict(sum((record.untyped for record in records), Counter[str]())),
            "bad_clients": _sum_hostile(hostile),
            "leftovers": leftovers,
        }
    if out is not None:
        write_report(report, out, output)
    _require_clean(report)
    return report


def enter_private_memory(arguments: list[str]) -> bool:
    """Run this command again with its own small /dev/shm, if this user may; return whether it has one.

    Filling the machine's /dev/shm would disturb every other program. `unshare` (util-linux) gives the command its own
    mount namespace. If that is not allowed, the event is left out.
    """
    if os.environ.get(_PRIVATE) == "1":
        return True
    program = shutil.which("unshare")
    if program is None or os.environ.get(_PRIVATE) == "0":
        return False
    options = ["-m"] if os.geteuid() == 0 else ["-rm"]
    script = (
        f"if mount -t tmpfs -o size={_PRIVATE_BYTES},mode=1777 cxr-soak {SHARED_MEMORY} 2>/dev/null; "
        f'then {_PRIVATE}=1; else {_PRIVATE}=0; fi; export {_PRIVATE}; exec "$@"'
    )
    again = [sys.executable, "-P", "-m", "cxr", *arguments]
    # If namespaces are not allowed, unshare fails before it runs the command. Then the command runs without one.
    if os.system(f"{program} {' '.join(options)} true 2>/dev/null") != 0:  # noqa: S605
        return False
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    os.execv(program, [program, *options, "sh", "-c", script, "sh", *again])  # noqa: S606


def write_report(report: dict[str, Any], out: Path, output: str) -> None:
    """Write soak.json, soak.md and the output of `cxr serve`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "soak.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (out / "soak.md").write_text(format_markdown(report), encoding="utf-8")
        (out / "serve.txt").write_text(output, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}.") from error


def format_markdown(report: dict[str, Any]) -> str:
    """Return the table and the sums below it."""
    lines = [
        "| event | times | Triton started again | good answers again, median | longest | errors that clients saw |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in map(format_row, report["events"])]
    return "\n".join([*lines, "", *format_sums(report), ""])


def format_row(event: dict[str, Any]) -> list[str]:
    """Return the cells of one event."""
    errors = ", ".join(f"{kind} {count}" for kind, count in sorted(event["errors"].items())) or "none"
    seconds = [
        "-" if event[x] is None else f"{event[x]:.1f} s" for x in ("recovery_median_s", "recovery_max_s")
    ]
    return [event["event"], str(event["times"]), str(event["restarts"]), *seconds, errors]


def format_sums(report: dict[str, Any]) -> list[str]:
    """Return the lines below the table."""
    leftovers, bad = report["leftovers"], report["bad_clients"]
    return [
        f"{report['minutes']:g} minutes, {report['good_answers']} good answers, {report['wrong_answers']} wrong, "
        f"{sum(report['untyped_errors'].values())} errors of no type of this project.",
        f"Among bad clients: {bad['good']} good answers, {bad['refused']} bad calls refused, "
        f"{sum(bad['cut'].values())} calls ended by their client; {len(bad['wrong'])} wrong, "
        f"{len(bad['unanswered'])} unanswered, {len(bad['not_refused'])} not refused, "
        f"{bad['unavailable']} met no server.",
        f"Left over: {leftovers['processes']} processes, {leftovers['shared_memory_bytes']} bytes of shared memory, "
        f"{leftovers['regions']} regions; exit code {leftovers['exit_code']}.",
    ]


def _list_events(
    good: "GoodClients",
    repository: Path,
    traffic: "HostileTraffic",
    hostile: "list[HostileReport]",
    *,
    swaps: bool,
) -> dict[str, Fault]:
    def disturb(_: ServedProcess) -> None:
        hostile.append(traffic.run(bad_calls=_BAD_CALLS, cut_calls=_CUT_CALLS, limit_s=_BAD_S))

    events = {**FAULTS, BAD: disturb}
    if swaps:
        events[SWAP] = lambda served: _swap(served, repository)
    if os.environ.get(_PRIVATE) == "1":
        events[FULL] = _make_fill(good)
    return events


def _make_fill(good: "GoodClients") -> Fault:
    """Return the fault that fills /dev/shm while a client sends a file that needs more than the servers hold."""
    import numpy as np

    from bench.faults.good_clients import SoakCase, draw_image

    sides = cycle(_LARGE_SIDES)

    def fill(_: ServedProcess) -> None:
        large = SoakCase(draw_image(next(sides), np.random.default_rng(0)), None)
        fill_shared_memory(lambda: good.invite(large))

    return fill


def _read_served(repository: Path) -> tuple[str, TokenLimits]:
    """Return the layout of a published repository and the limits of its model's token ids."""
    from contract.repository import read_published

    published = read_published(repository)
    limits = TokenLimits.read(repository / "check_text" / str(published.version))
    return published.to_dict()["layout"], limits


def _sum_hostile(reports: "Sequence[HostileReport]") -> dict[str, Any]:
    """Return the sums of the results of bad clients' calls, and the sentences about failures."""
    return {
        "good": sum(report.good for report in reports),
        "refused": sum(report.refused for report in reports),
        "unavailable": sum(report.unavailable for report in reports),
        "cut": dict(sum((report.cut for report in reports), Counter[str]())),
        "wrong": [sentence for report in reports for sentence in report.wrong],
        "unanswered": [sentence for report in reports for sentence in report.unanswered],
        "not_refused": [sentence for report in reports for sentence in report.not_refused],
    }


def _choose(events: dict[str, Fault], only: Sequence[str]) -> dict[str, Fault]:
    if unknown := sorted(set(only) - set(events)):
        raise ConfigError(f"There is no event {unknown[0]!r} here. Choose from {', '.join(events)}.")
    return {name: fault for name, fault in events.items() if not only or name in only}


def _torment(
    console: Console, served: ServedProcess, good: "GoodClients", events: dict[str, Fault], minutes: float
) -> list[Event]:
    results = {name: Event(name) for name in events}
    end = time.monotonic() + 60 * minutes
    with console.status("Soak") as status:
        for name in _repeat(list(events), lambda: time.monotonic() < end):
            status.update(f"Soak: {name}")
            _run_event(served, good, results[name], events[name])
    return list(results.values())


def _repeat(names: list[str], goes_on: Callable[[], bool]) -> Iterator[str]:
    yield from names
    while True:
        for name in names:
            if not goes_on():
                return
            yield name


def _run_event(served: ServedProcess, good: "GoodClients", event: Event, fault: Fault) -> None:
    if served.process.poll() is not None:
        raise ServerError(f"cxr serve ended: {served.read_output()[-1000:]}")
    # Remember all processes, to look for leftovers at the end.
    triton, *_ = [served.find_server(word) for word in SERVERS]
    began = time.monotonic()
    fault(served)
    settled = time.monotonic() + _NOTICE_S
    while time.monotonic() < began + _RECOVER_S:
        if good.have_answers_since(began) and time.monotonic() > settled:
            event.recoveries_s.append(good.get_recovery_s(began))
            break
        time.sleep(0.2)
    else:
        event.unrecovered += 1
    event.restarts += served.find_server("tritonserver") != triton
    event.errors.update(good.count_errors(began))
    good.dismiss()


def _add_version(copy: Path, repository: Path, bundle: Path | None, trust: "TrustedKeys | None") -> bool:
    """Publish the same model again into the copy; return whether versions can be swapped."""
    from contract.repository import read_published

    if bundle is None:
        return False
    from contract.bundle import load_bundle
    from export.pipeline import make_deployment
    from export.profiles import load_profile
    from export.publish import publish

    published = read_published(copy)
    entry = published.to_dict()
    deployment = make_deployment(
        load_profile(entry["profile"]), entry["target"], entry["variant"], entry["layout"]
    )
    graphs = {name: repository / name / str(published.version) / "model.onnx" for name in deployment.graphs}
    publish(load_bundle(bundle, trust=trust), graphs, copy, deployment)
    return True


def _swap(served: ServedProcess, repository: Path) -> None:
    from export.versions import rollback
    from serving.reload import reload_models
    from serving.triton import read_admin_key

    rollback(repository)
    reload_models(served.triton_url, repository, read_admin_key(served.logs / "runtime" / "admin_key"))


def _count_leftovers(served: ServedProcess) -> dict[str, int]:
    regions = _count_regions(served.triton_url)
    code = served.stop()
    end = time.monotonic() + _LEFT_S
    while (leftovers := (served.list_leftovers(), _measure_memory())) != ([], 0) and time.monotonic() < end:
        time.sleep(0.2)
    return {
        "processes": len(leftovers[0]),
        "shared_memory_bytes": leftovers[1],
        "regions": regions,
        "exit_code": code,
    }


def _count_regions(url: str) -> int:
    """Return the number of regions that Triton holds, after it had some seconds to unregister those of dead clients."""
    from tritonclient import grpc as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(url, channel_args=list(CHANNEL_OPTIONS))
    end = time.monotonic() + _LEFT_S
    try:
        while (count := len(client.get_system_shared_memory_status(client_timeout=5).regions)) > 0:
            if time.monotonic() > end:
                break
            time.sleep(0.5)
    except InferenceServerException as error:
        raise ServerError(f"Triton does not answer at the end of the run: {error.message()}.") from error
    else:
        return count
    finally:
        client.close()
    return count


def _measure_memory() -> int:
    if os.environ.get(_PRIVATE) != "1":
        return 0  # the shared /dev/shm also holds files of other programs
    return sum(path.stat().st_size for path in SHARED_MEMORY.iterdir() if path.is_file())


def _is_their_fault(event: dict[str, Any]) -> bool:
    return bool(event["event"] == BAD and event["restarts"])


def _require_clean(report: dict[str, Any]) -> None:
    leftovers = report["leftovers"]
    troubles = [
        f"{report['wrong_answers']} wrong answers" if report["wrong_answers"] else "",
        f"errors of no type of this project: {report['untyped_errors']}" if report["untyped_errors"] else "",
        *(
            f"bad clients: {kind.replace('_', ' ')}: {len(sentences)}, first {sentences[0]}"
            for kind in ("wrong", "unanswered", "not_refused")
            if (sentences := report["bad_clients"][kind])
        ),
        *(f"not recovered: {event['event']}" for event in report["events"] if event["unrecovered"]),
        *(
            f"bad clients ended Triton {event['restarts']} times"
            for event in report["events"]
            if _is_their_fault(event)
        ),
        *(f"{name}: {count}" for name, count in leftovers.items() if count),
    ]
    if any(troubles):
        raise ServerError(f"The soak failed: {'; '.join(filter(None, troubles))}.")
