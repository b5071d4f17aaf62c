"""DOCX: a walk over the XML parts."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from io import BytesIO
from typing import IO

from lxml import etree

from pipelines.nodes.extract.archive import BROKEN, Archive
from pipelines.nodes.extract.base import (
    DEFAULTS,
    ExtractOptions,
    HeadingPath,
    TextBuilder,
    corrupt,
    library,
    markdown_table,
    no_text,
    one_line,
    words,
)
from pipelines.nodes.extract.docx_styles import Numbering, Styles, attribute, child, local
from pipelines.types import Origin, ParsedDocument

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

# Wildcard namespaces: "strict" files use another one than "transitional" ones.
_BODY_TAGS = tuple(
    f"{{*}}{name}" for name in ("p", "tbl", "sdt", "customXml", "ins", "moveTo", "AlternateContent")
)
_LEFT_OUT = words(
    "del moveFrom instrText delText delInstrText rPr pPr tblPr tblGrid trPr tcPr sdtPr sdtEndPr "
    "rt annotationRef footnoteRef endnoteRef ctrlPr docPr fldData"
)
_HEAD_BYTES = 65_536
_MAX_SPAN = 100
_REPEATED_CHARS = 200


def extract_docx(data: bytes, name: str, options: ExtractOptions = DEFAULTS) -> ParsedDocument:
    """Paragraphs, list items and tables in order, a line each; then foot- and endnotes.

    A block's origin is its heading path (styles and outline levels). List items carry the mark
    or number that Word shows, tables become Markdown tables, links are their text; text boxes
    follow the paragraph that holds them. Deleted and hidden text is left out, as are page
    headers, page footers and comments. An empty paragraph gives an empty line.

    Raises:
        ExtractionError: `no_text`, `corrupt` (a DTD is refused as such), `encrypted`,
            `limit_exceeded`.
    """
    archive = Archive(data, name, options)
    main = _related(archive, "", name).get("officedocument", ["word/document.xml"])[0]
    related = _related(archive, main, name)

    def part(kind: str) -> etree._Element | None:
        path = next((p for p in related.get(kind, []) if p in archive), None)
        return parse(archive.read(path), name) if path else None

    styles, numbering = Styles(part("styles")), Numbering(part("numbering"))
    writer = _Writer(TextBuilder(name, options), styles, numbering)
    with archive.open(main) as stream:
        _refuse_dtd(_head(stream, name), name)
    with archive.open(main) as stream:
        for block in _body(stream, name):
            writer.write(block)
    for kind in ("footnotes", "endnotes"):
        notes = part(kind)
        if notes is not None:
            writer.write_notes(notes)
    if not writer.builder:
        linked = related.get("afchunk")
        found = f"holds only an embedded file ({linked[0]})" if linked else "holds no text"
        raise no_text(name, found)
    return writer.builder.document(DOCX, f"{library('lxml')} (docx)")


def parse(xml: bytes, name: str) -> etree._Element:
    """A whole part.

    Raises:
        ExtractionError: `corrupt`, not well-formed or with a DTD.
    """
    _refuse_dtd(xml[:_HEAD_BYTES], name)
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        return etree.parse(BytesIO(xml), parser).getroot()
    except etree.XMLSyntaxError as exc:
        raise corrupt(name, f"has a damaged part ({exc})") from exc


def _refuse_dtd(head: bytes, name: str) -> None:
    """No office program writes a DTD. One beyond `head` would do no harm: entities stay as is."""
    if b"<!DOCTYPE" in head.replace(b"\x00", b""):
        raise corrupt(name, "declares a document type (DTD), which is unsafe and refused")


def _body(stream: IO[bytes], name: str) -> Iterator[etree._Element]:
    """The children of the body one by one, each let go when the next is asked for."""
    events = etree.iterparse(
        stream,
        events=("end",),
        tag=_BODY_TAGS,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
    )
    try:
        for _, element in events:
            parent = element.getparent()
            if parent is None or local(parent) != "body":
                continue
            yield element
            element.clear()
            while element.getprevious() is not None:
                del parent[0]
    except etree.XMLSyntaxError as exc:
        raise corrupt(name, f"has a damaged main part ({exc})") from exc
    except BROKEN as exc:
        raise corrupt(name, f"has a damaged main part ({exc})") from exc


def _head(stream: IO[bytes], name: str) -> bytes:
    try:
        return stream.read(_HEAD_BYTES)
    except BROKEN as exc:
        raise corrupt(name, f"has a damaged main part ({exc})") from exc


def _related(archive: Archive, part: str, name: str) -> dict[str, list[str]]:
    """Kind of relationship (last word of its type, lower case) -> paths of the parts."""
    folder, _, file = part.rpartition("/")
    path = posixpath.join(folder, "_rels", f"{file}.rels")
    found: dict[str, list[str]] = {}
    if path in archive:
        for relation in parse(archive.read(path), name):
            if not isinstance(relation.tag, str) or relation.get("TargetMode") == "External":
                continue
            target = posixpath.normpath(posixpath.join("/", folder, relation.get("Target", "")))
            kind = relation.get("Type", "").rpartition("/")[2].lower()
            found.setdefault(kind, []).append(target.lstrip("/"))
    for kind in ("styles", "numbering", "footnotes", "endnotes"):
        found.setdefault(kind, [posixpath.join(folder or "word", f"{kind}.xml")])
    return found


class _Writer:
    """Turns body blocks into text."""

    def __init__(self, builder: TextBuilder, styles: Styles, numbering: Numbering) -> None:
        self.builder = builder
        self._styles = styles
        self._numbering = numbering
        self._headings = HeadingPath()

    def write(self, block: etree._Element) -> None:
        """Append a paragraph, a table, or what a container holds of them."""
        waiting = [block]
        while waiting:
            element = waiting.pop()
            kind = local(element)
            if kind == "p":
                boxes: list[etree._Element] = []
                self._paragraph(element, boxes)
                for box in reversed(boxes):
                    waiting.extend(reversed(box))
            elif kind == "tbl":
                self._table(element)
            elif kind == "AlternateContent":
                waiting.extend(_alternative(element))
            elif kind not in _LEFT_OUT:
                waiting.extend(reversed(element))

    def write_notes(self, notes: etree._Element) -> None:
        """Append each foot- or endnote as a line of its own; separators are no notes."""
        for note in notes:
            if local(note) in ("footnote", "endnote") and not attribute(note, "type"):
                self.builder.add(one_line(inline_text(note)))

    def _paragraph(self, paragraph: etree._Element, boxes: list[etree._Element]) -> None:
        text = inline_text(paragraph, boxes).strip()
        style = self._styles.of(paragraph)
        if not text:
            if not boxes:
                self.builder.add_gap()
            return
        label = self._numbering.label(style.numbering)
        if style.outline is not None:
            text = " ".join(filter(None, (label, one_line(text))))
            self._headings.push(style.outline, text)
        elif label:
            text = "  " * (style.numbering[1] if style.numbering else 0) + f"{label} {text}"
        self.builder.add(text, Origin(headings=self._headings.path))

    def _table(self, table: etree._Element) -> None:
        rows = list(_within(table, "tr"))
        grid = table_cells(rows)
        if len(grid) == 1 and len(grid[0]) == 1:  # a frame around text
            cell = next(iter(_within(rows[0], "tc")))
            for block in cell:
                self.write(block)
            return
        self.builder.add(markdown_table(grid), Origin(headings=self._headings.path))


def table_cells(rows: list[etree._Element]) -> list[list[str]]:
    """Texts of a table's cells.

    A cell merged over rows is repeated in each if it is short, one merged over columns leaves
    the further ones empty. Tables inside of a cell are part of its text.
    """
    grid: list[list[str]] = []
    for row in rows:
        cells: list[str] = []
        before = child(child(row, "trPr"), "gridBefore")
        cells += [""] * _number(before)
        for cell in _within(row, "tc"):
            properties = child(cell, "tcPr")
            merge = child(properties, "vMerge")
            text = one_line(inline_text(cell))
            if merge is not None and attribute(merge, "val") != "restart":
                above = grid[-1][len(cells)] if grid and len(grid[-1]) > len(cells) else ""
                text = text or (above if len(above) <= _REPEATED_CHARS else "")
            span = max(1, _number(child(properties, "gridSpan")))
            cells += [text] + [""] * (span - 1)
        grid.append(cells)
    return grid


def _number(element: etree._Element | None) -> int:
    value = attribute(element, "val") or ""
    return min(int(value), _MAX_SPAN) if value.isascii() and value.isdigit() else 0


def _within(parent: etree._Element, name: str) -> Iterator[etree._Element]:
    """Children of that name, also inside of content controls and insertions; not deleted rows."""
    waiting = list(reversed(parent))
    while waiting:
        element = waiting.pop()
        kind = local(element)
        if kind == name:
            deleted = child(child(element, "trPr"), "del") if name == "tr" else None
            if deleted is None:
                yield element
        elif kind in ("sdt", "sdtContent", "customXml", "ins", "moveTo"):
            waiting.extend(reversed(element))


def inline_text(root: etree._Element, boxes: list[etree._Element] | None = None) -> str:
    """The visible text below an element; paragraphs inside of it are split by a line break.

    Args:
        boxes: receives the text boxes; without it their text is part of the result.
    """
    out: list[str] = []
    waiting: list[etree._Element | str] = [root]
    while waiting:
        element = waiting.pop()
        if isinstance(element, str):
            out.append(element)
            continue
        kind = local(element)
        if kind in _LEFT_OUT:
            continue
        match kind:
            case "t":
                out.append("".join(map(str, element.itertext())))
            case "tab" | "ptab":
                out.append("\t")
            case "br" | "cr":
                out.append("\n")
            case "noBreakHyphen":
                out.append("-")
            case "AlternateContent":
                waiting.extend(_alternative(element))
            case "txbxContent" if boxes is not None:
                boxes.append(element)
            case "r" if _is_hidden(element):
                continue
            case "p" | "tr" | "tc" if element is not root:
                waiting.append("\n")
                waiting.extend(reversed(element))
                waiting.append("\n")
            case _:
                waiting.extend(reversed(element))
    return "".join(out)


def _is_hidden(run: etree._Element) -> bool:
    vanish = child(child(run, "rPr"), "vanish")
    return vanish is not None and attribute(vanish, "val") not in ("0", "false", "off")


def _alternative(element: etree._Element) -> list[etree._Element]:
    """One of the alternatives, which hold the same text: the first that has any."""
    options = [e for e in element if local(e) in ("Choice", "Fallback")]
    return next(([o] for o in options if inline_text(o).strip()), [])
