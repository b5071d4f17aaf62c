"""XLSX, XLS, CSV and TSV rows."""

from __future__ import annotations

import datetime as dt
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ExtractionError
from pipelines.nodes.extract import Extract
from pipelines.nodes.extract.delimited import guess_delimiter
from pipelines.nodes.extract.table import Cell, cell_text
from tests.pipelines.extract.files import (
    DATA,
    block_texts,
    read,
    read_file,
    row,
    section_texts,
    xlsx,
)


def refused(data: bytes, name: str, extract: Extract | None = None) -> ExtractionError:
    with pytest.raises(ExtractionError) as caught:
        read(data, name, extract)
    return caught.value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (" a\r\n b\n", "a b"),
        (3.0, "3"),
        (-0.5, "-0.5"),
        (0.1 + 0.2, "0.3"),
        (1599.99, "1599.99"),
        (1e20, "1e+20"),
        (7, "7"),
        (True, "true"),
        (False, "false"),
        (dt.date(2025, 3, 1), "2025-03-01"),
        (dt.datetime(2025, 3, 1), "2025-03-01"),  # noqa: DTZ001
        (dt.datetime(2025, 3, 1, 9, 30), "2025-03-01 09:30:00"),  # noqa: DTZ001
        (dt.time(9, 30), "09:30:00"),
        (dt.timedelta(hours=30), "1 day, 6:00:00"),
    ],
)
def test_values_are_written_as_a_reader_would_search_them(value: Cell, expected: str) -> None:
    assert cell_text(value) == expected


def test_each_record_repeats_the_header_of_its_own_sheet() -> None:
    data = xlsx(
        {
            "People": row(1, "Name", "City") + row(2, "Ann", "Oslo") + row(3, "Bob", "Rome"),
            "Sheet2": row(2, "Item", "Price", "Note") + row(4, "Pen", "2") + row(5, "", "3", "x"),
        }
    )
    document = read(data, "a.xlsx")
    assert document.text.split("\n") == [
        "People",
        "Name: Ann; City: Oslo",
        "Name: Bob; City: Rome",
        "Item: Pen; Price: 2",
        "Price: 3; Note: x",
    ]
    assert section_texts(document) == [
        "People\nName: Ann; City: Oslo",
        "Name: Bob; City: Rome",
        "Item: Pen; Price: 2",
        "Price: 3; Note: x",
    ]
    origins = [(b.origin.sheet, b.origin.rows) for b in document.blocks]
    assert origins == [
        ("People", (2, 2)),
        ("People", (3, 3)),
        ("Sheet2", (4, 4)),
        ("Sheet2", (5, 5)),
    ]


def test_rows_are_grouped_as_asked() -> None:
    data = b"h,k\n" + b"".join(b"%d,x\n" % i for i in range(5))
    document = read(data, "a.csv", Extract(rows_per_chunk=2))
    assert block_texts(document) == [
        "h: 0; k: x\nh: 1; k: x",
        "h: 2; k: x\nh: 3; k: x",
        "h: 4; k: x",
    ]
    assert [b.origin.rows for b in document.blocks] == [(2, 3), (4, 5), (6, 6)]
    assert all(b.opens_section for b in document.blocks)


def test_the_header_is_the_first_row_with_two_values_and_nothing_above_is_lost() -> None:
    data = b"Report 2025,,\n,,\nName,Age,\nAnn,3,extra\n"
    document = read(data, "a.csv")
    assert section_texts(document) == ["Report 2025", "Name: Ann; Age: 3; extra"]
    assert [b.origin.rows for b in document.blocks] == [(1, 1), (4, 4)]


def test_a_single_column_and_a_header_alone_keep_their_text() -> None:
    assert read(b"Name\nAnn\nBob\n", "a.csv").text == "Name: Ann\nName: Bob"
    assert read(b"Name,Age\n", "a.csv").text == "Name; Age"


def test_dates_merged_cells_and_hidden_sheets_of_a_real_file() -> None:
    document = read_file("merged_dates_sheets.xlsx")
    lines = document.text.split("\n")
    assert lines[:3] == [
        "销售 2025",
        "二〇二五年销售汇总",
        "日期: 2025-03-01; 门店: 上海; 数量: 10; 金额: 1999.5",
    ]
    merged = [line for line in lines if "备注(纵向合并)" in line]
    assert len(merged) == 3
    assert "code: 00123; name: leading zeros" in lines
    assert document.warnings == ("sheet 'Hidden' is hidden, it was read too",)
    start = document.text.index("上海")
    origin = document.origin(start, start + 2)
    assert (origin.sheet, origin.rows) == ("销售 2025", (3, 3))


def test_row_numbers_count_the_empty_rows_above_the_first_value() -> None:
    document = read_file("testEXCEL-formats.xlsx")
    assert document.blocks[0].origin.rows == (5, 5)
    document = read(xlsx({"S": row(7, "a", "b") + row(9, "1", "2")}), "a.xlsx")
    assert document.blocks[0].origin.rows == (9, 9)


def test_older_workbooks_are_read_by_the_library_that_can() -> None:
    assert read_file("testEXCEL_4.xls").extractor.startswith("xlrd 2")
    document = read_file("testEXCEL_5.xls")
    assert document.extractor.startswith("python-calamine")
    assert "Number: 4; Square: 16" in document.text.split("\n")


