"""Rows of a spreadsheet or CSV file as text: one record per line, each with its own header."""

from __future__ import annotations

import datetime as dt
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from pipelines.nodes.extract.base import (
    ExtractOptions,
    TextBuilder,
    clean,
    limit_exceeded,
    one_line,
)
from pipelines.types import Origin, Read, TableRow

_HEADER_WITHIN = 10
_DEFAULT_NAME = re.compile(
    r"(?:sheet|tabelle|feuil|hoja|foglio|planilha|blad|arkusz|munka|лист|工作表|シート|시트|ark)\s*\d*",
    re.IGNORECASE,
)

_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")

Row = tuple[int, list[str]]
"""1-based row number, and its cells; an empty cell is the empty string."""
Cell = int | float | str | bool | dt.date | dt.time | dt.timedelta | None


def cell_text(value: Cell) -> str:
    """A value as text: dates in ISO 8601 (date and time split by a space, so that both can be
    searched), integral numbers without decimals, others with the 15 digits that Excel keeps,
    truth values as true and false; line breaks become spaces.
    """
    return one_line(value) if isinstance(value, str) else value_text(value)


def whole_text(value: Cell) -> str:
    """As `cell_text`, but line breaks stay, as LF."""
    return _BREAKS.sub("\n", value).strip() if isinstance(value, str) else value_text(value)


def value_text(value: Cell) -> str:
    """A value as text; see `cell_text`."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"
        case dt.datetime():
            is_date = value.time() == dt.time()
            return value.date().isoformat() if is_date else value.isoformat(" ", "seconds")
        case dt.date():
            return value.isoformat()
        case dt.time():
            return value.isoformat("seconds")
    return str(value)


@dataclass
class SheetWriter:
    """Takes the sheets of a file, one after the other, within the limits.

    Attributes:
        warnings: what a reader should know.
        cell: a cell's value as text.
    """

    name: str
    options: ExtractOptions
    warnings: list[str]
    cell: Callable[[Cell], str] = cell_text
    _rows: int = 0

    @abstractmethod
    def write(self, rows: Iterable[Row], sheet: str | None = None) -> None:
        """Take the rows of one sheet.

        Raises:
            ExtractionError: `limit_exceeded`.
        """

    def counted(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows with content, within the limits."""
        for number, row in rows:
            if not any(row):
                continue
            self._rows += 1
            if self._rows > self.options.max_rows:
                limit = self.options.max_rows
                raise limit_exceeded(self.name, f"has more than {limit:,} rows", "max_rows", limit)
            longest = max(map(len, row))
            if longest > self.options.max_cell_chars:
                raise limit_exceeded(
                    self.name,
                    f"has a cell of {longest:,} characters in row {number}",
                    "max_cell_chars",
                    self.options.max_cell_chars,
                )
            yield number, row


class RowCollector(SheetWriter):
    """Keeps the rows as they are, with the line breaks within their cells."""

    def __init__(self, name: str, options: ExtractOptions) -> None:
        super().__init__(name, options, [], whole_text)
        self.rows: list[TableRow] = []

    def write(self, rows: Iterable[Row], sheet: str | None = None) -> None:
        """See `SheetWriter.write`."""
        self.rows += [
            TableRow(number, tuple(map(clean, cells)), sheet)
            for number, cells in self.counted(rows)
        ]


class TableWriter(SheetWriter):
    """Writes sheets into one document.

    Attributes:
        ragged: rows of the last sheet with another number of cells than its header.
    """

    def __init__(self, builder: TextBuilder, name: str, options: ExtractOptions) -> None:
        super().__init__(name, options, builder.warnings)
        self.builder = builder
        self.ragged: list[int] = []
        self._title: str | None = None

    def write(self, rows: Iterable[Row], sheet: str | None = None) -> None:
        """Append the rows of one sheet as `header: value; header2: value2` lines.

        The header is the first of the first 10 rows with at least 2 values, else the one with
        most. Empty cells are left out, as are rows without a value; a value without a header
        stands alone. What stands above the header is a section of its own. A sheet with nothing
        below its header gives the header itself. The sheet's name, unless it is the program's
        own (`Sheet1`), is the first line of the sheet.

        Raises:
            ExtractionError: `limit_exceeded`.
        """
        self.ragged = []
        # A name that a person gave is text to be found; it opens the sheet's first section.
        self._title = sheet if sheet and not _DEFAULT_NAME.fullmatch(sheet) else None
        content = self.counted(rows)
        first = list(islice(content, _HEADER_WITHIN))
        if not first:
            return
        at = _header_index([row for _, row in first])
        header = first[at][1]
        self._section([(n, "; ".join(v for v in row if v)) for n, row in first[:at]], sheet)
        group: list[tuple[int, str]] = []
        any_data = False
        for number, row in chain(first[at + 1 :], content):
            any_data = True
            if len(row) != len(header):
                self.ragged.append(number)
            group.append((number, _record(header, row)))
            if len(group) == self.options.rows_per_chunk:
                self._section(group, sheet)
                group = []
        self._section(group, sheet)
        if not any_data:
            self._section([(first[at][0], "; ".join(v for v in header if v))], sheet)

    def _section(self, lines: list[tuple[int, str]], sheet: str | None) -> None:
        if lines:
            counted = self.builder.read.table_rows or 0
            self.builder.read = Read(table_rows=counted + len(lines))
            origin = Origin(sheet=sheet, rows=(lines[0][0], lines[-1][0]))
            title = [self._title] if self._title else []
            self._title = None
            text = "\n".join([*title, *(text for _, text in lines)])
            self.builder.add(text, origin, opens_section=True)


def _header_index(rows: list[list[str]]) -> int:
    filled = [sum(map(bool, row)) for row in rows]
    return next((i for i, n in enumerate(filled) if n >= 2), filled.index(max(filled)))


def _record(header: list[str], row: list[str]) -> str:
    named = (
        f"{header[i]}: {value}" if i < len(header) and header[i] else value
        for i, value in enumerate(row)
        if value
    )
    return "; ".join(named)
