"""PDF pages."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.errors import ExtractionError
from pipelines.nodes.extract import Extract
from pipelines.nodes.extract.pdf import tidy
from tests.pipelines.extract.files import (
    DATA,
    deflated,
    page,
    pdf,
    read,
    read_file,
    section_texts,
)

IMAGE = b"q 100 0 0 100 0 0 cm BI /W 1 /H 1 /CS /G /BPC 8 ID \x00 EI Q"


def refused(data: bytes, extract: Extract | None = None) -> ExtractionError:
    with pytest.raises(ExtractionError) as caught:
        read(data, "a.pdf", extract)
    return caught.value


def test_each_page_is_a_section_and_knows_its_number() -> None:
    document = read(pdf([page("first"), page("second"), page("third")]), "a.pdf")
    assert document.text == "first\nsecond\nthird"
    assert section_texts(document) == ["first", "second", "third"]
    assert [b.origin.page for b in document.blocks] == [1, 2, 3]
    start = document.text.index("second")
    assert document.origin(start, start + 6).page == 2
    assert document.media_type == "application/pdf"
    assert document.extractor.startswith("pypdfium2 5")


def test_pages_of_a_real_file_hold_the_text_that_is_printed_on_them() -> None:
    document = read_file("layout-parser-paper-fast.pdf")
    assert [b.origin.page for b in document.blocks] == [1, 2]
    first, second = section_texts(document)
    assert "A Unified Toolkit for Deep" in first
    assert "DL models are notoriously convoluted" in (first + second)
    assert second.startswith("2 Z. Shen et al.")


def test_pages_without_text_are_named_and_keep_the_numbering() -> None:
    document = read(pdf([b"", page("two"), b"", b"", page("five"), b""]), "a.pdf")
    assert [b.origin.page for b in document.blocks] == [2, 5]
    assert document.warnings == ("no text on pages 1, 3-4, 6 of 6",)


def test_scans_and_blank_files_are_told_apart() -> None:
    scan = refused(pdf([IMAGE, IMAGE]))
    assert (scan.code, "pages 1-2" in scan.message, "OCR" in scan.message) == (
        "scanned",
        True,
        True,
    )
    assert refused(pdf([b"", b""])).code == "no_text"


def test_a_picture_beside_text_is_fine() -> None:
    assert read(pdf([IMAGE + b" " + page("caption")]), "a.pdf").text == "caption"


def test_too_many_pages_are_refused_with_the_limit() -> None:
    error = refused(pdf([page("x")] * 4), Extract(max_pages=3))
    assert error.code == "limit_exceeded"
    assert "max_pages is 3" in error.message
    assert read(pdf([page("x")] * 3), "a.pdf", Extract(max_pages=3)).text == "x\nx\nx"


def test_too_many_characters_are_refused_with_the_limit() -> None:
    error = refused(pdf([page("word " * 10)] * 4), Extract(max_chars=100))
    assert error.code == "limit_exceeded"
    assert "max_chars is 100" in error.message


def test_a_stream_bomb_is_refused_before_it_is_read() -> None:
    bomb = deflated([b"10 10 m 20 20 l S\n" * 10_000] * 2_800)  # 504 MB
    error = refused(pdf([bomb], b"/Filter/FlateDecode"))
    assert error.code == "limit_exceeded"
    assert "max_pdf_stream_bytes" in error.message
    twice = deflated([bomb])
    assert refused(pdf([twice], b"/Filter[/FlateDecode/FlateDecode]")).code == "limit_exceeded"


def test_an_ordinary_compressed_stream_is_read() -> None:
    stream = deflated([b"10 10 m 20 20 l S\n" * 10_000, page("after the lines")])
    assert read(pdf([stream], b"/Filter/FlateDecode"), "a.pdf").text == "after the lines"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("one \r\ntwo\r\n", "one\ntwo"),
        ("the im\ufffeportant", "the important"),
        ("the im\ufffe\r\nportant", "the important"),
        ("privacy\ufffepreserving", "privacy-preserving"),
        ("note\ufffebook", "notebook"),
        ("soft\u00adware", "software"),
        ("ef\ufffeﬁcient ﬂow", "efficient flow"),
        ("\ufffe", ""),
    ],
)
def test_words_cut_at_a_line_end_are_put_together(raw: str, expected: str) -> None:
    words = frozenset({"privacy", "preserving", "note", "book", "notebook", "the", "important"})
    assert tidy(raw, words) == expected


def test_a_real_file_has_no_hyphenation_marks_left() -> None:
    text = read_file("layout-parser-paper-fast.pdf").text
    assert "the easy reuse of important innovations" in " ".join(text.split())
    assert not set(text) & set("\ufffe\x02\u00ad")


def test_threads_may_read_at_once() -> None:
    names = ["bookmark_sample.pdf", "scanned.pdf", "vertical.pdf", "korean-text-with-tables.pdf"]
    files = [(DATA / name).read_bytes() for name in names]
    alone = [read(data, "a.pdf").text for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: read(data, "a.pdf").text, files * 10))
    assert together == alone * 10