def test_values_in_far_corners_are_refused_not_allocated() -> None:
    error = refused((DATA / "far_corner_cell.xlsx").read_bytes(), "far.xlsx")
    assert "1,048,576 rows and 16,384 columns" in error.message
    assert "max_cells is 10,000,000" in error.message
    no_references = (
        b'<row r="1">'
        + b"<c><v>1</v></c>" * 16_384
        + b'</row><row r="1048576"><c><v>1</v></c></row>'
    )
    assert refused(xlsx({"S": no_references}), "a.xlsx").code == "limit_exceeded"


def test_cells_that_only_have_a_format_do_not_count() -> None:
    styled = row(1, "a", "b") + b'<row r="1048576"><c r="XFD1048576" s="1"/></row>'
    assert read(xlsx({"S": styled}), "a.xlsx").text == "S\na; b"


def test_a_workbook_bomb_is_refused() -> None:
    error = refused(xlsx({"S": (b"0" * 1_000_000 for _ in range(250))}), "a.xlsx")
    assert (error.code, "max_member_bytes" in error.message) == ("limit_exceeded", True)


def test_a_damaged_workbook_is_corrupt() -> None:
    assert refused(xlsx({"S": b'<row r="1"><c r="A1"><v>1'}), "a.xlsx").code == "corrupt"
    damaged = (DATA / "testEXCEL_4.xls").read_bytes()[:200] + b"\xff" * 100
    assert refused(damaged, "a.xls").code == "corrupt"


@pytest.mark.parametrize("name", ["a.xlsx", "a.csv"])
def test_too_many_rows_are_refused_with_the_limit(name: str) -> None:
    rows = 6
    data = (
        xlsx({"S": b"".join(row(i, "x", "y") for i in range(1, rows + 1))})
        if name == "a.xlsx"
        else b"x,y\n" * rows
    )
    assert read(data, name, Extract(max_rows=6)).text
    error = refused(data, name, Extract(max_rows=5))
    assert (error.code, "max_rows is 5" in error.message) == ("limit_exceeded", True)


def test_one_huge_field_is_refused_with_the_limit() -> None:
    data = b'a,b\n1,"' + b"x" * 20_000_000 + b'"\n'
    error = refused(data, "a.csv")
    assert (error.code, "max_cell_chars is 1,000,000" in error.message) == ("limit_exceeded", True)
    long = b"a,b\n1," + b"x" * 200_000 + b"\n"  # more than the csv module's own limit
    assert len(read(long, "a.csv").text) > 200_000


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk", "shift_jis"])
def test_delimiters_and_encodings_are_found(mark: str, encoding: str) -> None:
    table = (
        mark.join(['"名前"', '"住所, 番号; 一"']) + "\n" + mark.join(["高橋", '"東京\n北"']) + "\n"
    )
    document = read(table.encode(encoding), "a.csv")
    assert document.text == "名前: 高橋; 住所, 番号; 一: 東京 北"
    assert document.blocks[0].origin.rows == (2, 2)
    expected = "text/tab-separated-values" if mark == "\t" else "text/csv"
    assert document.media_type == expected


def test_quotes_embedded_line_breaks_and_ragged_rows() -> None:
    data = b'id,note,n\n1,"a ""b"", c\r\nd",2\n\n2,short\n3,long,4,more\n'
    document = read(data, "a.csv")
    assert document.text.split("\n") == [
        'id: 1; note: a "b", c d; n: 2',
        "id: 2; note: short",
        "id: 3; note: long; n: 4; more",
    ]
    assert [b.origin.rows for b in document.blocks] == [(2, 2), (4, 4), (5, 5)]
    assert document.warnings == ("more or fewer cells than the header: rows 4-5",)


def test_excels_separator_hint_is_followed() -> None:
    document = read(b"sep=;\na,b;c\n1,5;2\n", "a.csv")
    assert document.text == "a,b: 1,5; c: 2"
    assert document.blocks[0].origin.rows == (3, 3)


def test_a_table_without_values_is_an_error() -> None:
    assert refused(b",,\n,,\n", "a.csv").code == "no_text"
    assert refused(xlsx({"S": b"", "T": b""}), "a.xlsx").code == "no_text"


_CELLS = st.text("ab ,;|\t\"'\n", max_size=5)


@given(
    st.lists(st.lists(_CELLS, min_size=2, max_size=4), min_size=1, max_size=12),
    st.sampled_from(",;\t|"),
)
def test_no_cell_below_the_header_is_lost(rows: list[list[str]], mark: str) -> None:
    header = [f"h{i}" for i in range(4)]
    # Enough plain rows for the delimiter to be clear.
    plain = [["v", "w", "x", "y"]] * 30
    table = [header, *plain, *rows]
    data = "\n".join(
        mark.join('"' + cell.replace('"', '""') + '"' for cell in cells) for cells in table
    )
    document = read(data.encode(), "a.csv")
    wanted = "".join("".join(cell.split()) for cells in rows for cell in cells)
    got = "".join(document.text.split())
    for name in header:
        got = got.replace(f"{name}:", "")
    assert sorted(got.replace(";", "").replace("vwxy", "")) == sorted(wanted.replace(";", ""))


@given(st.text(max_size=200))
def test_guessing_a_delimiter_never_fails(text: str) -> None:
    assert guess_delimiter(text) in set(",;\t|")


def test_a_cell_of_blanks_only_takes_no_time() -> None:
    began = time.perf_counter()
    document = read(b"a,b\nx," + b" " * 900_000 + b"y\n", "t.csv")
    assert document.text == "a: x; b: y"
    assert time.perf_counter() - began < 5
