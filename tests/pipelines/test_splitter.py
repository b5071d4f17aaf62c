"""The span arithmetic: against the written procedure, and that nothing is lost or doubled."""

from __future__ import annotations

import re
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import NodeError
from pipelines.nodes.chunk.splitter import (
    check_limits,
    check_maximum,
    decode_separator,
    finish,
    fixed_spans,
    recursive_spans,
)

NOTHING = re.compile("(?!)")
Span = tuple[int, int]


def fixed(text: str, separator: str, size: int, overlap: int) -> list[str]:
    spans = fixed_spans(
        text, 0, len(text), separator=separator, max_chars=size, overlap_chars=overlap
    )
    return [text[a:b] for a, b in finish(text, spans, NOTHING)]


def recursive(text: str, size: int, overlap: int) -> list[str]:
    spans = recursive_spans(text, 0, len(text), max_chars=size, overlap_chars=overlap)
    return [text[a:b] for a, b in finish(text, spans, NOTHING)]


VECTORS = [
    ("alpha beta\n\ngamma delta\n\n", "\n\n", 50, 0, ["alpha beta", "gamma delta"]),
    ("first\n\n\n\nsecond", "\n\n", 50, 0, ["first", "second"]),
    (
        "alpha beta\n\ngamma delta epsilon zeta",
        "\n\n",
        12,
        0,
        ["alpha beta", "gamma delta", "epsilon zeta"],
    ),
    ("alpha beta gamma delta", "\n", 12, 4, ["alpha beta", "gamma delta"]),
    ("One. Two. Three. Four.", "\n", 8, 0, ["One.", "Two.", "Three.", "Four."]),
    ("x" * 25, "\n", 10, 3, ["x" * 10, "x" * 10, "x" * 10, "x" * 4]),
    ("一。二。三。四。", "|", 4, 0, ["一。二。", "三。四。"]),
    ("一。二。三。四。", "。", 4, 0, ["一", "二", "三", "四"]),
    (
        "word1 word2 word3 word4 word5 word6",
        "\n",
        12,
        6,
        ["word1 word2", "word2 word3", "word3 word4", "word4 word5", "word5 word6"],
    ),
    ("aaaa. bbbb cccc. dddd", "\n", 6, 0, ["aaaa.", "bbbb", "cccc.", "dddd"]),
    ("", "\n", 10, 0, []),
    ("一\r\n\r\n二\n\n三", "\n\n", 10, 0, ["一", "二", "三"]),
    ("a|b", "", 10, 0, ["a|b"]),
    ("a.b", ".", 10, 0, ["a", "b"]),
    ("abc", "\n", 2, 2, ["ab", "bc"]),
]


@pytest.mark.parametrize(("text", "separator", "size", "overlap", "expected"), VECTORS)
def test_fixed_splitter_gives_the_known_chunks(
    text: str, separator: str, size: int, overlap: int, expected: list[str]
) -> None:
    assert fixed(text, separator, size, overlap) == expected


@pytest.mark.parametrize(
    ("text", "size", "overlap", "expected"),
    [
        ("a\n\nb\n\nc", 500, 50, ["a\n\nb\n\nc"]),
        ("one two\n\nthree four", 9, 0, ["one two", "three", "four"]),
        ("abcdefghij", 4, 3, ["abcd", "bcde", "cdef", "defg", "efgh", "fghi", "ghij"]),
        ("你好。再见。明天", 6, 3, ["你好。再见。", "再见。明天"]),
    ],
)
def test_recursive_splitter_merges_small_neighbours(
    text: str, size: int, overlap: int, expected: list[str]
) -> None:
    assert recursive(text, size, overlap) == expected


def test_a_full_stop_is_not_any_character() -> None:
    """With `. ` taken for a regular expression, `a ` would be a sentence end."""
    assert recursive("aaa bbb. ccc ddd\n\n" + "e" * 16, 16, 0) == ["aaa bbb.", "ccc ddd", "e" * 16]


# ---- the written procedure, on lists of character offsets ---------------------------------------

Piece = list[int]
SEPARATORS = ["\n\n", "。", ". ", " ", ""]


def cut(text: str, piece: Piece, separator: str) -> list[Piece]:
    if not separator:
        return [[i] for i in piece]
    pieces: list[Piece] = []
    while (at := "".join(text[i] for i in piece).find(separator)) >= 0:
        pieces.append(piece[: at + len(separator)])
        piece = piece[at + len(separator) :]
    return [p for p in (*pieces, piece) if p]


