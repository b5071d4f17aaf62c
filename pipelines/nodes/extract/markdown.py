"""Markdown: the text as it is, cut into sections at its headings."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from pipelines.nodes.extract.base import (
    DEFAULTS,
    ExtractOptions,
    HeadingPath,
    check_chars,
    clean,
    library,
    no_text,
)
from pipelines.nodes.extract.encoding import decode
from pipelines.types import Block, Origin, ParsedDocument

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_FRONT_MATTER = re.compile(
    r"---[ \t]*\n(?=[\w\"'-]+[ \t]*:)(?:.*\n)*?(?:---|\.\.\.)[ \t]*(?:\n|\Z)"
)
_MARKUP = re.compile(r"[*_`\[<&\\!]")


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    # Inline rules are the slow half and say nothing about sections.
    parser.core.ruler.enableOnly(["normalize", "block"])
    parser.parse("-")  # compiles the rules here: two threads must not do it at once
    return parser


@cache
def _inline() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    parser.parseInline("-")
    return parser


def extract_markdown(data: bytes, name: str, options: ExtractOptions = DEFAULTS) -> ParsedDocument:
    """The text unchanged (line breaks are LF), with a section per heading.

    Headings are those of CommonMark at the top level: ATX and setext, not inside fences, HTML,
    quotes or lists. What stands before the first one, front matter included, is a section too.
    A section's origin is its heading path, outermost first, its own heading included.

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
        tuple(_sections(text)),
        media_type="text/markdown",
        extractor=library("markdown-it-py"),
        warnings=(decoded.warning,) if decoded.warning else (),
    )


def _sections(text: str) -> list[Block]:
    front = _FRONT_MATTER.match(text)
    skipped = front.end() if front else 0
    body = text[skipped:]
    starts = [skipped]
    for line in body.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    tokens = _parser().parse(body)
    cuts: list[tuple[int, tuple[str, ...]]] = []
    open_headings = HeadingPath()
    for token, content in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:
            open_headings.push(int(token.tag[1:]), plain(content.content))
            cuts.append((starts[token.map[0]], open_headings.path))
    if not cuts or text[: cuts[0][0]].strip():
        cuts.insert(0, (0, ()))
    ends = [start for start, _ in cuts[1:]] + [len(text)]
    blocks = []
    for (start, headings), end in zip(cuts, ends, strict=True):
        end = start + len(text[start:end].rstrip())
        blocks.append(Block(start, end, Origin(headings=headings), opens_section=True))
    return blocks


def plain(inline: str) -> str:
    """The words of inline Markdown: no emphasis marks, links as their text, images as their alt."""
    if not _MARKUP.search(inline):  # almost every heading, and parsing takes 0.1 ms
        return " ".join(inline.split())
    words = []
    for token in _inline().parseInline(inline)[0].children or ():
        if token.type in ("text", "code_inline", "image"):
            words.append(token.content)
        elif token.type in ("softbreak", "hardbreak"):
            words.append(" ")
    return " ".join("".join(words).split())
