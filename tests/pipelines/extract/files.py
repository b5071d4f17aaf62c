"""Builds small and hostile files for the extractor tests."""

from __future__ import annotations

import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path

from pipelines.node import RunContext
from pipelines.nodes.extract import Extract
from pipelines.types import Blob, ParsedDocument

DATA = Path(__file__).parents[2] / "data" / "extract"
Content = bytes | Iterable[bytes]


def read(data: bytes, name: str, extract: Extract | None = None) -> ParsedDocument:
    """Run the node, and check what holds for every document."""
    document = (extract or Extract()).run(Blob(data, name), RunContext())
    end = 0
    for block in document.blocks:
        assert end <= block.start < block.end <= len(document.text)
        end = block.end
    assert document.text.strip()
    assert document.extractor
    assert "\r" not in document.text
    assert "\x00" not in document.text
    return document


def read_file(name: str) -> ParsedDocument:
    return read((DATA / name).read_bytes(), name)


def block_texts(document: ParsedDocument) -> list[str]:
    return [document.text[block.start : block.end] for block in document.blocks]


def section_texts(document: ParsedDocument) -> list[str]:
    return [document.text[a:b].strip() for a, b in document.sections()]


def bare(text: str) -> str:
    """For comparisons: NFKC, without white space, case folded."""
    return "".join(unicodedata.normalize("NFKC", text).split()).casefold()


def zipped(members: Mapping[str, Content]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                for part in [content] if isinstance(content, bytes) else content:
                    member.write(part)
    return buffer.getvalue()


W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def docx(body: str, **parts: str) -> bytes:
    """A DOCX file of a body and further parts (`styles`, `numbering`, `footnotes`)."""
    members: dict[str, Content] = {
        "word/document.xml": (
            f'<w:document xmlns:w="{W}" xmlns:mc="urn:mc" xmlns:v="urn:v">'
            f"<w:body>{body}</w:body></w:document>"
        ).encode()
    }
    for name, inner in parts.items():
        members[f"word/{name}.xml"] = f'<w:{name} xmlns:w="{W}">{inner}</w:{name}>'.encode()
    return zipped(members)


def paragraph(text: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_DOC = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def xlsx(sheets: Mapping[str, Content]) -> bytes:
    """A workbook; each sheet is given by the XML of its rows (or anything, to break it)."""
    count = range(1, len(sheets) + 1)
    members: dict[str, Content] = {
        "[Content_Types].xml": (
            f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="xml" '
            'ContentType="application/xml"/></Types>'
        ).encode(),
        "_rels/.rels": (
            f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="r1" '
            f'Type="{_DOC}/officeDocument" Target="xl/workbook.xml"/></Relationships>'
        ).encode(),
        "xl/workbook.xml": (
            f'<workbook xmlns="{_MAIN}" xmlns:r="{_DOC}"><sheets>'
            + "".join(
                f'<sheet name="{name}" sheetId="{i}" r:id="r{i}"/>'
                for i, name in zip(count, sheets, strict=True)
            )
            + "</sheets></workbook>"
        ).encode(),
        "xl/_rels/workbook.xml.rels": (
            f'<Relationships xmlns="{_PACKAGE}/relationships">'
            + "".join(
                f'<Relationship Id="r{i}" Type="{_DOC}/worksheet" '
                f'Target="worksheets/sheet{i}.xml"/>'
                for i in count
            )
            + "</Relationships>"
        ).encode(),
    }
    for i, rows in zip(count, sheets.values(), strict=True):
        parts = [rows] if isinstance(rows, bytes) else rows
        members[f"xl/worksheets/sheet{i}.xml"] = (
            f'<worksheet xmlns="{_MAIN}"><sheetData>'.encode(),
            *parts,
            b"</sheetData></worksheet>",
        )
    return zipped(members)


def row(number: int, *values: str) -> bytes:
    """A row of text cells from column A on; an empty value leaves its cell out."""
    cells = "".join(
        f'<c r="{chr(65 + i)}{number}" t="inlineStr"><is><t>{value}</t></is></c>'
        for i, value in enumerate(values)
        if value
    )
    return f'<row r="{number}">{cells}</row>'.encode()


def pdf(contents: Iterable[bytes], filters: bytes = b"") -> bytes:
    """A PDF with a page per content stream; `/F1` is Helvetica."""
    streams = list(contents)
    kids = b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(len(streams)))
    font = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(streams)),
        font,
    ]
    for i, stream in enumerate(streams):
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents %d 0 R"
            b"/Resources<</Font<</F1 3 0 R>>>>>>" % (5 + 2 * i)
        )
        objects.append(b"<</Length %d%s>>stream\n%s\nendstream" % (len(stream), filters, stream))
    out, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return out + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
        % (len(objects) + 1, table, len(objects) + 1, len(out))
    )


def page(text: str) -> bytes:
    return b"BT /F1 12 Tf 50 700 Td (%s) Tj ET" % text.encode("latin-1")


def deflated(parts: Iterable[bytes]) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(part) for part in parts) + packer.flush()
