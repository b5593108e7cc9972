"""Rows, ratios, reports on disk and their comparison."""

import json
from dataclasses import replace

import pytest

from bench.load.budget import Budget, find_rate
from bench.load.generator import ClosedLoop, OpenLoop, Phases, run_load
from bench.report.compare import compare_reports, compare_rows, list_mismatches, read_report
from bench.report.measure import SERVED, Subject, measure
from bench.report.server import compare_counts, flatten_statistics, list_split, merge_models
from bench.report.write import format_markdown, make_report, write_report
from contract.errors import ArtifactError, ConfigError, ServerError

pytest.importorskip("matplotlib")
PHASES = Phases(duration_s=10, warmup_s=1, warmup_max_s=4)
DATA = {"source": "drawn phantoms", "requests": 3, "shapes": {"pixels": {"1x1x8x8": 3}}, "mean_bytes": 64}


class Statistics:
    """An observer that says what Triton would."""

    def begin(self):
        pass

    def end(self):
        split = {"queue_ms": 1.0, "compute_input_ms": 0.1, "compute_infer_ms": 8.0, "compute_output_ms": 0.2}
        model = {"requests": 10, "failed": 0, "request_ms": 9.3, **split, "executions": 5, "mean_batch": 2.0}
        models = {"image_encoder": {**model, "batch_sizes": {"2": 5}}}
        return {"models": models, "process": {"cpu_cores": 1.5, "rss_mib": 300.0, "processes": 2}}


@pytest.fixture(scope="module")
def report(simulate):
    """A report of six rows and a budget; the tests leave it as it is."""
    clock, make_server = simulate()
    served = make_server(0.011, parallel=2)
    subjects = [Subject(SERVED, served, ClosedLoop(n), observer=Statistics()) for n in (1, 2, 4)]
    subjects += [
        Subject(SERVED, served, OpenLoop(30, "poisson"), observer=Statistics()),
        Subject("in-process", make_server(0.01), ClosedLoop(1)),
        Subject("in-process", make_server(0.03), ClosedLoop(1), batch=4),
    ]
    rows = measure(subjects, PHASES, repeats=5, clock=clock)

    def try_rate(rate):
        return run_load(make_server(0.01), OpenLoop(rate, "constant"), PHASES, clock=clock)

    budget = find_rate(try_rate, Budget.parse("p99=20ms"), start=50, resolution=0.1)
    settings = {"model": "predict_study_tensors"}
    return make_report(rows, model="predict_study_tensors", data=DATA, settings=settings, budget=budget)


def test_repeats_share_the_duration_and_take_turns(clock, make_server):
    order = []
    a, b = make_server(0.01), make_server(0.02)
    subjects = [Subject(SERVED, a, ClosedLoop(1)), Subject("in-process", b, ClosedLoop(1))]
    rows = measure(
        subjects,
        PHASES,
        repeats=4,
        clock=clock,
        progress=lambda done, total, name: order.append((done, name)),
    )
    assert [name[:2] for _, name in order] == ["se", "in", "in", "se", "se", "in", "in", "se", ""]
    assert [done for done, _ in order] == list(range(9))
    assert [len(row.samples) for row in rows] == [4, 4]
    assert sum(sample.duration_s for sample in rows[0].samples) == pytest.approx(10)
    assert len(rows[0].histogram) == sum(sample.requests for sample in rows[0].samples)


def test_count_is_shared_out(clock, make_server):
    rows = measure(
        [Subject(SERVED, make_server(0.01), ClosedLoop(1))],
        replace(PHASES, count=100),
        repeats=3,
        clock=clock,
    )
    assert [sample.requests for sample in rows[0].samples] == pytest.approx([34] * 3, abs=3)


def test_ratios_stand_in_the_report(report):
    found = {(x["row"], x["metric"]): x for x in report["ratios"]}
    one = found["served, concurrency 1 / in-process", "p50_ms"]
    assert one["ratio"] == pytest.approx(1.1, rel=0.01)
    assert one["differs"]
    assert one["chance"] == pytest.approx(2 / 252)
    (most,) = (ratio for (name, _), ratio in found.items() if name.startswith("most: "))
    assert most["row"].endswith("/ in-process, concurrency 1, batch 4")
    assert most["metric"] == "cases_per_s"
    assert most["ratio"] == pytest.approx((2 / 0.011) / (4 / 0.03), rel=0.01)


def test_files(report, tmp_path):
    files = write_report(report, tmp_path / "new" / "out")
    names = [path.name for path in files]
    plots = ["latency_and_throughput.png", "percentiles.png", "server_split.png"]
    assert names == ["bench.json", "bench.md", *plots]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[2:])
    assert read_report(tmp_path / "new" / "out") == json.loads(json.dumps(report))
    page = files[1].read_text()
    for text in (
        "drawn phantoms",
        "served, poisson 30/s",
        "in-process, concurrency 1, batch 4",
        "Highest rate that met it",
        "image_encoder",
        "(server_split.png)",
        report["machine"]["cpu"],
    ):
        assert text in page


