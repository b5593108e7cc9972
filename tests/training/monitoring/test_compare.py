"""Verdicts of a comparison: seldom wrong without a change, right with one, and silent with too few cases."""

import base64
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from contract.errors import ConfigError
from contract.labels import LABEL_KEYS
from training.monitoring import statistics
from training.monitoring.compare import FEWEST, Row, compare, judge
from training.monitoring.metrics import NAMES, write_metrics
from training.monitoring.page import write_page
from training.monitoring.reference import Reference
from training.monitoring.results import Current
from training.monitoring.sample import Sample
from training.monitoring.statistics import compare_values


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 100)


def draw(seed: int, count: int, *, raised: str = "", darker: float = 0.0) -> Sample:
    rng = np.random.default_rng(seed)
    probabilities = rng.beta(1, 5, (count, len(LABEL_KEYS))).astype(np.float32)
    if raised:
        k = LABEL_KEYS.index(raised)
        probabilities[:, k] = np.minimum(1, probabilities[:, k] + 0.2)
    inputs = {"grey": rng.normal(0.5 - darker, 0.05, count), "view": rng.integers(0, 2, count)}
    embeddings = rng.normal(darker * 5, 1, (count, 12)).astype(np.float16)
    return Sample(probabilities, embeddings, {name: x.astype(np.float32) for name, x in inputs.items()})


def make_reference(count: int = 200) -> Reference:
    return Reference("ab" * 32, 4, "Made-up studies.", {"image": draw(0, count)})


def list_changed(rows) -> list[str]:
    return [row.name for row in rows if row.verdict == "changed"]


def test_what_changed_is_named_and_nothing_else():
    now = draw(1, 150, raised="cardiac", darker=0.2)
    rows = {row.name: row for row in compare(make_reference(), Current({"image": now}))}
    assert list_changed(rows.values()) == ["cardiac", "grey", "embedding"]
    assert rows["cardiac"].shift == pytest.approx(0.2, abs=0.04)
    assert rows["cardiac"].psi > 0.25
    assert rows["grey"].shift == pytest.approx(-0.2, abs=0.02)
    assert rows["view"].test == "chi2"
    assert rows["view"].mean is None
    assert (rows["embedding"].test, rows["embedding"].psi) == ("MMD", None)


def test_without_a_change_hardly_any_comparison_reports_one():
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(100):
        p = [compare_values(rng.random(100), rng.random(120))[2] for _ in range(10)]
        wrong += any(
            row.verdict == "changed" for row in judge([Row("image", "label", "x", 100, 120, p=x) for x in p])
        )
    assert wrong <= 11  # 5 of 100 are expected at most; 12 or more have a probability of 0.004


def test_p_values_are_adjusted_together():
    rows = [Row("image", "label", "x", 100, 100, p=p) for p in (0.01, 0.02, 0.03, 0.9)]
    assert [row.p_adjusted for row in judge(rows)] == pytest.approx([0.04, 0.04, 0.04, 0.9])
    alone = [Row("image", "label", "x", 100, 100, p=0.03), *[replace(rows[0], p=0.9)] * 9]
    assert list_changed(judge(alone)) == []


@pytest.mark.parametrize(("before", "now"), [(200, FEWEST - 1), (FEWEST - 1, 200), (200, 2)])
def test_too_few_cases_give_no_figure(before, now):
    rows = compare(make_reference(before), Current({"image": draw(1, now, raised="cardiac", darker=0.2)}))
    assert {row.verdict for row in rows} == {"too few cases"}
    assert {(row.psi, row.p, row.shift) for row in rows} == {(None, None, None)}


def test_a_way_without_a_reference_has_no_rows():
    assert compare(make_reference(), Current({"study": draw(1, 100)})) == ()


def test_metrics_hold_what_the_rows_hold(tmp_path):
    prometheus = pytest.importorskip("prometheus_client.parser")
    reference = make_reference()
    rows = compare(reference, Current({"image": draw(1, 150, raised="cardiac")}))
    few = Row("study", "label", "pleural", 200, 3)
    path = tmp_path / "cxr.prom"
    write_metrics([*rows, few], reference.fingerprint, path)
    families = list(prometheus.text_string_to_metric_families(path.read_text()))
    assert {family.name for family in families} == set(NAMES)
    found = {
        (sample.name, sample.labels.get("way"), sample.labels.get("name")): sample.value
        for family in families
        for sample in family.samples
    }
    by_name = {row.name: row for row in rows}
    assert found["cxr_drift_psi", "image", "cardiac"] == pytest.approx(by_name["cardiac"].psi)
    assert found["cxr_drift_changed", "image", "cardiac"] == 1
    assert found["cxr_drift_changed", "image", "pleural"] == 0
    assert found["cxr_drift_squared_mmd", "image", None] == pytest.approx(by_name["embedding"].statistic)
    assert found["cxr_drift_cases", "study", "pleural"] == 3
    assert ("cxr_drift_changed", "study", "pleural") not in found
    with pytest.raises(ConfigError, match=r"must end in \.prom"):
        write_metrics(rows, reference.fingerprint, tmp_path / "cxr.txt")


def test_the_page_brings_its_plots_and_names_every_row(tmp_path):
    reference = make_reference()
    current = Current({"image": draw(1, 150, raised="cardiac"), "study": draw(2, 3)})
    rows = compare(reference, current)
    path = tmp_path / "drift.html"
    write_page(reference, current, rows, ["A note with <b>."], path)
    page = path.read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(picture)[:4] for picture in pictures] == [b"\x89PNG"] * 2
    assert not re.search(r"https?:", page)
    assert page.count("<tr>") == len(rows) + 1
    assert "A note with &lt;b&gt;." in page
    assert "Nothing here says whether answers are right" in page
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        write_page(reference, current, rows, [], tmp_path / "drift.pdf")
