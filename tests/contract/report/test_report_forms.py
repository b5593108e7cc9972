"""The ways in which one report is written: decorated headings, line ends, characters, and what is no heading."""

import contextlib
import re
import time
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import ReportError
from contract.report.characters import normalize_text
from contract.report.format import decode_report
from contract.report.hl7 import read_observations
from contract.report.sections import read_parts
from contract.report.text import (
    SECTIONS,
    TEXT_MODES,
    Report,
    clean_text,
    format_report,
    parse_report,
    read_report,
)

# What comes before the name of a heading, behind it, and between it and its text.
DECORATIONS = {
    "plain": ("", ": "),
    "colon and space": ("", " : "),
    "colon and line": ("", ":\n"),
    "colon and dash": ("", ":-"),
    "bold": ("**", ":** "),
    "bold, colon outside": ("**", "**: "),
    "bold without colon": ("**", "** "),
    "bold alone": ("**", "**\n"),
    "italic": ("*", ":* "),
    "underlined": ("__", ":__ "),
    "underlined alone": ("__", "__\n"),
    "code": ("`", "`: "),
    "bracketed": ("[", "] "),
    "heading": ("## ", "\n"),
    "heading with colon": ("### ", ":\n"),
    "closed heading": ("# ", " #\n"),
    "bold heading": ("## **", "**\n"),
    "wiki": ("== ", " ==\n"),
    "stars": ("*** ", " ***\n"),
    "underlined by a rule": ("", "\n--------\n"),
    "underlined by signs of equality": ("", "\n=====\n"),
    "list": ("- ", ": "),
    "starred list": ("* ", ": "),
    "starred list, alone": ("* ", "\n"),
    "bullets": ("• ", ": "),
    "bold list": ("- **", "**: "),
    "numbered": ("1. ", ": "),
    "numbered in brackets": ("(2) ", ": "),
    "Roman": ("IV. ", ": "),
    "lettered": ("b) ", ": "),
    "numbered and bold": ("3) **", ":** "),
    "quoted": ("> ", ": "),
    "dash": ("", " - "),
    "en dash": ("", " \u2013 "),
    "em dash": ("", "\u2014"),
    "full-width colon": ("", "\uff1a"),
    "small colon": ("", "\ufe55 "),
    "alone": ("", "\n"),
    "alone, then an empty line": ("", "\n\n"),
    "indented": ("   \t", ":\t"),
}
LINE_ENDS = {
    **{"LF": "\n", "CR": "\r", "CRLF": "\r\n", "LINE SEPARATOR": "\u2028", "PARAGRAPH SEPARATOR": "\u2029"},
    **{"NEL": "\x85", "VT": "\v", "FF": "\f", "two LF": "\n\n", "written LF": r"\n", "written CRLF": r"\r\n"},
    **{"twice written LF": r"\\n", "HL7": r"\.br\ "[:-1], "HL7 space": r"\.sp1\ "[:-1], "tilde": "~"},
    **{"HL7 hexadecimal": r"\X0D\ "[:-1], "HTML": "<br>", "HTML, closed": "<BR />"},
}
CASES = {"upper": str.upper, "title": str.title}

WORDS = (
    "the heart lungs are clear normal small left effusion no acute finding findings impression of comparison is "
    "unchanged rib, costophrenic T8"
)
words = st.sampled_from(WORDS.split())
sentences = st.lists(words, min_size=2, max_size=7).map(lambda found: "A " + " ".join(found) + ".")
bodies = st.lists(sentences, min_size=1, max_size=3).map("\n".join)
reports = st.builds(Report, bodies, bodies, bodies, bodies)


def write(report: Report, decoration: str, line_end: str, case: str) -> str:
    before, behind = DECORATIONS[decoration]
    parts = zip(SECTIONS, astuple(report), strict=True)
    text = "\n".join(f"{before}{CASES[case](name)}{behind}{body}" for name, body in parts)
    return text.replace("\n", LINE_ENDS[line_end])


def collapse(report: Report) -> Report:
    return Report(*(" ".join(body.split()) for body in astuple(report)))


