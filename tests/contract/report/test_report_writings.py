"""One report as hospitals write it: other headings, on one line or many, with titles, signatures and first readings."""

from dataclasses import astuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract.errors import ReportError
from contract.report.text import Report, format_report, parse_parts, parse_report, read_report

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with dyspnea  // ?pleural effusion

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  ___

 FINDINGS:

 Cardiac size cannot be evaluated.  Large left pleural
 effusion is new.

 NOTIFICATION:  The findings were discussed with Dr. ___ at 3 pm.

 IMPRESSION:

 Large left pleural effusion

 RECOMMENDATION(S):  Follow-up in 6 weeks.
"""
MIMIC_WITHOUT_FINDINGS = """                                 FINAL REPORT
 AP CHEST, 5:27 A.M., ___.

 HISTORY:  Respiratory failure.

 IMPRESSION:  AP chest compared to ___, 3:27 p.m.:

 Moderate right pleural effusion has increased since ___.
"""
MIMIC_WITHOUT_HEADING = """                                 FINAL REPORT
 REASON FOR EXAMINATION:  Followup of the patient with pneumothorax.

 PA and lateral chest radiographs were reviewed in comparison to ___.

 Right pneumothorax is small, unchanged.
"""
MIMIC_WET_READ = """                                 WET READ: ___ ___ 9:54 PM
  no acute process
 ______________________________________________________________________________
                                 FINAL REPORT
 HISTORY:  Shortness of breath.

 IMPRESSION:  Small effusion.
