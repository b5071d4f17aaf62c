"""The values that flow between nodes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""float32[dim]"""
Vectors = NDArray[np.float32]
"""float32[n, dim]"""


@dataclass(frozen=True, slots=True)
class Blob:
    """A source file: its bytes and what the uploader said about it."""

    data: bytes
    name: str
    media_type: str | None = None
    is_text: bool = False
    """It was handed over as a text (UTF-8 here): it is taken as it is, whatever it looks like."""

    @property
    def extension(self) -> str:
        """Lower case, without the dot; empty when the name has none."""
        _, dot, extension = self.name.rpartition(".")
        return extension.lower() if dot else ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a piece of text stands in its source, as far as the format knows."""

    page: int | None = None
    """1-based PDF page on which the piece starts."""
    page_end: int | None = None
    """1-based PDF page on which the piece ends."""
    headings: tuple[str, ...] = ()
    """Heading path, outermost first."""
    sheet: str | None = None
    rows: tuple[int, int] | None = None
    """First and last spreadsheet or CSV row, 1-based, inclusive, counted as in a spreadsheet."""

    @staticmethod
    def merged(origins: Sequence[Origin]) -> Origin:
        """The origin of a span that covers several pieces, given in text order.

        Pages and rows become the covering range; headings and sheet are those of the first piece.
        """
        if not origins:
            return Origin()
        first = origins[0]
        pages = [p for o in origins for p in (o.page, o.page_end) if p is not None]
        rows = [o.rows for o in origins if o.rows is not None and o.sheet == first.sheet]
        return replace(
            first,
            page=min(pages, default=None),
            page_end=max(pages, default=None),
            rows=(min(r[0] for r in rows), max(r[1] for r in rows)) if rows else None,
        )


@dataclass(frozen=True, slots=True)
class Block:
    """A span of a document's text with one origin.

    Attributes:
        start, end: half-open character offsets into `ParsedDocument.text`.
        opens_section: a chunk never crosses from the text before this block into it
            (a new PDF page, Markdown section, table row). Text between blocks belongs to no block.
    """

    start: int
    end: int
    origin: Origin = Origin()
    opens_section: bool = False


@dataclass(frozen=True, slots=True)
class SourceMap:
    """Maps offsets of an edited text back to the text it was made from.

    `runs` are (edited offset, source offset, length) of kept stretches, ascending in both.
    """

    runs: tuple[tuple[int, int, int], ...]

    def to_source(self, start: int, end: int) -> tuple[int, int]:
        """The smallest source span that holds the kept characters of edited span [start, end).

        A span without any (empty, or inserted text only) gives the empty span where it stands.
        """
        if not self.runs:
            return 0, 0
        here = max(bisect_right(self.runs, start, key=lambda run: run[0]) - 1, 0)
        first: int | None = None
        last = 0
        for i in range(here, len(self.runs)):  # by index: a slice would copy the rest every time
            at, source, length = self.runs[i]
            if at >= end:
                break
            a, b = max(start, at), min(end, at + length)
            if a >= b:
                continue
            if first is None:
                first = source + a - at
            last = source + b - at
        if first is None:
            at, source, length = self.runs[here]
            place = source + min(max(start - at, 0), length)
            return place, place
        return first, last

    def to_edited(self, offset: int) -> int:
        """The edited offset of a source offset; of a deleted character, the place where it stood.

        Inserted text counts as standing after that place.
        """
        here = bisect_right(self.runs, offset, key=lambda run: run[1]) - 1
        if here < 0:
            return 0
        at, source, length = self.runs[here]
        return at + min(offset - source, length)

    def then(self, inner: SourceMap) -> SourceMap:
        """This map composed with `inner`, the map of the text that was edited before."""
        runs: list[tuple[int, int, int]] = []
        j = 0
        for at, source, length in self.runs:
            while j < len(inner.runs) and inner.runs[j][0] + inner.runs[j][2] <= source:
                j += 1
            k = j
            while k < len(inner.runs) and inner.runs[k][0] < source + length:
                i_at, i_source, i_length = inner.runs[k]
                a, b = max(source, i_at), min(source + length, i_at + i_length)
                if a < b:
                    runs.append((at + a - source, i_source + a - i_at, b - a))
                k += 1
        return SourceMap(tuple(runs))


@dataclass(frozen=True, slots=True)
class Read:
    """What was found in a file; None: its format has no such thing.

    Attributes:
        empty_pages, damaged_pages: 1-based numbers of pages that gave no text.
        table_rows: rows of a spreadsheet or CSV file that became text.
    """

    pages: int | None = None
    empty_pages: tuple[int, ...] = ()
    damaged_pages: tuple[int, ...] = ()
    table_rows: int | None = None


NOTHING_COUNTED = Read()


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """Text and structure of one source file.

    Attributes:
        text: what is searched and returned; all offsets are characters (code points) into it.
        blocks: ascending, not overlapping.
        warnings: what a reader should know, one sentence each ("pages 3, 7 have no text").
        source_map: set when `text` was edited after extraction; maps it to the extracted text.
        source_text: the extracted text, set together with `source_map`.
        read: what was found in the file.
    """

    text: str
    blocks: tuple[Block, ...] = ()
    media_type: str = "text/plain"
    extractor: str = ""
    warnings: tuple[str, ...] = ()
    source_map: SourceMap | None = None
    source_text: str | None = None
    read: Read = NOTHING_COUNTED

    @property
    def extracted_text(self) -> str:
        """The text before any cleaning, which `source_span` points into; empty when unknown."""
        if self.source_map is None:
            return self.text
        return self.source_text or ""

    def sections(self) -> Iterator[tuple[int, int]]:
        """Half-open spans that chunks stay within, in order; together they cover all the text."""
        cuts = [b.start for b in self.blocks if b.opens_section and 0 < b.start < len(self.text)]
        yield from pairwise([0, *cuts, len(self.text)])

    def origin(self, start: int, end: int) -> Origin:
        """Where the text of [start, end) comes from."""
        here = max(bisect_right(self.blocks, start, key=lambda b: b.start) - 1, 0)
        touched: list[Origin] = []
        for i in range(here, len(self.blocks)):  # by index: a slice would copy the rest every time
            block = self.blocks[i]
            if block.start >= end:
                break
            if block.end > start:
                touched.append(block.origin)
        return Origin.merged(touched)

    def source_span(self, start: int, end: int) -> tuple[int, int]:
        """Offsets of [start, end) in the extracted text, before any cleaning."""
        return self.source_map.to_source(start, end) if self.source_map else (start, end)


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table, as it stands in its file.

    Attributes:
        number: 1-based, counted as in a spreadsheet.
        cells: line breaks within them are LF; an empty cell is the empty string.
    """

    number: int
    cells: tuple[str, ...]
    sheet: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The rows with content of one source file, sheet after sheet.

    Attributes:
        warnings: what a reader should know, one sentence each.
    """

    rows: tuple[TableRow, ...]
    media_type: str = "text/csv"
    extractor: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChildChunk:
    """A small span of a parent chunk; it is embedded in the parent's place."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of a document.

    Attributes:
        text: the cleaned text, what is indexed and returned.
        start, end: half-open offsets into the *extracted* text (before cleaning).
        position: 1-based in the document.
        children: when not empty, these are embedded and the chunk itself is what is returned.
        answer: set for question-and-answer chunks; `text` is then the question.
    """

    text: str
    start: int
    end: int
    position: int
    origin: Origin = Origin()
    children: tuple[ChildChunk, ...] = ()
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Chunked:
    """What a chunker makes of a document."""

    chunks: tuple[Chunk, ...]
    source_text: str = ""
    """The extracted text that the chunks' offsets point into; empty when unknown."""
    warnings: tuple[str, ...] = ()
    read: Read = NOTHING_COUNTED


@dataclass(frozen=True, slots=True)
class Embeddable:
    """Chunks and the way to embed them, applied lazily: what is stored already is not embedded."""

    chunked: Chunked
    embed: Callable[[Sequence[str]], Vectors]
    """texts -> float32[n, dim], rows in the order of the texts"""


@dataclass(frozen=True, slots=True)
class Indexed:
    """What a run left in the index."""

    points: int
    segments: int
    warnings: tuple[str, ...] = field(default=())
