"""What all extractors share: their options, the text builder, heading paths and error messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from pydantic import BaseModel, ConfigDict, Field

from pipelines.errors import ExtractionError
from pipelines.types import NOTHING_COUNTED, Block, Origin, ParsedDocument

MB = 1_000_000

# No store takes NUL or a lone surrogate; the rest is invisible noise of damaged files and fonts.
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ud800-\udfff\ufeff\ufffe\uffff]")
_ROW_BREAKS = re.compile("[\r\n\x0b\x0c\x85\u2028\u2029]+")


class ExtractOptions(BaseModel):
    """How files are read, and the limits beyond which a file is refused (`limit_exceeded`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_per_chunk: int = Field(default=1, gt=0)
    """Spreadsheet and CSV rows per section."""
    max_pages: int = Field(default=5_000, gt=0)
    """Pages of a PDF."""
    max_rows: int = Field(default=500_000, gt=0)
    """Rows with content of a spreadsheet or CSV file, all sheets together."""
    max_cells: int = Field(default=10_000_000, gt=0)
    """Cells of the rectangle that a sheet's values span, empty ones included."""
    max_cell_chars: int = Field(default=1_000_000, gt=0)
    """Characters of one cell."""
    max_chars: int = Field(default=20_000_000, gt=0)
    """Characters of the extracted text."""
    max_archive_bytes: int = Field(default=300 * MB, gt=0)
    """Unpacked size of a DOCX or XLSX file."""
    max_member_bytes: int = Field(default=200 * MB, gt=0)
    """Unpacked size of one member of a DOCX or XLSX file."""
    max_archive_ratio: int = Field(default=200, gt=0)
    """Unpacked to packed size of a member; looked at above 10 MB only."""
    max_archive_members: int = Field(default=10_000, gt=0)
    """Members of a DOCX or XLSX file."""
    max_pdf_stream_bytes: int = Field(default=50 * MB, gt=0)
    """Unpacked size of one PDF stream that is not an image; PDFium needs 16 times as much."""


DEFAULTS = ExtractOptions()
NOWHERE = Origin()


def words(text: str) -> frozenset[str]:
    """A set written as words."""
    return frozenset(text.split())


def failure(code: str, name: str, problem: str, remedy: str) -> ExtractionError:
    """An error that names the file, what is wrong with it and what to do."""
    return ExtractionError(f"{name!r} {problem}; {remedy}", code=code)


def corrupt(name: str, problem: str) -> ExtractionError:
    """The file is damaged or is not what its name says."""
    return failure(
        "corrupt", name, problem, "open it in its own program, save it again and upload the copy"
    )


def encrypted(name: str) -> ExtractionError:
    """The file asks for a password."""
    return failure(
        "encrypted",
        name,
        "is protected by a password",
        "save a copy without the password and upload that",
    )


def no_text(name: str, problem: str = "holds no text") -> ExtractionError:
    """The file is whole, but there is nothing to index in it."""
    return failure("no_text", name, problem, "upload a version of it that has text")


def limit_exceeded(name: str, found: str, limit: str, value: int) -> ExtractionError:
    """The file is beyond a limit; the message names the limit and its value."""
    return failure(
        "limit_exceeded",
        name,
        f"{found}, the limit {limit} is {value:,}",
        "split the file, or raise that option of the extract node",
    )


def clean(text: str) -> str:
    """Without NUL, control characters, lone surrogates and noncharacters."""
    return _UNWANTED.sub("", text)


def one_line(text: str) -> str:
    """Every line break, with the blanks around it, becomes one space; stripped."""
    lines = (line.strip() for line in _ROW_BREAKS.split(text))
    return " ".join(line for line in lines if line)


def places(noun: str, values: Sequence[int], limit: int = 20) -> str:
    """`page 4`, `pages 1-3, 7`: ascending numbers as ranges, at most `limit` of them."""
    ranges: list[list[int]] = []
    for value in values:
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:limit]]
    plural = "s" if len(values) > 1 else ""
    return f"{noun}{plural} {', '.join(shown)}{' and more' if len(ranges) > limit else ''}"


@cache
def library(package: str) -> str:
    """`package version`, the version cut to two parts: what a document's `extractor` says."""
    from importlib.metadata import version

    return f"{package} {'.'.join(version(package).split('.')[:2])}"


class HeadingPath:
    """The headings that are open at a place of a document."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    def push(self, level: int, text: str) -> None:
        """Open a heading; those of its level and below are closed."""
        while self._open and self._open[-1][0] >= level:
            self._open.pop()
        self._open.append((level, text))

    @property
    def path(self) -> tuple[str, ...]:
        """Outermost first."""
        return tuple(text for _, text in self._open)


class TextBuilder:
    """Joins pieces of text by line breaks and keeps a block for each.

    Args:
        name: of the file, for messages.
    """

    def __init__(self, name: str, options: ExtractOptions) -> None:
        self._name = name
        self._options = options
        self._parts: list[str] = []
        self._blocks: list[Block] = []
        self._length = 0
        self._gap = False
        self.warnings: list[str] = []
        self.read = NOTHING_COUNTED

    def add(
        self,
        text: str,
        origin: Origin = NOWHERE,
        *,
        opens_section: bool = False,
    ) -> None:
        """Append a piece on a line of its own; a piece without text is left out.

        Raises:
            ExtractionError: `limit_exceeded`, the text is longer than `max_chars`.
        """
        text = clean(text)
        if not text or text.isspace():
            return
        if self._parts:
            separator = "\n\n" if self._gap else "\n"
            self._parts.append(separator)
            self._length += len(separator)
        self._gap = False
        start = self._length
        self._length += len(text)
        check_chars(self._length, self._name, self._options)
        self._parts.append(text)
        self._blocks.append(Block(start, self._length, origin, opens_section))

    def __bool__(self) -> bool:
        """Whether there is any text."""
        return bool(self._blocks)

    def add_gap(self) -> None:
        """An empty line before the next piece."""
        self._gap = bool(self._parts)

    def document(self, media_type: str, extractor: str) -> ParsedDocument:
        """All pieces so far.

        Raises:
            ExtractionError: `no_text`, there was none.
        """
        if not self._blocks:
            raise no_text(self._name)
        return ParsedDocument(
            "".join(self._parts),
            tuple(self._blocks),
            media_type=media_type,
            extractor=extractor,
            warnings=tuple(self.warnings),
            read=self.read,
        )


def check_chars(length: int, name: str, options: ExtractOptions) -> None:
    """Refuse a text that is longer than `max_chars`."""
    if length > options.max_chars:
        raise limit_exceeded(
            name, f"has more than {options.max_chars:,} characters", "max_chars", options.max_chars
        )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is the header; pipes escaped, cells on one line each.

    Rows may differ in length; rows and columns that are wholly empty are left out.
    """
    width = max((len(row) for row in rows), default=0)
    grid = [[one_line(cell) for cell in row] + [""] * (width - len(row)) for row in rows]
    grid = [row for row in grid if any(row)]
    used = [i for i in range(width) if any(row[i] for row in grid)]
    lines = ["| " + " | ".join(row[i].replace("|", "\\|") for i in used) + " |" for row in grid]
    return "\n".join([*lines[:1], "|" + " --- |" * len(used), *lines[1:]]) if lines else ""