def test_report_without_a_sweep_or_a_server_has_no_such_plots(clock, make_server, tmp_path):
    rows = measure([Subject(SERVED, make_server(0.01), ClosedLoop(1))], PHASES, repeats=1, clock=clock)
    report = make_report(rows, model="m", data=DATA, settings={})
    assert [path.name for path in write_report(report, tmp_path)] == [
        "bench.json",
        "bench.md",
        "percentiles.png",
    ]


def test_directory_that_cannot_be_written(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"Could not write .*bench\.json: Not a directory"):
        write_report(report, tmp_path / "file")


def test_row_whose_requests_all_failed(clock, make_server, tmp_path):
    server = make_server(0.01)

    def refuse(number):
        server(number)
        raise ServerError("broken")

    rows = measure([Subject(SERVED, refuse, ClosedLoop(1))], PHASES, repeats=2, clock=clock)
    report = make_report(rows, model="m", data=DATA, settings={})
    assert report["rows"][0]["failed"] == {"ServerError": pytest.approx(1000, abs=4)}
    assert any("failed" in text for text in report["rows"][0]["warnings"])
    json.dumps(report, allow_nan=False)
    write_report(report, tmp_path)
    assert "| - |" in format_markdown(report)


def test_warnings_tell_of_overload_and_few_requests(clock, make_server):
    subjects = [Subject(SERVED, make_server(1.0), OpenLoop(3, "constant", 64))]
    (row,) = measure(subjects, PHASES, repeats=1, clock=clock)
    text = " ".join(row.to_dict()["warnings"])
    assert "The queue grew" in text
    assert "Only 30 requests" in text
    (calm,) = measure([Subject(SERVED, make_server(0.01), ClosedLoop(1))], PHASES, repeats=1, clock=clock)
    assert calm.to_dict()["warnings"] == []


def make_row(name, *values):
    return {"name": name, "batch": 1, "repeats": [{"p50_ms": value, "throughput": 1.0} for value in values]}


def test_difference_is_more_than_the_spread_of_repeats():
    apart = compare_rows(make_row("a", 10, 11, 12), make_row("a", 13, 14, 15))[0]
    assert (apart.a, apart.b, apart.differs) == (11, 14, True)
    assert apart.chance == pytest.approx(0.1)
    touching = compare_rows(make_row("a", 10, 11, 13), make_row("a", 13, 14, 15))[0]
    assert not touching.differs
    faster = compare_rows(make_row("a", 13, 14, 15), make_row("a", 10, 11, 12))[0]
    assert faster.differs
    assert faster.ratio == pytest.approx(11 / 14, abs=1e-4)


def test_reports_are_compared_by_row():
    first = {"rows": [make_row("a", 10.0), make_row("b", 20.0)], "model": "x"}
    second = {"rows": [make_row("b", 30.0), make_row("c", 1.0)], "model": "y"}
    ratios = compare_reports(first, second)
    assert [(x.row, x.metric, x.ratio) for x in ratios] == [("b", "p50_ms", 1.5), ("b", "throughput", 1.0)]
    assert list_mismatches(first, second) == ["Another model: x and y."]
    with pytest.raises(ConfigError, match="no row in common"):
        compare_reports(first, {"rows": [make_row("z", 1.0)]})


@pytest.mark.parametrize("text", ["no json", "[]", '{"schema": 0, "rows": []}', '{"schema": 1}'])
def test_files_that_are_no_report(tmp_path, text):
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(ArtifactError):
        read_report(tmp_path)


def test_missing_report(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_report(tmp_path / "none.json")


def make_statistics(requests, executions, *, version="1", infer_ms=5):
    ns = {"count": str(requests), "ns": str(requests * infer_ms * 10**6)}
    steps = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "name": "image_encoder",
        "version": version,
        "inference_count": str(requests),
        "execution_count": str(executions),
        "inference_stats": dict.fromkeys(steps, ns),
        "batch_stats": [{"batch_size": "4", "compute_infer": {"count": str(executions)}}],
    }


def test_server_split_is_the_difference_over_the_measured_time():
    before = flatten_statistics({"model_stats": [make_statistics(100, 100, infer_ms=50)]})
    later = make_statistics(100, 100, infer_ms=50)
    after = flatten_statistics({"model_stats": [later, make_statistics(40, 10, version="2")]})
    found = compare_counts(before, after)["image_encoder"]
    assert found["requests"] == 40
    assert found["executions"] == 10
    assert found["mean_batch"] == 4
    assert found["compute_infer_ms"] == 5
    assert found["batch_sizes"] == {"4": 10}
    assert compare_counts(after, after) == {}


def test_server_splits_are_weighted_by_requests_and_ensembles_are_no_step():
    def model(requests, infer_ms):
        after = flatten_statistics({"model_stats": [make_statistics(requests, requests, infer_ms=infer_ms)]})
        return compare_counts({}, after)

    merged = merge_models([model(10, 5), model(30, 9)])["image_encoder"]
    assert merged["requests"] == 40
    assert merged["compute_infer_ms"] == 8
    assert list_split({"image_encoder": merged, "predict_study": merged})[0][0] == "image_encoder"
    assert len(list_split({"image_encoder": merged, "predict_study": merged})) == 1
