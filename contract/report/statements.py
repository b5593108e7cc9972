"""Recognise sentences of a report that describe the image, and lines that only name the examination."""

import re
from typing import Final

from contract.report.headings import EXAM_WORDS, SENTENCE_END

_SEEN: Final = (
    r"(?:lungs?|heart|cardi\w+|mediastin\w+|hil(?:a|ar|um)|pleura\w*|effusions?|pneumothora\w+|costophrenic"
    r"|(?:hemi)?diaphragm\w*|pulmonary|vascul\w+|vessels?|consolidations?|infiltrat\w+|opacit\w+|airspace|atelecta\w+"
    r"|nodul\w+|mass(?:es)?|o?edema|silhouette|aort\w+|osseous|bones?|bony|ribs?|spine|thora\w+|chest|trachea\w*"
    r"|tubes?|catheters?|lines?|pacemaker|granuloma\w*|radiographs?|x-?rays?|views?|films?|scoliosis|parenchym\w+"
    r"|abnormalit(?:y|ies)|fractures?|pneumonia|disease|emphysema\w*)"
)
_STATE: Final = (
    r"(?:clear|normal|unremarkable|intact|enlarged|unchanged|stable|midline|within normal|well[ -]expanded"
    r"|hyperinflated)"
)
# "The lungs are clear.", "There is a small effusion.", "No pneumothorax.", "Heart size normal."
_STATEMENT: Final = re.compile(
    rf"\W*(?:(?:\w[\w/-]*,?[ ]){{0,5}}?{_SEEN}\b(?:[ ]\w[\w/-]*,?){{0,5}}?[ ]"
    r"(?:is|are|appears?|remains?|demonstrates?|shows?|reveals?)\b"
    rf"|there[ ](?:is|are)\b(?:[ ]\w[\w/-]*,?){{0,6}}?[ ]{_SEEN}\b"
    rf"|(?:no|without)[ ](?:\w[\w/-]*,?[ ]){{0,5}}?{_SEEN}\b"
    rf"|(?:\w[\w/-]*,?[ ]){{0,3}}?{_SEEN}(?:[ ]\w[\w/-]*,?){{0,2}}?[ ]{_STATE}\b"
    rf"|(?:clear|normal)[ ](?:\w[\w/-]*,?[ ]){{0,2}}?{_SEEN}\b)",
    re.IGNORECASE | re.ASCII,
)
_MENTION: Final = re.compile(rf"\b{_SEEN}\b", re.IGNORECASE | re.ASCII)
_ASKED: Final = re.compile(
    r"\b(?:rule out|r/o|evaluat\w+|assess\w*|check|concern\w*|suspect\w*|history of|h/o|since|ago|last|yesterday)\b",
    re.IGNORECASE,
)
_SENTENCE: Final = re.compile(r"[.!?]+(?:\s|\Z)|\n")
_NEXT_SENTENCE: Final = re.compile(r"[.!?;]\s+(?=[A-Z0-9])")
_TITLE_WORD: Final = re.compile(
    r"\b(?:x-?rays?|radiographs?|radiography|chest|cxr|views?|report|date|name|mrn|accession|patient)\b",
    re.IGNORECASE,
)
_EXAM: Final = re.compile(rf"[ \t]*{EXAM_WORDS}[ \t.]*", re.IGNORECASE | re.ASCII)
_MOST: Final = 200  # characters of a sentence that are searched


def is_statement(sentence: str, *, lax: bool = False) -> bool:
    """Whether a sentence describes the image. With `lax`, naming a part of the chest or a finding is enough."""
    head = " ".join(re.split(r"[.!?;](?:\s|$)", sentence[:_MOST].strip(), maxsplit=1)[0].split())
    if _ASKED.search(head) or "?" in sentence[: len(head) + 2]:
        return False
    return bool(_STATEMENT.match(head) or (lax and _MENTION.search(head)))


def find_statement(line: str, *, lax: bool = False) -> int | None:
    """Return where a sentence that describes the image begins, after the first sentence of a line; None without one."""
    ends = (match.end() for match in _NEXT_SENTENCE.finditer(line))
    return next((end for end in ends if is_statement(line[end : end + _MOST], lax=lax)), None)


def is_title(line: str) -> bool:
    """Whether a line names the examination or the patient and is not a sentence."""
    is_sentence = SENTENCE_END.search(line[-99:]) and re.search("[a-z]", line) and not _EXAM.fullmatch(line)
    return bool(_TITLE_WORD.search(line[:_MOST])) and not is_sentence and not is_statement(line)


def count_sentences(text: str) -> int:
    """Return the number of sentences or lines with a letter. "Dr. Who" counts as two."""
    return sum(bool(re.search(r"[^\W\d_]", piece)) for piece in _SENTENCE.split(text))
