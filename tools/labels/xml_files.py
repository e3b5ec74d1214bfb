"""XML read without any of its dangers, and written so that it can be read again.

Whatever harms in XML (entities that expand to gigabytes, entities that are files or addresses) has to be
declared in a document type, and neither ELAN nor CVAT writes one. So a document type ends the reading at its
first character, before anything in it is interpreted, and expat is asked for nothing outside of the file.
With that, the standard library is enough; defusedxml forbids the same by the same handlers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, indent, tostring
from xml.parsers import expat

from pipeline.text import short

NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters it cannot hold
DEEPEST = 100  # elements within elements


class _Refused(Exception):
    """A document that is not read on; the message says why."""


def parse_xml(path: Path, text: str) -> Element:
    """The root element of a document; ValueError for one that is cut, nested deeply, or has a DTD."""
    builder, depth = TreeBuilder(), 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise _Refused(f"more than {DEEPEST} elements within each other")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: Any) -> int:
        raise _Refused("a document type (<!DOCTYPE ...>), which no labelling tool writes")

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = parser.ExternalEntityRefHandler = refuse
    parser.buffer_text = True
    try:
        parser.Parse(text.encode("utf-8", "surrogatepass"), True)
        return builder.close()
    except expat.ExpatError as error:
        raise ValueError(f"{path}, line {error.lineno}: not XML: {expat.ErrorString(error.code)}") from None
    except _Refused as error:
        raise ValueError(f"{path}, line {parser.CurrentLineNumber}: has {error}; it is not read") from None
    except (ParseError, AssertionError):
        raise ValueError(f"{path}: not XML: no element in it") from None


def attribute(path: Path, element: Element, name: str) -> str:
    """An attribute that an element must have."""
    value = element.get(name)
    if value is None:
        raise ValueError(f"{path}: an element {short(element.tag)} has no {name}")
    return value


def xml_text(root: Element) -> str:
    """The document of an element, one element a line; characters that XML cannot hold are left out."""
    for element in root.iter():
        element.attrib = {name: NO_XML.sub("", value) for name, value in element.attrib.items()}
        element.text = element.text and NO_XML.sub("", element.text)
    indent(root, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'
