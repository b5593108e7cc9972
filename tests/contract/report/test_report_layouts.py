"""Layouts of reports that hospitals write: headings within a line, joined ones, other names, tables, JSON strings."""

import random
import tarfile

import numpy as np
import pytest

from contract.errors import ReportError
from contract.notes import note_reports
from contract.report.text import SECTIONS, TEXT_MODES, Report, TokenBatch, parse_report, read_report


@pytest.mark.parametrize(
    ("text", "report"),
    [
        (
            "INDICATION: cough. FINDINGS: Clear lungs. IMPRESSION: Normal.",
            Report("cough.", "", "Clear lungs.", "Normal."),
        ),
        (
            "INDICATION: cough FINDINGS: Clear lungs IMPRESSION: Normal",
            Report("cough", "", "Clear lungs", "Normal"),
        ),
        (
            "Findings: Clear lungs. Impression: Normal.",
            Report(findings="Clear lungs.", impression="Normal."),
        ),
        (
            "**FINDINGS:** Clear lungs. **IMPRESSION:** Normal.",
            Report(findings="Clear lungs.", impression="Normal."),
        ),
        ("- FINDINGS: Clear.", Report(findings="Clear.")),
        ("> **IMPRESSION:** Normal.", Report(impression="Normal.")),
        ("FINDINGS:\nChest Comparison: clear.", Report(findings="Chest Comparison: clear.")),
        ("Clear lungs. IMPRESSION: Normal.", Report(findings="Clear lungs.", impression="Normal.")),
        *(
            (f"INDICATION: cough\n{joined}: Clear lungs.", Report("cough", "", "Clear lungs."))
            for joined in (
                "FINDINGS/IMPRESSION",
                "Findings / Impression",
                "FINDINGS AND IMPRESSION",
                "Findings & Impression",
                "Impression/Findings",
                "FINDINGS &amp; CONCLUSION",
            )
        ),
        *(
            (
                f"{name}: rule out pneumothorax\nIMPRESSION: Normal.",
                Report("rule out pneumothorax", "", "", "Normal."),
            )
            for name in (
                "HISTORY",
                "Clinical history",
                "CLINICAL INDICATION",
                "Reason for exam",
                "REASON FOR THE EXAMINATION",
                "Clinical information",
                "INDICATION/HISTORY",
            )
        ),
        (
            "EXAM: CHEST 2 VIEWS\nTECHNIQUE: PA and lateral\nFINDINGS: Clear.\nCONCLUSION: Normal.",
            Report(findings="Clear.", impression="Normal."),
        ),
        ("TECHNIQUE:\nPA and lateral.\nFINDINGS: Clear.", Report(findings="Clear.")),
        (
            "FINDINGS:\nExam: limited by rotation.\nThe heart is large.\nIMPRESSION: As above.",
            Report(findings="The heart is large.", impression="As above."),
        ),
        (
            "EXAM: CHEST\nThe lungs are clear.\nIMPRESSION: Normal.",
            Report(findings="The lungs are clear.", impression="Normal."),
        ),
        ("EXAM: Clear lungs.", Report(findings="Clear lungs.")),
        ("CHEST X-RAY, 2 VIEWS\nHISTORY: cough\nIMPRESSION: Normal.", Report("cough", "", "", "Normal.")),
        ("Clear lungs\nIMPRESSION: Normal.", Report(findings="Clear lungs", impression="Normal.")),
        *(
            (
                f"FINDINGS{sign}Clear lungs.\nIMPRESSION{sign}Normal.",
                Report(findings="Clear lungs.", impression="Normal."),
            )
            for sign in (
                "\t",
                " ",
                "   ",
                ". ",
                "; ",
                " = ",
                " | ",
                " > ",
                " -> ",
                "..... ",
                "\u02d0 ",
                " (PA and lateral): ",
            )
        ),
        (
            "| Section | Text |\n|---|---|\n| Findings | Clear lungs |\n| Impression | Normal |",
            Report(findings="Clear lungs", impression="Normal"),
        ),
        (
            "\U0001f4cb FINDINGS: Clear.\n\u2705 IMPRESSION: Normal.",
            Report(findings="Clear.", impression="Normal."),
        ),
        (
            '"FINDINGS: 5\\u00b0.\\nIMPRESSION: \\"Normal\\""',
            Report(findings="5\u00b0.", impression='"Normal"'),
        ),
        (
            "FINDINGS: seen at 12:30: clear.\n1. No effusion. 2. Normal.",
            Report(findings="seen at 12:30: clear.\n1. No effusion. 2. Normal."),
        ),
    ],
)
def test_layout(text, report):
    assert parse_report(text) == report
    assert parse_report(text.encode()) == report