def merge(pieces: list[Piece], size: int, overlap: int) -> list[Piece]:
    out: list[Piece] = []
    current: list[Piece] = []
    total = 0
    for piece in pieces:
        if total + len(piece) > size and current:
            out.append([*chain(*current)])
            while total > overlap or (total + len(piece) > size and total > 0):
                total -= len(current.pop(0))
        current.append(piece)
        total += len(piece)
    return [*out, [*chain(*current)]]


def characters(piece: Piece, size: int, overlap: int) -> list[Piece]:
    out: list[Piece] = []
    current: Piece = []
    tail: Piece = []
    for i in piece:
        if len(current) + 1 <= size - overlap:
            current = [*current, i]
        elif len(current) + 1 <= size:
            current = [*current, i]
            tail.append(i)
        else:
            out.append(current)
            current, tail = [*tail, i], []
    return [*out, current]


def level(
    text: str, piece: Piece, separators: list[str], size: int, overlap: int, *, first: bool
) -> list[Piece]:
    rank = next(k for k, s in enumerate(separators) if s in "".join(text[i] for i in piece))
    separator, rest = separators[rank], separators[rank + 1 :]
    if first and not separator:
        return characters(piece, size, overlap)
    out: list[Piece] = []
    small: list[Piece] = []
    for part in cut(text, piece, separator):
        if len(part) < size:
            small.append(part)
            continue
        out += merge(small, size, overlap)
        small = []
        out += level(text, part, rest, size, overlap, first=False) if rest else [part]
    return out + merge(small, size, overlap)


def written_procedure(text: str, separator: str | None, size: int, overlap: int) -> list[Span]:
    if separator is None:
        out = level(text, [*range(len(text))], SEPARATORS, size, overlap, first=False)
    else:
        out = []
        at = 0
        for part in text.split(separator):
            piece = [*range(at, at + len(part))]
            if len(piece) > size:
                out += level(text, piece, SEPARATORS, size, overlap, first=True)
            else:
                out.append(piece)
            at += len(part) + len(separator)
    stripped = []
    for piece in out:
        inked = [i for i in piece if text[i].strip()]
        if inked:
            stripped.append((inked[0], inked[-1] + 1))
    # what lies within a neighbour repeats more than the overlap, or nothing but it
    return [
        (a, b)
        for k, (a, b) in enumerate(stripped)
        if not any(d >= b and c <= a for c, d in stripped[:k])
        and not any(c <= a and d > b for c, d in stripped[k + 1 :])
    ]


TEXTS = st.lists(
    st.sampled_from([*"ab。. \n|", "\n\n", ". ", "abc", "abcdefgh", " ab ", "ab. ", "字。"]),
    max_size=30,
).map("".join)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    size = draw(st.integers(1, 14))
    return size, draw(st.integers(0, size))


@given(TEXTS, st.sampled_from([None, "|", "\n", "\n\n", "。", "ab"]), sizes())
def test_spans_follow_the_written_procedure(
    text: str, separator: str | None, limits: tuple[int, int]
) -> None:
    size, overlap = limits
    if overlap == size:  # the procedure makes chunks longer than the maximum here
        overlap -= 1
    if separator is None:
        spans = recursive_spans(text, 0, len(text), max_chars=size, overlap_chars=overlap)
    else:
        spans = fixed_spans(
            text, 0, len(text), separator=separator, max_chars=size, overlap_chars=overlap
        )
    found = [*finish(text, spans, NOTHING)]
    assert found == written_procedure(text, separator, size, overlap)


# ---- properties ---------------------------------------------------------------------------------


@given(TEXTS, sizes(), st.integers(0, 5), st.integers(0, 5))
def test_recursive_spans_cover_every_character(
    text: str, limits: tuple[int, int], head: int, foot: int
) -> None:
    size, overlap = limits
    start, end = min(head, len(text)), max(len(text) - foot, min(head, len(text)))
    spans = [*recursive_spans(text, start, end, max_chars=size, overlap_chars=overlap)]
    assert {i for a, b in spans for i in range(a, b)} == {*range(start, end)}
    assert all(0 < b - a <= size for a, b in spans)
    for (_, stop), (next_start, _) in pairwise(spans):
        assert stop - overlap <= next_start <= stop


