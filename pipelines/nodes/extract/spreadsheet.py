"""XLSX and XLS."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import Any, TypeVar

from pipelines.nodes.extract.archive import Archive
from pipelines.nodes.extract.base import (
    DEFAULTS,
    ExtractOptions,
    TextBuilder,
    corrupt,
    encrypted,
    library,
    limit_exceeded,
    no_text,
)
from pipelines.nodes.extract.table import Cell, Row, SheetWriter, TableWriter
from pipelines.types import ParsedDocument

XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
XLS = "application/vnd.ms-excel"

_CELL = re.compile(rb"<(?:\w+:)?c(?=[\s>])([^>]*)(?<!/)>")
_REFERENCE = re.compile(
    rb"""<(?:\w+:)?c\s[^>]*?\br=["']([A-Za-z]{1,3})([0-9]{1,7})["'][^>]*(?<!/)>"""
)
_ROW = re.compile(rb"""<(?:\w+:)?row\s[^>]*?\br=["']([0-9]{1,7})["']""")
_ROW_START = re.compile(rb"<(?:\w+:)?row[\s>]")

Merge = tuple[tuple[int, int], tuple[int, int]]
"""0-based (row, column) of the first and of the last cell."""


def extract_xlsx(data: bytes, name: str, options: ExtractOptions = DEFAULTS) -> ParsedDocument:
    """Every sheet's rows as `header: value; header2: value2` lines; see `TableWriter.write`.

    Sheets come in the workbook's order, hidden ones too (with a warning). A value that is merged
    over several rows is repeated in each of them.

    Raises:
        ExtractionError: `no_text`, `corrupt`, `encrypted` or `limit_exceeded`.
    """
    builder = TextBuilder(name, options)
    extractor = write_xlsx(data, TableWriter(builder, name, options))
    return _document(builder, name, XLSX, extractor)


def write_xlsx(data: bytes, writer: SheetWriter) -> str:
    """Write every sheet; what read it.

    Raises:
        ExtractionError: `corrupt`, `encrypted` or `limit_exceeded`.
    """
    name, options = writer.name, writer.options
    _check_sheets(Archive(data, name, options), name, options)
    with _calamine_errors(name):
        _write_workbook(data, writer)
    return library("python-calamine")


def extract_xls(data: bytes, name: str, options: ExtractOptions = DEFAULTS) -> ParsedDocument:
    """As `extract_xlsx`; files that calamine cannot read (BIFF 2 to 4) are read by xlrd.

    Raises:
        ExtractionError: `no_text`, `corrupt`, `encrypted` or `limit_exceeded`.
    """
    builder = TextBuilder(name, options)

    def again() -> TableWriter:
        nonlocal builder
        builder = TextBuilder(name, options)
        return TableWriter(builder, name, options)

    _, used = write_xls(data, again)
    return _document(builder, name, XLS, used)


Writer = TypeVar("Writer", bound=SheetWriter)


def write_xls(data: bytes, fresh: Callable[[], Writer]) -> tuple[Writer, str]:
    """Write every sheet; the writer, and what read it.

    Args:
        fresh: makes an empty writer; called again for the second reader.
    Raises:
        ExtractionError: `corrupt`, `encrypted` or `limit_exceeded`.
    """
    from python_calamine import CalamineError, PasswordError

    writer = fresh()
    try:
        with _panics_as(CalamineError):
            _write_workbook(data, writer)
    except PasswordError as exc:
        raise encrypted(writer.name) from exc
    except CalamineError:
        writer = fresh()
        _write_with_xlrd(data, writer.name, writer)
        return writer, library("xlrd")
    return writer, library("python-calamine")


def _document(builder: TextBuilder, name: str, media_type: str, extractor: str) -> ParsedDocument:
    if not builder:
        raise no_text(name, "has no sheet with a value in it")
    return builder.document(media_type, extractor)


def _write_workbook(data: bytes, writer: SheetWriter) -> None:
    from python_calamine import SheetTypeEnum, SheetVisibleEnum, load_workbook

    workbook = load_workbook(BytesIO(data))
    for index, meta in enumerate(workbook.sheets_metadata):
        if meta.typ not in (SheetTypeEnum.WorkSheet, SheetTypeEnum.MacroSheet):
            continue
        sheet = workbook.get_sheet_by_index(index)
        if sheet.start is None:
            continue
        rows = _with_merges(
            sheet.iter_rows(), sheet.start[1], sheet.merged_cell_ranges or (), writer.cell
        )
        writer.write(rows, meta.name)
        if meta.visible is not SheetVisibleEnum.Visible:
            writer.warnings.append(f"sheet {meta.name!r} is hidden, it was read too")


