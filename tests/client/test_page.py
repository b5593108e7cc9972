"""The result page."""

import base64
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from client.cases import SimilarCase
from client.explain.maps import encode_png
from client.explanation import Explanation, ImageMap, WordAttribution
from client.images import ReadImage
from client.page import write_report_page
from client.prediction import ConformalSet, Finding, Prediction
from contract.errors import ArtifactError
from contract.labels import LABEL_KEYS, LABEL_NAMES, LABELS
from contract.notes import ImageNotes, ReadPart, ReportNotes
from contract.training_data import UNDECIDED_WARNING, UNMEASURED

FINGERPRINT = "cd" * 32
ATTACK = "<script>alert('x')</script>"
TEXT = f"No pleural effusion. {ATTACK} The rest."
EMPTY_ELEMENTS = {"meta", "img", "br", "link", "hr", "input"}


class Outline(HTMLParser):
    """Collects headings, images and tags, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in {"h1", "h2", "h3"}:
            self.headings.append(data)


def predict(kind: str, pleural: float) -> Prediction:
    findings = tuple(
        Finding(label.key, label.name, pleural if label.key == "pleural" else 0.125, 0.4) for label in LABELS
    )
    return Prediction(kind, findings, np.ones(4, np.float32) / 2, FINGERPRINT)


@pytest.fixture
def explanation() -> Explanation:
    words = (
        WordAttribution("No", 0, 2, -2.0, 0.25),
        WordAttribution("pleural", 3, 10, 0.5, 0.25),
        WordAttribution("effusion", 11, 19, 1.0, 0.25),
        WordAttribution(".", 19, 20, 0.0, 0.0),
        WordAttribution(ATTACK, 21, 21 + len(ATTACK), 0.1, 0.1),
    )
    return Explanation(
        kind="study",
        key="pleural",
        name=LABEL_NAMES["pleural"],
        probability=0.9,
        threshold=0.4,
        logit=2.0,
        baseline_logit=-1.0,
        steps=32,
        convergence_delta=0.03,
        baseline="a black image",
        fingerprint=FINGERPRINT,
        radiograph=np.full((64, 64), 90, np.uint8),
        pixel_attribution=np.random.default_rng(0).normal(size=(56, 56)).astype(np.float32),
        patch_attention=np.full((7, 7), 1 / 49, np.float32),
        words=words,
        report_text=TEXT,
        maps=(
            ImageMap("occlusion", "Occlusion", np.eye(56, dtype=np.float32), True, "logits", 0.1),
            ImageMap("grad_cam", "Grad-CAM", np.eye(7, dtype=np.float32), False, "logits", 0.1),
        ),
        remarks=("It was not <checked>.",),
    )


@pytest.fixture
def cases(tmp_path: Path) -> list[SimilarCase]:
    image = tmp_path / "case.png"
    image.write_bytes(encode_png(np.tile(np.arange(64, dtype=np.uint8), (64, 1))))
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    references = (
        str(image),
        str(damaged),
        str(tmp_path / "gone.dcm"),
        "",
        "a\0b",
        "s3://bucket/case.dcm",
        "x" * 5000,
    )
    return [
        SimilarCase(
            f"case-{number}", "study", 0.9 - number / 10, ("pleural", "cardiac"), f"Report {number}", ref
        )
        for number, ref in enumerate(references)
    ]


def write(path: Path, explanation, cases, **changes) -> str:
    content = {
        "title": "Study CXR1",
        "data_note": "Phantom data.",
        "predictions": {
            "study": predict("study", 0.9),
            "image": predict("image", 0.3),
            "text": predict("text", 0.6),
        },
        "searches": {"the study": cases, "its image alone": cases[:1], "a sentence": []},
        "explanation": explanation,
        "truth": ("pleural",),
        **changes,
    }
    write_report_page(path, **content)
    return path.read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path: Path, explanation, cases) -> str:
    return write(tmp_path / "out" / "report.html", explanation, cases)


def test_the_excerpt_is_marked_in_its_report(tmp_path, explanation):
    reports = ("Heart <b>large</b>. Right effusion. End.", "Another report.")
    cases = [
        SimilarCase("1", "s", 0.9, (), report, "", excerpt=excerpt)
        for report, excerpt in zip(
            reports, ("Heart <b>large</b>.", "A sentence of another version."), strict=True
        )
    ]
    page = write(tmp_path / "report.html", explanation, cases)
    assert "<mark>Heart &lt;b&gt;large&lt;/b&gt;.</mark> Right effusion. End.</p>" in page
    assert 'tabindex="0">Another report.</p>' in page


def read_outline(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert not outline.open
    return outline


def test_page_holds_every_section(page):
    headings = read_outline(page).headings
    name = LABEL_NAMES["pleural"]
    assert headings == [
        "Study CXR1",
        "Study",
        "Findings",
        f"Why: {name}",
        f"Words: {name}",
        "Similar cases",
        "Similar to the study",
        "Similar to its image alone",
        "Similar to a sentence",
    ]
    for part in (
        "Research and teaching only: never a diagnosis",
        "Phantom data.",
        FINGERPRINT,
        "a black image",
    ):
        assert part in page
    for label in LABELS:
        assert label.name.replace("&", "&amp;") in page
    assert "$" not in page


def test_page_needs_no_network_and_runs_no_script(page):
    outline = read_outline(page)
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"base64,[^\"]*", "", page))
    assert not {tag for tag, _ in outline.tags} & {"script", "iframe", "object", "form", "a", "link"}
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    images = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert all(image["alt"] for image in images)
    for image in images:
        assert base64.b64decode(image["src"].partition(",")[2])[:4] == b"\x89PNG"


def test_everything_from_outside_is_escaped(tmp_path: Path, explanation, cases):
    attack = f'{ATTACK}"><img src=x onerror=alert(1)>$title'
    notes = ImageNotes("LATERAL", attack, attack, (attack,))
    hostile = [replace(cases[0], id=attack, report=attack, labels=(attack,), study_id=attack)]
    page = write(
        tmp_path / "hostile.html",
        replace(
            explanation,
            name=attack,
            baseline=attack,
            fingerprint=attack,
            report_text=f"{TEXT} {attack}",
            image_notes=notes,
        ),
        hostile,
        title=attack,
        data_note=attack,
        searches={attack: hostile},
        truth=(attack,),
    )
    outline = read_outline(page)
    assert "script" not in {tag for tag, _ in outline.tags}
    assert not any("onerror" in attributes for _, attributes in outline.tags)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10


def test_each_map_stands_with_its_meaning_and_what_is_known_about_it(tmp_path: Path, page, explanation):
    why = page[page.index("<h2>Why") : page.index("<h2>Words")]
    assert re.findall(r'alt="([^"]+) for', why) == ["Occlusion", "Grad-CAM"]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", why)
    assert "speaks for the finding" in captions[0]
    assert "yellow: strongest" in captions[1]
    assert "It was not &lt;checked&gt;." in why
    none = write(tmp_path / "none.html", replace(explanation, maps=()), [])
    why = none[none.index("<h2>Why") : none.index("<h2>Words")]
    assert "<img" not in why
    assert "It was not &lt;checked&gt;." in why


def test_sections_of_the_report_are_kept(tmp_path: Path, explanation):
    words = (
        WordAttribution("No", 0, 2, -2.0, 0.25, "findings"),
        WordAttribution("pleural", 3, 10, 0.5, 0.25, "impression"),
    )
    page = write(tmp_path / "page.html", replace(explanation, words=words), [])
    read = page[page.index('<p class="read">') :]
    places = [read.index(part) for part in (">Findings<", ">No<", ">Impression<", ">pleural<")]
    assert places == sorted(places)


def test_findings_of_each_kind_stand_side_by_side(page):
    table = page[page.index("<h2>Findings") : page.index("<h2>Why")]
    assert re.findall(r'<th scope="col">([^<]+)</th>', table) == [
        "Finding",
        "Image and report",
        "Image alone",
        "Report alone",
    ]
    rows = re.findall(r"<tr class.*?</tr>", table)
    assert len(rows) == len(LABELS)
    pleural = rows[0]  # the highest in the first column
    assert LABEL_NAMES["pleural"] in pleural
    assert "labelled" in pleural
    assert re.findall(r'class="value">([\d.]+)<', pleural) == ["0.90", "0.30", "0.60"]
    assert re.findall(r"● present|○ below", pleural) == ["● present", "○ below", "● present"]
    assert re.findall(r'class="fill" style="width: ([\d.]+)%', pleural) == ["90.0", "30.0", "60.0"]
    assert pleural.count('class="limit" style="left: 40.0%"') == 3
    assert sum("labelled" in row for row in rows) == 1


def test_a_label_that_was_not_measured_says_so(tmp_path):
    def write(prediction) -> str:
        write_report_page(
            tmp_path / "page.html",
            title="Study",
            data_note="Made up.",
            predictions={"text": prediction},
            searches={},
            explanation=None,
            truth=(),
        )
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    prediction = predict("text", 0.6)
    findings = (replace(prediction.findings[0], unmeasured=True), *prediction.findings[1:])
    [row] = [
        row
        for row in re.findall(r"<tr class.*?</tr>", write(replace(prediction, findings=findings)))
        if UNMEASURED in row
    ]
    assert escape(findings[0].name) in row
    assert UNMEASURED not in write(prediction)


def test_words_are_marked_by_their_attribution(page):
    marks = re.findall(
        r'<mark class="(\w+)" style="background: rgba\([\d, ]+, ([\d.]+)\)" title="([^"]+)">(\w+)<', page
    )
    assert [(sign, text) for sign, _, _, text in marks] == [
        ("against", "No"),
        ("for", "pleural"),
        ("for", "effusion"),
    ]
    strengths = [float(strength) for _, strength, _, _ in marks]
    assert strengths[0] > strengths[2] > strengths[1] > 0
    assert marks[0][2] == "-2.000 logits, 25.0% of the attention"
    unread = re.search(r'<span class="unread"[^>]*>([^<]+)</span>', page)
    assert unread.group(1).strip() == "The rest."


def test_cases_show_their_image_or_say_why_not(page, cases):
    cards = re.findall(r'<article class="case">.*?</article>', page, re.DOTALL)
    assert len(cards) == len(cases) + 1
    assert 'alt="Radiograph of case case-0"' in cards[0]
    missing = "The image is not on this machine"
    damaged = "The image cannot be read"
    reasons = (damaged, missing, "The index has no image of this case", missing, missing, damaged)
    for card, reason in zip(cards[1 : len(cases)], reasons, strict=True):
        assert reason in card
        assert "<img" not in card
    assert "similarity 0.900" in cards[0]
    assert f'<li class="shared">✓ {LABEL_NAMES["pleural"]}</li>' in cards[0]
    assert f'<li class="other">{LABEL_NAMES["cardiac"]}</li>' in cards[0]
    assert "The index has no similar case." in page


def test_page_without_image(tmp_path: Path, explanation, cases):
    text_only = replace(
        explanation, kind="text", radiograph=None, pixel_attribution=None, patch_attention=None, maps=()
    )
    page = write(
        tmp_path / "text.html", text_only, cases[3:4], predictions={"text": predict("text", 0.6)}, searches={}
    )
    outline = read_outline(page)
    assert not any(tag == "img" for tag, _ in outline.tags)
    assert "The predictions use no image." in page
    assert "<mark" in page
    assert "Similar cases" not in page


def test_page_without_explanation_says_where_the_radiograph_is(tmp_path: Path, cases):
    page = write(tmp_path / "plain.html", None, [], predictions={"image": predict("image", 0.9)}, truth=())
    assert not any(tag == "img" for tag, _ in read_outline(page).tags)
    assert "The page has no copy of the radiograph." in page
    assert "Why:" not in page
    assert "Labels of this study</dt><dd>none" in page


def test_page_says_above_all_results_what_was_unusual(tmp_path: Path, page, explanation):
    assert 'class="warnings"' not in page
    assert "<dt>View</dt>" not in page
    image = ImageNotes("LATERAL", "L", "CR", ("A lateral view.",))
    report = ReportNotes(64, True, ("The end was not read.",), (ReadPart("results", "findings", 2),))
    read = {
        "study": replace(predict("study", 0.9), images=(ReadImage(image),), report_notes=report),
        "text": replace(predict("text", 0.6), report_notes=report),
    }
    warned = write(
        tmp_path / "page.html", replace(explanation, image_notes=image), [], predictions=read, searches={}
    )
    read_outline(warned)
    assert re.findall(r"<li>([^<]+)</li>", warned) == ["A lateral view.", "The end was not read."]
    assert warned.index('<div class="warnings"') < warned.index("<dt>Labels of this study")
    assert "<dt>View</dt><dd>LATERAL, laterality L, CR</dd>" in warned
    assert "<dt>Report read as</dt><dd>findings 2 sentences (&quot;results&quot;)</dd>" in warned


def test_page_of_an_image_whose_file_says_nothing(tmp_path: Path):
    read = {"image": replace(predict("image", 0.9), images=(ReadImage(ImageNotes()),))}
    page = write(tmp_path / "png.html", None, [], predictions=read, searches={})
    assert "<dt>View</dt><dd>not stated in the file</dd>" in page
    assert 'class="warnings"' not in page


def test_page_of_nothing_is_still_a_page(tmp_path: Path):
    page = write(tmp_path / "bare.html", None, [], predictions={}, searches={}, truth=())
    assert read_outline(page).headings == ["Study CXR1", "Study"]


def test_path_that_cannot_be_written(tmp_path: Path, explanation, cases):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="Could not write"):
        write(tmp_path / "file" / "page.html", explanation, cases)


def test_a_band_is_drawn_and_its_findings_are_uncertain(tmp_path: Path, explanation, cases, page):
    assert "uncertain" not in re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL).lower()
    plain = predict("image", 0.3)
    findings = tuple(
        replace(finding, uncertain_low=0.25, uncertain_high=0.5) if finding.key == "pleural" else finding
        for finding in plain.findings
    )
    stated = ConformalSet(("pleural", "cardiac"), 0.9)
    banded = replace(plain, findings=findings, conformal_set=stated)
    page = write(tmp_path / "banded.html", explanation, cases, predictions={"image": banded})
    read_outline(page)
    assert page.count("◐ uncertain") == 1
    assert '<div class="probability uncertain"' in page
    assert '<div class="band" style="left: 25.0%; width: 25.0%"></div>' in page
    assert f"<dt>Uncertain: image alone</dt><dd>{LABEL_NAMES['pleural']}</dd>" in page
    names = f"{LABEL_NAMES['pleural']}, {LABEL_NAMES['cardiac']}"
    assert f"<li>Possible labels from the image: {names}. Such a list holds" in page
    assert "not narrow" not in page
    banded = replace(banded, conformal_set=ConformalSet(LABEL_KEYS[:14], 0.9))
    page = write(tmp_path / "wide.html", explanation, cases, predictions={"image": banded})
    assert "<li>The image does not narrow the labels down: 14 of 22 would have to be named to hold" in page
    assert "Possible labels" not in page


def test_a_way_without_thresholds_is_not_decided(tmp_path: Path, cases):
    plain = predict("image", 0.3)
    undecided = replace(plain, findings=tuple(replace(finding, threshold=None) for finding in plain.findings))
    page = write(
        tmp_path / "undecided.html",
        None,
        cases,
        predictions={"image": undecided, "text": predict("text", 0.9)},
    )
    read_outline(page)
    assert "<dt>Present: image alone</dt><dd>not decided: no thresholds</dd>" in page
    assert page.count('<span class="state">not decided</span>') == len(LABELS)
    assert page.count('<div class="limit"') == len(LABELS)  # of the other column
    assert UNDECIDED_WARNING in page


def test_each_cell_names_its_column_for_a_phone(page):
    """Below 44 rem the head of the table is gone and the cells stand under each other."""
    rows = re.findall(r'<tr class="(?:truth|other)">.*?</tr>', page)
    assert len(rows) == len(LABELS)
    heads = re.findall(r'<th scope="col">([^<]*)</th>', page)[1:4]
    assert "Image alone" in heads
    for row in rows:
        named = re.findall(r'<td data-read="([^"]*)">', row)
        assert named == heads[: len(named)]
        assert row.count("<td") == len(named) > 0
