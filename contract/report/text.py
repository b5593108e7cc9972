"""Reports in, token ids out: the text preprocessing of training, serving and explanation.

    bytes ── parse_report ──> Report ── select_text ──> model text ── ReportTokenizer.encode ──> TokenBatch

A report is an Open-i XML file, an HL7 v2 message, a text with section headings ("FINDINGS: ..."), or a plain text,
which counts as findings. "XXXX", which replaces de-identified words in Open-i, is removed.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from contract.errors import ArtifactError, ConfigError, ReportError
from contract.report.characters import normalize_text
from contract.report.format import (
    decode_report,
    is_encoded_xml,
    refuse_control_characters,
    refuse_web_page,
)
from contract.report.hl7 import is_hl7, read_observations
from contract.report.label_words import mask_label_words
from contract.report.names import SECTIONS, Part
from contract.report.sections import read_parts, split_sections
from contract.report.xml import is_xml, parse_xml
from contract.strings import require_strings
from contract.tensors import LENGTH_BUCKETS

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

TextMode = Literal["indication", "findings", "findings_masked", "full"]
TEXT_MODES: Final[tuple[TextMode, ...]] = get_args(TextMode)
MAX_REPORT_CHARS: Final = 20_000
# A vocabulary was trained on half of 3,927 real findings. In each of them, words outside it have at most .28 of the
# letters. In Spanish, German, French, Chinese and random text they have .5 to 1. In a text of few words this share is
# not reliable. There the pieces must be nearly single letters, and a single word must be longer than any real word.
UNFAMILIAR_SHARE: Final = 0.5
_FEW_WORDS: Final = 4
_FEW_WORDS_PIECE: Final = 1.6  # letters
_LONGEST_WORD: Final = 30  # letters; a longer word is a hash or similar
SPECIAL_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_DEIDENTIFIED = re.compile(r"\b\w*X{4,}\w*\b|\bX{3,}\b")
_CONTINUING: Final = "\U000f0000"  # the first of 65,534 characters for private use


@dataclass(frozen=True)
class Report:
    """A radiology report by section. A missing section is empty."""

    indication: str = ""
    comparison: str = ""
    findings: str = ""
    impression: str = ""


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of several texts, padded to one length bucket.

    Attributes:
        input_ids: (B, L) int64.
        attention_mask: (B, L) int64; 1 for a token, 0 for padding.
        spans: (B, L, 2) int32; first and past-last character of the token in its text, 0, 0 for special ones.
        truncated: Per text, whether its end was cut off.
        unfamiliar: Per text, whether most of it is outside the vocabulary (`UNFAMILIAR_SHARE`).
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    spans: NDArray[np.int32]
    truncated: tuple[bool, ...]
    unfamiliar: tuple[bool, ...]


def parse_report(data: bytes | str) -> Report:
    """Read a report: Open-i XML, an HL7 v2 message, text with section headings, or plain text.

    Raises:
        ReportError: See `parse_parts`.
    """
    return Report(**split_sections(parse_parts(data)))


def parse_parts(data: bytes | str) -> tuple[Part, ...]:
    """Return the parts of a report in their order, also those outside the sections.

    Raises:
        ReportError: The report is empty, longer than `MAX_REPORT_CHARS`, broken XML, has control characters, or is
            another kind of file, which the message names (`contract.report.format`).
    """
    if isinstance(data, bytes) and is_encoded_xml(data):
        return _take_parts(parse_xml(data))  # the XML declaration states the encoding
    text = decode_report(data)
    if is_hl7(text):
        text = read_observations(text)
    refuse_control_characters(text)
    stripped = text.lstrip()
    if stripped.startswith("<") and is_xml(stripped):
        return _take_parts(parse_xml(stripped))
    if len(text) > MAX_REPORT_CHARS:
        raise ReportError(f"The report has {len(text):,} characters; at most {MAX_REPORT_CHARS:,} are read.")
    text = normalize_text(text)
    if not text.strip():
        raise ReportError("The report is empty.")
    return read_parts(text)


def format_report(report: Report) -> str:
    """Write a report as text that `parse_report` reads back. Return "" if every section is empty.

    An empty section has no heading, unless the other sections would be read differently without it.
    """
    parts = zip(SECTIONS, astuple(report), strict=True)
    tidy = {name: _collapse(normalize_text(_collapse(text))) for name, text in parts}
    lines = [f"{name.upper()}: {text}" for name, text in tidy.items() if text]
    written = "\n".join(lines)
    if not lines or split_sections(read_parts(written)) == tidy:
        return written
    return "\n".join(f"{name.upper()}: {text}" for name, text in tidy.items())


def select_text(report: Report, mode: TextMode) -> str:
    """Return the part of a report that the model reads, on one line.

    Args:
        report: The report.
        mode: "indication"; "findings" (the impression if there are no findings); "findings_masked" (the
            same with the words of `contract.report.label_words` replaced by [MASK]); "full" (findings and impression).

    Raises:
        ReportError: That part of the report has no words.
        ConfigError: The mode does not exist.
    """
    if mode not in TEXT_MODES:
        raise ConfigError(f"There is no text mode {mode!r}. Choose one of {', '.join(TEXT_MODES)}.")
    if mode == "indication":
        text = clean_text(report.indication)
    elif mode == "full":
        text = clean_text(f"{report.findings} {report.impression}")
    else:
        text = clean_text(report.findings) or clean_text(report.impression)
    if not re.search(r"[^\W_]", text):
        part = "indication" if mode == "indication" else "findings or impression"
        filled = [name for name, body in zip(SECTIONS, astuple(report), strict=True) if clean_text(body)]
        instead = f" (only in its {' and '.join(filled)})" if filled else ""
        raise ReportError(
            f"The report has no words in its {part}{instead}, and the model reads only that part."
        )
    return mask_label_words(text) if mode == "findings_masked" else text


def read_report(data: bytes | str, mode: TextMode) -> str:
    """Return the part of a report that the model reads; see `parse_report` and `select_text`."""
    return select_text(parse_report(data), mode)


def clean_text(text: str) -> str:
    """Return the text on one line, normalised (`normalize_text`) and without de-identification marks."""
    return _collapse(_DEIDENTIFIED.sub(" ", normalize_text(text)))


class ReportTokenizer:
    """BERT-style WordPiece tokenizer, read from a `tokenizer.json`."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a `tokenizers.Tokenizer` that has the BERT special tokens."""
        missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
        if missing:
            raise ArtifactError(f"The tokenizer lacks the special tokens {', '.join(missing)}.")
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = map(
            tokenizer.token_to_id, SPECIAL_TOKENS
        )

    @classmethod
    def load(cls, path: Path) -> "ReportTokenizer":
        """Read a tokenizer.json.

        Raises:
            ArtifactError: The file is missing or not such a tokenizer.
        """
        tokenizers = _import_tokenizers()
        if not path.is_file():
            raise ArtifactError(f"There is no tokenizer {path}.")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a plain Exception for a bad file
            raise ArtifactError(f"{path} is not a tokenizer file.") from error
        return cls(tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str], max_length: int = LENGTH_BUCKETS[-1]) -> TokenBatch:
        """Tokenise texts and pad them to the smallest length bucket that fits the longest.

        Args:
            texts: Texts of `select_text`, at least one.
            max_length: Largest number of tokens, with [CLS] and [SEP]. The end of a longer text is cut off.
        """
        texts = require_strings(texts, "texts")
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        longest = min(max(len(encoding.ids) for encoding in encodings) + 2, max_length)
        length = next((bucket for bucket in LENGTH_BUCKETS if longest <= bucket <= max_length), max_length)
        input_ids = np.full((len(texts), length), self.pad_id, np.int64)
        attention_mask = np.zeros((len(texts), length), np.int64)
        spans = np.zeros((len(texts), length, 2), np.int32)
        for row, encoding in enumerate(encodings):
            ids = [self.cls_id, *encoding.ids[: length - 2], self.sep_id]
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
            spans[row, 1 : len(ids) - 1] = encoding.offsets[: length - 2] or np.zeros((0, 2), np.int32)
        truncated = tuple(len(encoding.ids) > length - 2 for encoding in encodings)
        unfamiliar = tuple(map(self._is_unfamiliar, texts, encodings))
        return TokenBatch(input_ids, attention_mask, spans, truncated, unfamiliar)

    def _is_unfamiliar(self, text: str, encoding: Any) -> bool:
        """Whether more than `UNFAMILIAR_SHARE` of the letters are in words outside the vocabulary."""
        pieces: dict[int, list[tuple[int, int]]] = {}
        lacking: set[int] = set()
        for token, word, span in zip(encoding.ids, encoding.word_ids, encoding.offsets, strict=True):
            if word is None or token == self.mask_id:
                continue
            if word in pieces or token == self.unk_id:
                lacking.add(word)
            letters_apart = span[1] - span[0] if token == self.unk_id else 1
            pieces.setdefault(word, []).extend([span] * letters_apart)
        sizes = {
            word: spans[-1][1] - spans[0][0]
            for word, spans in pieces.items()
            if any(map(str.isalpha, text[spans[0][0] : spans[-1][1]]))
        }
        letters = sum(sizes.values())
        if sum(size for word, size in sizes.items() if word in lacking) <= UNFAMILIAR_SHARE * letters:
            return False
        if len(sizes) >= _FEW_WORDS or letters >= _LONGEST_WORD:
            return True
        return len(sizes) > 1 and letters < _FEW_WORDS_PIECE * sum(len(pieces[word]) for word in sizes)


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int = 4000) -> None:
    """Train a lower-casing WordPiece tokenizer on texts and write it. Equal texts give equal files."""
    tokenizers = _import_tokenizers()
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    splitter = tokenizers.pre_tokenizers.BertPreTokenizer()
    cleaned = (normalizer.normalize_str(text) for text in require_strings(texts, "texts"))
    words = [word for text in cleaned for word, _ in splitter.pre_tokenize_str(text)]
    vocabulary = {piece: number for number, piece in enumerate(_learn_pieces(words, vocab_size))}
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")  # noqa: S106
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    path.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")  # Tokenizer.save hides an OSError


