"""`cxr bench tls`: the difference of two loads that take turns, and one short run on real servers."""

import json
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.tls import LIMIT_MS, compare_turns, measure_tls
from cli.commands.bench import bench_app
from cli.show_bench import print_tls
from contract.errors import ServerError


def make_row(target: str, *medians: float, lost: int = 0):
    samples = [SimpleNamespace(lost=lost, get_percentile=lambda _, ms=ms: ms) for ms in medians]
    return SimpleNamespace(subject=SimpleNamespace(target=target), samples=samples)


def test_a_slow_machine_slows_both_loads_of_a_turn():
    plain = make_row("plain", 10.0, 30.0, 10.0, 20.0)
    found = compare_turns(plain, make_row("mutual TLS", 10.2, 30.2, 10.2, 20.2))
    assert found["difference_ms"] == pytest.approx(0.2)
    assert (found["plain_ms"], found["passed"]) == (15.0, True)
    slower = compare_turns(plain, make_row("mutual TLS", 10.4, 30.4, 10.4, 20.4))
    assert (slower["passed"], slower["limit_ms"]) == (False, LIMIT_MS)
    console = Console(record=True, width=200)
    print_tls(console, {**slower, "model": "m", "turns": 4})
    assert "costs 0.40 ms (quartiles 0.40 to 0.40); wanted at most 0.3 ms: missed" in console.export_text()


def test_a_failed_request_is_no_figure():
    with pytest.raises(ServerError, match=r"4 requests to the server failed \(mutual TLS\)"):
        compare_turns(make_row("plain", 1.0, 1.0), make_row("mutual TLS", 1.0, 1.0, lost=2))


@pytest.mark.slow
@pytest.mark.e2e
def test_both_relays_answer(make_model, tmp_path):
    pytest.importorskip("pytriton")
    from export.publish import publish

    repository = publish(*make_model(1), tmp_path / "repository")
    report = measure_tls(Console(quiet=True), repository, seconds=0.5)
    assert report["turns"] == 4
    assert min(report["requests"]) > 0
    assert report["plain_ms"] > 0
    assert json.dumps(report)


def test_a_repository_that_is_none_is_refused(tmp_path):
    assert "not published by cxr" in str(CliRunner().invoke(bench_app, ["tls", str(tmp_path)]).exception)
