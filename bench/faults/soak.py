"""`cxr bench soak`: test a `cxr serve` with one fault after the other, while clients check its answers.

The table shows the results of these clients: the time after each event until all of them had good answers again, the
errors that they got, and whether an answer was wrong or a write was lost. At the end the server gets three times the
load that it can answer, and no process and no shared memory may be left.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.faults.events import EVENTS, Scene, list_events
from bench.faults.faults import Fault
from bench.faults.good_clients import GoodClients, ask_expected, draw_cases, prepare_traffic
from bench.faults.hostile import HostileReport
from bench.faults.namespaces import SHARED_MEMORY, has_own_memory, has_own_network, mount_small_disk
from bench.faults.overload import OVERLOAD, measure_overload
from bench.faults.served_process import SERVERS, ServedProcess
from bench.faults.soak_report import Event, require_clean, write_report
from bench.faults.writers import WRITERS, Writers
from bench.report.machine import describe_machine
from bench.targets.target import TargetRow
from client.client import CxrClient
from contract.address import CHANNEL_OPTIONS
from contract.errors import ConfigError, CxrError, ServerError
from contract.report.tokens import TokenLimits
from contract.repository import read_published

_CASES: Final = 6
_NOTICE_S: Final = 9.0  # longest time until clients notice an event
_RECOVER_S: Final = 120.0
_LEFT_S: Final = 15.0
_CALM_TIMEOUT_S: Final = 30.0


def run_soak(
    console: Console,
    repository: Path,
    *,
    minutes: float,
    bundle: Path | None = None,
    out: Path | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
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

    Raises:
        ConfigError: The repository cannot be served, or its model answers two drawn cases alike.
        ServerError: A client got a wrong answer or error, a write was lost, clients did not recover, a target of
            overload was missed, or a process or memory was left over.
    """
    _require_known(only)
    cases = draw_cases(_CASES, seed)
    with tempfile.TemporaryDirectory(prefix="cxr-soak-") as scratch:
        copy = Path(shutil.copytree(repository, Path(scratch) / "repository"))
        has_versions = _add_version(copy, repository, bundle)
        directory = Path(scratch) / "serve"
        with mount_small_disk(directory) as has_disk, _serve(copy, directory) as served:
            with CxrClient(
                served.triton_url, timeout_s=_CALM_TIMEOUT_S, shrink=False, tls=False, token=""
            ) as client:
                expected = ask_expected(client, cases)
            traffic = prepare_traffic(served.triton_url, cases, *_read_served(copy))
            writers, good = Writers(served.retrieval_url), GoodClients(served.triton_url, cases, expected)
            for writer in range(WRITERS):
                good.add(writers.connect(writer))
            scene = Scene(good, writers, traffic, [], copy, has_versions, has_disk)
            try:
                events, skipped = list_events(scene)
                events_seen = _torment(console, served, scene, _choose(events, only), minutes)
            finally:
                good.close()
            overload: list[TargetRow] = []
            if not only or OVERLOAD in only:
                with console.status(f"Soak: {OVERLOAD}"):
                    overload = measure_overload(served.triton_url)
            leftovers = _count_leftovers(served)
            output = served.read_output()
    sums = good.tally()
    report = {
        "minutes": minutes,
        "machine": describe_machine(),
        "events": [event.to_dict() for event in events_seen],
        "skipped": {name: reason for name, reason in skipped.items() if not only or name in only},
        "overload": [row.to_dict() for row in overload],
        "good_answers": sums.answers,
        "wrong_answers": sums.wrong,
        "untyped_errors": dict(sums.untyped),
        "writes": writers.writes,
        "bad_clients": _sum_hostile(scene.hostile),
        "leftovers": leftovers,
    }
    if out is not None:
        write_report(report, out, output)
    require_clean(report)
    return report


def _serve(repository: Path, directory: Path) -> ServedProcess:
    """Start the server and wait until it is ready."""
    options = ["--host", "0.0.0.0", "--insecure"] if has_own_network() else []  # noqa: S104
    served = ServedProcess(repository, directory, options=options)
    try:
        served.wait_ready()
    except BaseException:
        served.stop()
        raise
    return served