def _learn_pieces(words: Sequence[str], vocab_size: int) -> list[str]:
    """Return the pieces of a WordPiece vocabulary in the order of their ids, special tokens first.

    The library's WordPiece trainer numbers the characters that continue a word ("##a") in the order of a randomly
    seeded hash table, and breaks ties by number, so each run gives another vocabulary. Its BPE trainer has a fixed
    order. So here each of those characters becomes a character of its own while the merges are learned.
    """
    tokenizers = _import_tokenizers()
    words = [word for word in words if max(word) < _CONTINUING]
    letters = sorted({letter for word in words for letter in word})
    continuing = {letter: chr(ord(_CONTINUING) + index) for index, letter in enumerate(letters)}
    letter_of = {mark: letter for letter, mark in continuing.items()}
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=letters,
        show_progress=False,
    )
    marked = (word[0] + "".join(continuing[letter] for letter in word[1:]) for word in words)
    learner.train_from_iterator(marked, trainer)
    vocabulary = learner.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    texts = ("".join(letter_of.get(letter, letter) for letter in token) for token in tokens)
    return [f"##{text}" if token[0] in letter_of else text for text, token in zip(texts, tokens, strict=True)]


def _import_tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Tokenizing needs the 'train' or 'serve' extra: pip install 'cxr-serving[serve]'."
        ) from error
    return tokenizers


def collect_sections(root: "Element") -> Report:
    """Return the sections of an Open-i report, with the bodies of equal headings joined and white space unchanged."""
    return Report(**split_sections(_collect_parts(root)))


def _collect_parts(root: "Element") -> tuple[Part, ...]:
    parts = []
    for element in root.iter("AbstractText"):
        name = (element.get("Label") or "").strip().lower()
        section = name if name in SECTIONS else ""
        parts.append(Part(section, section, "".join(element.itertext()).strip()))
    return tuple(parts)


def _take_parts(root: "Element") -> tuple[Part, ...]:
    refuse_web_page(root.tag)
    parts = _collect_parts(root)
    size = sum(len(part.text) for part in parts if part.section)
    if not size:
        raise ReportError("The XML file holds no report text (AbstractText).")
    if size > MAX_REPORT_CHARS:
        raise ReportError(f"The report has {size:,} characters; at most {MAX_REPORT_CHARS:,} are read.")
    return parts


def _collapse(text: str) -> str:
    return " ".join(text.split())
