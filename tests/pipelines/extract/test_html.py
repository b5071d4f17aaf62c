"""HTML blocks."""

from __future__ import annotations

import pytest

from pipelines.errors import ExtractionError
from tests.pipelines.extract.files import block_texts, read, read_file


def lines(html: str) -> list[str]:
    return read(html.encode(), "a.html").text.split("\n")


def test_blocks_stand_on_lines_of_their_own() -> None:
    assert lines(
        "<h1>Head</h1><p>One <b>two</b>\n three<a href=x>link</a>.<div>div<section>sec</div>"
        "<dl><dt>term<dd>def</dl>after<br>break<hr>end"
    ) == ["Head", "One two threelink.", "div", "sec", "term", "def", "after", "break", "end"]


def test_list_items_are_marked_and_indented() -> None:
    assert lines("<ul><li>a<li><p>b</p><p>b2</p><ol><li>c</ol><li>d</ul>") == [
        "- a",
        "- b",
        "b2",
        "  - c",
        "- d",
    ]


def test_preformatted_text_is_kept() -> None:
    html = "<p>x</p><pre>\n  if a:\n\n      b <i>c</i>\n</pre><p>y"
    assert block_texts(read(html.encode(), "a.html")) == ["x", "  if a:\n\n      b c", "y"]


def test_what_is_not_seen_is_left_out_and_image_texts_are_kept() -> None:
    assert lines(
        "<head><style>s{}</style></head><p>a<script>var x</script><noscript>n</noscript>"
        "<template>t</template><!-- c --><span hidden>h</span><p style='color:red; display: none'>d"
        "<p>see<img alt='a cat'>here"
    ) == ["a", "see a cat here"]


def test_the_title_comes_first_unless_it_is_the_heading() -> None:
    assert lines("<title>T</title><h1>H</h1>x") == ["T", "H", "x"]
    assert lines("<title>H - Site</title><h1>H</h1>x") == ["H", "x"]


def test_data_tables_become_markdown() -> None:
    assert lines(
        "<table><caption>Sales</caption><thead><tr><th>Region<th>Q|1<th></tr></thead>"
        "<tr><td rowspan=2>North<td>1<br>2<td></tr><tr><td>3<td></tr>"
        "<tr><td colspan=2>all<td></table>"
    ) == [
        "Sales",
        "| Region | Q\\|1 |",
        "| --- | --- |",
        "| North | 1 2 |",
        "| North | 3 |",
        "| all |  |",
    ]


def test_spans_of_a_real_table() -> None:
    text = read_file("complex_table.html").text
    assert "| Region | Q1 | Q2 | Q3 | Q4 | Total |" in text
    assert "| USA | $150 | $180 | $165 | $200 | $695 |" in text


def test_layout_tables_are_read_through() -> None:
    assert lines(
        "<table><tr><td><table><tr><td>menu</table><td><h2>Head</h2><p>text</table>"
        "<table><tr><td>one<td>row</table>"
    ) == ["menu", "Head", "text", "one", "row"]


def test_blocks_know_their_heading_path_and_open_no_section() -> None:
    document = read(
        b"<p>intro<h1>A</h1><p>a<h3>C <i>c</i></h3><p>c<h2>B</h2><table><tr><td>1<td>2"
        b"<tr><td>3<td>4</table>",
        "a.html",
    )
    paths = [(document.text[b.start : b.end], b.origin.headings) for b in document.blocks]
    assert paths == [
        ("intro", ()),
        ("A", ("A",)),
        ("a", ("A",)),
        ("C c", ("A", "C c")),
        ("c", ("A", "C c")),
        ("B", ("A", "B")),
        ("| 1 | 2 |\n| --- | --- |\n| 3 | 4 |", ("A", "B")),
    ]
    assert not any(block.opens_section for block in document.blocks)


def test_a_declared_encoding_is_used() -> None:
    page = '<html><head><meta charset="shift_jis"></head><body>日本語のページ</body></html>'
    assert read(page.encode("cp932"), "a.html").text == "日本語のページ"
    page = '<?xml version="1.0" encoding="gbk"?><html><body>中文</body></html>'
    assert read(page.encode("gbk"), "a.xhtml").text == "中文"


def test_a_page_without_text_is_an_error() -> None:
    with pytest.raises(ExtractionError) as caught:
        read(b"<html><body><script>render()</script><img src=x></body></html>", "app.html")
    assert caught.value.code == "no_text"


@pytest.mark.parametrize(
    "html",
    [
        b"<div>" * 100_000 + b"deep html leaf",
        b"<table><tr><td>" * 20_000 + b"deep html leaf",
        b"<b>" * 50_000 + b"deep html leaf",
        b"".join(b"<p><font color=%d>" % i for i in range(20_000)) + b"deep html leaf",
        b"<div " + b" ".join(b"a%d=1" % i for i in range(60_000)) + b">deep html leaf",
        b"<ul><li>" * 20_000 + b"deep html leaf",
        b"<!-- " * 100_000 + b"--><p>deep html leaf",
        b"<p>deep html leaf" + b"<a '" * 100_001,
    ],
    ids=["div", "table", "b", "font", "attributes", "list", "comment", "tags"],
)
def test_hostile_nesting_is_read_in_linear_time(html: bytes) -> None:
    # Each took from 10 s to hours or gigabytes when handed to the parser as it is.
    assert "deep html leaf" in read(html, "a.html").text


def test_unclosed_inline_tags_do_not_flatten_what_follows() -> None:
    html = "<font>" * 500 + "<h1>Head</h1><table><tr><th>a<th>b<tr><td>1<td>2</table>"
    assert lines(html) == ["Head", "| a | b |", "| --- | --- |", "| 1 | 2 |"]


def test_tags_inside_of_scripts_do_not_count_as_nesting() -> None:
    html = "<script>" + "if (a<b) x('<div>');" * 1000 + "</script><ul><li>one</ul>"
    assert lines(html) == ["- one"]
