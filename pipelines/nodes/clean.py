"""Cleaning: remove what disturbs search from an extracted text, and remember what stood where."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from pipelines.node import Node, RunContext, node
from pipelines.types import Block, ParsedDocument, SourceMap

Edit = tuple[int, int, str]
"""[start, end) of a text and what takes its place; a list of edits ascends without overlap."""
Run = tuple[int, int, int]
"""(edited offset, source offset, length) as in SourceMap."""

# Dify deletes U+00EF, U+00BF and U+00BE as well: the UTF-8 bytes of the noncharacter U+FFFE taken
# for code points. That eats `ï`, `¿` and `¾` out of Latin text; the noncharacter is what is meant.
# CR LF becomes LF, as for a file that is opened in text mode; else a separator of two line feeds
# would not be found in a Windows file.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe]|\r(?=\n)")
_OPENING = re.compile(r"<\|")
_CLOSING = re.compile(r"\|>")
_NEWLINES = re.compile(r"\n{3,}")
_SPACES = re.compile("[\t\f\r \u00a0\u1680\u180e\u2000-\u200a\u202f\u205f\u3000]{2,}")
_LOCAL_PART = string.ascii_letters + string.digits + "_.+-"
_DOMAIN = re.compile(r"@[a-zA-Z0-9-]+\.[a-zA-Z0-9.-]+")
_URL = re.compile(r"https?://[^\s)]+")
# A Markdown image up to its URL. The alternative text stays on one line and may hold one level of
# brackets. Possessive, so that a page of "![" without an end is read once and not once per "![".
_IMAGE = re.compile(r"!\[((?:[^\[\]\n]++|\[[^\[\]\n]*+\])*+)\]\(https?://")
_URL_END = re.compile(r"[\s)]|\Z")


@node("clean")
class Clean(Node[ParsedDocument, ParsedDocument]):
    """Remove control characters and what the options say; every section is cleaned by itself.

    Always: `<|` becomes `<`, `|>` becomes `>`, control characters and U+FFFE are deleted (not tab
    and line feed), CR LF becomes LF. Blocks move along with the text; the result's `source_map`
    leads back to the extracted text, also when the document was edited before.

    Attributes:
        remove_extra_spaces: three or more line feeds become two, two or more other white space
            characters become one space.
        remove_urls_emails: e-mail addresses and `http(s)://` up to white space or `)` are deleted.
            A Markdown image keeps its URL; its alternative text becomes `image`.
    """

    remove_extra_spaces: bool = True
    remove_urls_emails: bool = False

    def run(self, value: ParsedDocument, ctx: RunContext) -> ParsedDocument:
        """The cleaned document; the same one when there is nothing to clean. Linear in the text."""
        steps = [_markers(_OPENING, keep=0), _markers(_CLOSING, keep=1), _control_characters]
        if self.remove_extra_spaces:
            steps += [_blank_lines, _extra_spaces]
        if self.remove_urls_emails:
            steps += [_emails, _urls]
        text, runs, blocks = _cleaned(value, steps)
        if text == value.text:
            return value
        source_map = SourceMap(runs)
        return replace(
            value,
            text=text,
            blocks=blocks,
            source_map=source_map.then(value.source_map) if value.source_map else source_map,
            source_text=value.text if value.source_map is None else value.source_text,
        )


Step = Callable[[str], Iterator[Edit]]


def _cleaned(
    document: ParsedDocument, steps: list[Step]
) -> tuple[str, tuple[Run, ...], tuple[Block, ...]]:
    """The cleaned text, the runs that were kept of the old one, and the blocks moved along."""
    parts: list[str] = []
    runs: list[Run] = []
    blocks: list[Block] = []
    at = 0  # where the section begins in the cleaned text
    for start, end in document.sections():
        text, kept = _edited(document.text[start:end], steps)
        blocks += [
            replace(
                block,
                start=at
                + (kept.to_edited(block.start - start) if block.start < end else len(text)),
                end=at + (kept.to_edited(block.end - start) if block.end < end else len(text)),
            )
            for block in _blocks_of(document, len(blocks), end)
        ]
        for edited, source, length in kept.runs:
            last = runs[-1] if runs else (0, 0, 0)
            if last[0] + last[2] == at + edited and last[1] + last[2] == start + source:
                runs[len(runs) - 1 :] = [(last[0], last[1], last[2] + length)]
            else:
                runs.append((at + edited, start + source, length))
        parts.append(text)
        at += len(text)
    return "".join(parts), tuple(runs), tuple(blocks)


def _blocks_of(document: ParsedDocument, first: int, end: int) -> Iterator[Block]:
    """The blocks from index `first` on that begin before `end`, or all if the text ends there."""
    for i in range(first, len(document.blocks)):
        if document.blocks[i].start >= end and end < len(document.text):
            return
        yield document.blocks[i]


def _edited(text: str, steps: list[Step]) -> tuple[str, SourceMap]:
    """The text after all the steps, each working on what the one before has left."""
    kept = SourceMap(((0, 0, len(text)),) if text else ())
    for step in steps:
        edits = list(step(text))
        if edits:
            text, runs = _applied(text, edits)
            kept = runs.then(kept)
    return text, kept


def _applied(text: str, edits: Iterable[Edit]) -> tuple[str, SourceMap]:
    parts: list[str] = []
    runs: list[Run] = []
    at = done = 0
    for start, end, insert in (*edits, (len(text), len(text), "")):
        if start > done:
            parts.append(text[done:start])
            runs.append((at, done, start - done))
            at += start - done
        parts.append(insert)
        at += len(insert)
        done = end
    return "".join(parts), SourceMap(tuple(runs))


def _markers(pattern: re.Pattern[str], *, keep: int) -> Step:
    """Of each two-character match only the character with index `keep` stays."""

    def step(text: str) -> Iterator[Edit]:
        for match in pattern.finditer(text):
            drop = match.start() + 1 - keep
            yield drop, drop + 1, ""

    return step


def _control_characters(text: str) -> Iterator[Edit]:
    for match in _CONTROL.finditer(text):
        yield *match.span(), ""


def _blank_lines(text: str) -> Iterator[Edit]:
    for match in _NEWLINES.finditer(text):
        yield match.start() + 2, match.end(), ""


def _extra_spaces(text: str) -> Iterator[Edit]:
    for match in _SPACES.finditer(text):
        start, end = match.span()
        if text[start] == " ":  # keep it rather than put a new one in its place
            yield start + 1, end, ""
        else:
            yield start, end, " "


def _emails(text: str) -> Iterator[Edit]:
    """E-mail addresses outside images.

    The local part is sought backwards from each `@`: a pattern that begins with it would read a
    long word without `@` again from every one of its characters.
    """
    for start, end in _between(_images(text), len(text)):
        for match in _DOMAIN.finditer(text, start, end):
            before = text[start : match.start()]
            local = len(before) - len(before.rstrip(_LOCAL_PART))
            if local:
                yield match.start() - local, match.end(), ""
            start = match.end() if local else match.start() + 1


def _urls(text: str) -> Iterator[Edit]:
    """URLs outside images, and the alternative texts of images."""
    images = list(_images(text))
    edits = [
        (*match.span(), "")
        for start, end in _between(images, len(text))
        for match in _URL.finditer(text, start, end)
    ]
    edits += [(*alternative, "image") for _, _, alternative in images]
    yield from sorted(edits)


def _images(text: str) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Start and end of every Markdown image with a web address, and its alternative text's span."""
    done = stop = 0
    for head in _IMAGE.finditer(text):
        if head.start() < done:  # in the URL of the image before
            continue
        if stop < head.end():  # else the end sought for an earlier head is this one's as well
            end = _URL_END.search(text, head.end())
            stop = end.start() if end else len(text)
        if stop > head.end() and text[stop : stop + 1] == ")":
            done = stop + 1
            yield head.start(), done, head.span(1)


def _between(
    images: Iterable[tuple[int, int, tuple[int, int]]], length: int
) -> Iterator[tuple[int, int]]:
    """The stretches of a text before, between and after its images."""
    start = 0
    for image_start, image_end, _ in images:
        yield start, image_start
        start = image_end
    yield start, length
