"""Questions and answers from a table: one pair per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median
from typing import Literal

from pipelines.errors import NodeError
from pipelines.node import Node, RunContext, node
from pipelines.nodes.chunk.qa_pairs import Pair, written_down
from pipelines.nodes.extract.base import one_line, places, words
from pipelines.types import Chunked, Origin, Read, Table, TableRow

_HEADER_WITHIN = 10
_SAMPLE_ROWS = 20
_QUESTION = words(
    "q question questions query prompt ask faq 问 问题 提问 問 問題 質問 質問文 질문 frage fragen "
    "pregunta domanda pergunta вопрос"
)
_ANSWER = words(
    "a answer answers response reply completion 答 答案 回答 解答 答え 回答文 답변 답 antwort "
    "antworten réponse reponse respuesta risposta resposta ответ"
)
_SENTENCE_MARKS = frozenset(".?!。？！")
_SHOWN = 20


@node("chunk.qa_rows")
class QARows(Node[Table, Chunked]):
    """Make a question-and-answer chunk of every row; no model is asked.

    A row without a question or without an answer is left out, and a warning names it; rows that
    say the same are all kept. Line breaks of a question become spaces, those of an answer stay.
    The text that the chunks' offsets point into has a block `Q1: ... A1: ...` for each.

    Attributes:
        question_column, answer_column: the column's name in the header, or else its position,
            from 0; a number is a name only if `header` is `yes` or the header has usual names.
            Empty: the column with a usual name, such as `question` or `答案`, if the header has
            both; else the first and the second one.
        header: `yes`: the first of the first 10 rows with two values or more is the header, `no`:
            there is none, `auto`: that row is the header if it has usual names, or names that were
            asked for, or is far shorter than the rows below it.
    """

    question_column: str = ""
    answer_column: str = ""
    header: Literal["auto", "yes", "no"] = "auto"

    def run(self, value: Table, ctx: RunContext) -> Chunked:
        """Chunks in the order of the rows.

        Raises:
            NodeError: code `column_not_found` when no sheet has the columns, `no_pairs` when no
                row has both a question and an answer.
        """
        sheets = [
            self._sheet(sheet, list(rows))
            for sheet, rows in groupby(value.rows, key=lambda row: row.sheet)
        ]
        pairs = [pair for sheet in sheets for pair in sheet.pairs]
        warnings = [*value.warnings, *(text for sheet in sheets for text in sheet.warnings)]
        if not pairs:
            raise _nothing(sheets, warnings)
        chunks, text = written_down(pairs)
        rows = sum(sheet.rows for sheet in sheets)
        return Chunked(chunks, text, tuple(warnings), Read(table_rows=rows))

    def _sheet(self, name: str | None, rows: Sequence[TableRow]) -> _Sheet:
        found = _Sheet(name)
        at = None if self.header == "no" else _header_at(rows)
        header = [] if at is None else [one_line(cell) for cell in rows[at].cells]
        guessed = False
        try:
            columns = self._columns(header, max(len(row.cells) for row in rows))
        except _NoSuchColumn as exc:
            found.problem = str(exc)
            found.warn(f"was left out: {exc}")
            return found
        if at is not None and self.header == "auto" and not self._is_named(header):
            guessed = _is_far_shorter(rows[at], rows[at + 1 :], columns)
            at = at if guessed else None
        if at is not None:
            if guessed:
                found.warn(
                    f"row {rows[at].number} was taken for the header "
                    f"({', '.join(repr(name[:40]) for name in header[:5])}); "
                    "if it is a pair, set header to 'no'"
                )
            if at:
                above = [row.number for row in rows[:at]]
                found.warn(f"{places('row', above)} above the header left out")
            rows = rows[at + 1 :]
        found.take(rows, *columns)
        return found

    def _columns(self, header: Sequence[str], width: int) -> tuple[int, int]:
        question, answer = _usual(header, _QUESTION), _usual(header, _ANSWER)
        certain = self.header == "yes" or (question is not None and answer is not None)
        if question is None or answer is None:
            question, answer = 0, 1
        if self.question_column.strip():
            question = _position(self.question_column, header, width, certain=certain)
        if self.answer_column.strip():
            answer = _position(self.answer_column, header, width, certain=certain)
        if question == answer:
            raise _NoSuchColumn(
                f"question and answer would both be column {question}; set question_column and "
                "answer_column to two columns"
            )
        if max(question, answer) >= width:
            raise _NoSuchColumn(
                f"it has {width} column{'s' * (width != 1)}; a question and an answer need two"
            )
        return question, answer

    def _is_named(self, header: Sequence[str]) -> bool:
        """Whether the row has the names that were asked for, or usual ones."""
        asked = [name.strip() for name in (self.question_column, self.answer_column)]
        if any(_find(name, header) is not None for name in asked if name and not _number(name)):
            return True
        return all(_usual(header, names) is not None for names in (_QUESTION, _ANSWER))


class _NoSuchColumn(Exception):
    """The message says which one is missing, and which there are."""


@dataclass
class _Sheet:
    """What was found in one sheet."""

    name: str | None
    pairs: list[Pair] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rows: int = 0
    problem: str = ""

    def warn(self, text: str) -> None:
        self.warnings.append(f"sheet {self.name!r}: {text}" if self.name else text)

    def take(self, rows: Sequence[TableRow], question_at: int, answer_at: int) -> None:
        self.rows = len(rows)
        without: dict[str, list[int]] = {"question": [], "answer": [], "question or answer": []}
        for row in rows:
            question = one_line(_cell(row, question_at))
            answer = _cell(row, answer_at).strip()
            if question and answer:
                origin = Origin(sheet=self.name, rows=(row.number, row.number))
                self.pairs.append(Pair(question, answer, origin))
            elif answer:
                without["question"].append(row.number)
            else:
                without["answer" if question else "question or answer"].append(row.number)
        for what, numbers in without.items():
            if numbers:
                self.warn(f"left out, without {what}: {places('row', numbers, _SHOWN)}")


def _cell(row: TableRow, at: int) -> str:
    return row.cells[at] if at < len(row.cells) else ""


def _header_at(rows: Sequence[TableRow]) -> int | None:
    """The first row with two values or more, among the first ones."""
    for at, row in enumerate(rows[:_HEADER_WITHIN]):
        if sum(1 for cell in row.cells if cell.strip()) >= 2:
            return at
    return None


def _usual(header: Sequence[str], names: frozenset[str]) -> int | None:
    for at, name in enumerate(header):
        if name.strip(" :：*#").casefold() in names:
            return at
    return None


def _find(asked: str, header: Sequence[str]) -> int | None:
    """The column of this name, in any case if there is no exact one."""
    for fold in (str.strip, str.casefold):
        folded = [fold(name.strip()) for name in header]
        if fold(asked.strip()) in folded:
            return folded.index(fold(asked.strip()))
    return None


def _number(asked: str) -> str:
    """The digits of a position; empty: it is a name."""
    digits = asked.strip().removesuffix(".0")
    return digits if digits.isascii() and digits.isdecimal() else ""


def _position(asked: str, header: Sequence[str], width: int, *, certain: bool) -> int:
    digits = _number(asked)
    named = _find(asked, header) if certain or not digits else None
    if named is not None:
        return named
    if digits and int(digits) < width:
        return int(digits)
    shown = ", ".join(repr(name[:40]) for name in header[:_SHOWN] if name) or "none with a name"
    raise _NoSuchColumn(
        f"there is no column {asked.strip()!r}; its columns are {shown}, by position 0 to "
        f"{width - 1}"
    )


def _is_far_shorter(row: TableRow, below: Sequence[TableRow], columns: tuple[int, int]) -> bool:
    """Whether the row looks like names: no sentence, less than half as long as those below."""
    if not below or not all(_cell(row, at).strip() for at in columns):
        return False
    if any(_SENTENCE_MARKS.intersection(_cell(row, at)) for at in columns):
        return False
    return _length(row, columns) * 2 < median(_length(r, columns) for r in below[:_SAMPLE_ROWS])


def _length(row: TableRow, columns: tuple[int, int]) -> int:
    return sum(len(_cell(row, at).strip()) for at in columns)


def _nothing(sheets: Sequence[_Sheet], warnings: Sequence[str]) -> NodeError:
    problem = next(_problems(sheets), None)
    if problem is not None:
        return NodeError(f"the table cannot be used: {problem}", code="column_not_found")
    return NodeError(
        "no row has both a question and an answer; "
        + ("; ".join(warnings[:3]) or "the table has a header only")
        + "; set question_column and answer_column if they are other columns",
        code="no_pairs",
    )


def _problems(sheets: Sequence[_Sheet]) -> Iterator[str]:
    return (sheet.problem for sheet in sheets if sheet.problem)
