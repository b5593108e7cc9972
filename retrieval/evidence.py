"""Why a case was found: the labels that it shares with the query, and the sentence of its report that fits best."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

MAX_EXCERPT_CHARS: Final = 300
MAX_EXCERPTS: Final = 100  # of the first hits of a query; a report may have 20,000 characters
_SENTENCE: Final = re.compile(r"[^.!?\n]+[.!?]*")
_WORD: Final = re.compile(r"\w+")
# A stored report may be a file of XML. "Nodule <5 mm" is no tag.
_TAG: Final = re.compile(r"</?[A-Za-z][^<>\n]*>|<[?!][^<>]*>")
# Words that say nothing of what a sentence is about.
_COMMON: Final = frozenset(
    {
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "by",
        "for",
        "from",
        "has",
        "have",
        "in",
        "is",
        "it",
        "its",
        "of",
        "on",
        "or",
        "that",
        "the",
        "there",
        "this",
        "to",
        "was",
        "were",
        "with",
    }
)


@dataclass(frozen=True)
class Asked:
    """What is known of a query beside its embedding: its labels, and the words of its text."""

    labels: frozenset[str] = frozenset()
    words: frozenset[str] = field(default=frozenset(), repr=False)

    def list_shared(self, labels: Iterable[str]) -> list[str]:
        """Return the labels that the query has too, in their order."""
        return [label for label in labels if label in self.labels]

    def find_excerpt(self, report: str) -> str:
        """Return the sentence of a report that has most different words in common with the query's text.

        A sentence ends with a full stop, a question mark, an exclamation mark or a line. Of several, the first counts.
        Case is ignored, and so are words such as "the". Without a common word the result is "". A longer sentence is
        cut after `MAX_EXCERPT_CHARS` characters.
        """
        best, most = "", 0
        for sentence in _SENTENCE.findall(_TAG.sub("\n", report)) if self.words else ():
            common = len(self.words & list_words(sentence))
            if common > most:
                best, most = sentence.strip(), common
        return best if len(best) <= MAX_EXCERPT_CHARS else best[: MAX_EXCERPT_CHARS - 3] + "..."


def list_words(text: str) -> frozenset[str]:
    """Return the different words of a text in lower case, without the most common ones."""
    return frozenset(_WORD.findall(_TAG.sub(" ", text).lower())) - _COMMON
