"""Which extractor reads a file, and the node around them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from pipelines.errors import ExtractionError
from pipelines.node import RunContext, node_class
from pipelines.nodes.extract import SUPPORTED_EXTENSIONS, Extract, sniff
from pipelines.types import Blob, ParsedDocument
from tests.pipelines.extract.files import DATA, docx, page, paragraph, pdf, read, row, xlsx, zipped

PDF = pdf([page("Hello from a page")])
DOCX = docx(paragraph("Hello from a paragraph"))
XLSX = xlsx({"Sheet1": row(1, "a", "b") + row(2, "1", "2")})
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256))


def code_of(data: bytes, name: str) -> str:
    with pytest.raises(ExtractionError) as caught:
        read(data, name)
    assert repr(name) in caught.value.message
    return caught.value.code


def test_the_node_is_known_by_its_kind_and_its_types() -> None:
    assert node_class("extract.auto") is Extract
    assert (Extract.takes(), Extract.gives()) == (Blob, ParsedDocument)


def test_limits_have_defaults_and_unknown_options_are_refused() -> None:
    assert (Extract().max_pages, Extract().max_rows, Extract().rows_per_chunk) == (5000, 500_000, 1)
    with pytest.raises(ValidationError):
        Extract(max_page=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Extract(max_pages=0)


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (PDF, "a.pdf", "pdf"),
        (b"junk before\n" + PDF, "a.bin", "pdf"),
        (DOCX, "a.docx", "docx"),
        (DOCX, "a", "docx"),
        (XLSX, "a.xlsx", "xlsx"),
        (XLSX, "a.zip", "xlsx"),
        (zipped({"a.txt": b"x"}), "a.zip", "zip"),
        (zipped({"mimetype": b"application/epub+zip"}), "a.epub", "epub"),
        (zipped({"xl/workbook.bin": b"x"}), "a.xlsx", "xlsb"),
        (PNG, "a.txt", "png"),
        (b"", "a.txt", "empty"),
        (b"plain words", "a.txt", "txt"),
        (b"plain words", "README", "txt"),
        (b"# Title\n\ntext", "a.mdx", "md"),
        (b"<!DOCTYPE html><p>x", "a", "html"),
        (b"<!DOCTYPE html><p>x", "a.txt", "html"),
        (b"<!-- saved -->\n<HTML><body>x", "page.xls", "html"),
        (b"<!DOCTYPE html><p>x", "template.py", "txt"),
        ("<html><p>x".encode("utf-16"), "a.txt", "html"),
        (b"a,b\n1,2\n", "a.csv", "csv"),
        (b"a\tb\n1\t2\n", "a.tsv", "tsv"),
        (b"a\tb\n1\t2\n", "export.xls", "csv"),
        (b"{\\rtf1 x}", "a.txt", "rtf"),
        (b"From: x@example.org\n\nhello", "a.eml", "eml"),
        (b"MZ\x90\x00\x03\x00\x00\x00", "a.txt", "windows program"),
        (bytes(range(256)) * 4, "a.txt", "binary data"),
        (b"\x1b[31mred\x1b[0m text of a log\n", "a.log", "txt"),
    ],
)
def test_content_decides_and_the_name_settles_the_rest(
    data: bytes, name: str, expected: str
) -> None:
    assert sniff(data, name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("testEXCEL_phonetic.xls", "xls"),
        ("testEXCEL_4.xls", "xls"),
        ("testWORD_protected_passtika.docx", "encrypted office file"),
    ],
)
def test_older_containers_are_told_apart(name: str, expected: str) -> None:
    assert sniff((DATA / name).read_bytes(), "upload") == expected


@pytest.mark.parametrize(
    ("data", "name", "text", "kind"),
    [
        (DOCX, "really.pdf", "Hello from a paragraph", "docx"),
        (PDF, "really.docx", "Hello from a page", "pdf"),
        (DOCX, "old.doc", "Hello from a paragraph", "docx"),
        (b"<!DOCTYPE html><p>Hello", "page.txt", "Hello", "html"),
        (b"a\tb\n1\t2\n", "export.xls", "a: 1; b: 2", "csv"),
    ],
)
def test_a_wrong_extension_is_read_by_its_content_with_a_warning(
    data: bytes, name: str, text: str, kind: str
) -> None:
    document = read(data, name)
    assert document.text == text
    extension = name.rpartition(".")[2]
    assert document.warnings == (
        f"the name says {extension}, the content is {kind}: read as {kind}",
    )


def test_a_right_extension_gives_no_warning() -> None:
    for data, name in [(PDF, "a.PDF"), (DOCX, "a.docm"), (XLSX, "a.xlsm"), (b"x", "a.log")]:
        assert read(data, name).warnings == ()


@pytest.mark.parametrize("name", ["a.json", "a.py", "a.vtt", "a.unknown", "Makefile"])
def test_any_plain_text_is_read_as_it_is(name: str) -> None:
    text = '{"key": [1, 2]}\n'
    assert read(text.encode(), name).text == text


@pytest.mark.parametrize(
    ("data", "name", "code"),
    [
        (b"", "a.txt", "empty_file"),
        (b"", "a.docx", "empty_file"),
        (b" \n\t\n", "a.txt", "no_text"),
        (b"\xef\xbb\xbf\n", "a.md", "no_text"),
        (b"plain text", "a.docx", "corrupt"),
        (b"plain text", "a.pdf", "corrupt"),
        (b"plain text", "a.odt", "corrupt"),
        (b"just words\nno columns", "a.xlsx", "corrupt"),
        (bytes(range(256)), "a.pdf", "corrupt"),
        (zipped({"a.txt": b"x"}), "a.docx", "corrupt"),
        (DOCX[: len(DOCX) // 2], "a.docx", "corrupt"),
        (XLSX[: len(XLSX) // 2], "a.xlsx", "corrupt"),
        (PNG, "a.txt", "unsupported_file_type"),
        (PNG, "a.png", "unsupported_file_type"),
        (b"\x7fELF\x02\x01\x01" + bytes(100), "notes.txt", "unsupported_file_type"),
        (zipped({"ppt/presentation.xml": b"<p/>"}), "a.pptx", "unsupported_file_type"),
    ],
)
def test_a_file_without_readable_text_is_always_an_error(data: bytes, name: str, code: str) -> None:
    assert code_of(data, name) == code


def test_an_unsupported_type_is_named_with_those_that_work() -> None:
    with pytest.raises(ExtractionError, match=r"png.*csv.*docx.*pdf.*plain text"):
        read(PNG, "renamed.txt")


def test_a_name_without_extension_goes_by_its_media_type() -> None:
    blob = Blob(b"# Title\n\ntext\n\n# Second\n", "page", "text/markdown; charset=utf-8")
    document = Extract().run(blob, RunContext())
    assert document.media_type == "text/markdown"
    assert len(list(document.sections())) == 2


def test_the_formats_are_supported_extensions() -> None:
    formats = {"txt", "md", "markdown", "mdx", "html", "htm", "pdf", "docx", "xlsx", "xls", "csv"}
    assert formats | {"json", "xml", "log"} <= SUPPORTED_EXTENSIONS
    assert not {"doc", "png", "exe", ""} & SUPPORTED_EXTENSIONS


def test_importing_the_package_loads_no_extraction_library() -> None:
    code = """
import sys, time
import pipelines.node
start = time.perf_counter()
import pipelines.nodes.extract
took = time.perf_counter() - start
heavy = {"pandas", "lxml", "pypdfium2", "python_calamine", "xlrd", "selectolax", "markdown_it",
         "charset_normalizer"} & set(sys.modules)
assert not heavy, heavy
print(took)
"""
    answers = [
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert min(float(answer.stdout) for answer in answers) < 0.05
