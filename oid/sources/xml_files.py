"""Reads an XML file whose author is not trusted: no document type, so no entities that grow, and every line known."""

import os
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

LINE = "line of the file"  # the attribute that says where an element starts; XML itself allows no such name


class XmlError(Exception):
    """The file cannot be used; the message says why."""


def read_xml(path: Path) -> ElementTree.Element:
    """Reads a file as a tree; each element has its line number, as text, in the attribute `LINE`.

    Raises:
        XmlError: it cannot be read, is not well-formed, or has a document type declaration.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, attributes | {LINE: str(parser.CurrentLineNumber)})

    def refuse(*_: object) -> None:
        raise XmlError("XML with a document type declaration")

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except OSError as error:
        missing = not os.path.exists(path)
        raise XmlError("missing annotation file" if missing else f"unreadable: {error.strerror}") from None
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise XmlError(f"not well-formed XML: {error}") from None
