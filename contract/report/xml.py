"""Read Open-i XML safely, for a server and for training: no DTD, no entities, limited depth."""

import re
from typing import TYPE_CHECKING, Final

from contract.errors import ReportError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_XML_DEPTH: Final = 64  # Open-i's reports have depth 7; reading time is proportional to size times depth

_MARKUP: Final = re.compile(r"<(?:\?xml|!DOCTYPE|!--|!\[CDATA\[|!ENTITY|eCitation\b)", re.IGNORECASE)
_TAG: Final = re.compile(r"<[A-Za-z_][\w:.-]*(?:\s[^<>]*)?(?P<empty>/)?>(?P<nested><)?")


def is_xml(text: str) -> bool:
    """Whether a text that begins with "<" is XML, also broken XML. "<3 cm effusion" and "<DATE> Clear." are prose."""
    if _MARKUP.match(text):
        return True
    tag = _TAG.match(text)
    return bool(tag and (tag["empty"] or tag["nested"] or "</" in text))


def parse_xml(data: bytes | str) -> "Element":
    """Return the root of an XML tree.

    Args:
        data: Bytes, with the encoding stated by the declaration or a byte order mark, or text, for which the
            declaration is ignored.

    Raises:
        ReportError: The XML is broken, has a DTD or entities, or is nested deeper than `MAX_XML_DEPTH`.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import DefusedXMLParser

    encoded = data.strip().encode() if isinstance(data, str) else data
    try:
        parser = DefusedXMLParser(encoding="utf-8" if isinstance(data, str) else None, forbid_dtd=True)
        parser.feed(encoded)
        root: Element = parser.close()
    except (ParseError, DefusedXmlException, ValueError, LookupError, RecursionError) as error:
        raise ReportError("The report looks like XML but cannot be read as an Open-i report.") from error
    if _is_too_deep(root):
        raise ReportError(
            f"The XML file nests elements more than {MAX_XML_DEPTH} deep, so it is not a report."
        )
    return root


def _is_too_deep(root: "Element") -> bool:
    """Whether an XML tree is nested deeper than `MAX_XML_DEPTH`, where ElementTree's recursion would fail."""
    level = [root]
    for _ in range(MAX_XML_DEPTH):
        level = [child for element in level for child in element]
    return bool(level)