def _read_served(repository: Path) -> tuple[str, TokenLimits]:
    """Return the layout of a published repository and the limits of its model's token ids."""
    published = read_published(repository)
    limits = TokenLimits.read(repository / "check_text" / str(published.version))
    return published.to_dict()["layout"], limits


def _sum_hostile(reports: Sequence[HostileReport]) -> dict[str, Any]:
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


def _require_known(names: Sequence[str]) -> None:
    known = (*EVENTS, OVERLOAD)
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"There is no event {unknown[0]!r}. Choose from {', '.join(known)}.")


def _choose(events: dict[str, Fault], only: Sequence[str]) -> dict[str, Fault]:
    return {name: fault for name, fault in events.items() if not only or name in only}


def _torment(
    console: Console, served: ServedProcess, scene: Scene, events: dict[str, Fault], minutes: float
) -> list[Event]:
    results = {name: Event(name) for name in events}
    end = time.monotonic() + 60 * minutes
    with console.status("Soak") as status:
        for name in _repeat(list(events), lambda: time.monotonic() < end):
            status.update(f"Soak: {name}")
            _run_event(served, scene, results[name], events[name])
    return list(results.values())


def _repeat(names: list[str], goes_on: Callable[[], bool]) -> Iterator[str]:
    yield from names
    while names:
        for name in names:
            if not goes_on():
                return
            yield name


def _run_event(served: ServedProcess, scene: Scene, event: Event, fault: Fault) -> None:
    if served.process.poll() is not None:
        raise ServerError(f"cxr serve ended: {served.read_output()[-1000:]}")
    good, writers = scene.good, scene.writers
    # Remember all processes, to look for leftovers at the end.
    triton, *_ = [served.find_server(word) for word in SERVERS]
    before, writes, began = good.tally(), writers.writes, time.monotonic()
    try:
        fault(served)
    except CxrError as error:
        event.troubles.append(str(error))
    _wait_recovered(good, event, began)
    event.restarts += served.find_server("tritonserver") != triton
    failures = good.list_failures(began)
    event.errors.update(failure.kind for failure in failures)
    event.in_flight += sum(failure.sent < began for failure in failures)
    event.later += sum(failure.sent >= began for failure in failures)
    good.dismiss()
    try:
        event.lost_writes += writers.find_lost()
    except CxrError as error:
        event.troubles.append(f"the stored cases cannot be read: {error}")
    during = good.tally().subtract(before)
    event.wrong += during.wrong
    event.untyped.update(during.untyped)
    event.writes += writers.writes - writes


def _wait_recovered(good: GoodClients, event: Event, began: float) -> None:
    """Wait until all clients have good answers again, and note how long it took."""
    settled = time.monotonic() + _NOTICE_S
    while time.monotonic() < began + _RECOVER_S:
        if good.have_answers_since(began) and time.monotonic() > settled:
            event.recoveries_s.append(good.get_recovery_s(began))
            return
        time.sleep(0.2)
    event.unrecovered += 1


def _add_version(copy: Path, repository: Path, bundle: Path | None) -> bool:
    """Publish the same model again into the copy; return whether versions can be swapped."""
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
    publish(load_bundle(bundle), graphs, copy, deployment)
    return True


def _count_leftovers(served: ServedProcess) -> dict[str, int]:
    from retrieval.verification import check_folder

    regions = _count_regions(served.triton_url)
    code = served.stop()
    end = time.monotonic() + _LEFT_S
    while (leftovers := (served.list_leftovers(), _measure_memory())) != ([], 0) and time.monotonic() < end:
        time.sleep(0.2)
    return {
        "processes": len(leftovers[0]),
        "shared_memory_bytes": leftovers[1],
        "regions": regions,
        "damaged_files": sum(not check.ok for check in check_folder(served.directory / "store")),
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
    if not has_own_memory():
        return 0  # the shared /dev/shm also holds files of other programs
    return sum(path.stat().st_size for path in SHARED_MEMORY.iterdir() if path.is_file())
