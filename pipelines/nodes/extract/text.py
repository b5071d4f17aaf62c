"""Plain text."""

from __future__ import annotations

from pipelines.nodes.extract.base import DEFAULTS, ExtractOptions, check_chars, clean, no_text
from pipelines.nodes.extract.encoding import decode
from pipelines.types import Block, ParsedDocument


def extract_text(data: bytes, name: str, options: ExtractOptions = DEFAULTS) -> ParsedDocument:
    """The whole text in one block; line breaks are LF, control characters are left out.

    Raises:
        ExtractionError: `no_text`, nothing but white space; `limit_exceeded`.
    """
    decoded = decode(data)
    text = clean(decoded.text)
    if not text.strip():
        raise no_text(name, "holds nothing but white space")
    check_chars(len(text), name, options)
    return ParsedDocument(
        text,
        (Block(0, len(text)),),
        media_type="text/plain",
        extractor=f"text {decoded.encoding}",
        warnings=(decoded.warning,) if decoded.warning else (),
    )
