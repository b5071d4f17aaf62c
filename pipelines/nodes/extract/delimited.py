"""CSV and TSV."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from pipelines.nodes.extract.base import (
    DEFAULTS,
    ExtractOptions,
    TextBuilder,
    clean,
    limit_exceeded,
    places,
)
from pipelines.nodes.extract.encoding import decode
from pipelines.nodes.extract.table import Row, SheetWriter, TableWriter
from pipelines.types import ParsedDocument

_DELIMITERS = ",;\t|"
_SAMPLE_CHARS = 65_536
_SAMPLE_ROWS = 100
_EXCEL_HINT = re.compile(r'"?sep=(.)"?\n', re.IGNORECASE)


def extract_csv(data: bytes, name: str, options: ExtractOptions = DEFAULTS) -> ParsedDocument:
    """Records as `header: value; header2: value2` lines, a section per `rows_per_chunk` of them.

    The delimiter is the one of `, ; TAB |` that cuts the first 100 rows into equal numbers of
    cells. Row numbers count records, as a spreadsheet program shows them.

    Raises:
        ExtractionError: `no_text` or `limit_exceeded`.
    """
    builder = TextBuilder(name, options)
    writer = TableWriter(builder, name, options)
    media_type, extractor = write_csv(data, writer)
    if writer.ragged:
        builder.warnings.append(
            f"more or fewer cells than the header: {places('row', writer.ragged)}"
        )
    return builder.document(media_type, extractor)


def write_csv(data: bytes, writer: SheetWriter) -> tuple[str, str]:
    """Write the records of a file as one sheet; its media type and what read it.

    Raises:
        ExtractionError: `limit_exceeded`.
    """
    decoded = decode(data)
    text = clean(decoded.text)
    hint = _EXCEL_HINT.match(text)
    delimiter = hint.group(1) if hint else guess_delimiter(text)
    if decoded.warning:
        writer.warnings.append(decoded.warning)
    writer.write(_rows(text, delimiter, 1 if hint else 0, writer))
    media_type = "text/tab-separated-values" if delimiter == "\t" else "text/csv"
    return media_type, f"csv {decoded.encoding}"


def _rows(text: str, delimiter: str, skipped: int, writer: SheetWriter) -> Iterator[Row]:
    options = writer.options
    # The limit is one of the whole process, so it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), options.max_cell_chars))
    reader = csv.reader(_lines(text), delimiter=delimiter)
    try:
        for number, cells in enumerate(reader, 1):
            if number > skipped:
                yield number, [writer.cell(cell) for cell in cells]
    except csv.Error as exc:
        raise limit_exceeded(
            writer.name,
            f"has a cell of more than {options.max_cell_chars:,} characters near line "
            f"{reader.line_num} (is a quotation mark missing there?)",
            "max_cell_chars",
            options.max_cell_chars,
        ) from exc


def _lines(text: str) -> Iterator[str]:
    """Lines with their LF; unlike `splitlines`, no other character ends a line."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def guess_delimiter(text: str) -> str:
    """The delimiter under which most rows have the same number of cells, 2 or more; else a comma.

    Quotes and line breaks inside of quotes are understood; of equals the one with more cells wins.
    """
    sample = text[:_SAMPLE_CHARS]
    if len(text) > _SAMPLE_CHARS and "\n" in sample:
        sample = sample[: sample.rindex("\n")]
    scores = {mark: _evenness(sample, mark) for mark in _DELIMITERS}
    best = max(scores, key=lambda mark: scores[mark])
    return best if scores[best] > (0.0, 0) else ","


def _evenness(sample: str, delimiter: str) -> tuple[float, int]:
    try:
        rows = islice(csv.reader(_lines(sample), delimiter=delimiter), _SAMPLE_ROWS)
        widths = Counter(len(row) for row in rows if row)
    except csv.Error:
        return 0.0, 0
    if not widths:
        return 0.0, 0
    width, times = max(widths.items(), key=lambda item: (item[1] * (item[0] > 1), item[0]))
    return (round(times / widths.total(), 2), width) if width > 1 else (0.0, 0)
