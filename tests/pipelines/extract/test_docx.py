"""DOCX blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipelines.errors import ExtractionError
from pipelines.nodes.extract import Extract
from tests.pipelines.extract.files import W, block_texts, docx, paragraph, read, read_file, zipped

STYLES = (
    '<w:style w:styleId="T"><w:name w:val="Title"/></w:style>'
    '<w:style w:styleId="H1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:styleId="Mine"><w:name w:val="Mine"/><w:basedOn w:val="H2"/></w:style>'
    '<w:style w:styleId="H2"><w:name w:val="x"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>'
)
NUMBERING = (
    '<w:abstractNum w:abstractNumId="7">'
    '<w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/>'
    '</w:lvl><w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/>'
    '<w:lvlText w:val="%1.%2)"/></w:lvl></w:abstractNum>'
    '<w:abstractNum w:abstractNumId="8"><w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/>'
    '<w:lvlText w:val="*"/></w:lvl></w:abstractNum>'
    '<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num>'
    '<w:num w:numId="2"><w:abstractNumId w:val="8"/></w:num>'
    '<w:num w:numId="3"><w:abstractNumId w:val="7"/><w:lvlOverride w:ilvl="0">'
    '<w:startOverride w:val="5"/></w:lvlOverride></w:num>'
)


def style(name: str) -> str:
    return f'<w:pStyle w:val="{name}"/>'


def item(number: int, level: int = 0) -> str:
    return f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>'


def cell(text: str, properties: str = "") -> str:
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{paragraph(text)}</w:tc>"


def refused(data: bytes, extract: Extract | None = None) -> ExtractionError:
    with pytest.raises(ExtractionError) as caught:
        read(data, "a.docx", extract)
    return caught.value


def test_headings_give_a_path_and_open_no_section() -> None:
    document = read(
        docx(
            paragraph("Paper", style("T"))
            + paragraph("One", style("H1"))
            + paragraph("text one")
            + paragraph("Deep", style("Mine"))
            + paragraph("text deep")
            + paragraph("Plain", style("H1") + '<w:outlineLvl w:val="9"/>')
            + paragraph("Two", '<w:outlineLvl w:val="0"/>')
            + paragraph("text two"),
            styles=STYLES,
        ),
        "a.docx",
    )
    paths = {document.text[b.start : b.end]: b.origin.headings for b in document.blocks}
    assert paths == {
        "Paper": ("Paper",),
        "One": ("Paper", "One"),
        "text one": ("Paper", "One"),
        "Deep": ("Paper", "One", "Deep"),
        "text deep": ("Paper", "One", "Deep"),
        "Plain": ("Paper", "One", "Deep"),
        "Two": ("Paper", "Two"),
        "text two": ("Paper", "Two"),
    }
    assert not any(b.opens_section for b in document.blocks)


def test_headings_of_a_real_file() -> None:
    document = read_file("unit_test_headers_numbered.docx")
    start = document.text.index("Paragraph 1.1.1")
    assert document.origin(start, start + 9).headings == (
        "Test Document",
        "1. Section 1",
        "1.1. Section 1.1",
    )


def test_list_items_carry_the_label_that_word_shows() -> None:
    body = (
        paragraph("a", item(1))
        + paragraph("b", item(1, 1))
        + paragraph("c", item(1, 1))
        + paragraph("between")
        + paragraph("d", item(1))
        + paragraph("e", item(1, 1))
        + paragraph("f", item(2))
        + paragraph("g", item(3))
        + paragraph("none", item(0))
    )
    assert read(docx(body, numbering=NUMBERING), "a.docx").text.split("\n") == [
        "1. a",
        "  1.a) b",
        "  1.b) c",
        "between",
        "2. d",
        "  2.a) e",
        "- f",
        "5. g",
        "none",
    ]


def test_tables_become_markdown_with_merged_cells() -> None:
    table = (
        "<w:tbl><w:tr>" + cell("Name") + cell("Q|1") + cell("Q2") + "</w:tr>"
        "<w:tr>" + cell("North", '<w:vMerge w:val="restart"/>')
        + cell("both", '<w:gridSpan w:val="2"/>') + "</w:tr>"
        "<w:tr>" + cell("", "<w:vMerge/>") + cell("1") + cell("2") + "</w:tr></w:tbl>"
    )  # fmt: skip
    assert read(docx(paragraph("before") + table + paragraph("after")), "a.docx").text == (
        "before\n| Name | Q\\|1 | Q2 |\n| --- | --- | --- |\n"
        "| North | both |  |\n| North | 1 | 2 |\nafter"
    )


def test_tables_inside_of_tables_lose_nothing() -> None:
    text = read_file("docx-tables.docx").text
    assert "| d | e f g&t h | i |" in text
    assert "A link example" in text


def test_runs_links_fields_and_changes() -> None:
    body = (
        "<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r>"
        "<w:hyperlink><w:r><w:t>link</w:t></w:r></w:hyperlink>"
        "<w:r><w:instrText>PAGE</w:instrText></w:r>"
        "<w:fldSimple><w:r><w:t>field</w:t></w:r></w:fldSimple>"
        "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t>new</w:t></w:r></w:ins>"
        "<w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r></w:p>"
    )
    assert read(docx(body), "a.docx").text == "a\tb\nclinkfieldnew"


def test_content_controls_and_text_boxes_are_read_once() -> None:
    box = f"<w:txbxContent>{paragraph('boxed')}</w:txbxContent>"
    body = (
        f"<w:sdt><w:sdtContent>{paragraph('control')}</w:sdtContent></w:sdt>"
        "<w:p><w:r><w:t>anchor</w:t><mc:AlternateContent>"
        f"<mc:Choice>{box}</mc:Choice><mc:Fallback><w:pict>{box}</w:pict></mc:Fallback>"
        "</mc:AlternateContent></w:r></w:p>"
    )
    assert block_texts(read(docx(body), "a.docx")) == ["control", "anchor", "boxed"]


def test_footnotes_come_at_the_end() -> None:
    notes = (
        f'<w:footnote w:type="separator">{paragraph("---")}</w:footnote>'
        f'<w:footnote w:id="2">{paragraph("the note")}</w:footnote>'
    )
    assert read(docx(paragraph("text"), footnotes=notes), "a.docx").text == "text\nthe note"


def test_an_empty_paragraph_is_an_empty_line() -> None:
    body = "<w:p/>" + paragraph("a") + "<w:p/><w:p/>" + paragraph("b") + "<w:p/>"
    assert read(docx(body), "a.docx").text == "a\n\nb"


def test_names_with_backslashes_are_understood() -> None:
    xml = f'<w:document xmlns:w="{W}"><w:body>{paragraph("x")}</w:body></w:document>'
    assert read(zipped({"word\\document.xml": xml.encode()}), "a.docx").text == "x"


def test_a_dtd_is_refused_and_no_file_is_read() -> None:
    xml = (
        '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        f'<w:document xmlns:w="{W}"><w:body>{paragraph("&x;")}</w:body></w:document>'
    )
    for encoding in ("utf-8", "utf-16"):
        error = refused(zipped({"word/document.xml": xml.encode(encoding)}))
        assert error.code == "corrupt"
        assert "DTD" in error.message
    late = "<!--" + "x" * 100_000 + "-->" + xml.replace("&x;", "seen &x;")
    assert read(zipped({"word/document.xml": late.encode()}), "a.docx").text == "seen &x;"


def bomb(megabytes: int) -> Iterator[bytes]:
    yield f'<w:document xmlns:w="{W}"><w:body>'.encode()
    yield from (b"<w:p/>" * 166_667 for _ in range(megabytes))


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (lambda: zipped({"word/document.xml": bomb(400)}), "max_archive_bytes"),
        (lambda: zipped({"word/document.xml": bomb(210)}), "max_member_bytes"),
        (lambda: zipped({"word/document.xml": bomb(30)}), "max_archive_ratio"),
        (lambda: zipped({f"word/{i}.xml": b"" for i in range(10_001)}), "max_archive_members"),
    ],
)
def test_archive_bombs_are_refused_before_they_are_unpacked(data: object, limit: str) -> None:
    error = refused(data())  # type: ignore[operator]
    assert error.code == "limit_exceeded"
    assert limit in error.message


def test_a_damaged_member_is_corrupt() -> None:
    data = bytearray(docx(paragraph("hello " * 100)))
    at = data.index(b"word/document.xml") + 40
    data[at : at + 8] = b"\xff" * 8
    assert refused(bytes(data)).code == "corrupt"
    cut = f'<w:document xmlns:w="{W}"><w:body><w:p>'
    assert refused(zipped({"word/document.xml": cut.encode()})).code == "corrupt"


def test_deep_nesting_does_not_overflow_the_stack() -> None:
    nested = "<w:sdt><w:sdtContent>" * 100
    closing = "</w:sdtContent></w:sdt>" * 100
    assert read(docx(nested + paragraph("leaf") + closing), "a.docx").text == "leaf"
    tables = "<w:tbl><w:tr><w:tc>" * 70
    closing = "</w:tc></w:tr></w:tbl>" * 70
    assert read(docx(tables + paragraph("leaf") + closing), "a.docx").text == "leaf"
    error = refused(docx("<w:sdt>" * 100_000))
    assert error.code == "corrupt"


def test_too_many_characters_are_refused() -> None:
    error = refused(docx(paragraph("words " * 10) * 10), Extract(max_chars=500))
    assert (error.code, "max_chars is 500" in error.message) == ("limit_exceeded", True)
