"""XML that others wrote: text without a document type, its elements, and the line of each.

Design: `xml.etree` keeps no positions. expat, which it parses with, reports elements in document order,
the order in which a tree is walked: so the lines are a list, and the element is found by counting.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Collection
from typing import NamedTuple
from xml.etree import ElementTree as ET
from xml.parsers import expat

from fieldbus.canbus.database.by_cantools import UnreadableError, unreadable
from fieldbus.canbus.database.encodings import decode, encoding_named


class XmlText(NamedTuple):
    """A file of which the parser makes no more than what is written in it."""

    text: str
    lines: array[int]
    """Of each element, in document order."""

    def parsed(self) -> ET.Element:
        """Return the root element."""
        try:
            return ET.fromstring(self.text)  # noqa: S314 - it has no document type, see `read`
        except ET.ParseError as error:
            raise unreadable(error) from error

    def lines_of(self, root: ET.Element, tags: Collection[str]) -> dict[int, int]:
        """Return the lines of the elements with one of the tags (without namespace), by their identity.

        Args:
            root: of an unchanged tree of this text.
            tags: of the elements.
        """
        elements = zip(root.iter(), self.lines, strict=True)
        return {id(item): line for item, line in elements if item.tag.rpartition("}")[2] in tags}


def read(data: bytes, encoding: str | None = None) -> XmlText:
    """Return the text of a file.

    Args:
        data: the file.
        encoding: of its text; None for what it declares.

    Raises:
        UnreadableError: it is no XML, or has a document type (entities that multiply).
    """

    def refuse(*_: object) -> None:
        raise UnreadableError("a document type or entities are not allowed in it")

    def begin(*_: object) -> None:
        lines.append(parser.CurrentLineNumber)

    text = _decoded(data, encoding)
    lines = array("L")
    parser = expat.ParserCreate("utf-8")
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = begin
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        raise unreadable(error) from error
    return XmlText(text, lines)


def _decoded(data: bytes, named: str | None) -> str:
    if named is not None:
        return decode(data, named)[0].encode("utf-8", "replace").decode()
    head, _ = decode(data[:400])
    declared = re.match(r"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["']""", head)
    encoding = encoding_named(declared[1]) if declared else None
    is_marked = encoding is None or encoding.startswith(("utf-8", "utf-16", "utf-32"))
    text, _ = decode(data, None if is_marked else encoding)
    return text.encode("utf-8", "replace").decode()
