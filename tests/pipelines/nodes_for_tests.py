"""Small nodes for graphs in tests; not registered, so that no other test sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field

from pipelines.node import Node, RunContext
from pipelines.types import Blob, Chunk, Chunked, ParsedDocument


class Decode(Node[Blob, ParsedDocument]):
    kind: ClassVar[str] = "extract.decode"

    def run(self, value: Blob, ctx: RunContext) -> ParsedDocument:
        return ParsedDocument(value.data.decode())


class Upper(Node[ParsedDocument, ParsedDocument]):
    kind: ClassVar[str] = "clean.upper"

    def run(self, value: ParsedDocument, ctx: RunContext) -> ParsedDocument:
        return ParsedDocument(value.text.upper())


class Words(Node[ParsedDocument, Chunked]):
    kind: ClassVar[str] = "chunk.words"
    separator: str = " "
    max_chars: int = Field(default=100, gt=0)
    mode: Literal["all", "first"] = "all"
    nested: dict[str, list[str]] = Field(default_factory=dict)

    def run(self, value: ParsedDocument, ctx: RunContext) -> Chunked:
        words = value.text.split(self.separator)[: None if self.mode == "all" else 1]
        return Chunked(
            tuple(Chunk(w[: self.max_chars], 0, len(w), i) for i, w in enumerate(words, start=1))
        )


class Count(Node[Chunked | ParsedDocument, int]):
    kind: ClassVar[str] = "count"

    def run(self, value: Chunked | ParsedDocument, ctx: RunContext) -> int:
        return len(value.chunks) if isinstance(value, Chunked) else 1


class Join(Node[Chunked, ParsedDocument]):
    kind: ClassVar[str] = "join"

    def run(self, value: Chunked, ctx: RunContext) -> ParsedDocument:
        return ParsedDocument(" ".join(chunk.text for chunk in value.chunks))


class Call(Node[ParsedDocument, ParsedDocument]):
    """Does what the test says."""

    kind: ClassVar[str] = "call"
    action: Callable[[RunContext], object]

    def run(self, value: ParsedDocument, ctx: RunContext) -> ParsedDocument:
        self.action(ctx)
        return value


class Lie(Node[ParsedDocument, Chunked]):
    """Gives something else than it says."""

    kind: ClassVar[str] = "lie"

    def run(self, value: ParsedDocument, ctx: RunContext) -> Chunked:
        return "not chunks"  # type: ignore[return-value]


KINDS = {each.kind: each for each in (Decode, Upper, Words, Count, Join, Call, Lie)}
