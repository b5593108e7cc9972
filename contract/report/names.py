"""The names that hospitals give to the parts of a report, and the kind of each part.

A strong name ("FINDINGS") is a heading if a colon, a dash or nothing follows it. A weak name ("REPORT", "DATE") is
also common in sentences, so it needs a colon or a line of its own.
"""

import re
from typing import Final, Literal, NamedTuple

SECTIONS: Final = ("indication", "comparison", "findings", "impression")
# Kinds of parts. Besides the sections: "diagnosis" is the conclusion, or the reason for the examination if the
# findings follow it; a "report" holds sections or findings; "preliminary" is a first reading that the final one
# replaces; "record" holds dates, names and numbers; "closing" says who signed and who was notified.
Kind = Literal[
    "findings",
    "impression",
    "comparison",
    "indication",
    "addendum",
    "diagnosis",
    "technique",
    "exam",
    "report",
    "preliminary",
    "record",
    "closing",
]

AND: Final = r" *(?:/|&(?:amp;)?|\+|,|\band\b) *"
_PREFIX: Final = (
    r"(?:(?:past medical|clinical|patient|brief|relevant|pertinent|medical|final|preliminary|overall|imaging"
    r"|radiographic|radiological?|radiology) )?"
)
_STUDY: Final = r"(?:exam(?:ination)?s?|stud(?:y|ies)|procedures?)"
_FILMS: Final = rf"(?:{_STUDY}|imaging|films?|radiographs?|x-?rays?|reports?)"
_CONCLUDING: Final = r"(?:impressions?|conclusions?|opinions?|recommendations?|summary|plan|advice|diagnosis)"