def check(text: str, report: Report) -> None:
    assert collapse(parse_report(text)) == collapse(report)
    assert parse_report(text.encode()) == parse_report(text)
    for mode in TEXT_MODES:
        assert read_report(text, mode) == read_report(format_report(report), mode)


PLAIN = Report("A cough.", "None of it.", "The heart is large.\nNo effusion.", "Cardiomegaly.")


@pytest.mark.parametrize("line_end", LINE_ENDS)
@pytest.mark.parametrize("decoration", DECORATIONS)
def test_every_decoration_with_every_line_end(decoration, line_end):
    if "without colon" in decoration or decoration == "bracketed":
        check(write(PLAIN, decoration, line_end, "upper"), PLAIN)  # "**Findings** are unchanged." is prose
        return
    for case in CASES:
        check(write(PLAIN, decoration, line_end, case), PLAIN)


@settings(max_examples=400, deadline=None)
@given(reports, st.sampled_from([*DECORATIONS]), st.sampled_from([*LINE_ENDS]))
def test_a_report_reads_alike_however_it_is_written(report, decoration, line_end):
    check(write(report, decoration, line_end, "upper"), report)


INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202a\u2066\ufe0f\u034f\x9b"
SPACES = "\u00a0\u2002\u2003\u2009\u202f\u3000\u1680"


@settings(max_examples=200, deadline=None)
@given(reports, st.data())
def test_invisible_signs_and_other_spaces_change_nothing(report, data):
    text = format_report(report)
    marks = data.draw(st.lists(st.tuples(st.integers(0, len(text)), st.sampled_from(INVISIBLE)), max_size=9))
    for place, sign in marks:
        text = text[:place] + sign + text[place:]
    check(text.replace(" ", data.draw(st.sampled_from(SPACES))), report)


def test_full_width_letters_and_ligatures_are_plain_ones():
    wide = "".join(chr(ord(sign) + 0xFEE0) for sign in "FINDINGS:Clear\\nIMPRESSION:XXXXNormal")
    assert parse_report(wide) == Report(findings="Clear", impression="XXXXNormal")
    assert (
        clean_text("pulmonary \ufb01brosis, 5\u00b0, 3 cm\u00b2, \u00bd")
        == "pulmonary fibrosis, 5\u00b0, 3 cm\u00b2, \u00bd"
    )
    bold = "".join(chr(0x1D400 + ord(sign) - ord("A")) for sign in "FINDINGS")
    assert parse_report(f"{bold}: Clear.").findings == "Clear."


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("> FINDINGS:\n> Clear lungs.\n>\n> > No effusion.", "Clear lungs.\n\nNo effusion."),
        ("**FINDINGS: Clear lungs.\nNo effusion.**", "Clear lungs.\nNo effusion."),
        ('"FINDINGS:\\nClear lungs."', "Clear lungs."),
        ("----------\nFINDINGS\n----------\nClear lungs.\n**********", "Clear lungs."),
        ("Finding: Clear lungs.", "Clear lungs."),
    ],
)
def test_decoration_of_the_whole_text(text, findings):
    assert parse_report(text) == Report(findings=findings)