@pytest.mark.parametrize(
    "text",
    [
        "History of COPD.",
        "HISTORY OF COPD.",
        "The exam: limited.",
        "Technique was poor.",
        "There are no acute FINDINGS: clear.",
        "CONCLUSION IS PENDING.",
        "An effusion and\\or a mass, heart\\normal, no\\nodule, base\\new.",
        "Clear lungs (history: none).",
        "Opinion differs.",
    ],
)
def test_prose(text):
    assert parse_report(text) == Report(findings=text)


def test_headings_within_lines_count_unless_lines_begin_with_them():
    text = "INDICATION: cough\nFINDINGS: clear IMPRESSION: none"
    assert parse_report(text) == Report("cough", "", "clear", "none")
    text = "FINDINGS: clear. Impression: none\nIMPRESSION: normal"
    assert parse_report(text) == Report("", "", "clear. Impression: none", "normal")


def test_sections_of_an_hl7_message_by_other_names():
    rows = ("History^LN||Cough", "Findings^LN||Clear.", "Conclusion^LN||Normal.")
    text = "MSH|^~\\&|A\r" + "".join(f"OBX|{n}|TX|1^{row}\r" for n, row in enumerate(rows, 1))
    assert parse_report(text) == Report("Cough", "", "Clear.", "Normal.")


def test_words_that_the_vocabulary_lacks_are_told():
    batch = TokenBatch(
        *(np.ones((2, 32), np.int64),) * 2, np.zeros((2, 32, 2), np.int32), (False, True), (True, False)
    )
    first, second = note_reports(batch, [(), ()], text_mode="findings", max_length=32)
    assert ["not in the model's vocabulary" in sentence for sentence in first.warnings] == [True]
    assert ["longer than 32 tokens" in sentence for sentence in second.warnings] == [True]


BEFORE = ("", "**", "## ", "- ", "1. ", "> ", "\u2022 ", "[", "__", "\u2705 ", "   ")
BEHIND = (": ", " : ", ":\n", "\n", "\n\n", " - ", " \u2014 ", "\uff1a", "\t", " = ", ":** ")
ENDS = ("\n", "\r", "\r\n", "\u2028", "\u2029", "\x85", "\v", "\f", "\\n", "\\r\\n", "\\.br\\", "\\X0D\\")
SPACES = (" ", "\u00a0", "\u2009", "\u3000")
INVISIBLE = ("", "", "\u200b", "\u00ad", "\ufeff", "\u2060")
CLOSING = {"**": "**", "[": "]", "__": "__"}


def decorate(sections: dict[str, str], chance: random.Random) -> str:
    """Write sections, each with another decoration, and the whole with one kind of line ends and spaces."""
    parts = []
    for name, body in sections.items():
        before, behind = chance.choice(BEFORE), chance.choice(BEHIND)
        closing = CLOSING.get(before, "")
        if closing and "**" in behind:
            behind = ": "
        parts.append(f"{before}{name.upper()}{closing}{behind.replace('**', '')}{body}")
    text = chance.choice(("\n", "\n\n")).join(parts)
    text = text.replace(" ", chance.choice(SPACES) + chance.choice(INVISIBLE))
    return text.replace("\n", chance.choice(ENDS))


def read(text: str, mode: str) -> str | None:
    try:
        return read_report(text, mode)
    except ReportError:
        return None


def test_real_reports_read_alike_in_a_mixture_of_decorations(openi_directory):
    chance = random.Random(11)
    with tarfile.open(openi_directory / "NLMCXR_reports.tgz") as archive:
        members = chance.sample([member for member in archive if member.isfile()], 100)
        reports = [archive.extractfile(member).read() for member in members]
    compared = 0
    for data in reports:
        report = parse_report(data)
        sections = {
            name: " ".join(getattr(report, name).split()) for name in SECTIONS if getattr(report, name)
        }
        text = decorate(sections, chance)
        for mode in TEXT_MODES:
            assert read(text, mode) == read(data, mode), text
            compared += 1
    assert compared == 400
