"""Decode the text of a report: UTF-8, or a byte order mark. Refuse other files and name their format."""

import codecs
import json
import re
from typing import Final, NamedTuple

from contract.errors import ReportError

MAX_REPORT_BYTES: Final = 2**20

# UTF-32 comes first, because its mark begins with the mark of UTF-16.
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_HEAD: Final = 1024  # bytes or characters that are searched for a format


class _Format(NamedTuple):
    """A file format that is not a report, and advice for the user."""

    name: str
    advice: str


_GIVE_TEXT: Final = "give its text"
_GIVE_AS_IMAGE: Final = "give it as the image, and the report as text"
_UNPACK: Final = "unpack it and give the text of one report"
_PDF: Final = _Format("a PDF", _GIVE_TEXT)
_DICOM: Final = _Format("a DICOM file", _GIVE_AS_IMAGE)
_PICTURE: Final = _Format("an image", _GIVE_AS_IMAGE)
_HTML: Final = _Format("HTML", "give its text without the tags")
_JSON: Final = _Format("JSON", "give the text of the report that it holds")
_CSV: Final = _Format("a table such as CSV", "give the text of one report")

_MAGIC: Final = (
    (b"PK\x03\x04", _Format("a Word document or another ZIP archive", _GIVE_TEXT)),
    (b"PK\x05\x06", _Format("an empty ZIP archive", _GIVE_TEXT)),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _Format("an old Office document such as .doc", _GIVE_TEXT)),
    (b"\x1f\x8b", _Format("a gzip archive", _UNPACK)),
    (b"BZh", _Format("a bzip2 archive", _UNPACK)),
    (b"\xfd7zXZ\x00", _Format("an xz archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", _Format("a Zstandard archive", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", _Format("a 7z archive", _UNPACK)),
    (b"PAR1", _Format("a Parquet table", "give the text of one report")),
    (b"SQLite format 3\x00", _Format("an SQLite database", "give the text of one report")),
    (b"\x89PNG", _PICTURE),
    (b"\xff\xd8\xff", _PICTURE),
    (b"GIF8", _PICTURE),
    (b"II*\x00", _PICTURE),
    (b"MM\x00*", _PICTURE),
    (b"\x00\x00\x00\x0cjP  ", _PICTURE),
    (b"\xff\x4f\xff\x51", _PICTURE),
)

_TAGS: Final = (
    "html|head|title|meta|body|div|span|p|br|b|i|u|h[1-6]|table|ul|ol|li|pre|font|strong|em|center|style"
)
_TEXTUAL: Final = (
    (re.compile(r"\s*%PDF-"), _PDF),
    (re.compile(r"\s*\{\\rtf"), _Format("RTF", "save it as plain text and give that")),
    (re.compile(rf"\s*<(?:!doctype\s+html\b|(?:{_TAGS})(?:\s[^<>]*)?/?>)", re.IGNORECASE), _HTML),
    (re.compile(r'\s*(?:\{\s*["}]|\[\s*[\[{"\]])'), _JSON),
)
# Names of columns with a separator and no space after it. Prose has a space there.
_COLUMN: Final = r'"?[^\W\d][\w.-]{0,40}(?: [\w.-]{1,40}){0,4}"?'
_COLUMNS: Final = tuple((sign, re.compile(rf"{_COLUMN}(?:{re.escape(sign)}{_COLUMN})+")) for sign in ",;\t|")


def decode_report(data: bytes | str) -> str:
    """Return the text of a report.

    Args:
        data: Text, or bytes in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. Other encodings are not
            guessed, because a wrong guess would change words silently.

    Raises:
        ReportError: There are too many bytes, the encoding is another, or the bytes are another kind of file, which the
            message names.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise ReportError(f"The report has more than {MAX_REPORT_BYTES:,} bytes, so it is not a report.")
    text = _unquote(_decode(data) if isinstance(data, bytes) else data)
    try:
        text.encode()  # a str may hold surrogates, for example from a command line that is not UTF-8
    except UnicodeError as error:
        raise ReportError(_name_encoding("UTF-8")) from error
    text = text.removeprefix("\ufeff")
    if file_format := _find_textual(text):
        raise _refuse(file_format)
    return text


def _unquote(text: str) -> str:
    """Return the content of a JSON string, or another text unchanged."""
    stripped = text.strip()
    if not (len(stripped) > 1 and stripped[0] == stripped[-1] == '"'):
        return text
    try:
        return str(json.loads(stripped))
    except ValueError:
        return text


def is_encoded_xml(data: bytes) -> bool:
    """Whether bytes are XML in another encoding than UTF-8, such as Latin-1, which the declaration states."""
    if not data.startswith(b"<?xml") or len(data) > MAX_REPORT_BYTES:
        return False
    try:
        data.decode()
    except UnicodeError:
        return True
    return False


def refuse_control_characters(text: str) -> None:
    """Raise ReportError if a text holds control characters other than line ends and tabs."""
    if "\0" in text:
        raise ReportError(
            "The report holds control characters (NUL), so it is not text, or it is UTF-16 without a byte order mark. "
            "Save it as UTF-8."
        )
    if _CONTROL.search(text):
        raise ReportError("The report holds control characters, so it is not text.")


def refuse_web_page(tag: str) -> None:
    """Raise ReportError if the root element is that of a web page."""
    if tag.rpartition("}")[2].lower() == "html":
        raise _refuse(_HTML)


def _decode(data: bytes) -> str:
    if file_format := _find_binary(data):
        raise _refuse(file_format)
    encoding, name = "utf-8", "UTF-8"
    for mark, marked, label in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            encoding, name = marked, label
            break
    try:
        return data.decode(encoding)
    except UnicodeError as error:
        raise ReportError(_name_encoding(name)) from error


def _name_encoding(name: str) -> str:
    if name != "UTF-8":
        return (
            f"The report begins with the byte order mark of {name} but is not {name} text. Save it as UTF-8."
        )
    return "The report is not UTF-8 text. Save it as UTF-8 (Latin-1 and Windows-1252 are not guessed)."


def _refuse(file_format: _Format) -> ReportError:
    return ReportError(f"The report is {file_format.name}; {file_format.advice}.")


def _find_binary(data: bytes) -> _Format | None:
    if data[128:132] == b"DICM" or data.startswith(
        (b"DICM", b"\x08\x00\x05\x00", b"\x08\x00\x00\x00\x04\x00")
    ):
        return _DICOM
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _PICTURE
    if b"%PDF-" in data[:_HEAD] and not data[: data.index(b"%PDF-")].strip(b"\xef\xbb\xbf\x00 \t\r\n\x0c"):
        return _PDF
    return next((file_format for magic, file_format in _MAGIC if data.startswith(magic)), None)


def _find_textual(text: str) -> _Format | None:
    head = text.lstrip()[:_HEAD]
    for pattern, file_format in _TEXTUAL:
        if pattern.match(head):
            return file_format
    return _CSV if _is_table(text.lstrip()) else None


def _is_table(text: str) -> bool:
    """Whether the first line holds names of columns, and a later line has as many separators."""
    lines = text[: 4 * _HEAD].splitlines()
    if len(lines) < 2 or len(lines[0]) > _HEAD:
        return False
    for sign, columns in _COLUMNS:
        if columns.fullmatch(lines[0]):
            count = lines[0].count(sign)
            plain = " " not in lines[0] or count > 1
            return plain and any(line.count(sign) >= count for line in lines[1:3])
    return False
