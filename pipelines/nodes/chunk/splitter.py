"""Span arithmetic of the chunkers: where to cut, as half-open offsets; no text is copied or made.

The procedure is that of Dify's splitters (fixed separator first, then ever finer natural borders),
with three repairs. Every result is a contiguous span, so the separators between merged pieces are
kept, spaces too. Separators are always literal text. A span that adds nothing to its neighbours
(a repeated overlap) is left out.

Lengths are characters (code points).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache

from pipelines.errors import NodeError

Span = tuple[int, int]

MIN_CHUNK_CHARS = 50
MAX_CHUNK_CHARS = 4000
"""Default upper bound of a process rule; `RunContext.limits["max_chunk_chars"]` replaces it."""

_ESCAPE = re.compile(
    r"""\\(?:[abfnrtv\\'"]|[0-7]{1,3}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}"""
    r"""|U00(?:0[0-9A-Fa-f]|10)[0-9A-Fa-f]{4})"""
)


def check_limits(
    max_chars: int,
    overlap_chars: int,
    *,
    maximum: int = MAX_CHUNK_CHARS,
    rule: str = "segmentation",
) -> None:
    """Whether a process rule may ask for chunks of this size.

    Args:
        maximum: largest `max_chars` allowed, inclusive.
        rule: what the message calls the place of the two values.

    Raises:
        NodeError: code `invalid_process_rule`.
    """
    if not MIN_CHUNK_CHARS <= max_chars <= maximum:
        raise NodeError(
            f"{rule}: the maximum chunk length is {max_chars} characters;"
            f" choose a value from {MIN_CHUNK_CHARS} to {maximum}",
            code="invalid_process_rule",
        )
    if overlap_chars < 0 or overlap_chars > max_chars:
        raise NodeError(
            f"{rule}: the chunk overlap is {overlap_chars} characters;"
            f" choose a value from 0 to the maximum chunk length, {max_chars}",
            code="invalid_process_rule",
        )


def check_maximum(max_chars: int, limits: dict[str, int]) -> None:
    """Whether the operator's limit `max_chunk_chars`, if there is one, allows this chunk size.

    Raises:
        NodeError: code `invalid_process_rule`.
    """
    maximum = limits.get("max_chunk_chars")
    if maximum is not None and max_chars > maximum:
        raise NodeError(
            f"the maximum chunk length is {max_chars} characters; at most {maximum} are allowed",
            code="invalid_process_rule",
        )


def decode_separator(typed: str) -> str:
    r"""The separator that a user means who can only type one line.

    `\n`, `\t`, `\\`, `\x2c`, `\u3002` and the other escapes of a Python string are decoded (except
    `\N{...}`). Everything else is literal: text outside ASCII, unknown or unfinished escapes, a
    backslash at the end.
    """
    return _ESCAPE.sub(lambda escape: escape[0].encode("ascii").decode("unicode_escape"), typed)


@lru_cache(maxsize=256)
def _literal(separator: str) -> re.Pattern[str]:
    """Finds the separator; a line feed in it also stands for a Windows line end."""
    return re.compile(r"\r?\n".join(re.escape(part) for part in separator.split("\n")))


_BORDERS = tuple(_literal(border) for border in ("\n\n", "。", ". ", " "))  # last: characters


def fixed_spans(
    text: str, start: int, end: int, *, separator: str, max_chars: int, overlap_chars: int
) -> Iterator[Span]:
    """Cut [start, end) at every separator, and only what is then too long at natural borders.

    Short neighbours are not merged, overlap never crosses a separator, the separator itself
    belongs to no span. Spans may be blank; see `finish`.

    Args:
        separator: literal, already decoded; empty does not cut at all.
    """
    at = start
    cuts = _literal(separator).finditer(text, start, end) if separator else ()
    for cut in cuts:
        yield from _fitted(text, at, cut.start(), max_chars, overlap_chars)
        at = cut.end()
    yield from _fitted(text, at, end, max_chars, overlap_chars)


def recursive_spans(
    text: str, start: int, end: int, *, max_chars: int, overlap_chars: int
) -> Iterator[Span]:
    """Cut [start, end) at natural borders and merge neighbours up to `max_chars`.

    Natural borders are blank lines; in a paragraph that is too long `。`; then `. `, spaces and
    single characters. The spans overlap by whole pieces of at most `overlap_chars` together.
    Spans may be blank; see `finish`.
    """
    yield from _recursive(text, start, end, 0, max_chars, overlap_chars, outermost=False)


def finish(text: str, spans: Iterable[Span], leading: re.Pattern[str]) -> Iterator[Span]:
    """Take what `leading` matches off the start of each span, then white space off both ends.

    Blank spans are dropped, and spans that lie within the next or the previous one: starts and
    ends of the result both ascend strictly.
    """
    held: Span | None = None
    for start, end in spans:
        lead = leading.match(text, start, end)
        piece = text[lead.end() if lead else start : end].rstrip()
        end = (lead.end() if lead else start) + len(piece)
        start = end - len(piece.lstrip())
        if start == end or (held and end <= held[1]):
            continue
        if held and held[0] < start:
            yield held
        held = (start, end)
    if held:
        yield held


def _fitted(text: str, start: int, end: int, size: int, overlap: int) -> Iterator[Span]:
    if end - start <= size:
        yield start, end
    else:
        yield from _recursive(text, start, end, 0, size, overlap, outermost=True)


def _recursive(
    text: str, start: int, end: int, rank: int, size: int, overlap: int, *, outermost: bool
) -> Iterator[Span]:
    """Cut at the first border from `rank` on that occurs; recursion is as deep as `_BORDERS`."""
    while rank < len(_BORDERS) and not _BORDERS[rank].search(text, start, end):
        rank += 1
    if rank == len(_BORDERS):
        yield from _characters(start, end, size, overlap, forgetful=outermost)
        return
    open_starts: deque[int] = deque()  # of the pieces in the open span
    for a, b in _pieces(text, start, end, _BORDERS[rank]):
        if b - a >= size:
            if open_starts:
                yield open_starts[0], a
                open_starts.clear()
            yield from _recursive(text, a, b, rank + 1, size, overlap, outermost=False)
            continue
        if open_starts and b - open_starts[0] > size:
            yield open_starts[0], a
            while open_starts and (a - open_starts[0] > overlap or b - open_starts[0] > size):
                open_starts.popleft()
        open_starts.append(a)
    if open_starts:
        yield open_starts[0], end


def _pieces(text: str, start: int, end: int, border: re.Pattern[str]) -> Iterator[Span]:
    """[start, end) cut behind every border; together the pieces are all of it, none is empty."""
    for match in border.finditer(text, start, end):
        yield start, match.end()
        start = match.end()
    if start < end:
        yield start, end


def _characters(
    start: int, end: int, size: int, overlap: int, *, forgetful: bool
) -> Iterator[Span]:
    """Spans of `size` characters, each starting `overlap` before the end of the last.

    Args:
        forgetful: the procedure for a text without any border: only characters that the last span
            was the first to hold are repeated, so an overlap above half the size is not reached.
    """
    seen = start - 1
    while end - start > size:
        stop = start + size
        yield start, stop
        start = max(stop - overlap, start + 1, seen + 1 if forgetful else start)
        seen = stop
    if start < end:
        yield start, end