_STRONG: Final[dict[Kind, str]] = {
    "findings": rf"{_PREFIX}findings?(?:{AND}{_CONCLUDING})?|(?:impressions?|conclusions?){AND}findings?",
    "impression": rf"{_PREFIX}(?:impressions?|conclusions?)(?:{AND}{_CONCLUDING})?|opinions?",
    "indication": (
        rf"{_PREFIX}(?:indications?(?:{AND}history)?|history(?:{AND}(?:indications?|reason for {_STUDY}))?)"
        rf"|reasons? for (?:the |this )?(?:{_STUDY}|imaging)(?:{AND}history)?"
        r"|clinical (?:data|details|information|question)"
    ),
    "comparison": rf"{_PREFIX}comparisons?",
    "technique": "techniques?",
    "exam": "exam(?:ination)?|procedure",
}
# Longer names come before shorter ones with the same start ("study date", "study"). The German, Spanish, French,
# Italian and Portuguese names are words that no English sentence begins with.
_WEAK: Final[dict[Kind, str]] = {
    "record": (
        rf"(?:(?:{_STUDY}|service|report|order) )?(?:date(?:{AND}time)?|time)(?: of (?:{_STUDY}|service|birth|report))?"
        r"|dob|patient(?: (?:name|id|age|sex|number))?(?! *[a-z])|name|age|sex|gender|mrn|medical record (?:number|no)"
        r"|accession(?: (?:number|no))?|(?:referring|ordering|requesting) (?:physician|provider|doctor|clinician)"
        r"|ward|facility|hospital|department|priority"
    ),
    "closing": (
        r"(?:electronically |digitally )?(?:signed|verified|authenticated|approved|finali[sz]ed)(?: by| on)?"
        r"|(?:dictated|transcribed|interpreted|read|reported|reviewed|typed)(?: by| on)|dictated|transcribed"
        r"|transcriptionist|(?:attending|teaching)(?: (?:physician|radiologist))?(?: (?:attestation|statement))?"
        r"|attestation|residents?|(?:reporting |interpreting |consultant )?radiologist|signature"
        r"|notifications?|communications?|critical results?|cc|end of report|report status"
    ),
    "preliminary": r"wet read(?:ing)?|prelim(?:inary)? (?:read(?:ing)?|report|interpretation)|(?:initial|verbal) read",
    "report": (
        r"(?:(?:final|original|official|formal|amended|corrected) )?(?:(?:chest )?(?:radiology|radiological|x-?ray) )?"
        r"reports?(?: (?:text|body))?|final read(?:ing)?|body of report|informe|bericht|compte rendu|referto"
    ),
    "indication": (
        rf"(?:clinical )?indications? for (?:the |this )?(?:{_STUDY}|imaging|test)"
        r"|reasons? for (?:the |this )?(?:visit|referral|request|consultation|order|test|x-?ray|radiograph|cxr)"
        r"|clinical (?:presentation|context|summary|notes?|background|concerns?|diagnosis|problem|statement|hx|info)"
        rf"|clinical history{AND}(?:reason|symptoms)|(?:chief|presenting) complaints?|(?:signs?{AND})?symptoms?"
        r"|history of present(?:ing)? illness|reasons?(?! *for\b)|clinical(?! *[a-z])|hpi|hx"
        r"|(?:admitting|admission|provisional|working|referral) diagnos[ei]s|referral (?:reason|details|information)"
        r"|indicaci[oóÓ]n(?:es)?|datos cl[iíÍ]nicos|informaci[oóÓ]n cl[iíÍ]nica|motivo(?: de consulta)?|antecedentes"
        r"|klinische (?:angaben|fragestellung)|indikation|fragestellung|anamnese"
        r"|renseignements cliniques|motif|quesito clinico|indica[cçÇ][aãÃ]o"
    ),
    "comparison": (
        rf"(?:prior|previous|comparison|relevant prior) {_FILMS}|compared (?:to|with)"
        r"|comparaci[oóÓ]n|comparaison|vergleich|voraufnahmen?"
    ),
    "findings": (
        r"results?|descriptions?|observations?|(?:chest|x-?ray|cxr) findings"
        r"|hallazgos|befunde?|r[eéÉ]sultats?|reperti|achados"
    ),
    "impression": (
        rf"summary(?:{AND}{_CONCLUDING})?|interpretations?|assessment(?:{AND}plan)?|comments?|recommendations?"
        r"|diagnostic impression|(?:final|radiological|radiographic|imaging) diagnos[ei]s"
        r"|impresi[oóÓ]n(?: diagn[oóÓ]stica)?|conclusi(?:[óÓ]n|ones)|beurteilung|zusammenfassung|conclusioni"
        r"|impress[aãÃ]o|conclus[aãÃ]o"
    ),
    "diagnosis": "diagnos[ei]s",
    "addendum": r"addend(?:um|a)(?: #?[0-9]{1,2})?",
    "technique": (
        r"technical (?:factors|quality|details)|views?(?: obtained)?|projections?|protocol|t[eéÉ]cnica|technik"
    ),
    "exam": (
        rf"{_STUDY} (?:performed|type|name|title|description|requested|ordered)|type of {_STUDY}"
        r"|stud(?:y|ies)|exam(?:ination)?s|procedures|modality"
    ),
}


class Part(NamedTuple):
    """A part of a report: the name of its heading in small letters ("" without one), its section, its text.

    The section is "" if the part is not read.
    """

    heading: str
    section: str
    text: str


def _join(names: dict[Kind, str]) -> str:
    return re.sub(r" (\*?)", lambda blank: rf"[ \t]{blank[1] or '+'}", "|".join(names.values()))


STRONG_NAME: Final = _join(_STRONG)
WEAK_NAME: Final = _join(_WEAK)
_KINDS: Final = tuple(
    (kind, re.compile(pattern, re.IGNORECASE | re.ASCII))
    for names in (_STRONG, _WEAK)
    for kind, pattern in names.items()
)
# Words of a heading -> its section. If a heading has several of the words, the first entry counts.
_SECTION_OF: Final = {
    "finding": "findings",
    **dict.fromkeys(("impression", "conclusion", "opinion"), "impression"),
    "comparison": "comparison",
    **dict.fromkeys(("indication", "history", "reason", "clinical"), "indication"),
}


def find_kind(name: str) -> Kind:
    """Return the kind of the part with this heading, one of the names here."""
    plain = " ".join(name.split())
    return next(kind for kind, pattern in _KINDS if pattern.fullmatch(plain))


def find_section(words: str) -> str:
    """Return the section that the words of a heading indicate; "" if none of `SECTIONS`."""
    lowered = words.lower()
    return next((section for word, section in _SECTION_OF.items() if word in lowered), "")
