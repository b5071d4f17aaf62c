"""SourceMap against the slow way: a list with the source offset of every edited character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.types import Block, Origin, ParsedDocument, SourceMap

Offsets = list[int | None]
"""For every edited character the source offset it was kept from; None where it was inserted."""


@st.composite
def edits(draw: st.DrawFn, length: int | None = None) -> tuple[int, Offsets]:
    """A source length, and what an edit of it left and put in."""
    size = draw(st.integers(0, 30)) if length is None else length
    offsets: Offsets = []
    for offset in range(size):
        offsets += [None] * draw(st.sampled_from([0, 0, 0, 1, 2]))
        if draw(st.booleans()):
            offsets.append(offset)
    return size, offsets + [None] * draw(st.integers(0, 2))


def as_map(offsets: Offsets) -> SourceMap:
    runs: list[tuple[int, int, int]] = []
    for at, offset in enumerate(offsets):
        if offset is None:
            continue
        if runs and runs[-1][0] + runs[-1][2] == at and runs[-1][1] + runs[-1][2] == offset:
            runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((at, offset, 1))
    return SourceMap(tuple(runs))


@given(edits(), st.data())
def test_a_span_leads_to_the_smallest_source_span_of_its_kept_characters(
    edit: tuple[int, Offsets], data: st.DataObject
) -> None:
    _, offsets = edit
    start = data.draw(st.integers(0, len(offsets)))
    end = data.draw(st.integers(start, len(offsets)))
    kept = [offset for offset in offsets[start:end] if offset is not None]
    source = as_map(offsets).to_source(start, end)
    if kept:
        assert source == (kept[0], kept[-1] + 1)
    else:
        before = [offset for offset in offsets[:start] if offset is not None]
        after = [offset for offset in offsets[end:] if offset is not None]
        assert source[0] == source[1]
        assert (before[-1] + 1 if before else 0) <= source[0]
        assert not after or source[0] <= after[0]


@given(edits())
def test_to_edited_finds_kept_characters_and_the_place_of_deleted_ones(
    edit: tuple[int, Offsets],
) -> None:
    size, offsets = edit
    source_map = as_map(offsets)
    places = [source_map.to_edited(offset) for offset in range(size + 1)]
    assert places == sorted(places)
    for offset in range(size):
        if offset in offsets:
            assert places[offset] == offsets.index(offset)
        else:
            before = [at for at, o in enumerate(offsets) if o is not None and o < offset]
            assert places[offset] == (before[-1] + 1 if before else 0)


@given(edits(), st.data())
def test_then_leads_through_two_edits(edit: tuple[int, Offsets], data: st.DataObject) -> None:
    _, inner = edit
    _, outer = data.draw(edits(len(inner)))
    through = [None if offset is None else inner[offset] for offset in outer]
    composed = as_map(outer).then(as_map(inner))
    expanded: Offsets = [None] * len(through)
    for at, source, length in composed.runs:
        expanded[at : at + length] = range(source, source + length)
    assert expanded == through


@pytest.mark.parametrize(
    ("span", "source"),
    [((0, 1), (3, 3)), ((1, 3), (3, 5)), ((2, 2), (4, 4)), ((3, 4), (5, 5)), ((0, 6), (3, 9))],
)
def test_inserted_text_and_empty_spans_lead_to_where_they_stand(
    span: tuple[int, int], source: tuple[int, int]
) -> None:
    # edited: one inserted, source 3-4, one inserted, source 7-8
    assert SourceMap(((1, 3, 2), (4, 7, 2))).to_source(*span) == source


def test_a_map_without_runs_leads_to_the_start() -> None:
    assert SourceMap(()).to_source(0, 5) == (0, 0)


def test_many_lookups_in_a_large_map_do_not_copy_it() -> None:
    """100,000 lookups in 100,000 runs: with a copy of the rest at each it would take minutes."""
    n = 100_000
    source_map = SourceMap(tuple((i, 2 * i, 1) for i in range(n)))
    assert [source_map.to_source(i, i + 1)[0] for i in range(n)] == list(range(0, 2 * n, 2))


def test_the_origin_of_a_span_covers_the_blocks_it_touches() -> None:
    blocks = tuple(Block(i, i + 10, Origin(page=i // 10 + 1)) for i in range(0, 100_000, 10))
    document = ParsedDocument("x" * 100_000, blocks)
    assert document.origin(15, 31) == Origin(page=2, page_end=4)
    assert [document.origin(i, i + 1).page for i in range(0, 100_000, 10)] == [*range(1, 10_001)]


def test_the_extracted_text_is_the_text_itself_until_it_is_edited() -> None:
    assert ParsedDocument("a").extracted_text == "a"
    source_map = SourceMap(((0, 0, 1),))
    assert ParsedDocument("a", source_map=source_map, source_text="ab").extracted_text == "ab"
    assert ParsedDocument("a", source_map=source_map).extracted_text == ""
