"""Reports: they say what the study shows, never the contrary, and not always in the same words."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from training.phantom.draw import plan_studies
from training.phantom.findings import KINDS
from training.phantom.prose import write_caption, write_sections

# What no report of a study with this finding may say; written apart from the sentences of the phantoms.
CONTRARY = {
    "effusion": r"\b(no|without)\b[^.]*(effusion|pleural fluid)|angles are sharp|well expanded|normally inflated",
    "pneumothorax": r"\b(no|negative for)\b[^.]*pneumothorax|lungs are clear|free of focal|well expanded",
    "cardiomegaly": r"no cardiomegaly|not enlarged|(heart|silhouette)[^.]*\bnormal (size|in size)|size is normal",
    "consolidation": r"lungs are clear|free of focal|\bno\b[^.]*(consolidation|airspace|infiltrate|pneumonia)",
    "atelectasis": r"lungs are clear|free of focal|\bno\b[^.]*atelectasis|well expanded|normally inflated",
    "collapse": r"lungs are clear|free of focal|\bno\b[^.]*(atelectasis|collapse)|well expanded",
    "nodule": r"lungs are clear|free of focal|\bno\b[^.]*nodule",
    "mass": r"lungs are clear|free of focal|\bno\b[^.]*(mass|nodule)",
    "granuloma": r"lungs are clear|free of focal|\bno\b[^.]*(granuloma|nodule)",
    "hyperinflation": r"well expanded|normally inflated|vascularity is within|vessels are normal",
    "hypoinflation": r"well expanded|normally inflated",
    "fibrosis": r"lungs are clear|free of focal|\bno\b[^.]*(fibrosis|interstitial)",
    "congestion": r"lungs are clear|free of focal|no pulmonary edema|vascularity is within|vessels are normal",
    "aorta": r"contours are (unremarkable|within)|normal in width|\bno\b[^.]*(tortuo|aort)",
    "adenopathy": r"contours are (unremarkable|within)|normal in width|\bno\b[^.]*adenopathy",
    "diaphragm": r"well expanded|normally inflated",
    "hernia": r"contours are (unremarkable|within)|normal in width|\bno\b[^.]*hernia",
    "fracture": r"thorax is intact|skeleton is unremarkable|\bno\b[^.]*(bon[ey]|fracture)",
    "spondylosis": r"thorax is intact|skeleton is unremarkable|no bone abnormality|\bno\b[^.]*degenerative",
    "scoliosis": r"thorax is intact|skeleton is unremarkable|no bone abnormality|\bno\b[^.]*scoliosis",
    "device": r"\bno\b[^.]*(device|catheter|pacemaker)",
    "abdomen": r"abdomen is unremarkable|\bno\b[^.]*(free air|gallstone)",
}
ALL_CLEAR = (
    r"nothing acute|otherwise negative|without acute|no active|normal chest|no acute (?!bony)|no radiographic"
)
ACUTE = {"effusion", "pneumothorax", "consolidation", "collapse", "mass", "congestion"}
NEGATION = r"(?i)\b(no|not|without|negative for)\b"


def write(plan, seed=0):
    return write_sections(plan.findings, np.random.default_rng([seed, plan.number, 2]))


def join(sections) -> str:
    return f"{sections['findings']} {sections['impression']}".strip()


@pytest.fixture(scope="module")
def plans():
    return plan_studies(3000, 11)


@pytest.fixture(scope="module")
def reports(plans):
    """(plan, sections) of every study."""
    return [(plan, write(plan)) for plan in plans]


def test_every_kind_has_something_it_must_not_say():
    assert CONTRARY.keys() == {kind.name for kind in KINDS}


def test_no_report_denies_what_the_study_shows(reports):
    for plan, sections in reports:
        text = join(sections).lower()
        for finding in plan.findings:
            found = re.search(CONTRARY[finding.kind], text)
            assert not found, (finding, found, text)


def test_all_is_well_only_where_it_is(reports):
    for plan, sections in reports:
        kinds = [finding.kind for finding in plan.findings]
        if len(kinds) > 1 or set(kinds) & ACUTE:
            assert not re.search(ALL_CLEAR, sections["impression"].lower()), (kinds, sections["impression"])


def test_normal_studies_are_called_normal(reports):
    for plan, sections in reports:
        if not plan.findings:
            if sections["impression"]:
                assert re.search(ALL_CLEAR + "|negative chest", sections["impression"].lower())
            if sections["findings"]:
                assert re.search(r"lungs are clear|free of focal", sections["findings"].lower())


def test_side_and_lobe_are_those_of_the_finding(reports):
    checked = 0
    for plan, sections in reports:
        if len(plan.findings) == 1:
            finding, text = plan.findings[0], join(sections).lower()
            wrong = {"right": "left", "left": "right"}.get(finding.side)
            assert not wrong or not re.search(rf"\b{wrong}", text.replace("right upper abdomen", "")), text
            lobes = {"upper lobe", "middle lobe", "lower lobe", "lingula"} - {finding.site}
            assert not any(lobe in text for lobe in lobes), text
            checked += 1
    assert checked > 400


def test_finding_is_in_the_findings_and_in_the_impression(reports):
    """Neither section of a study that is not normal consists of normal sentences alone."""
    normal = {False: set(), True: set()}
    for plan, sections in reports:
        for name in ("findings", "impression"):
            normal[bool(plan.findings)] |= {(name, text) for text in re.split(r"(?<=\.) ", sections[name])}
    usual = normal[False]
    for plan, sections in reports:
        for name in ("findings", "impression"):
            said = {(name, text) for text in re.split(r"(?<=\.) ", sections[name])}
            if sections[name] and plan.findings:
                assert len(said - usual) >= 1, (plan.findings, sections[name])


def test_sentences_are_whole(reports):
    for plan, sections in reports:
        for name in ("findings", "impression"):
            text = sections[name]
            assert not re.search(r"[{}\[\]]|\s{2}| [.,;]|[.,;]{2}|, \.|\ba (?=bilateral|both)|None", text), (
                text
            )
            sentences = re.split(r"(?<=[a-zX\d])\. ", text)
            assert text == "" or text.endswith(".")
            assert all(re.match(r"[A-Z\d]|$", sentence) for sentence in sentences), (plan, text)


def test_wording_varies(reports):
    said = defaultdict(set)
    texts = Counter(join(sections) for _, sections in reports)
    for plan, sections in reports:
        if len(plan.findings) == 1:
            said[plan.findings[0].kind].add(sections["impression"])
    assert said.keys() == {kind.name for kind in KINDS}
    assert min(len(texts) for texts in said.values()) >= 3
    repeated = sum(count for text, count in texts.items() if count > 1)
    assert repeated / texts.total() < 0.241  # as many as in the real collection: 954 of 3,955


def test_findings_section_is_not_always_in_one_order(reports):
    """Half of the reports go through the organs, beginning with the heart; half begin anywhere."""
    described = [s["findings"] for plan, s in reports if s["findings"] and not plan.findings]
    heart = np.mean([bool(re.match(r"(The heart|Heart|Cardiac)", text)) for text in described])
    assert 0.5 < heart < 0.75


def test_most_reports_deny_something_and_call_something_normal(reports):
    described = [sections["findings"] for _, sections in reports if sections["findings"]]
    denying = sum(bool(re.search(NEGATION, text)) for text in described)
    normal = sum(bool(re.search(r"normal|unremarkable|clear|intact", text)) for text in described)
    assert denying / len(described) > 0.9
    assert normal / len(described) > 0.9


def test_equal_generators_write_equal_reports(plans):
    assert [write(plan) for plan in plans[:50]] == [write(plan) for plan in plans[:50]]
    assert [write(plan) for plan in plans[:50]] != [write(plan, seed=1) for plan in plans[:50]]


def test_sections_are_missing_as_often_as_in_the_real_reports(reports, real_studies):
    sets = [
        [{name for name, text in sections.items() if not text} for _, sections in reports],
        [{name for name, text in vars(study.report).items() if not text} for study in real_studies],
    ]
    for missing in ({"findings"}, {"impression"}, {"indication"}, {"comparison"}, {"findings", "impression"}):
        drawn, real = (sum(missing <= lacking for lacking in group) / len(group) for group in sets)
        error = (real * (1 - real) * (1 / len(reports) + 1 / len(real_studies))) ** 0.5
        assert abs(drawn - real) < 4 * error, missing


def test_denials_and_length_are_about_those_of_the_real_reports(reports, real_studies):
    drawn = [join(sections) for _, sections in reports if join(sections)]
    real = [f"{study.report.findings} {study.report.impression}".strip() for study in real_studies]
    real = [text for text in real if text]
    shares = [np.mean([bool(re.search(NEGATION, text)) for text in texts]) for texts in (drawn, real)]
    lengths = [np.median([len(text.split()) for text in texts]) for texts in (drawn, real)]
    assert shares[0] == pytest.approx(shares[1], abs=0.12)
    assert lengths[0] == pytest.approx(lengths[1], rel=0.35)


def test_sentences_are_not_those_of_real_reports(reports, real_studies):
    """The real reports may not be copied; short phrases that every radiologist uses are nobody's."""
    real = {" ".join(f"{s.report.findings} {s.report.impression}".lower().split()) for s in real_studies}
    ours = {" ".join(join(sections).lower().split()) for plan, sections in reports if plan.findings}
    assert not {text for text in ours & real if len(text.split()) > 12}


def test_captions():
    assert len({write_caption(np.random.default_rng(number)) for number in range(40)}) >= 3