@pytest.mark.parametrize(
    "text",
    [
        "Findings are unchanged.",
        "Findings, as before, are unchanged.",
        "FINDINGS ARE UNCHANGED.",
        "**Findings** are unchanged.",
        "- Findings are unchanged.",
        "Findings-related pain.",
        "Impressions of the teeth.",
        "The left lung has an\nimpression of the heart on it.",
        "There is an\nimpression\nof the heart.",
        "There are no acute\nFindings\nin the chest.",
        "NO ACUTE CARDIOPULMONARY\nFINDINGS.",
        "comparison - with the prior one it is smaller.",
        "- no effusion",
        "- no effusion\n- no fracture\n* clear lungs",
        "1. no effusion\n2. clear lungs",
        "# of ribs 5 and 6",
        "> 5 cm effusion",
        ">5 cm effusion\n>3 cm mass",
        "~5 mm nodule",
        "a nodule of ~5 mm, 3~4 ribs, ~half of the lung",
        "concerning for<BR>metastatic disease",
        "<3 cm effusion",
        "< 3 cm effusion",
        "<<large>> effusion",
        "<DATE> Clear lungs.",
        "<unknown> is the cause of the effusion",
        "heart \u2013 large",
        "Lungs, heart, bones\nare clear, normal, intact",
        "[Findings as before]",
        "{effusion}",
        "A1|b",
        "(Impression: none)",
        "F\u0130ND\u0130NGS: other letters",
    ],
)
def test_prose_is_no_heading(text):
    assert parse_report(text) == Report(findings=text)
    assert parse_report(f"FINDINGS: {text}") == Report(findings=text)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"\xef\xbb\xbf\n%PDF-1.4\nMRN-4711", "PDF"),
        (rb"{\rtf1\ansi MRN-4711}", "RTF"),
        (b'{"findings": "MRN-4711"}', "JSON"),
        (b' [{"findings": "MRN-4711"}]', "JSON"),
        (b"study_id,findings,impression\nMRN-4711,Clear,Normal\n", "CSV"),
        (b"Patient ID;Report Text;Date\nMRN-4711;Clear;1\n", "CSV"),
        (b"id\treport\r\nMRN-4711\tClear\r\n", "CSV"),
        (b'"id","report"\n"MRN-4711","Clear"\n', "CSV"),
        (b"PK\x03\x04\x14\x00word/document.xml", "Word"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1MRN-4711", r"\.doc"),
        (b"\0" * 128 + b"DICM\x02\x00", "DICOM"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"\xff\xd8\xff\xe0", "image"),
        (b"GIF89a", "image"),
        (b"II*\x00", "image"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"<!DOCTYPE html><p>MRN-4711</p>", "HTML"),
        (b"<html><body>MRN-4711</body></html>", "HTML"),
        (b"<p>FINDINGS: MRN-4711", "HTML"),
        (b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><p>MRN-4711</p></html>', "HTML"),
        (b"MSH|^~\\&|A\rPID|1||MRN-4711\rOBX|1|NM|1||5\r", "HL7"),
        (b"FHS|^~\\&\rMSH|^~\\&|A\rPID|MRN-4711\rMSH|^~\\&|B\r", "HL7"),
        (b"F\0I\0N\0", "UTF-16"),
        ("Gr\u00f6\u00dfe MRN-4711".encode("cp1252"), "Windows-1252"),
    ],
)
def test_another_file_is_refused_by_name(data, kind):
    with pytest.raises(ReportError, match=kind) as info:
        parse_report(data)
    message = str(info.value)
    assert message.endswith(".")
    assert re.search(r"[Gg]ive|[Ss]ave", message)
    assert "4711" not in message
    assert len(message) < 200
    if kind in {"PDF", "RTF", "JSON", "CSV", "HTML", "HL7"} and data.isascii():
        with pytest.raises(ReportError, match=kind):
            parse_report(data.decode())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_byte_order_mark_are_read(encoding):
    assert (
        parse_report("FINDINGS: Gr\u00f6\u00dfe 5\u00b0.".encode(encoding)).findings
        == "Gr\u00f6\u00dfe 5\u00b0."
    )


@pytest.mark.parametrize("encoding", ["iso-8859-1", "windows-1252", "utf-16", "utf-8"])
def test_xml_is_read_in_the_encoding_that_it_declares(encoding):
    body = '<a><AbstractText Label="FINDINGS">Gr\u00f6\u00dfe</AbstractText></a>'
    xml = f'<?xml version="1.0" encoding="{encoding}"?>{body}'
    assert parse_report(xml.encode(encoding)).findings == "Gr\u00f6\u00dfe"


MESSAGE = (
    "MSH|^~\\&|RIS|X|||20200101||ORU^R01|1|P|2.5\r"
    "PID|1||4711^^^A||QUINCY^ZOE\r"
    "OBR|1|||36643-5^XR CHEST 2V^LN\r"
    "OBX|1|TX|18785-6^Indication^LN||Cough||||||F\r"
    "OBX|2|FT|59776-5^Findings^LN||The heart \\T\\ lungs are \\H\\normal\\N\\.\\.br\\No effusion~ or mass||||||F\r"
    "OBX|3|FT|59776-5^Findings^LN||5\\S\\6, \\E\\ and \\F\\||||||F\r"
    "ZPI|1|TX|1||QUINCY 4711\r"
    "OBX|4|NM|1||5||||||F\r"
    "OBX|5|ED|PDF||^application^pdf^Base64^JVBERi0x||||||F\r"
    "OBX|6|ST|36643-5&IMP||Normal.||||||F\r"
)
MESSAGE_REPORT = Report(
    "Cough", "", "The heart & lungs are normal . No effusion or mass 5^6, \\ and |", "Normal."
)


