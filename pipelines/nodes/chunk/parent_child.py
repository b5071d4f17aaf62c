"""Parent-child chunks: small spans are embedded, the larger span around them is returned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from pipelines.errors import NodeError
from pipelines.node import Node, RunContext, node
from pipelines.nodes.chunk.general import overlap_within
from pipelines.nodes.chunk.splitter import (
    Span,
    check_maximum,
    decode_separator,
    finish,
    fixed_spans,
)
from pipelines.types import Block, ChildChunk, Chunk, Chunked, Origin, ParsedDocument

_ONE_STOP = re.compile("[.。]")


@node("chunk.parent_child")
class ParentChildChunker(Node[ParsedDocument, Chunked]):
    r"""Cut a document into parents, and each parent into children.

    One full stop (`.` or `。`) at the very start of a parent or child is removed, then white space
    at both ends; what is empty then is dropped. A parent that keeps no child has none and is
    embedded itself.

    Attributes:
        parent_mode: `paragraph` cuts every section at `separator`, and finer only what is still
            too long. `full-doc` makes one parent of the whole extracted text, as it was before
            cleaning; `separator`, `max_chars` and `overlap_chars` then do nothing.
        separator, child_separator: as typed by a user; `\n`, `\t` and `\u3002` are decoded.
            Empty: no cut.
        max_chars, child_max_chars: characters (code points), >= 1.
        overlap_chars, child_overlap_chars: at most so many characters at the end of a span are
            repeated at the start of the next one, 0 to the maximum; never across a separator.
    """

    parent_mode: Literal["paragraph", "full-doc"] = "paragraph"
    separator: str = "\n\n"
    max_chars: int = Field(default=1024, ge=1)
    overlap_chars: int = Field(default=0, ge=0)
    child_separator: str = "\n"
    child_max_chars: int = Field(default=512, ge=1)
    child_overlap_chars: int = Field(default=0, ge=0)

    @field_validator("overlap_chars", "child_overlap_chars")
    @classmethod
    def _fits(cls, value: int, info: ValidationInfo) -> int:
        maximum = str(info.field_name).replace("overlap_chars", "max_chars")
        return overlap_within(value, info.data.get(maximum), maximum)

    def run(self, value: ParsedDocument, ctx: RunContext) -> Chunked:
        """Parents in text order, each with its children in text order.

        Raises:
            NodeError: a maximum is above the limit `max_chunk_chars` of this run; or full-doc is
                asked for and the document was edited without keeping the extracted text.
        """
        check_maximum(self.child_max_chars, ctx.limits)
        if self.parent_mode == "full-doc":
            document = _uncleaned(value)
            parents: Iterator[Span] = iter([(0, len(document.text))])
        else:
            check_maximum(self.max_chars, ctx.limits)
            document = value
            parents = self._paragraphs(value)
        chunks = tuple(
            Chunk(
                document.text[start:end],
                *document.source_span(start, end),
                position=position,
                origin=document.origin(start, end),
                children=tuple(self._children(document, start, end)),
            )
            for position, (start, end) in enumerate(
                finish(document.text, parents, _ONE_STOP), start=1
            )
        )
        warnings = value.warnings
        if not chunks and value.text.strip():
            warnings += ("the text is a full stop only; no chunk is left of it",)
        return Chunked(chunks, value.extracted_text, warnings, value.read)

    def children_of(self, text: str) -> list[str]:
        """The children of a parent that somebody wrote, in order; empty: it is embedded itself."""
        return [child.text for child in self._children(ParsedDocument(text), 0, len(text))]

    def _paragraphs(self, document: ParsedDocument) -> Iterator[Span]:
        separator = decode_separator(self.separator)
        for start, end in document.sections():
            yield from fixed_spans(
                document.text,
                start,
                end,
                separator=separator,
                max_chars=self.max_chars,
                overlap_chars=self.overlap_chars,
            )

    def _children(self, document: ParsedDocument, start: int, end: int) -> Iterator[ChildChunk]:
        spans = fixed_spans(
            document.text,
            start,
            end,
            separator=decode_separator(self.child_separator),
            max_chars=self.child_max_chars,
            overlap_chars=self.child_overlap_chars,
        )
        for a, b in finish(document.text, spans, _ONE_STOP):
            yield ChildChunk(document.text[a:b], *document.source_span(a, b))


def _uncleaned(document: ParsedDocument) -> ParsedDocument:
    """The document as it was extracted, with one block that says which pages it covers.

    Headings, sheet and rows are left out: those of the first piece would not be true of the whole.

    Raises:
        NodeError: the extracted text is not known.
    """
    if document.source_map is not None and document.source_text is None:
        raise NodeError(
            "full-doc needs the extracted text, but the document has a source_map without a"
            " source_text; set both where the text is edited, or use parent_mode 'paragraph'"
        )
    text = document.extracted_text
    whole = document.origin(0, len(document.text))
    pages = Origin(page=whole.page, page_end=whole.page_end)
    return ParsedDocument(text, blocks=(Block(0, len(text), pages),))
