"""Reports to model text to token ids."""

from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import ConfigError, ReportError
from contract.labels import LABEL_KEYS
from contract.report.format import MAX_REPORT_BYTES
from contract.report.label_words import LABEL_WORDS
from contract.report.text import (
    MAX_REPORT_CHARS,
    SECTIONS,
    TEXT_MODES,
    Report,
    clean_text,
    format_report,
    parse_report,
    read_report,
    select_text,
)

XML = (
    "<eCitation><MedlineCitation><Article><Abstract>"
    '<AbstractText Label="COMPARISON">None.</AbstractText>'
    '<AbstractText Label="INDICATION">Cough</AbstractText>'
    '<AbstractText Label="FINDINGS">Clear lungs &amp; a <b>normal</b> heart of 5° Größe.</AbstractText>'
    '<AbstractText Label="IMPRESSION"></AbstractText>'
    '<AbstractText Label="NOTE">left out</AbstractText>'
    "</Abstract></Article></MedlineCitation></eCitation>"
)
XML_REPORT = Report("Cough", "None.", "Clear lungs & a normal heart of 5° Größe.", "")


# --- parse_report ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "report"),
    [
        ("Clear lungs.", Report(findings="Clear lungs.")),
        ("  Clear\nlungs.  ", Report(findings="Clear\nlungs.")),
        ("FINDINGS: Clear.\nIMPRESSION: Normal.", Report(findings="Clear.", impression="Normal.")),
        ("findings : Clear.\r\n  Impression:\r\nNormal.", Report(findings="Clear.", impression="Normal.")),
        (
            "Indication: cough\nComparison: none\nFindings: clear\nImpression: normal",
            Report("cough", "none", "clear", "normal"),
        ),
        ("IMPRESSION: Normal.", Report(impression="Normal.")),
        ("FINDINGS: a\nFINDINGS: b", Report(findings="a b")),
        ("Clear lungs.\nIMPRESSION: Normal.", Report(findings="Clear lungs.", impression="Normal.")),
        ("Dr. X\nFINDINGS: a", Report(findings="a")),
        ("FINDINGS:", Report()),
        ("The findings: none", Report(findings="The findings: none")),
        ("F\u0130ND\u0130NGS: other letters", Report(findings="F\u0130ND\u0130NGS: other letters")),
    ],
)
def test_text(text, report):
    assert parse_report(text) == report
    assert parse_report(text.encode()) == report
    assert parse_report(b"\xef\xbb\xbf" + text.encode()) == report
    assert parse_report("\ufeff" + text) == report


@pytest.mark.parametrize(
    "declaration",
    [
        "",
        '<?xml version="1.0" encoding="utf-8"?>\n',
        '<?xml version="1.0"?>',
        "\n\n  ",
        "<!-- a comment -->",
    ],
)
def test_xml(declaration):
    assert parse_report(declaration + XML) == XML_REPORT
    assert parse_report((declaration + XML).encode()) == XML_REPORT
    assert parse_report((declaration + XML).encode("utf-8-sig")) == XML_REPORT


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "utf-16", "unheard-of", "rot13"])
def test_text_that_is_decoded_already_is_not_decoded_again(encoding):
    assert parse_report(f'<?xml version="1.0" encoding="{encoding}"?>{XML}') == XML_REPORT