@given(TEXTS, st.sampled_from(["|", "\n", "\n\n", "。", "ab", ". "]), sizes())
def test_fixed_spans_cover_every_character_but_the_separators(
    text: str, separator: str, limits: tuple[int, int]
) -> None:
    size, overlap = limits
    spans = [
        *fixed_spans(text, 0, len(text), separator=separator, max_chars=size, overlap_chars=overlap)
    ]
    expected: set[int] = set()
    at = 0
    for piece in text.split(separator):
        expected |= {*range(at, at + len(piece))}
        at += len(piece) + len(separator)
    assert {i for a, b in spans for i in range(a, b)} == expected
    assert all(b - a <= size for a, b in spans)
    for (_, stop), (next_start, _) in pairwise(spans):
        assert stop - overlap <= next_start


@given(TEXTS, sizes())
def test_finished_spans_advance_and_keep_every_letter(text: str, limits: tuple[int, int]) -> None:
    size, overlap = limits
    raw = recursive_spans(text, 0, len(text), max_chars=size, overlap_chars=overlap)
    spans = [*finish(text, raw, NOTHING)]
    assert all(text[a:b] == text[a:b].strip() != "" for a, b in spans)
    for (a, b), (c, d) in pairwise(spans):
        assert a < c
        assert b < d
        assert b - overlap <= c
    done = 0
    joined = ""
    for a, b in spans:
        joined += text[max(a, done) : b]
        done = b
    assert "".join(joined.split()) == "".join(text.split())


@pytest.mark.parametrize("unit", ["x", " ", "word ", "字。", "x\n", "\n", "a. "])
def test_a_large_text_is_split_in_linear_time(unit: str) -> None:
    """Two million characters: linear takes a second or two, quadratic would take hours."""
    text = unit * (2_000_000 // len(unit))
    inked = len("".join(text.split()))
    chunks = fixed(text, "|", 500, 0)
    assert sum(len("".join(chunk.split())) for chunk in chunks) == inked


# ---- separators and limits ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "separator"),
    [
        (r"\n", "\n"),
        (r"\n\n", "\n\n"),
        (r"\t", "\t"),
        (r"\\n", r"\n"),
        (r"\u3002", "。"),
        (r"\x2c\U0001F600", ",😀"),
        ("。", "。"),
        ("。\\n", "。\n"),
        ("é\\u00e9", "éé"),
        ("\n", "\n"),
        ("\\", "\\"),
        (r"a\d\u30", r"a\d\u30"),
        (r"\UFFFFFFFF", r"\UFFFFFFFF"),
        ("***", "***"),
        ("", ""),
    ],
)
def test_escapes_are_decoded_and_all_else_is_literal(typed: str, separator: str) -> None:
    assert decode_separator(typed) == separator


@pytest.mark.parametrize(("size", "overlap"), [(50, 0), (4000, 4000), (500, 50)])
def test_limits_of_a_process_rule_are_inclusive(size: int, overlap: int) -> None:
    check_limits(size, overlap)


@pytest.mark.parametrize(
    ("size", "overlap", "maximum", "message"),
    [
        (49, 0, 4000, "segmentation: .* 49 characters; .* 50 to 4000"),
        (4001, 0, 4000, "4001 characters; .* 50 to 4000"),
        (1001, 0, 1000, "1001 characters; .* 50 to 1000"),
        (500, 501, 4000, "overlap is 501 characters; .* 0 to .* 500"),
        (500, -1, 4000, "overlap is -1 characters"),
    ],
)
def test_a_process_rule_outside_the_limits_names_value_and_bound(
    size: int, overlap: int, maximum: int, message: str
) -> None:
    with pytest.raises(NodeError, match=message) as caught:
        check_limits(size, overlap, maximum=maximum)
    assert caught.value.code == "invalid_process_rule"


def test_the_rule_that_is_wrong_is_named() -> None:
    with pytest.raises(NodeError, match=r"^subchunk_segmentation: "):
        check_limits(10, 0, rule="subchunk_segmentation")


def test_only_a_limit_that_is_set_is_enforced() -> None:
    check_maximum(10_000, {})
    check_maximum(10_000, {"max_chunk_chars": 10_000})
    with pytest.raises(NodeError, match="10001 characters; at most 10000") as caught:
        check_maximum(10_001, {"max_chunk_chars": 10_000})
    assert caught.value.code == "invalid_process_rule"