"""
SUBHEADINGS = (
    "Lungs: Clear.\nHeart: Normal size.\nBones: Intact.\nLines and tubes: None.\nOther findings: None."
)
SIGNED = (
    "Electronically signed by: John Doe, MD\nDictated: 1/2/2020",
    "Dictated by: A B 1/2/2020",
    "I, Dr. Smith, have reviewed the images and agree with the above.\nATTENDING: Smith, MD",
    "Attending Attestation: I have personally reviewed the images.",
    "Dr A. Smith\nRadiologist: A. Smith",
    "This report was electronically signed by A. Smith.",
    "END OF REPORT",
)


def collapse(report: Report) -> Report:
    return Report(*(" ".join(body.split()) for body in astuple(report)))


@pytest.mark.parametrize(
    ("text", "report"),
    [
        # Of the issue.
        ("INDICATION: Cough. FINDINGS: Large left effusion.", ("Cough.", "", "Large left effusion.", "")),
        (
            "CLINICAL HISTORY: pneumonia last year. The lungs are clear.",
            ("pneumonia last year.", "", "The lungs are clear.", ""),
        ),
        (
            "INDICATION: cough. TECHNIQUE: PA.\n\nLarge left effusion. Heart enlarged.\n\nIMPRESSION: Normal.",
            ("cough.", "", "Large left effusion. Heart enlarged.", "Normal."),
        ),
        (
            "INDICATION: cough\n\nLarge left effusion. Heart enlarged.\n\nIMPRESSION: Normal.",
            ("cough", "", "Large left effusion. Heart enlarged.", "Normal."),
        ),
        ("FINDINGS AND IMPRESSION: Large left effusion.", ("", "", "Large left effusion.", "")),
        ("Indication: cough. Findings and impression: Effusion.", ("cough.", "", "Effusion.", "")),
        # MIMIC-CXR.
        (
            MIMIC,
            (
                "___ year old woman with dyspnea // ?pleural effusion",
                "___",
                "Cardiac size cannot be evaluated. Large left pleural effusion is new.",
                "Large left pleural effusion Follow-up in 6 weeks.",
            ),
        ),
        (
            MIMIC_WITHOUT_FINDINGS,
            (
                "Respiratory failure.",
                "",
                "",
                "AP chest compared to ___, 3:27 p.m.: Moderate right pleural effusion has increased since ___.",
            ),
        ),
        (
            MIMIC_WITHOUT_HEADING,
            (
                "Followup of the patient with pneumothorax.",
                "",
                "PA and lateral chest radiographs were reviewed in comparison to ___. "
                "Right pneumothorax is small, unchanged.",
                "",
            ),
        ),
        (MIMIC_WET_READ, ("Shortness of breath.", "", "", "Small effusion.")),
        # US hospitals.
        (
            f"FINDINGS:\n{SUBHEADINGS}\nIMPRESSION:\n1. Normal.\n2. Clear.",
            ("", "", SUBHEADINGS, "1. Normal. 2. Clear."),
        ),
        *(
            (f"FINDINGS: Clear.\nIMPRESSION: Normal.\n\n{signed}", ("", "", "Clear.", "Normal."))
            for signed in SIGNED
        ),
        (
            "FINDINGS: Clear. IMPRESSION: Normal. RECOMMENDATION: CT. Signed by Dr. A on 1/2/2020.",
            ("", "", "Clear.", "Normal. CT."),
        ),
        (
            "Accession: 123\nExam: XR CHEST\nExam Date: 1/2/2020\nHistory: cough\n\nLungs clear.\n\nImpression: normal",
            ("cough", "", "Lungs clear.", "normal"),
        ),
        (
            "CHEST (2 VIEWS) CLINICAL STATEMENT: Cough. COMPARISON: None. FINDINGS: Clear. IMPRESSION: Normal.",
            ("Cough.", "None.", "Clear.", "Normal."),
        ),
        (
            "INDICATION: Pain. TECHNIQUE: Two views. COMPARISON: None. The lungs are clear. IMPRESSION: Normal.",
            ("Pain.", "None.", "The lungs are clear.", "Normal."),
        ),
        ("IMPRESSION: Normal.\n\nFINDINGS: Clear.\n\nINDICATION: cough", ("cough", "", "Clear.", "Normal.")),
        (
            "FINDINGS: Clear.\nIMPRESSION: Normal.\nADDENDUM: A nodule.",
            ("", "", "Clear.", "Normal. A nodule."),
        ),
        (
            "ADDENDUM:\nA nodule.\n\nORIGINAL REPORT:\nFINDINGS: Clear.\nIMPRESSION: Normal.",
            ("", "", "Clear.", "A nodule. Normal."),
        ),
        (
            "WET READ: small effusion\nFINAL REPORT\nFINDINGS: Large effusion.",
            ("", "", "Large effusion.", ""),
        ),
        ("WET READ: small effusion", ("", "", "small effusion", "")),
        (
            "EXAM: CHEST RADIOGRAPH\nREASON: cough\nFINDINGS/IMPRESSION:\n1. Clear.",
            ("cough", "", "1. Clear.", ""),
        ),
        (
            "COMPARISON: CT 1/2/2019. Films 3/4/2020.\nFINDINGS: Clear.",
            ("", "CT 1/2/2019. Films 3/4/2020.", "Clear.", ""),
        ),
        (
            "COMPARISON: 01/02/2019.\n\nThe lungs are clear.\n\nIMPRESSION: Normal.",
            ("", "01/02/2019.", "The lungs are clear.", "Normal."),
        ),
        (
            "TECHNIQUE: PA.\nCOMPARISON: None.\nThe lungs are clear.",
            ("", "None.", "The lungs are clear.", ""),
        ),
        ("TECHNIQUE: PA and lateral. The lungs are clear.", ("", "", "The lungs are clear.", "")),
        (
            "FINDINGS: Heart large. Comparison: stable since 2019. IMPRESSION: Normal.",
            ("", "stable since 2019.", "Heart large.", "Normal."),
        ),
        # United Kingdom.
        (
            "Clinical details: Cough ?pneumonia\n\nXR Chest: The lungs are clear.\n\nOpinion: Normal.",
            ("Cough ?pneumonia", "", "The lungs are clear.", "Normal."),
        ),
        (
            "Clinical History:\nCough.\n\nReport:\nClear lungs.\n\nConclusion:\nNormal.",
            ("Cough.", "", "Clear lungs.", "Normal."),
        ),
        (
            "XR Chest : 01/02/2020\nClinical Indication: cough\nReport: Heart size normal.\n\nDr A. Smith",
            ("cough", "", "Heart size normal.", ""),
        ),
        # Signs between headings and text.
        ("(Findings) Clear lungs.\n(Impression) Normal.", ("", "", "Clear lungs.", "Normal.")),
        (
            "Indication Cough\nFindings Lungs clear.\nImpression Normal.",
            ("Cough", "", "Lungs clear.", "Normal."),
        ),
        (
            "INDICATION Cough. FINDINGS Lungs clear. IMPRESSION Normal.",
            ("Cough.", "", "Lungs clear.", "Normal."),
        ),
        ("FINDINGS:Clear.IMPRESSION:Normal.", ("", "", "Clear.", "Normal.")),
        ("History:cough Findings:clear lungs Impression:normal", ("cough", "", "clear lungs", "normal")),
        ("HISTORY: COUGH FINDINGS: LUNGS CLEAR IMPRESSION: NORMAL", ("COUGH", "", "LUNGS CLEAR", "NORMAL")),
        ("indication: cough. findings: clear. impression: normal.", ("cough.", "", "clear.", "normal.")),
        ("1. FINDINGS: Clear. 2. IMPRESSION: Normal.", ("", "", "Clear.", "Normal.")),
        # Other languages, where the heading cannot be an English word.
        (
            "INDICACIÓN: Tos.\nHALLAZGOS: Pulmones claros.\nIMPRESIÓN: Normal.",
            ("Tos.", "", "Pulmones claros.", "Normal."),
        ),
        (
            "Fragestellung: Pneumonie?\nBefund: Kein Erguss.\nBeurteilung: Normal.",
            ("Pneumonie?", "", "Kein Erguss.", "Normal."),
        ),
        (
            "Indication : toux.\nRésultats : poumons clairs.\nConclusion : normal.",
            ("toux.", "", "poumons clairs.", "normal."),
        ),
        # A diagnosis is the reason before the findings and the conclusion behind them.
        ("DIAGNOSIS: COPD.\nFINDINGS: Clear.", ("COPD.", "", "Clear.", "")),
        ("FINDINGS: Clear.\nDIAGNOSIS: Normal.", ("", "", "Clear.", "Normal.")),
    ],
)
def test_writing(text, report):
    assert collapse(parse_report(text)) == collapse(Report(*report))
    assert collapse(parse_report(format_report(parse_report(text)))) == collapse(Report(*report))


@pytest.mark.parametrize(
    "text",
    [
        "The heart is large. Age: related changes. Time: 5 pm. No effusion.",
        "The cardiac findings: normal. Bony findings: none.",
        "Lungs clear. The results: normal.",
        "The heart is large. No prior studies: none available.",
        "Views are limited.\nReports of fever.\nSummary of it all.",
        "Dr. Smith was told of the effusion.",
        "The technique: poor.",
    ],
)
def test_prose_is_findings(text):
    assert parse_report(text) == Report(findings=text)
    assert parse_report(f"FINDINGS: {text}") == Report(findings=text)


@pytest.mark.parametrize(
    "indication",
    [
        "cough. Fever. Weight loss.",
        "55-year-old, rule out pneumonia. History of lung cancer. There is known COPD.",
        "evaluate for pneumothorax. There is concern for pneumonia.",
        "Pleural effusion drained. Is the chest tube in place?",
        "cough,\nfever\nand chest pain",
    ],
)
def test_a_history_stays_one(indication):
    report = Report(indication, "", "", "Normal.")
    assert parse_report(f"HISTORY: {indication}\nIMPRESSION: Normal.") == report
    with pytest.raises(ReportError, match=r"findings or impression \(only in its indication\)"):
        read_report(f"HISTORY: {indication}", "findings")


@pytest.mark.parametrize(
    "text", ["NAME: X\nMRN: 1\nDATE: 2", "VIEWS: PA\nSTUDY: chest", "CHEST X-RAY\nHISTORY: cough"]
)
def test_a_report_without_findings_is_refused(text):
    with pytest.raises(ReportError, match="no words in its findings or impression"):
        read_report(text, "full")


def test_parts_say_what_was_read_as_what():
    text = (
        "CHEST X-RAY\nCLINICAL HISTORY: cough. TECHNIQUE: PA.\n\nThe lungs are clear.\n\nCONCLUSION: Normal."
    )
    assert [(part.heading, part.section) for part in parse_parts(text)] == [
        ("", ""),
        ("clinical history", "indication"),
        ("technique", ""),
        ("", "findings"),
        ("conclusion", "impression"),
    ]


WHOLE = Report(
    "Cough and fever.",
    "Chest radiograph of 1/2/2019.",
    "The heart is enlarged. There is a small left effusion.",
    "Cardiomegaly. Small effusion.",
)
TECHNIQUE = "PA and lateral views."
NAMES = {
    "indication": (
        *("indication", "history", "clinical history", "clinical information", "clinical details"),
        *("reason for exam", "reason for examination", "reason for study", "clinical indication", "reason"),
        *("indications", "chief complaint", "indication/history"),
    ),
    "technique": ("technique", "exam", "examination", "procedure", "study", "views"),
    "comparison": ("comparison", "comparisons", "prior studies", "previous examination"),
    "findings": ("findings", "finding", "radiological findings", "results", "description"),
    "impression": ("impression", "conclusion", "opinion", "impressions", "summary", "final impression"),
}
COLONS = (": ", ":", " : ", ":\t")
LINE_STARTS = (*COLONS, ":\n", " - ", " \u2014 ")
BARE = ("\n", " ", "\t")  # behind strong names in capitals
STRONG = {
    "indication",
    "history",
    "clinical history",
    "technique",
    "comparison",
    "findings",
    "impression",
    "conclusion",
}
TITLES = ("", "CHEST X-RAY, 2 VIEWS\n", "FINAL REPORT\n\n", "XR CHEST PA AND LATERAL\n\nDATE: 1/2/2020\n")


@st.composite
def writings(draw) -> str:
    """Draw a text that says what `WHOLE` says."""
    order = ["indication", "technique", "comparison", "findings", "impression"]
    if draw(st.booleans()):
        order.remove("technique")
    unheaded = draw(st.booleans())
    if not unheaded and draw(st.booleans()):
        order.insert(0, order.pop())  # the impression comes first
    case = draw(st.sampled_from((str.upper, str.capitalize, str.title)))
    text = draw(st.sampled_from(TITLES))
    for place, name in enumerate(order):
        body = TECHNIQUE if name == "technique" else getattr(WHOLE, name)
        between = draw(st.sampled_from((" ", "\n", "\n\n", "\n\n\n"))) if place else ""
        if name == "findings" and unheaded:
            text += f"{between}{body}"
            continue
        heading = draw(st.sampled_from(NAMES[name]))
        signs = COLONS if between == " " else LINE_STARTS
        if heading in {"study", "views"} and case is not str.upper:
            signs = COLONS  # "Views - adequate" is prose
        if case is str.upper and heading in STRONG and between != " ":
            signs = (*signs, *BARE)
        text += f"{between}{case(heading)}{draw(st.sampled_from(signs))}{body}"
    return text + draw(st.sampled_from(("", "\n", *(f"\n\n{signed}" for signed in SIGNED))))


@settings(max_examples=400, deadline=None)
@given(writings())
def test_every_writing_of_a_report_gives_the_same_sections(text):
    assert collapse(parse_report(text)) == WHOLE


@settings(max_examples=100, deadline=None)
@given(writings())
@example("Impression - \nReason - Cough and fever. Comparison: Chest radiograph of 1/2/2019. Findings: ")
def test_every_writing_without_its_findings_and_impression_says_so(text):
    """Neither is invented out of what else the report holds."""
    for body in (WHOLE.findings, WHOLE.impression):
        text = text.replace(body, "")
    with pytest.raises(ReportError, match="no words in its findings or impression"):
        read_report(text, "full")