BOMB = "".join(f'<!ENTITY b{i} "{f"&b{i - 1};" * 10 if i else "ha"}">' for i in range(10))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "empty"),
        (b"", "empty"),
        (" \n\t ", "empty"),
        ("\ufeff", "empty"),
        ("a\x00b MRN-4711", "control characters"),
        (b"MRN-4711\x1b[31m", "control characters"),
        ("bell\x07", "control characters"),
        (b"MRN-4711 \xff\xfe", "not UTF-8"),
        ("Gr\u00f6\u00dfe".encode("latin-1"), "not UTF-8"),
        ("<a/>".encode("utf-16"), "no report text"),
        ("Clear.".encode("utf-16")[:-1], "byte order mark of UTF-16"),
        ("Clear.".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("\u200b \u2028\u00ad", "empty"),
        ("MRN-4711 \udcff", "not UTF-8"),
        ("<eCitation>MRN-4711", "XML"),
        ("<eCitation>MRN-4711</other>", "XML"),
        ("<a>" * 100_000, "XML"),
        ("<eCitation/>", "no report text"),
        ('<a><AbstractText Label="NOTE">4711</AbstractText></a>', "no report text"),
        ('<a><AbstractText Label="FINDINGS">  </AbstractText></a>', "no report text"),
        (f"<!DOCTYPE x [{BOMB}]><x>&b9;</x>", "XML"),
        ("<!DOCTYPE x><x/>", "XML"),
        ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>', "XML"),
        ('<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><x/>', "XML"),
        ("<x>&unknown;</x>", "XML"),
        ("word " * 10_000, "50,000 characters; at most 20,000"),
        (
            f'<a><AbstractText Label="FINDINGS">{"word " * 10_000}</AbstractText></a>',
            "at most 20,000",
        ),
        ("a" * (MAX_REPORT_BYTES + 1), "more than 1,048,576 bytes"),
        (b"<" + b" " * MAX_REPORT_BYTES, "more than 1,048,576 bytes"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_no_report(data, words):
    with pytest.raises(ReportError) as info:
        parse_report(data)
    message = str(info.value)
    assert words in message
    assert message.endswith(".")
    assert "\n" not in message
    assert "4711" not in message


def test_the_longest_report_is_read():
    text = "a" * MAX_REPORT_CHARS
    assert parse_report(text).findings == text
    with pytest.raises(ReportError):
        parse_report(text + "a")


characters = st.characters(exclude_categories=("Cs", "Cc"))
sections = st.text(characters, max_size=60).map(lambda text: format_report(Report(findings=text))[10:])


@settings(max_examples=200, deadline=None)
@given(st.builds(Report, sections, sections, sections, sections))
def test_a_formatted_report_is_read_back(report):
    text = format_report(report)
    if not any(astuple(report)):
        assert text == ""
        return
    assert parse_report(text) == report
    assert parse_report(text.encode()) == report


def test_format_writes_each_section_on_one_line():
    report = Report("cough", "", "clear\n\n IMPRESSION: none", "  ")
    assert (
        format_report(report)
        == "INDICATION: cough\nCOMPARISON: \nFINDINGS: clear IMPRESSION: none\nIMPRESSION: "
    )
    assert parse_report(format_report(report)).findings == "clear IMPRESSION: none"


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)), st.sampled_from(TEXT_MODES))
def test_anything_else_is_a_report_or_refused(data, mode):
    try:
        text = read_report(data, mode)
    except ReportError:
        return
    assert text == " ".join(text.split())
    text.encode()


# --- select_text -------------------------------------------------------------------------------------------

REPORT = Report(
    indication="XXXX-year-old with cough",
    comparison="XXXX",
    findings="The heart is enlarged.\n  No XXXX effusion in XXXXXX view.",
    impression="Cardiomegaly.",
)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("indication", "-year-old with cough"),
        ("findings", "The heart is enlarged. No effusion in view."),
        ("full", "The heart is enlarged. No effusion in view. Cardiomegaly."),
        ("findings_masked", "The heart is [MASK]. No [MASK] in view."),
    ],
)
def test_each_mode(mode, text):
    assert select_text(REPORT, mode) == text
    assert read_report(format_report(REPORT), mode) == text


def test_findings_fall_back_to_the_impression():
    report = replace(REPORT, findings="XXXX")
    assert select_text(report, "findings") == "Cardiomegaly."
    assert select_text(report, "findings_masked") == "[MASK]."
    assert select_text(report, "full") == "Cardiomegaly."


@pytest.mark.parametrize("mode", TEXT_MODES)
def test_a_part_without_words_is_refused(mode):
    with pytest.raises(ReportError, match=r"no words in its (indication|findings or impression)"):
        select_text(Report(indication="XXXX", comparison="a word", findings=" ... ", impression="XXX"), mode)


def test_unknown_mode_lists_the_modes():
    with pytest.raises(ConfigError, match="indication, findings, findings_masked, full"):
        select_text(REPORT, "summary")  # type: ignore[arg-type]


def test_words_of_every_category_are_listed():
    assert tuple(LABEL_WORDS) == LABEL_KEYS


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Mild cardiomegaly and pleural effusions.", "Mild [MASK] and [MASK] [MASK]."),
        ("ATELECTASIS", "[MASK]"),
        ("Calcified granuloma", "[MASK] [MASK]"),
        ("clearly seen", "clearly seen"),
        ("the right apex", "the right apex"),
        ("No pneumothorax; osteophytes, tube.", "No [MASK]; [MASK], [MASK]."),
        ("Dextroscoliosis, tortuosity, hemidiaphragms", "[MASK], [MASK], [MASK]"),
        ("Hypoinflated lungs, median sternotomy wires.", "[MASK] lungs, median [MASK] [MASK]."),
        ("patchy streaky ribs, slightly larger heart", "patchy streaky ribs, slightly larger heart"),
    ],
)
def test_words_that_name_a_category_are_masked(text, masked):
    assert select_text(Report(findings=text), "findings_masked") == masked


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("XXXX", ""),
        ("a XXXX b", "a b"),
        ("x-XXXX.", "x- ."),
        ("XXXX/XXXX", "/"),
        ("9XXXXmm", ""),
        ("XXX", ""),
        ("XX", "XX"),
        ("type XXY", "type XXY"),
        ("a\n\tb\u00a0c", "a b c"),
    ],
)
def test_deidentified_words_are_dropped(text, clean):
    assert clean_text(text) == clean


def test_sections_are_the_fields_of_a_report():
    assert tuple(Report.__dataclass_fields__) == SECTIONS