@pytest.mark.parametrize(
    "text",
    [
        MESSAGE,
        MESSAGE.replace("\r", "\n"),
        MESSAGE.replace("\r", "\r\n"),
        f"\x0b{MESSAGE}\x1c\r",
        f"FHS|^~\\&|A\rBHS|^~\\&|A\r{MESSAGE}BTS|1\rFTS|1\r",
        MESSAGE.replace("|", "$"),
        MESSAGE.replace("No effusion~", "No effusion~\n"),
    ],
)
def test_the_text_of_an_hl7_message_is_read(text):
    expected = MESSAGE_REPORT
    if "$" in text:
        expected = Report(*(body.replace("|", "$") for body in astuple(expected)))
    report = collapse(parse_report(text))
    assert report == expected
    assert collapse(parse_report(text.encode())) == expected
    assert not re.search("QUINCY|4711", str(report))


def test_text_of_an_hl7_message_without_sections():
    lines = ("FINDINGS:", "Clear.", "IMPRESSION:", "Normal.")
    rows = "".join(f"OBX|{n}|TX|1^REPORT||{line}\r" for n, line in enumerate(lines, 1))
    assert parse_report("MSH|^~\\&|A\r" + rows) == Report(findings="Clear.", impression="Normal.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n\t\u00a0\u200b", "is empty"),
        ("\\n\\n", "is empty"),
        ("FINDINGS:\nIMPRESSION:", "no words in its findings or impression"),
        ("XXXX", "no words in its findings or impression"),
        ("FINDINGS: XXXX. XXXX", "no words in its findings or impression"),
        ("____", "no words in its findings or impression"),
        ("INDICATION: cough", "no words in its findings or impression"),
        ("**", "no words in its findings or impression"),
    ],
)
def test_a_report_without_words_is_a_clear_sentence(text, words):
    with pytest.raises(ReportError, match=words):
        read_report(text, "findings")


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "*",
            "#",
            "-",
            " ",
            ":",
            "\\",
            "~",
            "~ ",
            ". ~",
            ">",
            "> ",
            "\n",
            "\t",
            "_",
            "X",
            "I",
            "1. ",
            "[",
            '"',
            "\u200b",
        ),
        *(
            "FINDINGS:",
            "FINDINGS\n",
            "FINDINGS:~",
            "**FINDINGS:**x\n",
            "* FINDINGS ",
            "FINDINGS <br>",
            "FINDINGS-",
            " FINDINGS:",
            "findings and ",
            "findings   (",
            "clinical ",
            "EXAM:\n",
            "EXAM: x\n",
            "FINDINGS\t",
            "| FINDINGS |",
            'x" ',
        ),
        *(
            "<br>",
            "<br ",
            "<",
            "\\n",
            "\\r",
            "&nbsp;",
            "a,",
            '"a",',
            ". Findings: ",
            "HISTORY: a\n\nlungs a b ",
            "I reviewed ",
            "chest, ",
            "\uff26",
            "-- ",
            "OBX|",
            "\r",
            "{",
            "<a>",
            "a ",
        ),
    ],
    ids=repr,
)
def test_a_hostile_text_takes_time_that_grows_with_its_length(piece):
    """Far more than `MAX_REPORT_CHARS` for what comes behind that limit."""
    text = piece * (2**20 // len(piece.encode()))
    started = time.process_time()
    read_parts(normalize_text(text[: 2**16]))
    for read in (
        decode_report,
        lambda text: read_observations(f"MSH|^~\\&|A\rOBX|1|TX|||a{text}"),
        parse_report,
    ):
        with contextlib.suppress(ReportError):
            read(text)
    assert time.process_time() - started < 20  # quadratic ones take minutes