def _with_merges(
    rows: Iterable[list[Any]],
    first_column: int,
    merges: Iterable[Merge],
    cell: Callable[[Cell], str],
) -> Iterator[Row]:
    """Rows as text, numbered from 1; values merged over several rows are repeated downwards."""
    opening: dict[int, list[tuple[int, int]]] = {}
    for (top, left), (bottom, _) in merges:
        if bottom > top and left >= first_column:
            opening.setdefault(top, []).append((left - first_column, bottom))
    merged: dict[int, tuple[int, str]] = {}
    for index, row in enumerate(rows):
        cells = [cell(value) for value in row]
        if merged and any(cells):
            for column, (bottom, text) in list(merged.items()):
                if index > bottom:
                    del merged[column]
                elif not cells[column]:
                    cells[column] = text
        for column, bottom in opening.get(index, ()):
            if column < len(cells):
                merged[column] = (bottom, cells[column])
        yield index + 1, cells


@contextmanager
def _panics_as(error: Callable[[str], Exception]) -> Iterator[None]:
    """A panic of the Rust side, which is no `Exception`, becomes one."""
    try:
        yield
    except BaseException as exc:
        if type(exc).__name__ == "PanicException":
            raise error(str(exc)) from exc
        raise


@contextmanager
def _calamine_errors(name: str) -> Iterator[None]:
    from python_calamine import CalamineError, PasswordError

    try:
        with _panics_as(CalamineError):
            yield
    except PasswordError as exc:
        raise encrypted(name) from exc
    except CalamineError as exc:
        raise corrupt(name, f"is not a readable spreadsheet ({exc})") from exc


def _write_with_xlrd(data: bytes, name: str, writer: SheetWriter) -> None:
    import xlrd

    # xlrd trusts what it reads: on damaged files any of these comes up.
    broken = (
        xlrd.XLRDError,
        xlrd.compdoc.CompDocError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        struct.error,
    )
    try:
        book = xlrd.open_workbook(file_contents=data, logfile=StringIO())
        sheets = book.sheets()
    except broken as exc:
        if "encrypted" in str(exc).lower() or "password" in str(exc).lower():
            raise encrypted(name) from exc
        raise corrupt(name, f"is not a readable spreadsheet ({exc})") from exc
    for sheet in sheets:
        rows = (
            (i + 1, [writer.cell(_xlrd_value(cell, book.datemode)) for cell in sheet.row(i)])
            for i in range(sheet.nrows)
        )
        writer.write(rows, sheet.name)


def _xlrd_value(cell: Any, datemode: int) -> Cell:
    import xlrd

    if cell.ctype == xlrd.XL_CELL_DATE:
        try:
            moment: Cell = xlrd.xldate_as_datetime(cell.value, datemode)
        except (ValueError, OverflowError):  # a number that merely has a date format
            return float(cell.value)
        return moment
    if cell.ctype == xlrd.XL_CELL_BOOLEAN:
        return bool(cell.value)
    if cell.ctype == xlrd.XL_CELL_ERROR:
        return str(xlrd.error_text_from_code.get(cell.value, "#ERR"))
    value: Cell = cell.value
    return value


def _check_sheets(archive: Archive, name: str, options: ExtractOptions) -> None:
    """Refuse a sheet whose values span too many cells, and verify every part's checksum.

    calamine keeps the whole rectangle between the first and the last value: two values in far
    corners make it ask for 17e9 cells and abort the process.
    """
    for member in archive.names():
        if not member.endswith(".xml"):
            continue
        xml = archive.read(member)
        if not _ROW_START.search(xml):
            continue
        rows, columns = _extent(xml)
        if rows * columns > options.max_cells:
            raise limit_exceeded(
                name,
                f"has a sheet whose values span {rows:,} rows and {columns:,} columns",
                "max_cells",
                options.max_cells,
            )


def _extent(xml: bytes) -> tuple[int, int]:
    """Rows and columns of the rectangle around the cells that are not empty."""
    references = _REFERENCE.findall(xml)
    rows = [int(row) for _, row in references]
    columns = [_column(letters) for letters in {letters for letters, _ in references}]
    if len(references) < len(_CELL.findall(xml)):  # cells without a reference follow one another
        rows += [int(row) for row in _ROW.findall(xml)] + [len(_ROW_START.findall(xml))]
        columns += [1, max(len(_CELL.findall(part)) for part in _ROW_START.split(xml))]
    if not rows:
        return 0, 0
    return max(rows) - min(rows) + 1, max(columns) - min(columns) + 1


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters.upper():
        number = number * 26 + letter - 64
    return number
