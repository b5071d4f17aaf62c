"""Tables as rows: CSV, TSV, XLSX and XLS without making one text of them."""

from __future__ import annotations

from pipelines.node import Node, RunContext, node
from pipelines.nodes.extract import TABLES, identify
from pipelines.nodes.extract.base import ExtractOptions, failure, no_text
from pipelines.nodes.extract.table import RowCollector
from pipelines.types import Blob, Table


@node("extract.table")
class ExtractTable(Node[Blob, Table], ExtractOptions):
    """Read the rows of a CSV, TSV, XLSX or XLS file, all sheets, cell by cell.

    Delimiter, encoding, dates and merged cells are understood as by `extract.auto`; line breaks
    within cells stay.
    """

    def run(self, value: Blob, ctx: RunContext) -> Table:
        """The rows with content.

        Raises:
            ExtractionError: `unsupported_file_type`, the file is no table; else `code` says how
                it is bad.
        """
        kind = identify(value)
        if kind not in TABLES:
            raise failure(
                "unsupported_file_type",
                value.name,
                f"has no rows and columns: it is read as {kind}",
                f"upload one of {', '.join(sorted(TABLES))}",
            )
        rows, media_type, extractor = _read(value, kind, self)
        if not rows.rows:
            raise no_text(value.name, "has no row with a value in it")
        return Table(tuple(rows.rows), media_type, extractor, tuple(rows.warnings))


def _read(blob: Blob, kind: str, options: ExtractOptions) -> tuple[RowCollector, str, str]:
    """The rows, their media type and what read them; libraries are imported when needed."""
    rows = RowCollector(blob.name, options)
    if kind in ("csv", "tsv"):
        from pipelines.nodes.extract.delimited import write_csv

        return rows, *write_csv(blob.data, rows)
    from pipelines.nodes.extract import spreadsheet

    if kind == "xlsx":
        return rows, spreadsheet.XLSX, spreadsheet.write_xlsx(blob.data, rows)
    rows, used = spreadsheet.write_xls(blob.data, lambda: RowCollector(blob.name, options))
    return rows, spreadsheet.XLS, used
