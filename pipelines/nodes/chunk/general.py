"""General chunks: a flat list of spans, each embedded and returned by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from pipelines.node import Node, RunContext, node
from pipelines.nodes.chunk.splitter import (
    Span,
    check_maximum,
    decode_separator,
    finish,
    fixed_spans,
    recursive_spans,
)
from pipelines.types import Chunk, Chunked, ParsedDocument

# Punctuation and symbols that flat chunks do not start with; `!`, `-` and brackets are kept, as
# they open Markdown images, lists and links.
_SYMBOLS = re.compile("[\u2000-\u206f\u2e00-\u2e7f\u3000-\u303f\"#$%&'()*+,./:;<=>?@^_`~]+")

AUTOMATIC_MAX_CHARS = 500


def overlap_within(overlap_chars: int, max_chars: object, name: str) -> int:
    """The overlap itself, if it is not longer than a chunk.

    Raises:
        ValueError: it is; the message names both.
    """
    if isinstance(max_chars, int) and overlap_chars > max_chars:
        raise ValueError(f"{overlap_chars} is more than {name}, {max_chars}; give at most that")
    return overlap_chars


@node("chunk.general")
class GeneralChunker(Node[ParsedDocument, Chunked]):
    r"""Cut every section of a document into chunks of at most `max_chars` characters.

    Symbols such as `#` or `(` at the very start of a chunk are removed, then white space at both
    ends; what is empty then is dropped.

    Attributes:
        mode: `custom` cuts at every `separator`, and finer only what is still too long; short
            pieces are not merged. `automatic` ignores the separator: it cuts at blank lines,
            sentence ends and spaces as needed and merges neighbours up to `max_chars`.
        separator: as typed by a user; `\n`, `\t` and `\u3002` are decoded. Empty: no cut.
        max_chars: characters (code points), >= 1.
        overlap_chars: at most so many characters at the end of a chunk are repeated at the start
            of the next one, 0 to `max_chars`; never across a separator or section.
    """

    mode: Literal["automatic", "custom"] = "custom"
    separator: str = "\n"
    max_chars: int = Field(default=AUTOMATIC_MAX_CHARS, ge=1)
    overlap_chars: int = Field(default=50, ge=0, validate_default=True)

    @field_validator("overlap_chars")
    @classmethod
    def _fits(cls, value: int, info: ValidationInfo) -> int:
        return overlap_within(value, info.data.get("max_chars"), "max_chars")

    def run(self, value: ParsedDocument, ctx: RunContext) -> Chunked:
        """Chunks in text order.

        Raises:
            NodeError: `max_chars` is above the limit `max_chunk_chars` of this run. The size of
                Dify's automatic rule, 500, is allowed to `automatic` under every limit.
        """
        if self.mode == "custom" or self.max_chars > AUTOMATIC_MAX_CHARS:
            check_maximum(self.max_chars, ctx.limits)
        chunks = tuple(
            Chunk(
                value.text[start:end],
                *value.source_span(start, end),
                position=position,
                origin=value.origin(start, end),
            )
            for position, (start, end) in enumerate(
                finish(value.text, self._spans(value), _SYMBOLS), start=1
            )
        )
        warnings = value.warnings
        if not chunks and value.text.strip():
            warnings += ("the text is punctuation only; no chunk is left of it",)
        return Chunked(chunks, value.extracted_text, warnings, value.read)

    def _spans(self, document: ParsedDocument) -> Iterator[Span]:
        separator = decode_separator(self.separator)
        for start, end in document.sections():
            if self.mode == "automatic":
                yield from recursive_spans(
                    document.text,
                    start,
                    end,
                    max_chars=self.max_chars,
                    overlap_chars=self.overlap_chars,
                )
            else:
                yield from fixed_spans(
                    document.text,
                    start,
                    end,
                    separator=separator,
                    max_chars=self.max_chars,
                    overlap_chars=self.overlap_chars,
                )
