"""Rows of a file as new segments: which column is what, and what is wrong with which row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kb.errors import FileTooLarge, InvalidParam, UnsupportedFileType
from kb.segments.editing import NewSegment
from kb.settings import Limits
from pipelines.errors import PipelineError
from pipelines.node import RunContext
from pipelines.nodes.extract.rows import ExtractTable
from pipelines.types import Blob, TableRow

_NAMES = {
    "content": "content text segment chunk question 内容 文本 分段 问题 質問 本文 내용 질문",
    "answer": "answer 答案 回答 답변",
    "keywords": "keywords keyword tags 关键词 关键字 キーワード 키워드",
}
_COLUMN_OF = {word: column for column, names in _NAMES.items() for word in names.split()}
_ORDER = ("content", "answer", "keywords")
"""The columns of a file without a header."""
_WORDS = re.compile(r"[,;，；、|\n]")
_SHOWN = 20


@dataclass(frozen=True)
class Sheet:
    """New segments in the order of their rows, and what a reader should know."""

    items: tuple[NewSegment, ...]
    warnings: tuple[str, ...]


def read_sheet(name: str, data: bytes, limits: Limits, *, answers: bool) -> Sheet:
    """The rows of a CSV, TSV, XLSX or XLS file.

    With a header, columns are found by their names (`content`, `answer`, `keywords`, and usual
    ones of other languages) and others are left out, with a warning; without, they are content,
    answer and keywords in this order. Keywords are separated by commas or semicolons.

    Args:
        answers: every row needs one; False: none may have one.
    Raises:
        InvalidParam: the file cannot be read, or rows cannot be used; the message names them.
        FileTooLarge, UnsupportedFileType: the file is.
    """
    if len(data) > limits.segment_import_bytes:
        raise FileTooLarge(
            f"{name[:80]!r} has {len(data):,} bytes, the limit is "
            f"{limits.segment_import_bytes:,}; split it, or raise KB_LIMITS__SEGMENT_IMPORT_BYTES"
        )
    try:
        table = ExtractTable().run(Blob(data, name), RunContext())
    except PipelineError as exc:
        error = UnsupportedFileType if exc.code == "unsupported_file_type" else InvalidParam
        raise error(str(exc)) from exc
    columns, rows, ignored = _columns(table.rows)
    if len(rows) > limits.segment_import_rows:
        raise InvalidParam(
            f"{name[:80]!r} has {len(rows):,} rows, the limit is {limits.segment_import_rows:,}; "
            "split it, or raise KB_LIMITS__SEGMENT_IMPORT_ROWS"
        )
    items, problems = [], []
    for row in rows:
        item = _item(row, columns)
        if problem := _problem(item, limits, answers=answers):
            where = f"row {row.number}" + (f" of sheet {row.sheet!r}" if row.sheet else "")
            problems.append(f"{where}: {problem}")
        items.append(item)
    if problems:
        more = len(problems) - _SHOWN
        shown = problems[:_SHOWN] + ([f"and {more:,} rows more"] if more > 0 else [])
        raise InvalidParam("\n".join(["nothing was imported", *shown]))
    if not items:
        raise InvalidParam(f"{name[:80]!r} has no row below its header; add some")
    warnings = [f"column {title[:40]!r} was left out" for title in ignored]
    return Sheet(tuple(items), (*table.warnings, *warnings))


def _columns(
    rows: Sequence[TableRow],
) -> tuple[dict[str, int], Sequence[TableRow], Sequence[str]]:
    """Where each column is, the rows below the header, and the names of others."""
    titles = [cell.strip() for cell in rows[0].cells]
    named: dict[str, int] = {}
    for at, title in enumerate(titles):
        column = _COLUMN_OF.get(title.casefold())
        if column is not None:
            named.setdefault(column, at)
    if "content" not in named:
        return {column: at for at, column in enumerate(_ORDER)}, rows, []
    ignored = [title for at, title in enumerate(titles) if title and at not in named.values()]
    return named, rows[1:], ignored


def _item(row: TableRow, columns: dict[str, int]) -> NewSegment:
    def cell(column: str) -> str:
        at = columns.get(column)
        return row.cells[at].strip() if at is not None and at < len(row.cells) else ""

    words = (word.strip() for word in _WORDS.split(cell("keywords")))
    keywords = tuple(dict.fromkeys(word for word in words if word))
    return NewSegment(cell("content"), cell("answer") or None, keywords)


def _problem(item: NewSegment, limits: Limits, *, answers: bool) -> str | None:
    if not item.content:
        return "content is blank"
    if len(item.content) > limits.text_chars:
        return f"content has {len(item.content):,} characters, the limit is {limits.text_chars:,}"
    if answers and not item.answer:
        return "answer is blank; the document is one of questions and answers"
    if item.answer and not answers:
        return "it has an answer, and the document has no answers; leave that column out"
    return None
