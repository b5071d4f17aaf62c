"""Chunkers: cut a parsed document into the spans that are embedded and retrieved."""

from pipelines.nodes.chunk.general import GeneralChunker
from pipelines.nodes.chunk.parent_child import ParentChildChunker
from pipelines.nodes.chunk.qa_rows import QARows
from pipelines.nodes.chunk.qa_text import QAText
from pipelines.nodes.chunk.splitter import (
    MAX_CHUNK_CHARS,
    MIN_CHUNK_CHARS,
    check_limits,
    decode_separator,
)

__all__ = [
    "MAX_CHUNK_CHARS",
    "MIN_CHUNK_CHARS",
    "GeneralChunker",
    "ParentChildChunker",
    "QARows",
    "QAText",
    "check_limits",
    "decode_separator",
]
